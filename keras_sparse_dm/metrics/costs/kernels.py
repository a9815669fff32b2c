"""Kernels whose FLOPs are counted."""

import math
from dataclasses import dataclass

import keras

from keras_sparse_dm._keras import flatten_layers
from keras_sparse_dm.layers.kernel_mask import KernelAxes
from keras_sparse_dm.layers.masked import own_kernels
from keras_sparse_dm.sparsity.kernels import masked_kernels


@dataclass(frozen=True, eq=False)
class CountedKernel:
    """One kernel of a model, sparse or not.

    Attributes:
        name: Path of the variable, made unique within the model; a sparse kernel has the same
            name as in `sparsity_report`.
        kernel: The `keras.Variable`.
        mask: Boolean mask variable; None if the layer is not sparse.
        axes: `KernelAxes`, the meaning of its axes.
        asked: Density that `sparsify` was asked for, or None.
        layer: The layer that owns the kernel.
    """

    name: str
    kernel: keras.Variable
    mask: keras.Variable | None
    axes: KernelAxes
    asked: float | None
    layer: keras.layers.Layer

    @property
    def size(self):
        """Number of weights, including pruned ones."""
        return math.prod(self.kernel.shape)


def counted_kernels(model):
    """Return a list of `CountedKernel`, each kernel once, in the order of the variables.

    Args:
        model: A built `keras.Model`, sparse or not.
    """
    sparse = {id(k.kernel): k for k in masked_kernels(model)}
    names = {k.name for k in sparse.values()}
    order = {id(variable): i for i, variable in enumerate(model.variables)}
    found = {}
    for layer in flatten_layers(model):
        if not is_packed(layer):
            for kernel, axes in own_kernels(layer).values():
                found.setdefault(id(kernel), (kernel, axes, layer))
    kernels = []
    for key in sorted(found, key=order.__getitem__):
        kernel, axes, layer = found[key]
        masked = sparse.get(key)
        name, number = kernel.path, 0
        while masked is None and name in names:
            number += 1
            name = f"{kernel.path}_{number}"
        names.add(name)
        kernels.append(
            CountedKernel(
                name=name if masked is None else masked.name,
                kernel=kernel,
                mask=None if masked is None else masked.mask,
                axes=axes,
                asked=None if masked is None else masked.target.density,
                layer=layer,
            )
        )
    return kernels


def is_packed(layer):
    """Tell if a layer is quantized with several weights in one stored element."""
    mode = getattr(layer, "quantization_mode", None)
    return mode is not None and mode not in ("int8", "float8") and bool(own_kernels(layer))
