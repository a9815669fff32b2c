"""Kernel distance between two sets of features (Bińkowski et al. 2018)."""

from typing import NamedTuple

import numpy as np

from keras_sparse_dm.checks import whole_number
from keras_sparse_dm.metrics.features.checks import checked_pair

NAMES = ("features_a", "features_b")
# Kernel values in memory at once: 64 MB.
BLOCK_VALUES = 2**23


class KernelDistance(NamedTuple):
    """Kernel distance and its spread over subsets.

    Attributes:
        mean: Mean over the subsets; may be negative, since the estimate is unbiased.
        std: Standard deviation over the subsets: the spread of an estimate from `subset_size`
            samples. The error of `mean` is smaller; see `bootstrap_interval`.
    """

    mean: float
    std: float

    def __str__(self):
        return f"{self.mean:.4g} ± {self.std:.2g}"


def kernel_distance(
    features_a, features_b, subsets=100, subset_size=1000, degree=3, gamma=None, coef0=1.0, seed=0
):
    """Squared maximum mean discrepancy under a polynomial kernel, over random subsets.

    Uses the unbiased estimate for the kernel `(gamma x.y + coef0)^degree`, in float64, on subsets
    drawn without replacement. With Inception features it is the KID. Unlike the Fréchet distance,
    it has the same expectation for any number of samples. A seed draws the same subsets as
    torch-fidelity's `rng_seed`.

    Args:
        features_a, features_b: Float arrays (samples, features).
        subsets: Number of subsets, 1 or more.
        subset_size: Samples of each set in a subset, from 2 to the size of the smaller set.
        degree: Degree of the kernel, an integer of 1 or more.
        gamma: Factor of the kernel; 1 / features by default.
        coef0: Constant of the kernel.
        seed: Integer from 0 to 2**32 - 1 that draws the subsets.

    Returns:
        `KernelDistance(mean, std)`.

    Raises:
        ValueError: for arrays of other shapes or with values that are not finite, fewer samples
            than `subset_size`, or arguments out of their range.
    """
    subsets = whole_number("`subsets`", subsets, 1)
    size = whole_number("`subset_size`", subset_size, 2)
    a, b = checked_pair(NAMES, features_a, features_b, 2)
    kernel = Kernel(a.shape[1], degree, gamma, coef0)
    seed = whole_number("`seed`", seed, 0)
    if seed >= 2**32:
        raise ValueError(f"`seed` must be below 2**32; received {seed}.")
    if size > min(len(a), len(b)):
        raise ValueError(
            f"`subset_size` must not exceed the number of samples, {len(a)} in `features_a` and "
            f"{len(b)} in `features_b`; received {size}. Give more samples, or a smaller "
            "`subset_size`, and report the size with the distance."
        )
    random = np.random.RandomState(seed)  # the generator that torch-fidelity uses
    chosen = [[random.choice(len(x), size, replace=False) for x in (a, b)] for _ in range(subsets)]
    everything = len(a) ** 2 + len(b) ** 2 + len(a) * len(b)
    if everything <= 3 * subsets * size**2:  # cheaper to compute all pairs once
        members = [np.zeros((len(x), subsets), bool) for x in (a, b)]
        for subset, rows in enumerate(chosen):
            for member, row in zip(members, rows, strict=True):
                member[row, subset] = True
        distances = discrepancies(a, b, *members, kernel)
    else:
        distances = [_discrepancy(a[rows_a], b[rows_b], kernel) for rows_a, rows_b in chosen]
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)))


def squared_discrepancy(features_a, features_b, degree=3, gamma=None, coef0=1.0):
    """Estimate of `kernel_distance` from all samples at once, the limit of many subsets.

    Args:
        features_a, features_b: Float arrays (samples, features), 2 samples or more each.
        degree, gamma, coef0: As in `kernel_distance`.

    Returns:
        Float, the squared discrepancy; may be negative.

    Raises:
        ValueError: for arrays of other shapes or with values that are not finite, or a kernel
            argument out of its range.
    """
    a, b = checked_pair(NAMES, features_a, features_b, 2)
    return _discrepancy(a, b, Kernel(a.shape[1], degree, gamma, coef0))


class Kernel:
    """Polynomial kernel: a function of two arrays of samples that returns the kernel matrix.

    Args:
        features: Number of features.
        degree, gamma, coef0: As in `kernel_distance`.

    Raises:
        ValueError: for arguments out of their range.
    """

    def __init__(self, features, degree=3, gamma=None, coef0=1.0):
        self.degree = whole_number("`degree`", degree, 1)
        self.gamma = 1 / features if gamma is None else _finite("gamma", gamma)
        self.coef0 = _finite("coef0", coef0)

    def __call__(self, x, y):
        base = x @ y.T
        base *= self.gamma
        base += self.coef0
        values = base
        for _ in range(self.degree - 1):  # ten times faster than np.power
            values = values * base
        return values


def _finite(argument, value):
    try:
        value = float(value)
        if not np.isfinite(value):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"`{argument}` must be a finite number; received {value!r}.") from None
    return value


def _discrepancy(a, b, kernel):
    everyone = np.ones((len(a), 1), bool), np.ones((len(b), 1), bool)
    return float(discrepancies(a, b, *everyone, kernel)[0])


def discrepancies(a, b, members_a, members_b, kernel):
    """Return the unbiased squared discrepancies of many pairs of subsets in one pass.

    Args:
        a, b: Float64 arrays (samples, features).
        members_a, members_b: Boolean arrays (samples, subsets), True for each subset's members.
        kernel: `Kernel`.

    Returns:
        Float64 array (subsets,).
    """
    w_a, w_b = members_a.astype(np.float64), members_b.astype(np.float64)
    size_a, size_b = w_a.sum(axis=0), w_b.sum(axis=0)
    return (
        _sums(a, a, w_a, w_a, kernel) / (size_a * (size_a - 1))
        + _sums(b, b, w_b, w_b, kernel) / (size_b * (size_b - 1))
        - 2 * _sums(a, b, w_a, w_b, kernel) / (size_a * size_b)
    )


def _sums(x, y, w_x, w_y, kernel):
    """Return the sum of the kernel over each subset's pairs of different samples."""
    total = np.zeros(w_x.shape[1])
    step = max(1, BLOCK_VALUES // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        values = kernel(x[rows], y)
        if x is y:
            number = np.arange(len(values))
            values[number, start + number] = 0
        total += np.einsum("ns,ns->s", w_x[rows], values @ w_y)
    return total
