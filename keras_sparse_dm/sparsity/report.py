"""Report on a model's sparse kernels."""

import html
import io
from dataclasses import asdict, dataclass, field

import numpy as np
from keras import ops
from rich.console import Console

from keras_sparse_dm.sparsity.columns import html_table_of_columns, text_table
from keras_sparse_dm.sparsity.install import innermost_sparse_optimizer
from keras_sparse_dm.sparsity.kernels import check_is_layer, masked_kernels, what_is_left_alone

# More kernels than this, in one part of a model and with the same reason, share a line.
MANY_LEFT_ALONE = 8


@dataclass(frozen=True)
class KernelReport:
    """Report on one sparse kernel.

    Attributes:
        name, shape, size: Name, shape and number of weights, including pruned ones.
        active: Number of active weights, by the mask.
        nonzeros: Number of nonzero weights; newly grown weights may still be zero.
        trainable: False for the kernel of a frozen layer.
        asked: Density that `sparsify` was asked for; None if it did not make the mask.
        structure: Structure of the mask, such as `"blocks of 4"` or `"2:4"`; None for single
            weights.
        dead_outputs: Number of output features without active weights.
        unused_inputs: Number of input features without active weights.
        exchanged: Number of weights that the last topology update grew.
        active_at_start: Number of weights that were active at the start of sparse training; None
            before it.
        exchanged_since_start: Share of these weights that are no longer active, or None.
        ever_active: Share of all weights that have ever been active (in-time
            over-parameterization rate, Liu et al. 2021), or None.
    """

    name: str
    shape: tuple
    size: int
    active: int
    nonzeros: int
    trainable: bool = True
    asked: float | None = None
    structure: str | None = None
    dead_outputs: int = 0
    unused_inputs: int = 0
    exchanged: int = 0
    active_at_start: int | None = None
    exchanged_since_start: float | None = None
    ever_active: float | None = None

    @property
    def density(self):
        """Share of active weights, 0 to 1."""
        return self.active / self.size


@dataclass(frozen=True)
class SparsityReport:
    """Report on a model's sparse kernels; prints as a table, in a notebook as HTML.

    Attributes:
        kernels: Tuple of `KernelReport`.
        parameters: Number of trainable parameters of the model, including pruned ones.
        left_alone: `{kernel name: reason}` of kernels that `sparsify` could not make sparse or
            was told to leave dense; the totals exclude them.
    """

    kernels: tuple
    parameters: int
    left_alone: dict = field(default_factory=dict)

    @property
    def size(self):
        """Number of weights in sparse kernels, including pruned ones."""
        return sum(k.size for k in self.kernels)

    @property
    def active(self):
        """Number of active weights in sparse kernels, by the masks."""
        return sum(k.active for k in self.kernels)

    @property
    def nonzeros(self):
        """Number of nonzero weights in sparse kernels; newly grown weights may still be zero."""
        return sum(k.nonzeros for k in self.kernels)

    @property
    def sparsity(self):
        """Share of pruned weights in sparse kernels, 0 to 1."""
        return 1.0 - self.active / self.size

    @property
    def active_parameters(self):
        """Number of trainable parameters that are not pruned, including biases and the like."""
        return self.parameters - sum(k.size - k.active for k in self.kernels if k.trainable)

    @property
    def exchanged(self):
        """Share of the active weights that the last topology update grew."""
        return sum(k.exchanged for k in self.kernels) / max(1, self.active)

    @property
    def exchanged_since_start(self):
        """Share of the weights active at the start that are no longer active, or None."""
        known = [k for k in self.kernels if k.active_at_start is not None]
        if not known:
            return None
        gone = sum(k.exchanged_since_start * k.active_at_start for k in known)
        return gone / max(1, sum(k.active_at_start for k in known))

    @property
    def ever_active(self):
        """Share of the weights in sparse kernels that have ever been active, or None."""
        known = [k for k in self.kernels if k.ever_active is not None]
        if not known:
            return None
        return sum(k.ever_active * k.size for k in known) / sum(k.size for k in known)

    def to_dict(self):
        """Return the report as a dictionary of plain numbers, strings and lists."""
        return {
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "sparsity": self.sparsity,
            "active": self.active,
            "nonzeros": self.nonzeros,
            "exchanged": self.exchanged,
            "exchanged_since_start": self.exchanged_since_start,
            "ever_active": self.ever_active,
            "left_alone": dict(self.left_alone),
            "kernels": [
                {**asdict(k), "shape": list(k.shape), "density": k.density} for k in self.kernels
            ],
        }

    def _columns(self):
        """Return `[(header, total, cells)]`, without columns that hold no information."""
        kernels = self.kernels
        columns = [
            ("kernel", "total", [k.name for k in kernels]),
            ("shape", f"{len(kernels)} kernels", [" x ".join(map(str, k.shape)) for k in kernels]),
            (
                "density",
                f"{self.active / self.size:.4f}",
                [f"{k.density:.4f}" for k in kernels],
            ),
        ]
        if any(k.asked is not None and abs(k.asked - k.density) > 5e-5 for k in kernels):
            asked = [f"{k.asked:.4f}" if k.asked is not None else "" for k in kernels]
            columns.append(("asked", "", asked))
        columns += [
            (
                "active",
                f"{self.active:,} of {self.size:,}",
                [f"{k.active:,} of {k.size:,}" for k in kernels],
            ),
            ("nonzero", f"{self.nonzeros:,}", [f"{k.nonzeros:,}" for k in kernels]),
        ]
        if any(k.structure for k in kernels):
            columns.append(("structure", "", [k.structure or "" for k in kernels]))
        for header, name in (("dead outputs", "dead_outputs"), ("unused inputs", "unused_inputs")):
            counts = [getattr(k, name) for k in kernels]
            if any(counts):
                columns.append((header, f"{sum(counts):,}", [f"{count:,}" for count in counts]))
        if any(k.exchanged for k in kernels):
            shares = [k.exchanged / max(1, k.active) for k in kernels]
            columns.append(("last update", f"{self.exchanged:.2%}", [f"{s:.2%}" for s in shares]))
        if any(k.exchanged_since_start for k in kernels):
            for header, name, total in (
                ("since start", "exchanged_since_start", f"{self.exchanged_since_start:.2%}"),
                ("ever active", "ever_active", f"{self.ever_active:.2%}"),
            ):
                shares = [getattr(k, name) for k in kernels]
                cells = ["" if share is None else f"{share:.2%}" for share in shares]
                columns.append((header, total, cells))
        return columns

    def _left_alone_lines(self):
        """List a line for each kernel left alone, or one line for a whole part of the model."""
        parts = {}
        for name, reason in self.left_alone.items():
            parts.setdefault((name.split("/")[0], reason), []).append(name)
        lines = []
        for (part, reason), names in parts.items():
            if len(names) > MANY_LEFT_ALONE:
                lines.append(f"{part}/*, {len(names)} kernels ({reason})")
            else:
                lines += [f"{name} ({reason})" for name in names]
        return lines

    def __str__(self):
        text = io.StringIO()
        console = Console(file=text, width=200)
        console.print(text_table(self._columns()))
        for line in self._left_alone_lines():
            console.print(f"left alone: {line}", markup=False, highlight=False)
        return text.getvalue().rstrip()

    def _repr_html_(self):
        table = html_table_of_columns(self._columns())
        reasons = [f"<li>{html.escape(line)}</li>" for line in self._left_alone_lines()]
        return table + (f"<p>Left alone:</p><ul>{''.join(reasons)}</ul>" if reasons else "")


def sparsity_report(model, left_alone=None):
    """Report on the sparse kernels of a built model.

    Args:
        model: A built `keras.Model` that was made sparse.
        left_alone: `{kernel name: reason}` to report as left alone; by default the kernels that
            cannot be sparse.

    Returns:
        `SparsityReport` with shape, density, nonzeros, dead outputs and unused inputs of each
        kernel; after sparse training, also the exchanged weights.

    Raises:
        TypeError: if `model` is not a Keras model or layer.
        ValueError: if the model has no sparse kernel.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> report = sparsify(model, 0.5)
    >>> print(sparsity_report(model))
    """
    check_is_layer(model)
    kernels = masked_kernels(model)
    if not kernels:
        raise ValueError(
            f"`model` {model.name!r} has no sparse kernel to report on: call "
            "`keras_sparse_dm.sparsify(model, sparsity)` first."
        )
    optimizer = innermost_sparse_optimizer(model)
    # A newly loaded optimizer, which is not attached yet, knows them too.
    known = optimizer.mask_ones(kernels) if optimizer is not None else {}
    exchanged = optimizer.exchanged(kernels) if known else {}
    rows = []
    for k in kernels:
        mask = ops.convert_to_numpy(k.mask)
        values = ops.convert_to_numpy(k.kernel)
        active = int(mask.sum())
        at_start = since_start = ever_active = None
        if k.name in known:
            start, ever = optimizer.history(k.kernel)
            at_start = int(np.count_nonzero(start))
            since_start = float(np.count_nonzero(start & ~mask) / max(1, at_start))
            ever_active = float(np.count_nonzero(ever) / ever.size)
        rows.append(
            KernelReport(
                name=k.name,
                shape=tuple(k.kernel.shape),
                size=k.size,
                active=active,
                nonzeros=int((values != 0).sum()),
                trainable=k.kernel.trainable,
                asked=k.target.density,
                structure=str(k.target.structure) or None,
                dead_outputs=_count_without(mask, k.axes.outputs),
                unused_inputs=_count_without(_by_group(mask, k.axes), k.axes.inputs),
                exchanged=exchanged.get(k.name, 0),
                active_at_start=at_start,
                exchanged_since_start=since_start,
                ever_active=ever_active,
            )
        )
    parameters = sum(int(ops.size(v)) for v in model.trainable_variables)
    if left_alone is None:
        left_alone = what_is_left_alone(model)
    return SparsityReport(tuple(rows), parameters, dict(left_alone))


def _count_without(mask, axes):
    """Count the features along axes (counted from the end) without active weights."""
    axes = {axis % mask.ndim for axis in axes}
    others = tuple(axis for axis in range(mask.ndim) if axis not in axes)
    return int(np.count_nonzero(~mask.any(axis=others)))


def _by_group(mask, axes):
    """Concatenate the groups of a grouped convolution along the input axis."""
    if axes.groups == 1:
        return mask
    return np.concatenate(np.split(mask, axes.groups, axis=-1), axis=-2)
