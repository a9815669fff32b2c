"""Checks of feature arrays and of other arguments of the metrics."""

import numpy as np

# Rows that are handled at once, which bounds the memory beside the features themselves.
BLOCK = 4096


def checked_features(argument, features, minimum=1, copy=True):
    """Features as an array, with errors that name the argument.

    Args:
        argument: The argument's name.
        features: What was given for it.
        minimum: The smallest number of samples.
        copy: Whether to turn the values into float64; otherwise any real type stays.

    Returns:
        The array (samples, features).

    Raises:
        ValueError: for other shapes, fewer samples, values that are no real numbers or not
            finite.
    """
    try:
        features = np.asarray(features)
        if features.dtype.kind not in "fiub":
            # Types that NumPy does not know itself, as bfloat16.
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
    """Two sets of features as float64 arrays of as many features; see `checked_features`."""
    a, b = (checked_features(name, x, minimum) for name, x in zip(names, (a, b), strict=True))
    check_widths(names, a.shape[1], b.shape[1])
    return a, b


def check_widths(names, a, b):
    """Raises the ValueError that says so where two sets are not of as many features."""
    if a != b:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must have as many features; received {a} and {b}."
        )


def checked_integer(argument, value, minimum):
    """`value` as an int; a ValueError that names the argument if it is none, or too small."""
    try:
        if isinstance(value, (bool, str)) or int(value) != value or value < minimum:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"`{argument}` must be an integer, {minimum} or more; received {value!r}."
        ) from None
    return int(value)
