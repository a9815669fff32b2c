"""Plans: which PyTorch tensor is which part of which Keras variable, in both directions.

A plan is a dictionary `{tensor name: Slot}`. One plan serves reading and writing, so the two
cannot disagree.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from keras_sparse_dm.models.blocks import Downsample, ResidualBlock, Upsample


@dataclass(frozen=True)
class Slot:
    """The place of one tensor in a variable.

    Attributes:
        variable: The Keras variable.
        to_keras: From the tensor, in PyTorch's layout, to values in the order of the part.
        to_pytorch: The inverse, from the part; tells the tensor's shape too.
        view: Shape that the variable is seen in; its own by default.
        index: Which part of that view the tensor is; all of it by default.
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
        """The tensor, from the variable's whole value."""
        return self.to_pytorch(self._part(value))

    def write(self, value, tensor):
        """Puts a tensor of the right shape into the variable's whole value."""
        part = self._part(value)
        part[...] = self.to_keras(tensor).reshape(part.shape)


def plan_of(name, layer):
    """Plan of a plain layer: `name.weight` and `name.bias`."""
    if isinstance(layer, keras.layers.GroupNormalization):
        return {f"{name}.weight": Slot(layer.gamma), f"{name}.bias": Slot(layer.beta)}
    kernel = Slot(layer.kernel, np.transpose, np.transpose)
    if (
        len(layer.kernel.shape) == 4
    ):  # (height, width, in, out) here, (out, in, height, width) there
        kernel = Slot(
            layer.kernel, lambda w: w.transpose(2, 3, 1, 0), lambda k: k.transpose(3, 2, 0, 1)
        )
    return {f"{name}.weight": kernel, f"{name}.bias": Slot(layer.bias)}


def plan_of_parts(name, layer, parts):
    """Plan of a layer that is made of others: `{attribute: what its tensors are called}`."""
    plan = {}
    for attribute, suffix in parts.items():
        part = getattr(layer, attribute)
        if part is not None:
            plan |= plan_of(f"{name}.{suffix}", part)
    return plan


def plan_as_convolution(name, layer):
    """Plan of a dense layer whose kernel is stored as a convolution of width 1."""
    kernel = Slot(layer.kernel, lambda w: w[..., 0].T, lambda k: k.T[..., None])
    return {f"{name}.weight": kernel, f"{name}.bias": Slot(layer.bias)}


def plan_as_matrix(name, layer):
    """Plan of a convolution of width 1 whose kernel is stored as the matrix that it is."""
    inputs, outputs = layer.kernel.shape[-2:]
    kernel = Slot(layer.kernel, np.transpose, np.transpose, view=(inputs, outputs))
    return {f"{name}.weight": kernel, f"{name}.bias": Slot(layer.bias)}


def numbered(layers):
    """Yields `(kind, number, layer)` of the layers at one resolution.

    Kinds are `"block"`, `"attention"`, with the number of its block, and `"resampling"`.
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


def read_plan(plan):
    """The tensors of a plan from the variables' present values: `{name: float32 array}`."""
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
    """Assigns tensors, which must be all those of the plan and fit, to the variables.

    All are read and converted before the first variable changes.
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
    """A PyTorch tensor or anything that is like an array, of any precision, as an array."""
    if hasattr(tensor, "detach"):
        # NumPy has no bfloat16, so PyTorch converts.
        return tensor.detach().cpu().float().numpy()
    return np.asarray(tensor).astype("float32")
