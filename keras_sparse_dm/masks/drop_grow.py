"""Topology updates of one kernel, as functions of arrays."""

import functools
import math

from keras import ops, random

from keras_sparse_dm.masks.select import count
from keras_sparse_dm.masks.top_k import top_k_mask


def random_mask(shape, density, seed):
    """Draw a mask with `round(density * size)` ones, placed uniformly at random.

    Args:
        shape: Shape of the kernel.
        density: Share of ones, in [0, 1].
        seed: `keras.random.SeedGenerator` or integer.

    Returns:
        Boolean array of shape `shape`.
    """
    return top_k_mask(random.uniform(shape, seed=seed), round(density * math.prod(shape)))


def drop_weakest(mask, score, rate, apart=None):
    """Drop the active units with the smallest scores (paper, Algorithm 2).

    Args:
        mask: Boolean array, True for active units.
        score: Float array of the same shape, not negative.
        rate: Share of the active units to drop, in [0, 1]. Their number is computed in float32
            and rounded down, as in the original RigL program.
        apart: Optional list of boolean arrays that divide the units into parts; the share is
            then dropped from each part.

    Returns:
        `(kept, dropped)`: a boolean array of the units that stay active, and the number of
        dropped units.
    """
    kept, dropped = [], []
    for part in [mask] if apart is None else [ops.logical_and(mask, part) for part in apart]:
        active = count(part)
        share = ops.cast(active, "float32") * ops.cast(rate, "float32")
        dropped.append(ops.cast(share, "int32"))
        kept.append(top_k_mask(score, active - dropped[-1], eligible=part))
    return functools.reduce(ops.logical_or, kept), sum(dropped)


def update_mask(mask, drop_score, growth_score, prune_rate):
    """Drop the weakest active weights and grow as many others (paper, Algorithm 2).

    Dropped weights compete for growth with the weights pruned before, as in the original RigL
    program.

    Args:
        mask: Boolean array, the current mask.
        drop_score: Float array, not negative; the active weights with the smallest scores drop.
        growth_score: Float array, not negative; the pruned weights with the largest scores grow.
        prune_rate: Share of the active weights to drop, as in `drop_weakest`.

    Returns:
        The new mask, with the same number of ones.
    """
    kept, dropped = drop_weakest(mask, drop_score, prune_rate)
    grown = top_k_mask(growth_score, dropped, eligible=ops.logical_not(kept))
    return ops.logical_or(kept, grown)


def prune_and_grow(weights, mask, growth_score, prune_rate):
    """Update the topology of one kernel with magnitude pruning (paper, Algorithm 2).

    Args:
        weights: Float array, the kernel; zero where pruned.
        mask: Boolean array of the same shape, True where active.
        growth_score: Float array of the same shape, not negative: for RigL the magnitude of
            the dense gradient, for MagRan uniform noise.
        prune_rate: Share of the active weights to exchange, in [0, 1].

    Returns:
        `(weights, mask, grown)`: the new kernel, the new mask, and a boolean array that marks the
        weights that were pruned before and are active now. Grown weights start at zero; a weight
        that is dropped and grown in the same update keeps its value.

    Raises:
        ValueError: if the shapes differ or the prune rate is outside [0, 1].
    """
    weights, mask, growth_score = map(ops.convert_to_tensor, (weights, mask, growth_score))
    if not weights.shape == mask.shape == growth_score.shape:
        raise ValueError(
            "`weights`, `mask` and `growth_score` must have equal shapes; received "
            f"{tuple(weights.shape)}, {tuple(mask.shape)} and {tuple(growth_score.shape)}."
        )
    if isinstance(prune_rate, (int, float)) and not 0.0 <= prune_rate <= 1.0:
        raise ValueError(f"`prune_rate` must be in [0, 1]; received {prune_rate}.")
    mask = ops.cast(mask, "bool")
    new_mask = update_mask(mask, ops.abs(weights), growth_score, prune_rate)
    survived = ops.logical_and(mask, new_mask)
    grown = ops.logical_and(new_mask, ops.logical_not(mask))
    return ops.where(survived, weights, ops.zeros_like(weights)), new_mask, grown
