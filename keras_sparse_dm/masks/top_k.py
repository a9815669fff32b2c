"""Exact selection of the k largest scores, on every backend and inside compiled functions.

Selection is exact (always as many as asked for) and deterministic (ties go to the lowest position
in row-major order), as with the sort of the original RigL program. A search for the threshold on
counts costs a small part of a sort.
"""

import itertools
import math

from keras import backend, ops

# Length of the rows in which scores are compared.
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
    mask = _select(ops.reshape(flat, (-1, BLOCK)), ops.cast(k, "int32"))
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


def _select(values, k):
    """Calls `select` as the backend runs it best."""
    if backend.backend() != "tensorflow":
        return select(values, k)
    from keras_sparse_dm.masks.tensorflow import shared_select

    return shared_select()(values, k)


def select(values, k, find=None):
    """Marks the `k` largest values; among equal ones the first, in row-major order.

    Args:
        values: Integer array of shape `(n, BLOCK)`, at least 0; zeros are never marked.
        k: Scalar integer, at most the number of values above 0.
        find: The search for the threshold; `find_by_counts` by default.

    Returns:
        Boolean array of that shape.
    """
    threshold, above = (find or find_by_counts)(values, k)

    def with_first_ties():
        ties = values == threshold
        return ops.logical_or(values > threshold, first_true(ties, k - above))

    # Choosing among ties takes several passes, and most often there is nothing to choose.
    return ops.cond(above < k, with_first_ties, lambda: values > threshold)


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
