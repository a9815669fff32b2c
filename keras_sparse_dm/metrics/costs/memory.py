"""Bytes of a model's weights in a file, dense and sparse, and of training's memory."""

import math
import re
from dataclasses import dataclass

import keras

from keras_sparse_dm._keras import VariableDescription, averages, batches_seen
from keras_sparse_dm.masks.encoding import (
    bitmask_bytes,
    elias_fano_bytes,
    smallest_encoding,
)
from keras_sparse_dm.sparsity.install import innermost_optimizer
from keras_sparse_dm.sparsity.kernels import masked_kernels

FLOAT32 = 4


@dataclass(frozen=True)
class FileBytes:
    """Bytes of a model's float32 weights in a file, without names and other overhead.

    A kernel with `size` weights, of which `active` are not pruned, takes

    - dense: `4 size`
    - with a bitmask: `4 active + ceil(size / 8)`
    - with indices: `4 active`, and the indices of the active weights in Elias-Fano code, about
      `2 + log2(size / active)` bits each (`keras_sparse_dm.masks.encoding`)

    All other weights (biases, normalization, frozen weights) are always dense.

    Attributes:
        dense: Bytes with all kernels dense.
        bitmask: Bytes with a bitmask for each pruned kernel.
        index: Bytes with indices for each pruned kernel.
        sparse: Bytes with the smaller of both for each pruned kernel, as
            `keras_sparse_dm.export.save_sparse` writes them.
    """

    dense: int
    bitmask: int
    index: int
    sparse: int


@dataclass(frozen=True)
class TrainingBytes:
    """Bytes that training holds from step to step, and its gradients, on one device.

    Excludes activations, which depend on the backend, and temporary memory of operations.

    Attributes:
        weights: The model's weights, including pruned ones, in their own types.
        gradients: Dense gradients of the trainable weights.
        optimizer: The optimizer's slots, such as Adam's two moments.
        averages: Averaged (EMA) weights.
        masks: One byte for each weight in a sparse kernel.
        history: One byte for each weight in a sparse kernel.
        dense_gradients: Running mean of the dense gradient, for methods that keep one.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    masks: int
    history: int
    dense_gradients: int

    @property
    def total(self):
        """Sum of all the above."""
        return sum(vars(self).values())


def file_bytes(model, active):
    """Return the `FileBytes` of a model.

    Args:
        model: A built `keras.Model`.
        active: `[(kernel variable, number of active weights)]`.
    """
    dense = 0
    for variable in model.weights:
        is_float = keras.backend.is_float_dtype(variable.dtype)
        dense += _size(variable) * (FLOAT32 if is_float else _item_bytes(variable))
    saved = {"bitmask": 0, "index": 0, "sparse": 0}
    for kernel, ones in active:
        size = _size(kernel)
        if ones == size:
            continue
        pruned = FLOAT32 * (size - ones)
        saved["bitmask"] += pruned - bitmask_bytes(size)
        saved["index"] += pruned - elias_fano_bytes(size, ones)
        saved["sparse"] += pruned - smallest_encoding(size, ones)[1]
    return FileBytes(dense, *(dense - saved[name] for name in ("bitmask", "index", "sparse")))


def training_bytes(model, kernels, method, optimizer=None):
    """Return the `TrainingBytes` of a model.

    Args:
        model: A built `keras.Model`.
        kernels: The kernel variables that are sparse or will be.
        method: A `SparsityMethod`, or None for dense training.
        optimizer: The `keras.optimizers.Optimizer` that trains it, built or not. None for the
            optimizer that the model was compiled with, or, as in all presets, AdamW with averaged
            weights if it was not compiled.
    """
    trainable = list(model.trainable_variables)
    slots, averages = _optimizer_bytes(_optimizer(model, optimizer), trainable)
    masked = sum(k.size for k in masked_kernels(model))
    sizes = [_size(kernel) for kernel in kernels if kernel.trainable]
    if method is not None:
        masked = max(masked, sum(_size(kernel) for kernel in kernels))
    momentum = method is not None and method.gradient == "momentum"
    return TrainingBytes(
        weights=sum(_size(v) * _item_bytes(v) for v in model.weights),
        gradients=sum(_size(v) * _item_bytes(v) for v in trainable),
        optimizer=slots,
        averages=averages,
        masks=masked,
        history=sum(sizes) if method is not None else 0,
        dense_gradients=FLOAT32 * sum(sizes) if momentum else 0,
    )


def _optimizer(model, optimizer):
    """Return the optimizer inside all wrappers."""
    if optimizer is None:
        optimizer = innermost_optimizer(model)
    while getattr(optimizer, "inner_optimizer", None) is not None:
        optimizer = optimizer.inner_optimizer
    return optimizer if optimizer is not None else keras.optimizers.AdamW(use_ema=True)


def _optimizer_bytes(optimizer, trainable):
    """Return the bytes of an optimizer's slots, and of its averages, once it is built."""
    if optimizer.built:
        counters = {id(batches_seen(optimizer)), id(optimizer.learning_rate)}
        variables = [variable for variable in optimizer.variables if id(variable) not in counters]
    else:
        # Build a copy that describes variables instead of creating them.
        optimizer = type(optimizer).from_config(optimizer.get_config())
        variables = []

        def add_variable(shape, initializer="zeros", dtype=None, **_):
            variables.append(VariableDescription(tuple(shape), dtype or "float32"))
            return variables[-1]

        def add_variable_from_reference(reference_variable, name=None, initializer="zeros"):
            return add_variable(reference_variable.shape, initializer, reference_variable.dtype)

        optimizer.add_variable = add_variable
        optimizer.add_variable_from_reference = add_variable_from_reference
        optimizer.build([VariableDescription.of(v, i) for i, v in enumerate(trainable)])
    averaged = averages(optimizer) or []
    ids = {id(variable) for variable in averaged}
    slots = [variable for variable in variables if id(variable) not in ids]
    return tuple(sum(_size(v) * _item_bytes(v) for v in part) for part in (slots, averaged))


def _size(variable):
    return math.prod(variable.shape)


def _item_bytes(variable):
    """Return the bytes of one element; 1 for booleans and for types of fewer than 8 bits."""
    bits = re.search(r"\d+", variable.dtype)
    return max(1, int(bits.group()) // 8) if bits else 1
