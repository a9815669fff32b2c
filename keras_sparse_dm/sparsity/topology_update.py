"""Topology updates as functions of arrays: drop, grow, and the new weights and state.

Nothing here assigns variables, except the state of random generators. A unit is the smallest part
that a structure drops or grows: a weight, or a block of weights.
"""

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_sparse_dm.masks.drop_grow import drop_weakest
from keras_sparse_dm.masks.select import count
from keras_sparse_dm.masks.top_k import top_k_mask, top_k_masks

# Bits of a weight's history.
ACTIVE_AT_START, EVER_ACTIVE = 1, 2


@dataclass(frozen=True, eq=False)
class Exchange:
    """Result of one topology update of one kernel.

    Attributes:
        weights: The new kernel; weights that stayed active keep their values.
        mask: The new mask.
        slots: List of the optimizer's state of the kernel; zero except for weights that stayed
            active.
        history: Bits of each weight, uint8.
        grown: Boolean array, True for grown weights.
        ones: Number of ones of the new mask.
    """

    weights: Any
    mask: Any
    slots: list
    history: Any
    grown: Any
    ones: Any


def masked(mask, values):
    """Return the values with zeros for pruned weights.

    Uses `where` instead of a product, so that a pruned NaN also becomes zero.
    """
    # JAX's `where` takes no variables. A scalar zero saves the memory of an array of zeros.
    mask, values = ops.convert_to_tensor(mask), ops.convert_to_tensor(values)
    return ops.where(mask, values, ops.zeros((), values.dtype))


def kept_units(k, method, rate, final_sparsity=None):
    """Choose the units of a kernel that an update keeps (paper, Algorithm 2).

    Args:
        k: `MaskedKernel`.
        method: `SparsityMethod`.
        rate: Share of the active units to drop; for a method that starts dense, the sparsity to
            reach now.
        final_sparsity: Final sparsity of a method that starts dense.

    Returns:
        `(kept, dropped)`: a boolean array of units, and the number of dropped units.
    """
    structure, axis = k.structure, k.axes.structured
    mask = structure.to_units(ops.convert_to_tensor(k.mask), axis, ops.any)
    score = structure.to_units(method.drop_score(k.kernel), axis, ops.sum)
    if method.dense_to_sparse:
        keep = _still_kept(k, rate, final_sparsity, count(mask))
        return top_k_mask(score, keep, mask), count(mask) - keep
    apart = method.drop_apart(k.kernel)
    if apart is not None:
        apart = [structure.to_units(part, axis, ops.any) for part in apart]
    return drop_weakest(mask, score, rate, apart)


def growth_score(k, method, gradient, seed):
    """Return the method's growth score of each unit.

    Args:
        k: `MaskedKernel`.
        method: `SparsityMethod`.
        gradient: The dense gradient, or None.
        seed: `keras.random.SeedGenerator` for methods that draw.
    """
    if gradient is not None:
        # Gradients from a loop, as in a recurrent layer, may lack a static shape.
        gradient = ops.reshape(gradient, k.shape)
    score = method.growth_score(k.kernel, gradient, seed)
    return k.structure.to_units(score, k.axes.structured, ops.sum)


def new_units(k, method, gradient, rate, seed, final_sparsity=None):
    """Choose the units of a kernel that are active after an update."""
    kept, dropped = kept_units(k, method, rate, final_sparsity)
    if method.dense_to_sparse:
        return kept
    score = growth_score(k, method, gradient, seed)
    return ops.logical_or(kept, k.structure.grow(kept, score, dropped))


def new_units_among(kernels, method, gradients, rate, seed):
    """Choose the active units of several kernels that compete for all dropped weights.

    Args:
        kernels: List of `MaskedKernel`.
        method, rate, seed: As in `new_units`.
        gradients: List of dense gradients, or None.

    Returns:
        List of boolean arrays of units.
    """
    kept, dropped = zip(*(kept_units(k, method, rate) for k in kernels), strict=True)
    scores = [growth_score(k, method, g, seed) for k, g in zip(kernels, gradients, strict=True)]
    grown = top_k_masks(scores, sum(dropped), [ops.logical_not(units) for units in kept])
    return [ops.logical_or(old, new) for old, new in zip(kept, grown, strict=True)]


def exchange(k, units, slots, history, grow_init, seed):
    """Return the `Exchange` that gives a kernel the mask of its new units.

    Weights that stay active keep their values and state; dropped and grown weights lose them.

    Args:
        k: `MaskedKernel`.
        units: Boolean array of the active units.
        slots: List of the optimizer's state of the kernel.
        history: Bits of each weight so far.
        grow_init: `"zeros"` or `"normal"`.
        seed: `keras.random.SeedGenerator` for `"normal"`.
    """
    old = ops.convert_to_tensor(k.mask)
    new = k.structure.to_weights(units, k.shape, k.axes.structured)
    survived = ops.logical_and(old, new)
    grown = ops.logical_and(new, ops.logical_not(old))
    weights = masked(survived, k.kernel)
    if grow_init == "normal":
        mean_square = ops.sum(ops.square(ops.cast(weights, "float32"))) / ops.cast(
            ops.maximum(1, count(survived)), "float32"
        )
        drawn = keras.random.normal(k.shape, dtype="float32", seed=seed)
        drawn = ops.cast(drawn * ops.sqrt(mean_square), weights.dtype)
        weights = ops.where(grown, drawn, weights)
    ever_active = ops.convert_to_tensor(EVER_ACTIVE, "uint8")
    history = ops.convert_to_tensor(history)
    return Exchange(
        weights,
        new,
        [masked(survived, slot) for slot in slots],
        ops.where(new, ops.bitwise_or(history, ever_active), history),
        grown,
        count(new),
    )


def _still_kept(k, sparsity, final_sparsity, active):
    """Return the number of units that a method that starts dense keeps at a given sparsity."""
    # Share of the final pruning that is done at this sparsity.
    progress = ops.cast(sparsity, "float32") / final_sparsity
    units = k.size // k.structure.unit
    final = units - k.structure.ones(k.shape, k.target.density) // k.structure.unit
    pruned = ops.cast(ops.clip(progress, 0.0, 1.0) * final, "int32")
    pruned = ops.where(progress >= 1.0 - 1e-6, final, pruned)
    return ops.minimum(active, units - pruned)
