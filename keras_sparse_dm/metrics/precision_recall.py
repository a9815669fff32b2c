"""Precision and recall of generated sets of features, with density and coverage.

Around each sample of a set lies the ball that reaches to its k-th nearest neighbour in the same
set; together the balls stand for where the set's distribution is (Kynkäänniemi et al. 2019).
"""

from typing import NamedTuple

import numpy as np

from keras_sparse_dm.metrics.features.checks import checked_integer, checked_pair

NAMES = ("real", "generated")
# Distances that are in memory at once, and values of the differences they are computed from.
BLOCK_VALUES = 2**22


class PrecisionRecall(NamedTuple):
    """How real generated samples are, and how much of the real ones they reach.

    Attributes:
        precision: Share of generated samples within the ball of any real one, 0 to 1.
        recall: Share of real samples within the ball of any generated one, 0 to 1.
        density: Number of real samples' balls that a generated one lies in, over k; its mean.
            1 is expected where both distributions are the same; may be larger (Naeem et al.
            2020).
        coverage: Share of real samples whose ball holds a generated one, 0 to 1 (Naeem et al.
            2020).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real, generated, k=3, batch_size=None):
    """Precision and recall of generated features, by k-nearest-neighbour balls.

    They depend on the numbers of samples and on k: compare results of the same only. A sample
    is no neighbour of itself, but its duplicates are; a ball includes its boundary. Distances
    are Euclidean, in float64; those which rounding could put on the wrong side of a boundary
    are computed from differences, so that duplicates have a distance of exactly 0.

    Args:
        real, generated: Float arrays (samples, features), of more than `k` samples each.
        k: Which neighbour a ball reaches to, at least 1.
        batch_size: Samples whose distances to all others are computed at once. The memory is
            some `50 * batch_size * samples` bytes beside the features; by default as many as
            keep it below 300 MB.

    Returns:
        `PrecisionRecall(precision, recall, density, coverage)`.

    Raises:
        ValueError: for arrays of other shapes or with values that are not finite, too few
            samples, or arguments out of their range.
    """
    real, generated, k = checked_arguments(real, generated, k)
    if batch_size is not None:
        batch_size = checked_integer("batch_size", batch_size, 1)
    radii_real, radii_generated = (_radii(x, k, batch_size) for x in (real, generated))
    precise, balls = 0, 0
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, block in _blocks(generated, real, batch_size):
        inside = block.at_most(radii_real[None, :])
        precise += int(inside.any(axis=1).sum())
        balls += int(inside.sum())
        covered |= inside.any(axis=0)
        recalled |= block.at_most(radii_generated[rows, None]).any(axis=0)
    return PrecisionRecall(
        precise / len(generated),
        float(recalled.mean()),
        balls / (k * len(generated)),
        float(covered.mean()),
    )


def checked_arguments(real, generated, k):
    """The arguments of `precision_recall`, both sets moved to the real ones' mean."""
    k = checked_integer("k", k, 1)
    real, generated = checked_pair(NAMES, real, generated)
    if k >= min(len(real), len(generated)):
        raise ValueError(
            f"`k` must be below the number of samples, {len(real)} in `real` and "
            f"{len(generated)} in `generated`; received {k}."
        )
    # Distances stay as they are, and lose less to rounding.
    mean = real.mean(axis=0)
    return real - mean, generated - mean, k


def precision_recall_of_subsets(real, generated, k, members_real, members_generated):
    """`precision_recall` of many pairs of subsets, from one pass over all pairs.

    Keeps each sample's nearest neighbours in the whole set, so many that k of a half are among
    them for all but 1 sample in 10^12, and the pairs of samples that lie within their reach.

    Args:
        real, generated: Features from `checked_arguments`.
        k: As of `precision_recall`.
        members_real, members_generated: Boolean arrays (samples, subsets): who is in each, half
            of the samples or more.

    Returns:
        List of `PrecisionRecall`, one per subset.
    """
    reach = 2 * k + 60
    near_real, near_generated = _Neighbours(real, reach), _Neighbours(generated, reach)
    in_real, in_generated = [], []
    for rows, block in _blocks(generated, real, None):
        in_real.append(block.pairs(near_real.reach[None, :], rows.start))
        in_generated.append(block.pairs(near_generated.reach[rows, None], rows.start))
    in_real, in_generated = (
        tuple(np.concatenate(parts) for parts in zip(*pairs, strict=True))
        for pairs in (in_real, in_generated)
    )
    results = []
    for of_real, of_generated in zip(members_real.T, members_generated.T, strict=True):
        radii = near_real.radii(of_real, k), near_generated.radii(of_generated, k)
        fake, true, distance = in_real
        inside = of_generated[fake] & of_real[true] & (distance <= radii[0][true])
        precise = _any(fake[inside], len(generated))
        covered = _any(true[inside], len(real))
        balls = int(inside.sum())
        fake, true, distance = in_generated
        inside = of_generated[fake] & of_real[true] & (distance <= radii[1][fake])
        recalled = _any(true[inside], len(real))
        n_real, n_generated = int(of_real.sum()), int(of_generated.sum())
        results.append(
            PrecisionRecall(
                precise / n_generated,
                recalled / n_real,
                balls / (k * n_generated),
                covered / n_real,
            )
        )
    return results


def _any(numbers, length):
    """How many different numbers there are."""
    flags = np.zeros(length, bool)
    flags[numbers] = True
    return int(flags.sum())


class _Block:
    """Squared distances of some samples x to all y.

    `approximate` comes from a matrix product and is off by `tolerance` at most.
    """

    def __init__(self, x, y, squares_y):
        self.x, self.y = x, y
        scale = np.einsum("ij,ij->i", x, x)[:, None] + squares_y[None, :]
        self.approximate = scale - 2 * (x @ y.T)
        self.tolerance = scale * ((x.shape[1] + 8) * np.finfo(np.float64).eps)

    def exact(self, rows, columns):
        """Squared distances of pairs, from differences."""
        distances = np.empty(len(rows))
        step = max(1, BLOCK_VALUES // self.x.shape[1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            differences = self.x[rows[part]] - self.y[columns[part]]
            distances[part] = np.square(differences).sum(axis=1)
        return distances

    def at_most(self, limits):
        """Whether each squared distance is at most its limit; limits are broadcast."""
        inside = self.approximate <= limits
        unsure = np.nonzero(np.abs(self.approximate - limits) <= self.tolerance)
        if len(unsure[0]):
            inside[unsure] = self.exact(*unsure) <= np.broadcast_to(limits, inside.shape)[unsure]
        return inside

    def pairs(self, limits, offset):
        """(x's number, y's number, squared distance) of all pairs up to their limit."""
        rows, columns = np.nonzero(self.approximate <= limits + self.tolerance)
        return rows + offset, columns, self.exact(rows, columns)

    def nearest(self, number):
        """Columns and squared distances of the nearest y of each x, the nearest first."""
        limits = np.partition(self.approximate, number - 1, axis=1)[:, number - 1, None]
        rows, columns = np.nonzero(self.approximate <= limits + 2 * self.tolerance)
        distances = self.exact(rows, columns)
        order = np.lexsort((distances, rows))
        starts = np.searchsorted(rows, np.arange(len(self.x)))
        chosen = order[starts[:, None] + np.arange(number)]
        return columns[chosen], distances[chosen]


def _blocks(x, y, batch_size):
    """Yields (slice of x, its `_Block` of distances to all y)."""
    squares = np.einsum("ij,ij->i", y, y)
    step = batch_size or max(1, BLOCK_VALUES // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        yield rows, _Block(x[rows], y, squares)


def _nearest(x, number, batch_size):
    """Yields (slice, columns, squared distances) of each sample's nearest others."""
    for rows, block in _blocks(x, x, batch_size):
        own = np.arange(len(block.x))
        block.approximate[own, rows.start + own] = np.inf
        yield rows, *block.nearest(number)


def _radii(x, k, batch_size):
    """Squared distance of each sample to its k-th nearest other one."""
    return np.concatenate([distances[:, -1] for _, _, distances in _nearest(x, k, batch_size)])


class _Neighbours:
    """Each sample's nearest others in the whole set, up to a number."""

    def __init__(self, x, number):
        found = list(_nearest(x, min(number, len(x) - 1), None))
        self.columns = np.concatenate([columns for _, columns, _ in found])
        self.distances = np.concatenate([distances for _, _, distances in found])
        self.reach = self.distances[:, -1]

    def radii(self, members, k):
        """Squared distance of each sample to its k-th nearest other one among `members`."""
        so_far = np.cumsum(members[self.columns], axis=1, dtype=np.int32)
        # Where there are fewer the list's end, the best that is known.
        place = np.minimum((so_far < k).sum(axis=1), self.columns.shape[1] - 1)
        return self.distances[np.arange(len(place)), place]
