"""Topology updates as pure array functions: which weights to drop and which to grow.

Everything here takes and returns arrays and works inside compiled functions of any Keras
backend. Selection is exact (always as many as asked for) and deterministic (ties go to the
lowest position in row-major order), as with the sort of the original RigL program, but is
done by searching the threshold on counts, which costs a small part of a sort.
"""

import math

from keras import ops


def top_k_mask(scores, k, eligible=None):
    """Marks the `k` largest scores.

    Args:
        scores: Float array of any shape, not negative.
        k: Integer, how many to mark; at most the number of eligible scores.
        eligible: Optional boolean array of the same shape; others are never marked.

    Returns:
        Boolean array of the shape of `scores` with exactly `k` ones. Equal scores are taken
        in row-major order.
    """
    scores = ops.convert_to_tensor(scores)
    # The bits of floats that are not negative sort like the floats themselves; without the
    # sign's bit this holds for -0.0 too.
    bits = ops.bitwise_and(ops.view(ops.cast(scores, "float32"), "int32"), 0x7FFFFFFF)
    if eligible is not None:
        bits = ops.where(eligible, bits, -1)
    k = ops.cast(k, "int32")

    def count(condition):
        return ops.sum(ops.cast(condition, "int32"))

    # The largest threshold that at least k scores reach, found bit by bit from the top.
    def search(i, threshold):
        candidate = threshold + ops.left_shift(1, 30 - i)
        return ops.where(count(bits >= candidate) >= k, candidate, threshold)

    threshold = ops.fori_loop(0, 31, search, ops.zeros((), "int32"))
    above = bits > threshold
    ties = ops.reshape(bits == threshold, (-1,))
    order = ops.cumsum(ops.cast(ties, "int32"))
    first_ties = ops.logical_and(ties, order <= k - count(above))
    return ops.logical_or(above, ops.reshape(first_ties, ops.shape(scores)))


def random_mask(shape, density, seed):
    """Draws a mask with `round(density * size)` ones, placed uniformly at random.

    Args:
        shape: Shape of the kernel.
        density: Share of ones, in [0, 1].
        seed: `keras.random.SeedGenerator` or integer.

    Returns:
        Boolean array of that shape.
    """
    from keras import random

    return top_k_mask(random.uniform(shape, seed=seed), round(density * math.prod(shape)))


def update_mask(mask, drop_score, growth_score, prune_rate):
    """Drops the weakest active weights and grows as many (paper, Algorithm 2).

    A weight dropped here competes for growth with those pruned before, as in the original
    RigL program.

    Args:
        mask: Boolean array, the current mask.
        drop_score: Float array, not negative; active weights with the smallest are dropped.
        growth_score: Float array, not negative; pruned weights with the largest are grown.
        prune_rate: Share of the active weights to drop, in [0, 1]; the number is rounded
            down, computed in float32 as the original does.

    Returns:
        The new mask, with as many ones as `mask`.
    """
    active = ops.sum(ops.cast(mask, "int32"))
    dropped = ops.cast(ops.cast(active, "float32") * ops.cast(prune_rate, "float32"), "int32")
    kept = top_k_mask(drop_score, active - dropped, eligible=mask)
    grown = top_k_mask(growth_score, dropped, eligible=ops.logical_not(kept))
    return ops.logical_or(kept, grown)


def prune_and_grow(weights, mask, growth_score, prune_rate):
    """One topology update of one kernel with magnitude pruning (paper, Algorithm 2).

    Args:
        weights: Float array, the kernel; zero where pruned.
        mask: Boolean array of the same shape, True where active.
        growth_score: Float array of the same shape, not negative: for RigL the magnitude of
            the dense gradient, for MagRan uniform noise.
        prune_rate: Share of the active weights to exchange, in [0, 1].

    Returns:
        `(weights, mask, grown)`: the new kernel and mask, and a boolean array that marks the
        weights which were pruned before and are active now. They start at zero; a weight
        dropped and grown again in the same update keeps its value.

    Raises:
        ValueError: if the shapes differ or the prune rate is outside [0, 1].
    """
    weights, mask, growth_score = map(ops.convert_to_tensor, (weights, mask, growth_score))
    if not weights.shape == mask.shape == growth_score.shape:
        raise ValueError(
            "`weights`, `mask` and `growth_score` must have one shape; received "
            f"{tuple(weights.shape)}, {tuple(mask.shape)} and {tuple(growth_score.shape)}."
        )
    if isinstance(prune_rate, (int, float)) and not 0.0 <= prune_rate <= 1.0:
        raise ValueError(f"`prune_rate` must be in [0, 1]; received {prune_rate}.")
    mask = ops.cast(mask, "bool")
    new_mask = update_mask(mask, ops.abs(weights), growth_score, prune_rate)
    survived = ops.logical_and(mask, new_mask)
    grown = ops.logical_and(new_mask, ops.logical_not(mask))
    return ops.where(survived, weights, ops.zeros_like(weights)), new_mask, grown
