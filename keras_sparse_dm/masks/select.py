"""Selection of the k largest integers by a threshold, much cheaper than sorting."""

from keras import ops

# Length of the rows in which values are compared.
BLOCK = 1024


def count(condition):
    """Return the number of true elements, int32."""
    return ops.sum(ops.cast(condition, "int32"))


def select(values, k, find=None):
    """Mark the `k` largest values; ties go to the first in row-major order.

    Args:
        values: Integer array of shape `(n, BLOCK)`, 0 or more; zeros are never marked.
        k: Scalar integer, at most the number of values above 0.
        find: Function that finds the threshold; `find_by_counts` by default.

    Returns:
        Boolean array of the shape of `values`.
    """
    threshold, above = (find or find_by_counts)(values, k)

    def with_first_ties():
        ties = values == threshold
        return ops.logical_or(values > threshold, first_true(ties, k - above))

    # Choosing among ties takes several passes and is rarely needed.
    return ops.cond(above < k, with_first_ties, lambda: values > threshold)


def first_to_reach(k, bins, above):
    """Add bins to `above`, from the last bin on, until the sum reaches `k`.

    Returns:
        `(place, before, reached)`: the index of the last added bin, and the sums without and
        with it.
    """
    sums = above + ops.flip(ops.cumsum(ops.flip(bins)))
    place = ops.maximum(count(sums >= k) - 1, 0)
    reached = ops.take(sums, place)
    return place, reached - ops.take(bins, place), reached


def find_by_counts(values, k):
    """Find the threshold of the `k` largest values by bisection.

    Args:
        values: Integer array, 0 or more.
        k: Scalar integer.

    Returns:
        `(threshold, above)`: a scalar, and the number of values above it: `k`, or less if only
        some of the values equal to the threshold belong to the `k` largest.
    """

    # Find the largest value that at least k elements reach, bit by bit from the top.
    def search(i, value):
        candidate = value + ops.left_shift(1, 30 - i)
        return ops.where(count(values >= candidate) >= k, candidate, value)

    value = ops.fori_loop(0, 31, search, ops.zeros((), "int32"))
    reached = count(values >= value)
    all_ties = reached == k
    above = ops.where(all_ties, reached, count(values > value))
    return ops.where(all_ties, value - 1, value), above


def first_true(blocks, number):
    """Keep the first `number` ones of a matrix in row-major order (all if there are fewer)."""
    # Sums of rows find the row of the last one to keep, and a running sum within that row its
    # place. A running sum over the whole matrix would be much slower.
    counts = ops.sum(ops.cast(blocks, "int32"), axis=1)
    ends = ops.cumsum(counts)
    whole = ends <= number
    cut = ops.logical_and(ops.logical_not(whole), ends - counts <= number)
    row = ops.minimum(count(whole), ops.shape(counts)[0] - 1)
    rest = number - (ops.take(ends, row) - ops.take(counts, row))
    within = ops.cumsum(ops.cast(ops.take(blocks, row, axis=0), "int32")) <= rest
    kept = ops.logical_or(whole[:, None], ops.logical_and(cut[:, None], within[None]))
    return ops.logical_and(blocks, kept)
