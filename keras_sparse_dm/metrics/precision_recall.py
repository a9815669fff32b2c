"""Precision, recall, density and coverage of generated features.

The ball around each sample of a set reaches to the sample's k-th nearest neighbour in the same set.
Together the balls cover the region of the set's distribution (Kynkäänniemi et al. 2019).
"""

from typing import NamedTuple

import numpy as np

from keras_sparse_dm.checks import whole_number
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.metrics.features.checks import checked_pair

sklearn_metrics = lazy_module("sklearn.metrics")
sklearn_neighbors = lazy_module("sklearn.neighbors")
sklearn_utils = lazy_module("sklearn.utils")

NAMES = ("real", "generated")
# Distances in memory at once by default.
BLOCK_VALUES = 2**22


class PrecisionRecall(NamedTuple):
    """Fidelity and diversity of generated samples.

    Attributes:
        precision: Share of generated samples inside the ball of any real sample, 0 to 1.
        recall: Share of real samples inside the ball of any generated sample, 0 to 1.
        density: Mean number of real samples' balls that contain a generated sample, divided by
            k. 1 in expectation for equal distributions; may exceed 1 (Naeem et al. 2020).
        coverage: Share of real samples whose ball contains a generated sample, 0 to 1 (Naeem et
            al. 2020).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real, generated, k=3, batch_size=None):
    """Precision and recall of generated features, from k-nearest-neighbour balls.

    They depend on the numbers of samples and on k, so compare results with equal numbers only. A
    sample is not its own neighbour, but its duplicates are. A ball includes its boundary, up to
    the rounding error of the distances. Distances are Euclidean, in float64.

    Args:
        real, generated: Float arrays (samples, features), of more than `k` samples each.
        k: Rank of the neighbour on the ball's boundary, 1 or more.
        batch_size: Number of samples whose distances to all others are computed at once. The
            memory is about `50 * batch_size * samples` bytes beside the features; the default
            keeps it below 300 MB.

    Returns:
        `PrecisionRecall(precision, recall, density, coverage)`.

    Raises:
        ValueError: for arrays of other shapes or with values that are not finite, too few
            samples, or arguments out of their range.
    """
    real, generated, k = checked_arguments(real, generated, k)
    if batch_size is not None:
        batch_size = whole_number("`batch_size`", batch_size, 1)
    radii_real, radii_generated = (_nearest(x, k)[0][:, -1] for x in (real, generated))
    precise, balls = 0, 0
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, distances in _blocks(generated, real, batch_size):
        inside = distances <= radii_real
        precise += int(inside.any(axis=1).sum())
        balls += int(inside.sum())
        covered |= inside.any(axis=0)
        recalled |= (distances <= radii_generated[rows, None]).any(axis=0)
    return PrecisionRecall(
        precise / len(generated),
        float(recalled.mean()),
        balls / (k * len(generated)),
        float(covered.mean()),
    )


def checked_arguments(real, generated, k):
    """Return the checked arguments of `precision_recall`, with the real mean subtracted."""
    k = whole_number("`k`", k, 1)
    real, generated = checked_pair(NAMES, real, generated)
    if k >= min(len(real), len(generated)):
        raise ValueError(
            f"`k` must be below the number of samples, {len(real)} in `real` and "
            f"{len(generated)} in `generated`; received {k}."
        )
    # The distances stay the same and lose less to rounding.
    mean = real.mean(axis=0)
    return real - mean, generated - mean, k


def precision_recall_of_subsets(real, generated, k, members_real, members_generated):
    """Compute `precision_recall` of many pairs of subsets in one pass over all pairs.

    Stores each sample's nearest neighbours in the whole set, and all pairs of samples that are no
    further apart than the furthest stored neighbour. So many neighbours are stored that k of them
    belong to a random half for all but 1 sample in 10^12.

    Args:
        real, generated: Features from `checked_arguments`.
        k: As in `precision_recall`.
        members_real, members_generated: Boolean arrays (samples, subsets), True for the members
            of each subset; each subset holds at least half of the samples.

    Returns:
        List of `PrecisionRecall`, one per subset.
    """
    number = 2 * k + 60
    near_real, near_generated = _Neighbours(real, number), _Neighbours(generated, number)
    in_real, in_generated = [], []
    for rows, distances in _blocks(generated, real):
        for pairs, limits in (
            (in_real, near_real.reach),
            (in_generated, near_generated.reach[rows, None]),
        ):
            fake, true = np.nonzero(distances <= limits)
            pairs.append((fake + rows.start, true, distances[fake, true]))
    in_real, in_generated = (
        tuple(np.concatenate(parts) for parts in zip(*pairs, strict=True))
        for pairs in (in_real, in_generated)
    )
    results = []
    for of_real, of_generated in zip(members_real.T, members_generated.T, strict=True):
        radii = near_real.radii(of_real, k), near_generated.radii(of_generated, k)
        fake, true, distance = in_real
        inside = of_generated[fake] & of_real[true] & (distance <= radii[0][true])
        precise = _count_different(fake[inside], len(generated))
        covered = _count_different(true[inside], len(real))
        balls = int(inside.sum())
        fake, true, distance = in_generated
        inside = of_generated[fake] & of_real[true] & (distance <= radii[1][fake])
        recalled = _count_different(true[inside], len(real))
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


def _count_different(numbers, length):
    """Count the different numbers among integers below `length`."""
    flags = np.zeros(length, bool)
    flags[numbers] = True
    return int(flags.sum())


def _blocks(x, y, batch_size=None):
    """Yield `(slice of x, squared distances of these x to all y)`.

    The distances are lowered by their rounding error, so that a sample on the boundary of a ball
    is never outside because of rounding.
    """
    squares_x, squares_y = (np.einsum("ij,ij->i", z, z) for z in (x, y))
    error = 4 * (x.shape[1] + 8) * np.finfo(np.float64).eps
    for rows in sklearn_utils.gen_batches(len(x), batch_size or max(1, BLOCK_VALUES // len(y))):
        distances = sklearn_metrics.euclidean_distances(x[rows], y, squared=True)
        distances -= error * (squares_x[rows, None] + squares_y)
        yield rows, distances


def _nearest(x, number):
    """Return squared distances and row numbers of each sample's nearest others, nearest first."""
    distances, rows = (
        sklearn_neighbors.NearestNeighbors(n_neighbors=number, algorithm="brute")
        .fit(x)
        .kneighbors()
    )
    return np.square(distances), rows


class _Neighbours:
    """Nearest neighbours of each sample in the whole set, up to a number."""

    def __init__(self, x, number):
        self.distances, self.rows = _nearest(x, min(number, len(x) - 1))
        self.reach = self.distances[:, -1]

    def radii(self, members, k):
        """Return the squared distance of each sample to its k-th nearest neighbour in a subset."""
        so_far = np.cumsum(members[self.rows], axis=1, dtype=np.int32)
        # With fewer than k members in the list, the last neighbour is the best that is known.
        place = np.minimum((so_far < k).sum(axis=1), self.rows.shape[1] - 1)
        return self.distances[np.arange(len(place)), place]
