"""Parameters, FLOPs and bytes, counted as Evci et al. (2021) and the paper's tables do."""

import html
import io
import math
from dataclasses import asdict, dataclass, field

import numpy as np
from keras import ops

from keras_sparse_dm._keras import has_value
from keras_sparse_dm.masks.distributions import densities
from keras_sparse_dm.metrics.costs.flops import (
    AttentionFlops,
    counted_kernels,
    forward_flops,
    kernel_flops,
)
from keras_sparse_dm.metrics.costs.memory import (
    FileBytes,
    TrainingBytes,
    file_bytes,
    training_bytes,
)
from keras_sparse_dm.sparsity.methods import get_method

__all__ = ["Cost", "LayerCost", "cost", "kernel_flops"]

CONVENTION = (
    "FLOPs: 2 per multiply-add, kernels only; normalization, activations, biases, embeddings and "
    "attention's products of activations are not in them."
)


@dataclass(frozen=True)
class LayerCost:
    """One layer's part in a forward pass of one example.

    Attributes:
        name: Of the layer, as its kernels' names begin.
        kind: Its class.
        size: Weights in its kernels, pruned ones included.
        active: Those that are not pruned.
        dense_flops, sparse_flops: Of its kernels, all of them and the active ones.
        score_flops: Of queries with keys, in attention.
        value_flops: Of the scores with the values.
    """

    name: str
    kind: str
    size: int = 0
    active: int = 0
    dense_flops: float = 0
    sparse_flops: float = 0
    score_flops: float = 0
    value_flops: float = 0


@dataclass(frozen=True)
class Cost:
    """What a model costs, dense and sparse; prints as a table, in a notebook as HTML.

    FLOPs count 2 per multiply-add, of kernels only, as the paper's tables do: normalization,
    activations, biases, embeddings, and attention's products of activations (which are in
    `attention_flops`) are left out.

    Attributes:
        parameters: Trainable parameters, pruned ones included.
        active_parameters: Those that are not pruned.
        dense_flops, sparse_flops: One forward pass of one example.
        dense_sampling_flops, sparse_sampling_flops: Sampling one example.
        dense_training_flops, sparse_training_flops: Training, counted for one example per
            iteration as in the paper's tables, whatever the batch size.
        training_rule: FLOPs of one training iteration with one example, as a formula of f_D and
            f_S, which are `dense_flops` and `sparse_flops`, and of dT, the steps between two
            topology updates.
        batch_size: Examples per iteration, or None where it was not given.
        dense_batch_training_flops, sparse_batch_training_flops: Training, counted for all
            examples of every batch; None without a batch size.
        kernel_parameters: Weights in kernels, sparse or not, pruned ones included.
        active_kernel_parameters: Those that are not pruned.
        nonzero_kernel_parameters: Those that differ from zero; None where weights have no
            values yet, or the sparsity is only supposed.
        attention_flops: Products of activations with each other (scores, and scores with
            values) in one forward pass of one example; no mask makes them fewer.
        file_bytes: `FileBytes`, of the weights in a file.
        training_bytes: `TrainingBytes`, held while training.
        layers: Tuple of `LayerCost`, of all layers with kernels or attention.
        not_counted: `{layer name: reason}` of what multiplies, or may, and is in no count.
    """

    parameters: int
    active_parameters: int
    dense_flops: float
    sparse_flops: float
    dense_sampling_flops: float
    sparse_sampling_flops: float
    dense_training_flops: float
    sparse_training_flops: float
    training_rule: str
    batch_size: int | None
    dense_batch_training_flops: float | None
    sparse_batch_training_flops: float | None
    kernel_parameters: int
    active_kernel_parameters: int
    nonzero_kernel_parameters: int | None
    attention_flops: float
    file_bytes: FileBytes
    training_bytes: TrainingBytes
    layers: tuple = field(compare=False, repr=False)
    not_counted: dict = field(compare=False, default_factory=dict)

    def to_dict(self):
        """Returns the cost as a dictionary of plain numbers, strings, lists and dictionaries."""
        values = asdict(self) | {"layers": [asdict(layer) for layer in self.layers]}
        values["training_bytes"]["total"] = self.training_bytes.total
        return values

    def _columns(self):
        """Returns `[(header, total, cells)]`; columns that would say nothing are left out."""
        layers = self.layers
        columns = [
            ("layer", "total", [layer.name for layer in layers]),
            ("kind", f"{len(layers)} layers", [layer.kind for layer in layers]),
            ("weights", f"{self.kernel_parameters:,}", [f"{layer.size:,}" for layer in layers]),
            ("FLOPs", _number(self.dense_flops), [_number(x.dense_flops) for x in layers]),
        ]
        if self.active_kernel_parameters != self.kernel_parameters:
            share = _share(self.sparse_flops, self.dense_flops)
            columns[3:3] = [
                (
                    "active",
                    f"{self.active_kernel_parameters:,}",
                    [f"{x.active:,}" for x in layers],
                )
            ]
            columns += [
                ("sparse", _number(self.sparse_flops), [_number(x.sparse_flops) for x in layers]),
                ("share", share, [_share(x.sparse_flops, x.dense_flops) for x in layers]),
            ]
        for header, name in (("scores", "score_flops"), ("values", "value_flops")):
            counts = [getattr(layer, name) for layer in layers]
            if any(counts):
                cells = [_number(count) if count else "" for count in counts]
                columns.append((header, _number(sum(counts)), cells))
        return columns

    def _lines(self):
        """What the table has no place for, as `(quantity, dense, sparse, share)`."""
        files, held = self.file_bytes, self.training_bytes

        def row(name, dense, sparse, text):
            return name, text(dense), text(sparse), _share(sparse, dense)

        rows = [
            row("parameters", self.parameters, self.active_parameters, "{:,}".format),
            row("FLOPs, sampling", self.dense_sampling_flops, self.sparse_sampling_flops, _number),
        ]
        if self.dense_training_flops:
            rows.append(
                row(
                    "FLOPs, training, one example per iteration",
                    self.dense_training_flops,
                    self.sparse_training_flops,
                    _number,
                )
            )
        if self.dense_batch_training_flops:
            rows.append(
                row(
                    f"FLOPs, training, {self.batch_size:,} examples per iteration",
                    self.dense_batch_training_flops,
                    self.sparse_batch_training_flops,
                    _number,
                )
            )
        rows.append(row("bytes of the weights in a file", files.dense, files.sparse, _number))
        rows.append(("bytes held while training", "", _number(held.total), ""))
        return rows

    def _notes(self):
        notes = [CONVENTION, f"FLOPs of a training iteration: {self.training_rule}."]
        notes += [f"not counted: {name} ({why})" for name, why in self.not_counted.items()]
        return notes

    def __str__(self):
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(show_footer=True)
        columns = self._columns()
        for i, (header, total, _) in enumerate(columns):
            side = "left" if i < 2 else "right"
            table.add_column(header, total, justify=side, overflow="fold")
        for row in zip(*(cells for _, _, cells in columns), strict=True):
            table.add_row(*map(escape, row))
        totals = Table()
        for i, header in enumerate(("", "dense", "as it is", "share")):
            totals.add_column(header, justify="right" if i else "left")
        for row in self._lines():
            totals.add_row(*row)
        text = io.StringIO()
        console = Console(file=text, width=200)
        console.print(table)
        console.print(totals)
        for note in self._notes():
            console.print(note, markup=False, highlight=False)
        return text.getvalue().rstrip()

    def _repr_html_(self):
        columns = self._columns()
        rows = zip(*(cells for _, _, cells in columns), strict=True)

        def line(cells, tag):
            return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

        return "".join(
            [
                "<table><thead><tr>",
                line([header for header, _, _ in columns], "th"),
                "</tr></thead><tbody>",
                *(f"<tr>{line(row, 'td')}</tr>" for row in rows),
                "</tbody><tfoot><tr>",
                line([total for _, total, _ in columns], "th"),
                "</tr></tfoot></table><table><thead><tr>",
                line(("", "dense", "as it is", "share"), "th"),
                "</tr></thead><tbody>",
                *(f"<tr>{line(row, 'td')}</tr>" for row in self._lines()),
                "</tbody></table>",
                *(f"<p>{html.escape(note)}</p>" for note in self._notes()),
            ]
        )


def cost(
    model,
    inputs,
    sampling_steps=1,
    iterations=0,
    method="static",
    update_every=None,
    schedule=None,
    batch_size=None,
    sparsity=None,
    distribution="erk",
    optimizer=None,
):
    """Counts what a model costs to run, to sample from, to train and to store.

    Any built Keras model, sparse or dense, this project's or your own; all kernels are counted,
    pruned ones by their masks. Nothing is computed, and variables that hold no value yet get
    none: a large network can be made in `keras.StatelessScope(initialize_variables=False)` and
    costs no memory. Layers that multiply, or may, and cannot be counted are named in the
    result. Training counts all kernels as trained, a step as three passes: forward, and back to
    activations and to weights.

    Args:
        model: A built `keras.Model`.
        inputs: One example input (batch size 1) of the size to count for; of a larger batch,
            the cost of one example is counted. Or its shape, a tuple of integers with the
            batch axis first, or a tuple, list or dictionary of shapes: `((1, 64, 64, 3), (1,))`
            for the U-Net. A shape of the batch axis alone stands for integers, any other for
            floats, unless the model knows the types of its inputs.
        sampling_steps: Network evaluations per sample.
        iterations: Training iterations.
        method: Name of a method, a `SparsityMethod`, or `"dense"`. One that grows by the
            dense gradient is charged with it: at every update, or, as SNFS, at every step.
        update_every: Steps between topology updates; needed where these take the dense
            gradient, as RigL's.
        schedule: The `PruningSchedule` of a method that prunes while it trains, as `"gmp"`:
            each step costs what the sparsity of that step does.
        batch_size: Examples per training iteration, for the `..._batch_training_flops`.
        sparsity: In [0, 1): counts for the model as `sparsify(model, sparsity, distribution)`
            would make it, whatever its masks are. None to count by its masks.
        distribution: As in `sparsify`; used where `sparsity` is given.
        optimizer: The optimizer that trains the model, built or not, for the bytes held in
            training. None for the one that the model is compiled with, or, where it is not,
            AdamW with averaged weights.

    Returns:
        A `Cost`.

    Raises:
        ValueError: for a model that is not built or has no kernel, an unknown method, a missing
            `update_every` or `schedule`, numbers out of range, or shapes that are not known.

    Example:

    >>> print(cost(UNet.from_preset("ldm_celebahq"), ((1, 64, 64, 3), (1,)), sampling_steps=100))
    """
    if method != "dense":
        method = get_method(method)
        if method.dense_to_sparse and schedule is None:
            raise ValueError(f"`schedule` must be given for method {method.name!r}.")
        if method.gradient == "step" and not update_every:
            raise ValueError(f"`update_every` must be given for method {method.name!r}.")
    for name, value, least in (
        ("sampling_steps", sampling_steps, 1),
        ("iterations", iterations, 0),
        ("batch_size", 1 if batch_size is None else batch_size, 1),
    ):
        if int(value) != value or value < least:
            raise ValueError(f"`{name}` must be a whole number, {least} or more; received {value}.")
    forward = forward_flops(model, inputs)
    kernels = counted_kernels(model)
    if not kernels:
        raise ValueError(
            f"`model` {model.name!r} has no kernel of a dense, convolution, recurrent or attention "
            "layer to count."
        )
    active, asked = _active_weights(kernels, sparsity, distribution)
    dense = sum(forward.kernels.values())
    sparse, in_the_end = (
        sum(_part(forward.kernels[k.name], ones[k.name], k.size) for k in kernels)
        for ones in (active, asked)
    )
    rule, training = _training_flops(
        method, dense, sparse, in_the_end, iterations, update_every, schedule
    )
    parameters = sum(math.prod(v.shape) for v in model.trainable_variables)
    pruned = sum(k.size - active[k.name] for k in kernels if k.kernel.trainable)
    batch_training = [None, None]
    if batch_size is not None:
        batch_training = [3 * dense * iterations * batch_size, training * iterations * batch_size]
    to_be_sparse = [k.kernel for k in kernels if k.mask is not None or active[k.name] < k.size]
    # With nothing pruned, and nothing to be, training is plain training.
    plain = method == "dense" or (pruned == 0 and not method.dense_to_sparse)
    return Cost(
        parameters=parameters,
        active_parameters=parameters - pruned,
        dense_flops=dense,
        sparse_flops=sparse,
        dense_sampling_flops=dense * sampling_steps,
        sparse_sampling_flops=sparse * sampling_steps,
        dense_training_flops=3 * dense * iterations,
        sparse_training_flops=training * iterations,
        training_rule=rule,
        batch_size=batch_size,
        dense_batch_training_flops=batch_training[0],
        sparse_batch_training_flops=batch_training[1],
        kernel_parameters=sum(k.size for k in kernels),
        active_kernel_parameters=sum(active.values()),
        nonzero_kernel_parameters=None if sparsity is not None else _nonzeros(kernels),
        attention_flops=sum(f.scores + f.values for _, f in forward.attention),
        file_bytes=file_bytes(model, [(k.kernel, active[k.name]) for k in kernels]),
        training_bytes=training_bytes(model, to_be_sparse, None if plain else method, optimizer),
        layers=_layer_costs(kernels, forward, active),
        not_counted=forward.not_counted,
    )


def _active_weights(kernels, sparsity, distribution):
    """Returns `{kernel name: active weights}`, now and as `sparsify` has asked for."""
    if sparsity is not None:
        shapes = {
            k.name: k.axes.as_matrix(tuple(k.kernel.shape)) for k in kernels if k.kernel.trainable
        }
        density = densities(shapes, sparsity, distribution)
        active = {k.name: round(density.get(k.name, 1.0) * k.size) for k in kernels}
        return active, active
    active = {
        k.name: k.size if k.mask is None or not has_value(k.mask) else _count_nonzero(k.mask)
        for k in kernels
    }
    asked = {
        k.name: active[k.name] if k.asked is None else round(k.asked * k.size) for k in kernels
    }
    return active, asked


def _nonzeros(kernels):
    """Number of weights that differ from zero; None where some have no value."""
    if not all(has_value(k.kernel) for k in kernels):
        return None
    return sum(_count_nonzero(k.kernel) for k in kernels)


def _count_nonzero(variable):
    return int(np.count_nonzero(ops.convert_to_numpy(variable)))


def _part(flops, active, size):
    """FLOPs of the active weights of a kernel, each of which is applied equally often."""
    return flops // size * active if flops % size == 0 else flops * active / size


def _training_flops(method, dense, sparse, asked, iterations, update_every, schedule):
    """Returns `(formula, FLOPs)` of a training iteration with one example (Evci et al. 2021, H)."""
    if method != "dense" and method.dense_to_sparse:
        pruned = _mean_share_pruned(schedule, iterations)
        rule = "3 f_S at the sparsity of each step, mean over all steps"
        return rule, 3 * (dense - pruned * (dense - asked))
    return step_flops(method, dense, sparse, update_every)


def step_flops(method, dense, sparse, update_every=None):
    """FLOPs of a training iteration with one example, at a sparsity that stays (Evci et al. 2021).

    Args:
        method: A `SparsityMethod` that is not dense-to-sparse, or `"dense"`.
        dense, sparse: FLOPs of a forward pass with all weights, and with the active ones.
        update_every: Steps between topology updates, where the method grows by the gradient.

    Returns:
        `(formula, FLOPs)`.
    """
    if method == "dense":
        return "3 f_D", 3 * dense
    if method.gradient == "momentum":
        return "2 f_S + f_D", 2 * sparse + dense
    if method.gradient == "step":
        rule = f"(3 f_S dT + 2 f_S + f_D) / (dT + 1) with dT = {update_every:,}"
        return rule, (3 * sparse * update_every + 2 * sparse + dense) / (update_every + 1)
    return "3 f_S", 3 * sparse


def _mean_share_pruned(schedule, iterations):
    """Mean over the iterations of what is pruned, as a share of what is in the end."""
    if not iterations:
        return 1.0
    final = getattr(schedule, "final_sparsity", None)
    final = getattr(schedule, "target_sparsity", final)
    due, sparsity = schedule(ops.arange(1, iterations + 1, dtype="int32"))
    sparsity = np.broadcast_to(ops.convert_to_numpy(sparsity), iterations)
    reached = np.maximum.accumulate(np.where(ops.convert_to_numpy(due), sparsity, 0.0))
    return float(np.mean(reached) / (final or max(reached[-1], 1e-12)))


def _layer_costs(kernels, forward, active):
    """Returns a tuple of `LayerCost`: layers with kernels in their order, then attention."""
    rows = {}
    for k in kernels:
        name = k.name.rpartition("/")[0] or k.layer.name
        rows.setdefault(id(k.layer), (name, k.layer, [], AttentionFlops()))[2].append(k)
    for layer, products in forward.attention:
        if not products.scores and not products.values:
            continue
        name, _, own, _ = rows.get(id(layer), (layer.path or layer.name, layer, [], None))
        rows[id(layer)] = (name, layer, own, products)
    return tuple(
        LayerCost(
            name=name,
            kind=type(layer).__name__,
            size=sum(k.size for k in own),
            active=sum(active[k.name] for k in own),
            dense_flops=sum(forward.kernels[k.name] for k in own),
            sparse_flops=sum(_part(forward.kernels[k.name], active[k.name], k.size) for k in own),
            score_flops=products.scores,
            value_flops=products.values,
        )
        for name, layer, own, products in rows.values()
    )


def _number(value):
    """A count in a readable form: whole where it is short, else with its power of ten."""
    return f"{value:,.0f}" if value < 1e6 else f"{value:.3e}"


def _share(part, whole):
    return f"{part / whole:.2%}" if whole else ""
