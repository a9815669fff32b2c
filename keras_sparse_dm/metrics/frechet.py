"""Fréchet distance between two sets of features (Heusel et al. 2017)."""

import warnings

import numpy as np

from keras_sparse_dm.metrics.features.checks import check_widths, checked_features
from keras_sparse_dm.metrics.features.statistics import FeatureStatistics

NAMES = ("features_a", "features_b")


class FewSamplesWarning(UserWarning):
    """Warning about a set with so few samples that its covariance is singular."""


def frechet_distance(features_a, features_b):
    """Fréchet distance between Gaussians fitted to two sets of features.

    `|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`, with covariances divided by n - 1.
    With Inception features it is the FID; other features give other scales, so report the
    features with the number.

    The distance falls as the number of samples n grows, by an amount nearly proportional to 1/n.
    Compare distances of equal n only, or correct them with `bootstrap_interval`. A set with no
    more samples than features has a singular covariance (`FewSamplesWarning`): the formula still
    holds, but n affects the result more than the samples do.

    The trace of the root is the sum of the singular values of `R_a R_b^T`, where `S = R^T R`.
    R comes from a QR decomposition of features, or from the eigenvalues of a covariance. Both are
    computed in float64 and are stable for singular covariances.

    Args:
        features_a, features_b: Float arrays (samples, features), or their `FeatureStatistics`;
            2 samples or more each.

    Returns:
        Float, the distance, 0 or more.

    Raises:
        ValueError: for arrays of other shapes, too few samples, or values that are not finite.
    """
    sets = checked_sets(features_a, features_b)
    warn_of_few_samples(*sets, stacklevel=2)
    return distance_of_checked(*sets)


def checked_sets(features_a, features_b):
    """Return both sets checked, each as a float64 array or as the given `FeatureStatistics`.

    Args:
        features_a, features_b: As in `frechet_distance`.

    Raises:
        ValueError: as `frechet_distance`.
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
    """Warn with `FewSamplesWarning` if a set has too few samples.

    Args:
        *sets: Both sets, from `checked_sets`.
        stacklevel: 1 to show the caller's line in the warning, 2 for its caller's.
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
    """Return the distance of sets from `checked_sets`, without a warning."""
    (mean_a, root_a), (mean_b, root_b) = mean_and_root(a), mean_and_root(b)
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    traces = np.sum(root_a**2) + np.sum(root_b**2)
    return float(max(0.0, np.sum((mean_a - mean_b) ** 2) + traces - 2 * overlap))


def _size(given):
    """Return the numbers of samples and features."""
    if isinstance(given, FeatureStatistics):
        return given.count, given.features
    return given.shape


def mean_and_root(given):
    """Return the mean, and R with S = R^T R for the covariance S, of min(n, features) rows."""
    if isinstance(given, FeatureStatistics):
        return given.mean, _root_of_covariance(given)
    mean = given.mean(axis=0)
    return mean, np.linalg.qr((given - mean) / np.sqrt(len(given) - 1), mode="r")


def _root_of_covariance(statistics):
    covariance = statistics.covariance
    values, vectors = np.linalg.eigh(covariance)
    # n samples leave at most n - 1 nonzero eigenvalues. The others are rounding errors, whose
    # square roots would be much larger than the errors themselves.
    kept = min(statistics.count - 1, len(values))
    values, vectors = values[-kept:], vectors[:, -kept:]
    kept = values > len(covariance) * np.finfo(np.float64).eps * values[-1]
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T
