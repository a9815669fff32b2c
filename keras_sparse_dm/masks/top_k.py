"""Exact selection of the k largest scores, on every backend and inside compiled functions.

The selection always marks exactly k scores, and ties go to the first in row-major order, as in the
original RigL program, which sorts.
"""

import itertools
import math

from keras import backend, ops

from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.masks.select import BLOCK, select

tensorflow = lazy_module("keras_sparse_dm.masks.tensorflow")


def top_k_mask(scores, k, eligible=None):
    """Mark the `k` largest scores.

    Args:
        scores: Float array of any static shape, not negative; compared as float32. NaN ranks
            above infinity.
        k: Integer, the number of scores to mark; at most the number of eligible scores.
        eligible: Optional boolean array of the same shape; other scores are never marked.

    Returns:
        Boolean array of the shape of `scores` with exactly `k` ones. Ties go to the first in
        row-major order.
    """
    return top_k_masks([scores], k, [eligible])[0]


def top_k_masks(scores, k, eligible=None):
    """Mark the `k` largest scores of several arrays together.

    Args:
        scores: List of float arrays of any static shapes, not negative; compared as float32.
            NaN ranks above infinity.
        k: Integer, the total number of scores to mark; at most the number of eligible scores,
            which must be below 2^31.
        eligible: Optional list with `None` or a boolean array for each array of scores; other
            scores are never marked.

    Returns:
        List of boolean arrays of the shapes of `scores` with exactly `k` ones in total. Ties go
        to the first in the order of the list, then in row-major order.

    Raises:
        ValueError: if `eligible` and `scores` have different lengths.
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
    # The last part is padding.
    parts = [mask] if whole else ops.split(mask, list(itertools.accumulate(sizes)))
    return [ops.reshape(part, v.shape) for part, v in zip(parts, values, strict=False)]


def sortable(scores, eligible):
    """Return integers of 1 or more that sort like the scores, and 0 where not eligible."""
    scores = ops.cast(ops.convert_to_tensor(scores), "float32")
    # The bits of nonnegative floats sort like the floats; clearing the sign bit covers -0.0 too.
    # Comparing floats would treat denormals as zeros.
    bits = ops.bitwise_and(ops.view(scores, "int32"), 0x7FFFFFFF)
    # The largest integers are all NaN; lower them by one so that adding 1 cannot overflow.
    values = ops.minimum(bits, 0x7FFFFFFE) + 1
    return values if eligible is None else ops.where(eligible, values, 0)


def _select(values, k):
    """Call `select` in the form that is fastest on the backend."""
    if backend.backend() != "tensorflow":
        return select(values, k)
    return tensorflow.shared_select()(values, k)
