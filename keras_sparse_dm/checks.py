"""Checks of what users give."""

import math
import operator


class UsageError(ValueError):
    """Options or settings that cannot be; the message is for the person who gave them."""


def check_whole(argument: str, value, low: int, high: int) -> None:
    """Raise a ValueError that names the argument unless `value` is an integer in [low, high)."""
    try:
        whole = operator.index(value)
    except TypeError:
        raise ValueError(f"{argument}={value!r} must be a whole number, {low} or more") from None
    if not low <= whole < high:
        raise ValueError(f"{argument}={value!r} must be from {low} to {high - 1}")


def check_positive(argument: str, value) -> None:
    """Raise a ValueError that names the argument unless `value` is a finite positive number."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{argument}={value!r} must be a positive number")
