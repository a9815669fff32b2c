"""`remove_dead_units`, and the report of what it removed."""

import contextlib
from dataclasses import dataclass, field

import keras
import numpy as np
from keras.ops import convert_to_numpy as to_numpy

from keras_sparse_dm._keras import graph_nodes
from keras_sparse_dm.diffusion import DiffusionModel
from keras_sparse_dm.export.dead_units.of_chirodiff import smaller_chirodiff
from keras_sparse_dm.export.dead_units.of_graphs import smaller_graph
from keras_sparse_dm.models import ChiroDiff


@dataclass(frozen=True)
class DeadUnits:
    """Report of `remove_dead_units`; prints as a table.

    Attributes:
        layers: Tuple of `(layer, units before, units after, dead, constant)` for each layer whose
            units can be removed; `dead` and `constant` count the removed ones. A layer keeps at
            least one unit, and both directions of a bidirectional layer keep the same number.
        parameters_before, parameters_after: Numbers of trainable parameters.
        left_alone: `{layer: reason}` for the layers whose units cannot be removed.
        largest_difference: Largest difference of the two models' outputs for the example; None
            without an example.
    """

    layers: tuple
    parameters_before: int
    parameters_after: int
    left_alone: dict = field(default_factory=dict)
    largest_difference: float | None = None

    @property
    def removed(self):
        """Number of units that were removed."""
        return sum(before - after for _, before, after, _, _ in self.layers)

    def __str__(self):
        rows = [("layer", "units", "left", "dead", "constant"), *self.layers]
        widths = [max(len(str(row[i])) for row in rows) for i in range(5)]
        lines = [
            "  ".join(
                f"{str(cell):{'<' if i == 0 else '>'}{w}}" for i, (cell, w) in enumerate(cells)
            )
            for cells in (list(zip(row, widths, strict=True)) for row in rows)
        ]
        lines.append(f"parameters: {self.parameters_before:,}, left {self.parameters_after:,}")
        lines += [f"{name} left alone: {reason}" for name, reason in self.left_alone.items()]
        return "\n".join(lines)


def remove_dead_units(model, example=None):
    """Return a smaller model without the units that pruning left without use.

    The outputs are equal up to the order of floating-point sums. The function removes units of

    - `ChiroDiff`, or a `DiffusionModel` of one: units of its GRUs and of its first linear layer.
      A GRU's unit is dead if all its weights to later layers and to live units are pruned. It is
      constant, at zero, if no active weight leads to its candidate state and that has no bias,
      because the state starts at zero. (With a bias, the state changes from step to step.)
    - `Sequential` and functional models: units of `Dense`, and filters of `Conv1D` and `Conv2D`
      without groups, if only elementwise activations, batch normalization, pooling, upsampling,
      dropout and `Flatten` lie between them and the next such layers. Removing a nonzero
      constant needs a bias in the next layers, and is impossible before a convolution that pads
      with zeros.

    Uses the averaged (EMA) weights of a `DiffusionModel` if there are any. Sparse layers stay
    sparse and keep the remaining part of their masks. The smaller model is not compiled.

    Args:
        model: A built `keras.Model`, which does not change.
        example: Inputs of the model, on which to compare the outputs of both models; None for no
            comparison.

    Returns:
        `(smaller model, DeadUnits)`.

    Raises:
        ValueError: for a model of another kind, or one that is not built.
        ArithmeticError: if the outputs for the example differ by more than 1e-4 of the largest
            output or of 1.

    Example:

    >>> chirodiff = ChiroDiff(units=16, num_layers=1)
    >>> report = sparsify(chirodiff, 0.98)
    >>> smaller, removed = remove_dead_units(chirodiff)
    >>> print(removed)
    """
    if not model.built:
        raise ValueError(f"`model` {model.name!r} must be built: call it on a batch first.")
    diffusion = type(model) is DiffusionModel
    network = model.denoiser if diffusion else model
    make_smaller = smaller_graph
    if isinstance(network, ChiroDiff):
        make_smaller = smaller_chirodiff
    elif graph_nodes(network) is None:
        raise ValueError(
            "`model` must be a ChiroDiff, a DiffusionModel of one, or a Sequential or functional "
            f"model; received a {type(network).__name__}, whose structure is unknown."
        )
    with model.averaged_weights() if diffusion else contextlib.nullcontext():
        smaller, layers, left_alone = make_smaller(network)
        difference = None if example is None else _difference(network, smaller, example)
    before, after = (
        sum(int(np.prod(v.shape)) for v in m.trainable_variables) for m in (network, smaller)
    )
    if diffusion:
        smaller = DiffusionModel(smaller, model.noise_schedule, seed=model.seed)
    return smaller, DeadUnits(tuple(layers), before, after, left_alone, difference)


def _difference(model, smaller, example):
    """Return the largest difference of two models' outputs.

    Raises:
        ArithmeticError: if it is too large.
    """
    wanted, found = (
        [to_numpy(output) for output in keras.tree.flatten(m(example, training=False))]
        for m in (model, smaller)
    )
    difference = max(float(np.max(np.abs(a - b))) for a, b in zip(wanted, found, strict=True))
    largest = max(float(np.max(np.abs(output))) for output in wanted)
    if not difference <= 1e-4 * max(1.0, largest):
        raise ArithmeticError(
            f"The smaller model's outputs for `example` differ by up to {difference:.3g}."
        )
    return difference
