"""How sparse a model is, kernel by kernel."""

import io
from dataclasses import asdict, dataclass

from keras import ops

from keras_sparse_dm.sparsity.masking import masked_kernels


@dataclass(frozen=True)
class KernelReport:
    """One sparse kernel: name, shape, size, active weights by mask, nonzero weights.

    `trainable` is False for the kernel of a frozen layer.
    """

    name: str
    shape: tuple
    size: int
    active: int
    nonzeros: int
    trainable: bool = True

    @property
    def density(self):
        return self.active / self.size


@dataclass(frozen=True)
class SparsityReport:
    """The sparse kernels of a model; prints as a table.

    Attributes:
        kernels: Tuple of `KernelReport`.
        parameters: Number of trainable parameters of the model, pruned ones included.
    """

    kernels: tuple
    parameters: int

    @property
    def size(self):
        """Weights in sparse kernels, pruned ones included."""
        return sum(k.size for k in self.kernels)

    @property
    def active(self):
        """Active weights in sparse kernels, by the masks."""
        return sum(k.active for k in self.kernels)

    @property
    def nonzeros(self):
        """Weights in sparse kernels that differ from zero; one just grown does not yet."""
        return sum(k.nonzeros for k in self.kernels)

    @property
    def sparsity(self):
        """Share of the weights in sparse kernels that is pruned."""
        return 1.0 - self.active / self.size

    @property
    def active_parameters(self):
        """Trainable parameters that are not pruned, biases and the like included."""
        return self.parameters - sum(k.size - k.active for k in self.kernels if k.trainable)

    def to_dict(self):
        """Returns the report as a dictionary of plain numbers, strings and lists."""
        return {
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "sparsity": self.sparsity,
            "active": self.active,
            "nonzeros": self.nonzeros,
            "kernels": [
                {**asdict(k), "shape": list(k.shape), "density": k.density} for k in self.kernels
            ],
        }

    def __str__(self):
        from rich.console import Console
        from rich.table import Table

        table = Table(show_footer=True)
        table.add_column("kernel", "total", overflow="fold")
        table.add_column("shape", f"{len(self.kernels)} kernels")
        table.add_column("density", f"{self.active / self.size:.4f}", justify="right")
        table.add_column("active", f"{self.active:,} of {self.size:,}", justify="right")
        table.add_column("nonzero", f"{self.nonzeros:,}", justify="right")
        for k in self.kernels:
            table.add_row(
                k.name,
                " x ".join(map(str, k.shape)),
                f"{k.density:.4f}",
                f"{k.active:,} of {k.size:,}",
                f"{k.nonzeros:,}",
            )
        text = io.StringIO()
        Console(file=text, width=200).print(table)
        return text.getvalue().rstrip()


def sparsity_report(model):
    """Reports the sparse kernels of a built model.

    Args:
        model: A built `keras.Model` with sparse layers.

    Returns:
        A `SparsityReport`: per kernel and in total shape, density and nonzeros.

    Raises:
        ValueError: if the model has no sparse kernel.

    Example:

    >>> print(sparsity_report(model))
    """
    kernels = masked_kernels(model)
    if not kernels:
        raise ValueError(f"`model` {model.name!r} has no sparse kernel to report on.")
    rows = []
    for k in kernels:
        mask = ops.convert_to_numpy(k.mask)
        values = ops.convert_to_numpy(k.kernel)
        rows.append(
            KernelReport(
                name=k.name,
                shape=tuple(k.kernel.shape),
                size=int(mask.size),
                active=int(mask.sum()),
                nonzeros=int((values != 0).sum()),
                trainable=k.kernel.trainable,
            )
        )
    parameters = sum(int(ops.size(v)) for v in model.trainable_variables)
    return SparsityReport(tuple(rows), parameters)
