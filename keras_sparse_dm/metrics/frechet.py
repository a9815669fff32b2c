"""The Fréchet distance between two sets of features (Heusel et al. 2017)."""

import warnings

import numpy as np

from keras_sparse_dm.metrics.features.checks import check_widths, checked_features
from keras_sparse_dm.metrics.features.statistics import FeatureStatistics

NAMES = ("features_a", "features_b")


class FewSamplesWarning(UserWarning):
    """A set has so few samples that its covariance is singular."""


def frechet_distance(features_a, features_b):
    """The Fréchet distance between Gaussians fitted to two sets of features.

    `|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`, with covariances divided by n - 1.
    With Inception's features it is the FID; other features give other scales, so name the
    features with the number.

    It falls with the number of samples, by an amount that is nearly proportional to 1/n:
    compare distances of equal numbers only, or correct them with `bootstrap_interval`. Sets of
    no more samples than features (a `FewSamplesWarning`) have singular covariances; the formula
    still holds, but tells more of the numbers than of the samples.

    The trace of the root is the sum of the singular values of `R_a R_b^T`, where `S = R^T R`.
    Of features R comes from a QR decomposition, of statistics from the covariance's eigenvalues;
    both are in float64 and stable for singular covariances too.

    Args:
        features_a, features_b: Float arrays (samples, features), or `FeatureStatistics` of
            them; of 2 samples or more each.

    Returns:
        The distance, a float, 0 or more.

    Raises:
        ValueError: for arrays of other shapes, too few samples, or values that are not finite.
    """
    sets = checked_sets(features_a, features_b)
    warn_of_few_samples(*sets, stacklevel=2)
    return distance_of_checked(*sets)


def checked_sets(features_a, features_b):
    """Both sets as they are given to `frechet_distance`, or its errors.

    Args:
        features_a, features_b: As of `frechet_distance`.

    Returns:
        For each, a float64 array or the `FeatureStatistics`.
    """
    sets = []
    for name, given in zip(NAMES, (features_a, features_b), strict=True):
        if not isinstance(given, FeatureStatistics):
            given = checked_features(name, given, 2)
        elif given.count < 2:
            raise ValueError(
                f"`{name}` must be of 2 samples or more; received statistics of {given.count}."
            )
        sets.append(given)
    check_widths(NAMES, *(_size(given)[1] for given in sets))
    return tuple(sets)


def warn_of_few_samples(*sets, stacklevel):
    """Gives the `FewSamplesWarning` where one of `checked_sets` has too few samples.

    Args:
        *sets: Both sets.
        stacklevel: Whose line the warning names: 1 for the caller's, 2 for its caller's.
    """
    few = []
    for name, given in zip(NAMES, sets, strict=True):
        samples, features = _size(given)
        if samples < features + 1:
            few.append(f"`{name}` has {samples:,} samples")
    if few:
        warnings.warn(
            f"{' and '.join(few)} of {features:,} features: a stable Fréchet distance needs "
            f"{features + 1:,} samples or more of each set; with fewer the covariance is singular",
            FewSamplesWarning,
            stacklevel=stacklevel + 1,
        )


def distance_of_checked(a, b):
    """`frechet_distance` of what `checked_sets` gave, without a warning."""
    (mean_a, root_a), (mean_b, root_b) = mean_and_root(a), mean_and_root(b)
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    traces = np.sum(root_a**2) + np.sum(root_b**2)
    return float(max(0.0, np.sum((mean_a - mean_b) ** 2) + traces - 2 * overlap))


def _size(given):
    """Numbers of samples and features."""
    if isinstance(given, FeatureStatistics):
        return given.count, given.features
    return given.shape


def mean_and_root(given):
    """Mean, and a root R of the covariance: S = R^T R, of no more rows than its rank can be."""
    if isinstance(given, FeatureStatistics):
        return given.mean, _root_of_covariance(given)
    mean = given.mean(axis=0)
    return mean, np.linalg.qr((given - mean) / np.sqrt(len(given) - 1), mode="r")


def _root_of_covariance(statistics):
    covariance = statistics.covariance
    values, vectors = np.linalg.eigh(covariance)
    # n samples leave at most n - 1 eigenvalues that are not zero. What eigh gives for the rest,
    # and below its precision, is rounding, whose roots would be large beside it.
    kept = min(statistics.count - 1, len(values))
    values, vectors = values[-kept:], vectors[:, -kept:]
    kept = values > len(covariance) * np.finfo(np.float64).eps * values[-1]
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T
