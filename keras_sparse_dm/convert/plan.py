"""Plans: dictionaries `{tensor name: Slot}` from PyTorch tensors to parts of Keras variables.

One plan serves reading and writing, so the two cannot disagree.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from keras_sparse_dm.models.blocks import Downsample, ResidualBlock, Upsample


@dataclass(frozen=True)
class Slot:
    """Place of one tensor in a variable.

    Attributes:
        variable: The Keras variable.
        to_keras: Function from the tensor, in PyTorch's layout, to values in the part's order.
        to_pytorch: Inverse function, from the part; it also gives the tensor's shape.
        view: Shape to view the variable in; by default its own.
        index: Index of the part in that view; by default all of it.
    """

    variable: keras.Variable
    to_keras: Callable = np.asarray
    to_pytorch: Callable = np.asarray
    view: tuple | None = None
    index: tuple = (...,)

    def _part(self, value):
        return value.reshape(self.view or value.shape)[self.index]

    @property
    def shape(self):
        """Shape of the tensor."""
        return self.read(np.broadcast_to(np.float32(0), self.variable.shape)).shape

    def read(self, value):
        """Return the tensor from the variable's whole value."""
        return self.to_pytorch(self._part(value))

    def write(self, value, tensor):
        """Write a tensor of the right shape into the variable's whole value."""
        part = self._part(value)
        part[...] = self.to_keras(tensor).reshape(part.shape)


def plan_of(name, layer):
    """Return the plan of a plain layer: `name.weight` and `name.bias`."""
    if isinstance(layer, keras.layers.GroupNormalization):
        return {f"{name}.weight": Slot(layer.gamma), f"{name}.bias": Slot(layer.beta)}
    kernel = Slot(layer.kernel, np.transpose, np.transpose)
    if len(layer.kernel.shape) == 4:
        # (height, width, in, out) in Keras, (out, in, height, width) in PyTorch.
        kernel = Slot(
            layer.kernel, lambda w: w.transpose(2, 3, 1, 0), lambda k: k.transpose(3, 2, 0, 1)
        )
    return {f"{name}.weight": kernel, f"{name}.bias": Slot(layer.bias)}


def plan_of_parts(name, layer, parts):
    """Return the plan of a layer made of others.

    Args:
        name: Name of the layer.
        layer: The layer.
        parts: `{attribute of the layer: its name in the checkpoint}`.
    """
    plan = {}
    for attribute, suffix in parts.items():
        part = getattr(layer, attribute)
        if part is not None:
            plan |= plan_of(f"{name}.{suffix}", part)
    return plan


def plan_as_convolution(name, layer):
    """Return the plan of a dense layer that is a convolution of width 1 in the checkpoint."""
    kernel = Slot(layer.kernel, lambda w: w[..., 0].T, lambda k: k.T[..., None])
    return {f"{name}.weight": kernel, f"{name}.bias": Slot(layer.bias)}


def plan_as_matrix(name, layer):
    """Return the plan of a convolution of width 1 that is a matrix in the checkpoint."""
    inputs, outputs = layer.kernel.shape[-2:]
    kernel = Slot(layer.kernel, np.transpose, np.transpose, view=(inputs, outputs))
    return {f"{name}.weight": kernel, f"{name}.bias": Slot(layer.bias)}


def numbered(layers):
    """Yield `(kind, number, layer)` for the layers at one resolution.

    The kind is `"block"`, `"attention"` (with the number of its block) or `"resampling"`.
    """
    number = -1
    for layer in layers:
        if isinstance(layer, (Downsample, Upsample)):
            yield "resampling", 0, layer
        elif isinstance(layer, ResidualBlock):
            number += 1
            yield "block", number, layer
        else:
            yield "attention", number, layer


def autoencoder_layers(model):
    """Yield `(side, level, kind, number, layer)` for the layers of a `VQAutoencoder`'s two sides.

    The side is `"encoder"` or `"decoder"`. The level counts resolutions from full to coarse, and is
    None at the coarsest point. Kind and number are those of `numbered`, or the kind is `"input"`,
    `"norm"` or `"output"`.
    """
    for side in ("encoder", "decoder"):
        yield side, None, "input", 0, getattr(model, f"{side}_input")
        levels = [*enumerate(getattr(model, f"{side}_levels"))]
        for level, layers in [*levels, (None, getattr(model, f"{side}_middle"))]:
            for kind, number, layer in numbered(layers):
                yield side, level, kind, number, layer
        yield side, None, "norm", 0, getattr(model, f"{side}_norm")
        yield side, None, "output", 0, getattr(model, f"{side}_output")


def plan_of_codes(model):
    """Return the plan of a `VQAutoencoder`'s codebook and of the convolutions around it."""
    plan = {"quantize.embedding.weight": Slot(model.codebook)}
    plan |= plan_of("quant_conv", model.to_code)
    return plan | plan_of("post_quant_conv", model.from_code)


def read_plan(plan):
    """Return the tensors of a plan from the variables' values: `{name: float32 array}`."""
    values = {}
    for slot in plan.values():
        if id(slot.variable) not in values:
            value = np.asarray(ops.convert_to_numpy(slot.variable), "float32")
            values[id(slot.variable)] = value
    return {
        name: np.array(slot.read(values[id(slot.variable)]), order="C")
        for name, slot in plan.items()
    }


def fill_plan(plan, tensors):
    """Assign tensors to the variables of a plan.

    Reads and converts all tensors before the first variable changes.

    Args:
        plan: `{tensor name: Slot}`.
        tensors: `{tensor name: tensor}` with all tensors of the plan, of the right shapes.
    """
    values = {}
    for name, slot in plan.items():
        variable = slot.variable
        _, value = values.setdefault(
            id(variable), (variable, np.empty(tuple(variable.shape), "float32"))
        )
        slot.write(value, as_float32(tensors[name]))
    for variable, value in values.values():
        variable.assign(value)


def as_float32(tensor):
    """Return a PyTorch tensor or array of any precision as a float32 NumPy array."""
    if hasattr(tensor, "detach"):
        # PyTorch converts, because NumPy has no bfloat16.
        return tensor.detach().cpu().float().numpy()
    return np.asarray(tensor).astype("float32")
