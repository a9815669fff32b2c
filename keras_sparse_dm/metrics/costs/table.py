"""Cost of a model, as a record that prints as a table."""

import html
import io
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table

from keras_sparse_dm.metrics.costs.memory import FileBytes, TrainingBytes
from keras_sparse_dm.sparsity.columns import html_table, html_table_of_columns, text_table

CONVENTION = (
    "FLOPs: 2 per multiply-add, kernels only, without normalization, activations, biases, "
    "embeddings and attention's products of activations."
)
# Header of the table of totals.
_TOTALS = ("", "dense", "as it is", "share")


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer in a forward pass of one example.

    Attributes:
        name: Name of the layer, the prefix of its kernels' names.
        kind: Name of its class.
        size: Number of weights in its kernels, including pruned ones.
        active: Number of active weights.
        dense_flops, sparse_flops: FLOPs of all weights, and of the active weights.
        score_flops: FLOPs of queries times keys, in attention.
        value_flops: FLOPs of scores times values, in attention.
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
    """Cost of a model, dense and sparse; prints as a table, in a notebook as HTML.

    FLOPs count 2 per multiply-add, of kernels only, as in the paper's tables. They leave out
    normalization, activations, biases, embeddings, and attention's products of activations (see
    `attention_flops`).

    Attributes:
        parameters: Number of trainable parameters, including pruned ones.
        active_parameters: Number of trainable parameters that are not pruned.
        dense_flops, sparse_flops: FLOPs of one forward pass of one example.
        dense_sampling_flops, sparse_sampling_flops: FLOPs of sampling one example.
        dense_training_flops, sparse_training_flops: FLOPs of training with one example per
            iteration, as in the paper's tables, whatever the batch size.
        training_rule: FLOPs of one training iteration with one example, as a formula of f_D
            (`dense_flops`), f_S (`sparse_flops`) and dT, the steps between topology updates.
        batch_size: Examples per iteration, or None if not given.
        dense_batch_training_flops, sparse_batch_training_flops: FLOPs of training with all
            examples of every batch; None without a batch size.
        kernel_parameters: Number of weights in kernels, sparse or not, including pruned ones.
        active_kernel_parameters: Number of active weights in kernels.
        nonzero_kernel_parameters: Number of nonzero weights in kernels; None if weights have no
            values yet, or if `cost` was given a sparsity.
        attention_flops: FLOPs of products of activations (scores, and scores times values) in one
            forward pass of one example; masks do not reduce them.
        file_bytes: `FileBytes`, the size of the weights in a file.
        training_bytes: `TrainingBytes`, the memory that training holds.
        layers: Tuple of `LayerCost`, one for each layer with kernels or attention.
        not_counted: `{layer name: reason}` of layers whose products, if any, are not counted.
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
        """Return the cost as a dictionary of plain numbers, strings, lists and dictionaries."""
        values = asdict(self) | {"layers": [asdict(layer) for layer in self.layers]}
        values["training_bytes"]["total"] = self.training_bytes.total
        return values

    def _columns(self):
        """Return `[(header, total, cells)]`, without columns that hold no information."""
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
        """Return the rows of the second table, as `(quantity, dense, sparse, share)`."""
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
        totals = Table()
        for i, header in enumerate(_TOTALS):
            totals.add_column(header, justify="right" if i else "left")
        for row in self._lines():
            totals.add_row(*row)
        text = io.StringIO()
        console = Console(file=text, width=200)
        console.print(text_table(self._columns()))
        console.print(totals)
        for note in self._notes():
            console.print(note, markup=False, highlight=False)
        return text.getvalue().rstrip()

    def _repr_html_(self):
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
        totals = html_table(_TOTALS, self._lines())
        return html_table_of_columns(self._columns()) + totals + notes


def _number(value):
    """Format a count: in full below a million, else with a power of ten."""
    return f"{value:,.0f}" if value < 1e6 else f"{value:.3e}"


def _share(part, whole):
    return f"{part / whole:.2%}" if whole else ""
