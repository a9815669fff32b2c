"""Checks of feature arrays and of other arguments of the metrics."""

import numpy as np

# Rows processed at once, which bounds the memory beside the features themselves.
BLOCK = 4096


def checked_features(argument, features, minimum=1, copy=True):
    """Return features as an array (samples, features).

    Args:
        argument: Name of the argument, for errors.
        features: Its value.
        minimum: Smallest number of samples.
        copy: True to convert the values to float64, False to keep any real type.

    Raises:
        ValueError: for other shapes, fewer samples, or values that are not finite real numbers.
    """
    try:
        features = np.asarray(features)
        if features.dtype.kind not in "fiub":
            # Types from outside NumPy, such as bfloat16.
            features = features.astype(np.float64, casting="safe")
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{argument}` must be an array of real numbers; {error}.") from error
    if features.ndim != 2 or len(features) < minimum or not features.shape[1]:
        samples = f" with {minimum} samples or more" if minimum else ""
        raise ValueError(
            f"`{argument}` must be of shape (samples, features){samples}; received shape "
            f"{features.shape}."
        )
    for start in range(0, len(features), BLOCK):
        finite = np.isfinite(features[start : start + BLOCK]).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"`{argument}` must be finite; it holds NaN or infinite values, first in sample "
                f"{start + int(np.argmin(finite))}."
            )
    return features.astype(np.float64, copy=False) if copy else features


def checked_pair(names, a, b, minimum=1):
    """Return two sets of features as float64 arrays of equal width; see `checked_features`."""
    a, b = (checked_features(name, x, minimum) for name, x in zip(names, (a, b), strict=True))
    check_widths(names, a.shape[1], b.shape[1])
    return a, b


def check_widths(names, a, b):
    """Raise a ValueError unless two sets have the same number of features."""
    if a != b:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must have the same number of features; "
            f"received {a} and {b}."
        )
