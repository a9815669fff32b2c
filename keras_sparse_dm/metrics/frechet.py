"""The Fréchet distance between two sets of features (Heusel et al. 2017)."""

import numpy as np


def frechet_distance(features_a, features_b):
    """The Fréchet distance between Gaussians fitted to two sets of features.

    `|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`, with covariances divided by n - 1.
    With Inception's features it is the FID; other features give other scales, so name the
    features with the number.

    The trace of the root is taken from singular values, in float64, which is exact and stable
    for singular covariances too, as those of fewer samples than features.

    Args:
        features_a, features_b: Float arrays (samples, features), of 2 samples or more each.

    Returns:
        The distance, a float, 0 or more.

    Raises:
        ValueError: for arrays of other shapes, too few samples, or values that are not finite.
    """
    a, b = (
        _checked(name, features)
        for name, features in (("features_a", features_a), ("features_b", features_b))
    )
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            "`features_a` and `features_b` must have as many features; received "
            f"{a.shape[1]} and {b.shape[1]}."
        )
    means = a.mean(axis=0), b.mean(axis=0)
    # Roots of the covariances: S = R^T R, with at most as many rows as there are features.
    roots = [
        np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r")
        for features, mean in zip((a, b), means, strict=True)
    ]
    traces = sum(np.sum(root**2) for root in roots)
    # tr (S_a S_b)^(1/2) is the sum of the singular values of R_a R_b^T.
    overlap = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(max(0.0, np.sum((means[0] - means[1]) ** 2) + traces - 2 * overlap))


def _checked(name, features):
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise ValueError(
            f"`{name}` must be of shape (samples, features) with 2 samples or more; received "
            f"shape {features.shape}."
        )
    if not np.isfinite(features).all():
        raise ValueError(f"`{name}` must be finite; it holds NaN or infinite values.")
    return features
