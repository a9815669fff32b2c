"""Kernels of a model: sparse kernels, candidates, and kernels that cannot be sparse."""

import math
from dataclasses import dataclass

import keras
from keras import ops

from keras_sparse_dm._keras import flatten_layers, own_variables
from keras_sparse_dm.layers.kernel_mask import KernelAxes, KernelMask
from keras_sparse_dm.layers.locations import unique_name
from keras_sparse_dm.layers.masked import MaskedKernels, own_kernels, parts


@dataclass(frozen=True, eq=False)
class MaskedKernel:
    """One sparse kernel of a model.

    Attributes:
        name: The variable's path, made unique within the model.
        kernel: The `keras.Variable`.
        record: Its `KernelMask`.
    """

    name: str
    kernel: keras.Variable
    record: KernelMask

    @property
    def mask(self):
        """Boolean mask variable, True for active weights."""
        return self.record.mask

    @property
    def axes(self):
        """`KernelAxes`, the meaning of the kernel's axes."""
        return self.record.axes

    @property
    def target(self):
        """`KernelTarget`, the target of the mask."""
        return self.record.target

    @property
    def structure(self):
        """Structure of the mask: `Unstructured`, `Blocks` or `NM`."""
        return self.record.target.structure

    @property
    def shape(self):
        """The kernel's shape, a tuple."""
        return tuple(self.kernel.shape)

    @property
    def size(self):
        """Number of weights, including pruned ones."""
        return math.prod(self.shape)

    def __repr__(self):
        asked = f", density={self.target.density:.4g}" if self.target.density is not None else ""
        structure = f", structure={self.structure}" if str(self.structure) else ""
        return f"MaskedKernel({self.name!r}, shape={self.shape}{asked}{structure})"


@dataclass(frozen=True, eq=False)
class Candidate:
    """Kernel that can be sparse, with the layer to turn sparse for it."""

    variable: keras.Variable
    axes: KernelAxes
    layer: keras.layers.Layer

    @property
    def shape(self):
        """The kernel's shape, a tuple."""
        return tuple(self.variable.shape)


def masked_kernels(model):
    """List the sparse kernels of a model, each once, in the order of its variables.

    First adapts the masks of kernels that something other than sparse training has written
    (`set_weights`, or a callback that restores an earlier epoch).

    Args:
        model: A `keras.Model` or `keras.Layer`.

    Returns:
        List of `MaskedKernel`.
    """
    found = {}
    for layer in flatten_layers(model):
        if isinstance(layer, MaskedKernels):
            for _, kernel, record in layer.mask_records():
                found.setdefault(id(kernel), (kernel, record))
    named = _named(model, [kernel for kernel, _ in found.values()])
    kernels = [MaskedKernel(name, *found[id(kernel)]) for name, kernel in named.items()]
    for k in kernels:
        k.record.follow(k.kernel)
    return kernels


def candidates(model):
    """Find the kernels that can be sparse.

    Returns:
        `({name: Candidate}, {name: reason}, {name: variable})`: the kernels that can be sparse,
        the reasons why others are left alone, and the variables of all.
    """
    layers = flatten_layers(model)
    # Projections of attention layers and cells of recurrent layers are turned with their owner.
    owners = {id(part): layer for layer in layers for part in parts(layer)}
    found, reasons, others = {}, {}, {}
    for layer in layers:
        kernels = own_kernels(layer)
        for variable, axes in kernels.values():
            if id(variable) not in found:
                owner = owners.get(id(layer), layer)
                found[id(variable)] = Candidate(variable, axes, owner)
                reasons[id(variable)] = _left_alone(layer, variable)
        mine = {id(variable) for variable, _ in kernels.values()}
        for variable in own_variables(layer):
            kernel_like = "kernel" in variable.name and len(variable.shape) > 1
            if kernel_like and id(variable) not in mine:
                # Variables that LoRA and quantization add get the reason of their kernel.
                reason = _left_alone(layer, variable) if kernels else None
                reason = reason or f"{type(layer).__name__} has no sparse twin"
                others[id(variable)] = (variable, reason)
    others = {key: value for key, value in others.items() if key not in found}
    named = _named(
        model, [c.variable for c in found.values()] + [variable for variable, _ in others.values()]
    )
    kernels, left_alone = {}, {}
    for name, variable in named.items():
        reason = reasons[id(variable)] if id(variable) in found else others[id(variable)][1]
        if reason:
            left_alone[name] = reason
        else:
            kernels[name] = found[id(variable)]
    return kernels, left_alone, named


def check_weights(kernels):
    """Raise a ValueError if weights do not fit a mask with as many ones as the kernel's own.

    Args:
        kernels: List of `MaskedKernel`.
    """
    for k in kernels:
        if not k.record.follow(k.kernel):
            nonzeros = int(ops.sum(ops.cast(k.kernel != 0, "int32")))
            ones = int(ops.sum(ops.cast(k.mask, "int32")))
            raise ValueError(
                f"The weights of {k.name} do not fit its mask: {nonzeros} of them are not zero, "
                f"and the mask has {ones} ones. Restore weights with at most that many nonzeros, "
                "or call `sparsify` again."
            )


def what_is_left_alone(model):
    """Return `{kernel name: reason}` of a model's kernels that cannot be sparse."""
    sparse = {k.name for k in masked_kernels(model)}
    return {name: why for name, why in candidates(model)[1].items() if name not in sparse}


def check_is_layer(model):
    """Raise a TypeError unless `model` is a Keras model or layer."""
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(f"`model` must be a keras.Model; received {model!r}.")


def _named(model, variables):
    """Return `{unique name: variable}` in the order of the model's variables."""
    order = {id(variable): i for i, variable in enumerate(model.variables)}
    named = {}
    for variable in sorted(variables, key=lambda v: order[id(v)]):
        # Variables of layers with the same name have the same path.
        named[unique_name(variable.path, named)] = variable
    return named


def _left_alone(layer, variable):
    """Return the reason why a kernel cannot be sparse, or None."""
    if getattr(layer, "quantization_mode", None) is not None:
        return f"quantized ({layer.quantization_mode})"
    if not keras.backend.is_float_dtype(variable.dtype):
        return f"type {variable.dtype}"
    if getattr(layer, "lora_enabled", False):
        return "LoRA-enabled"
    if not variable.trainable:
        return "frozen"
    return None
