"""Topology updates as pure array functions: which weights to drop and which to grow.

Everything here takes and returns arrays and works inside compiled functions of any Keras
backend. Selection is exact (always as many as asked for) and deterministic (ties go to the
lowest position in row-major order), as with the sort of the original RigL program, but is
done by searching the threshold on counts, which costs a small part of a sort.
"""

import functools
import itertools
import math

from keras import backend, ops

# Length of the rows that the scores are laid out in to be compared.
BLOCK = 1024


def top_k_mask(scores, k, eligible=None):
    """Marks the `k` largest scores.

    Args:
        scores: Float array of any static shape, not negative; compared as float32. Infinity
            is the largest, but for NaN.
        k: Integer, how many to mark; at most the number of eligible scores.
        eligible: Optional boolean array of the same shape; others are never marked.

    Returns:
        Boolean array of the shape of `scores` with exactly `k` ones. Equal scores are taken
        in row-major order.
    """
    return top_k_masks([scores], k, [eligible])[0]


def top_k_masks(scores, k, eligible=None):
    """Marks the `k` largest scores of several arrays together.

    Args:
        scores: List of float arrays of any static shapes, not negative; compared as float32.
            Infinity is the largest, but for NaN.
        k: Integer, how many to mark in all; at most the number of eligible scores, which is
            below 2^31.
        eligible: Optional list, for each array `None` or a boolean array of its shape; others
            are never marked.

    Returns:
        List of boolean arrays of the shapes of `scores` with exactly `k` ones in total. Equal
        scores are taken in the order of the list, then in row-major order.

    Raises:
        ValueError: if `eligible` is not as long as `scores`.
    """
    if eligible is None:
        eligible = [None] * len(scores)
    if len(eligible) != len(scores):
        raise ValueError(
            "`eligible` must have an entry for each array of `scores`; received "
            f"{len(eligible)} for {len(scores)} arrays."
        )
    values = [sortable(*pair) for pair in zip(scores, eligible, strict=True)]
    sizes = [math.prod(v.shape) for v in values]
    total = sum(sizes)
    fill = -total % BLOCK
    if not total:
        return [v > 0 for v in values]
    flat = [ops.reshape(v, (-1,)) for v in values]
    if fill:
        flat.append(ops.zeros((fill,), "int32"))
    whole = len(flat) == 1
    flat = flat[0] if whole else ops.concatenate(flat)
    mask = _select()(ops.reshape(flat, (-1, BLOCK)), ops.cast(k, "int32"))
    mask = ops.reshape(mask, (total + fill,))
    # The last part is what was filled up.
    parts = [mask] if whole else ops.split(mask, list(itertools.accumulate(sizes)))
    return [ops.reshape(part, v.shape) for part, v in zip(parts, values, strict=False)]


def sortable(scores, eligible):
    """Integers of at least 1 that sort like the scores; 0 where not eligible."""
    scores = ops.cast(ops.convert_to_tensor(scores), "float32")
    # The bits of floats that are not negative sort like the floats themselves; without the
    # sign's bit this holds for -0.0 too. Comparing floats would take denormals for zeros.
    bits = ops.bitwise_and(ops.view(scores, "int32"), 0x7FFFFFFF)
    # The largest are all NaN.
    values = ops.minimum(bits, 0x7FFFFFFE) + 1
    return values if eligible is None else ops.where(eligible, values, 0)


def count(condition):
    return ops.sum(ops.cast(condition, "int32"))


@functools.cache
def _select():
    """Returns `select`; for TensorFlow as one function that all kernels of a graph share.

    Traced for every kernel by itself it would make large models slow to start.
    """
    if backend.backend() != "tensorflow":
        return select
    import tensorflow as tf

    return tf.function(
        select,
        input_signature=[tf.TensorSpec((None, BLOCK), "int32"), tf.TensorSpec((), "int32")],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


def select(values, k):
    """Marks the `k` largest values; among equal ones the first, in row-major order.

    Args:
        values: Integer array of shape `(n, BLOCK)`, at least 0; zeros are never marked.
        k: Scalar integer, at most the number of values above 0.

    Returns:
        Boolean array of that shape.
    """
    threshold, above = (find_by_histogram if has_fast_bincount() else find_by_counts)(values, k)

    def with_first_ties():
        ties = values == threshold
        return ops.logical_or(values > threshold, first_true(ties, k - above))

    # Choosing among ties takes several passes, and most often there is nothing to choose.
    return ops.cond(above < k, with_first_ties, lambda: values > threshold)


def has_fast_bincount():
    """Whether TensorFlow's `Bincount` counts fast here: on a CPU, compiled by XLA or not.

    On a GPU it refuses to run with `tf.config.experimental.enable_op_determinism`; other
    backends have no histogram of fixed size that compiles.
    """
    if backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")


def find_by_histogram(values, k):
    """`find_by_counts`, as two passes of TensorFlow's `Bincount`."""
    import tensorflow as tf

    threshold, above = ops.zeros((), "int32"), ops.zeros((), "int32")
    for shift, size in ((16, 1 << 15), (0, 1 << 16)):
        # Where the higher bits differ from those found, this is too large for any bin, and
        # Bincount leaves it out. Flat, since XLA's Bincount takes the rows of a matrix apart.
        digits = ops.reshape(ops.right_shift(ops.bitwise_xor(values, threshold), shift), (-1,))
        bins = tf.raw_ops.Bincount(arr=digits, size=size, weights=tf.zeros((0,), "int32"))
        # Rows of bins first, then the bins of a row: XLA's running sum over all bins at once
        # takes quadratic time.
        rows = ops.reshape(bins, (-1, 256))
        row, above, _ = first_to_reach(k, ops.sum(rows, axis=1), above)
        column, above, reached = first_to_reach(k, ops.take(rows, row, axis=0), above)
        threshold = threshold + ops.left_shift(256 * row + column, shift)
    # All of the ties belong to the k largest: next lower threshold.
    all_ties = reached == k
    return ops.where(all_ties, threshold - 1, threshold), ops.where(all_ties, reached, above)


def first_to_reach(k, bins, above):
    """Adds bins from the last on to `above` until it reaches `k`.

    Returns:
        `(place, before, reached)`: which bin does it, and the sums without and with that bin.
    """
    sums = above + ops.flip(ops.cumsum(ops.flip(bins)))
    place = ops.maximum(count(sums >= k) - 1, 0)
    reached = ops.take(sums, place)
    return place, reached - ops.take(bins, place), reached


def find_by_counts(values, k):
    """Finds the threshold that splits off the `k` largest, by bisection.

    Args:
        values: Integer array, at least 0.
        k: Scalar integer.

    Returns:
        `(threshold, above)`: the scalar and the number of values larger than it, which is
        `k`, or less where those equal to the threshold are too many to mark all.
    """

    # The largest value that at least k elements reach, found bit by bit from the top.
    def search(i, value):
        candidate = value + ops.left_shift(1, 30 - i)
        return ops.where(count(values >= candidate) >= k, candidate, value)

    value = ops.fori_loop(0, 31, search, ops.zeros((), "int32"))
    reached = count(values >= value)
    all_ties = reached == k
    above = ops.where(all_ties, reached, count(values > value))
    return ops.where(all_ties, value - 1, value), above


def first_true(blocks, number):
    """Keeps the first `number` ones of a matrix, in row-major order (all if there are fewer)."""
    # The rows' sums find the row of the first one too many, sums within it the place: a
    # running sum over all would take many times as long.
    counts = ops.sum(ops.cast(blocks, "int32"), axis=1)
    ends = ops.cumsum(counts)
    whole = ends <= number
    cut = ops.logical_and(ops.logical_not(whole), ends - counts <= number)
    row = ops.minimum(count(whole), ops.shape(counts)[0] - 1)
    rest = number - (ops.take(ends, row) - ops.take(counts, row))
    within = ops.cumsum(ops.cast(ops.take(blocks, row, axis=0), "int32")) <= rest
    kept = ops.logical_or(whole[:, None], ops.logical_and(cut[:, None], within[None]))
    return ops.logical_and(blocks, kept)


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


def drop_weakest(mask, score, rate, apart=None):
    """Drops the active units with the smallest scores (paper, Algorithm 2).

    Args:
        mask: Boolean array, True for active units.
        score: Float array of the same shape, not negative.
        rate: Share of the active units to drop, in [0, 1]; the number is rounded down,
            computed in float32 as the original RigL program does.
        apart: Optional list of boolean arrays that part the units; that share is then
            dropped from each part.

    Returns:
        `(kept, dropped)`: a boolean array of the units that stay active, and the number of
        those that do not.
    """
    kept, dropped = [], []
    for part in [mask] if apart is None else [ops.logical_and(mask, part) for part in apart]:
        active = ops.sum(ops.cast(part, "int32"))
        share = ops.cast(active, "float32") * ops.cast(rate, "float32")
        dropped.append(ops.cast(share, "int32"))
        kept.append(top_k_mask(score, active - dropped[-1], eligible=part))
    return functools.reduce(ops.logical_or, kept), sum(dropped)


def update_mask(mask, drop_score, growth_score, prune_rate):
    """Drops the weakest active weights and grows as many (paper, Algorithm 2).

    A weight dropped here competes for growth with those pruned before, as in the original
    RigL program.

    Args:
        mask: Boolean array, the current mask.
        drop_score: Float array, not negative; active weights with the smallest are dropped.
        growth_score: Float array, not negative; pruned weights with the largest are grown.
        prune_rate: Share of the active weights to drop, as in `drop_weakest`.

    Returns:
        The new mask, with as many ones as `mask`.
    """
    kept, dropped = drop_weakest(mask, drop_score, prune_rate)
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
