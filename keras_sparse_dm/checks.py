"""Checks of arguments and options: each error names the argument and what would be right."""

import difflib
import math
import operator
import types
import typing


class UsageError(ValueError):
    """Error in options or settings, with a message for the person who gave them."""


class SettingsError(UsageError):
    """Error for settings that no run can have, with a message for the person who gave them."""


def one_of(name, value, choices, error=ValueError):
    """Raise an error unless a value is among the choices."""
    if value not in choices:
        meant = did_you_mean(value, choices)
        raise error(f"{name} must be one of {', '.join(choices)}; received {value!r}.{meant}")


def check_choices(settings, prefix="", error=SettingsError):
    """Raise an error for a value of a dataclass that is not among the choices of its `Literal`.

    Args:
        settings: The dataclass. A field that takes any other text too is left out.
        prefix: Text before the names of the options.
        error: Class of the error.
    """
    for name, hint in typing.get_type_hints(type(settings)).items():
        inner = typing.get_args(hint)
        literals = [h for h in (hint, *inner) if typing.get_origin(h) is typing.Literal]
        if not literals or str in inner:
            continue
        value = getattr(settings, name)
        optional = types.NoneType in inner and value is None
        for choice in () if optional else value if isinstance(value, tuple) else (value,):
            option = f"--{prefix}{name.replace('_', '-')}"
            one_of(option, choice, typing.get_args(literals[0]), error)


def did_you_mean(value, choices, most=1):
    """Return `" Did you mean 'NAME'?"` with the closest choices, or `""` if none is close."""
    close = difflib.get_close_matches(str(value).lower(), choices, n=most)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def at_least(*values, error=ValueError):
    """Raise an error for the first `(name, value, lowest)` whose value is too low; None passes."""
    for name, value, low in values:
        if value is not None and value < low:
            raise error(f"{name} must be {low} or more; received {value}.")


def whole_number(name, value, low):
    """Return a whole number as an int; raise a ValueError for any other value, or one below `low`.

    A float without a fraction is a whole number, but neither a bool nor a text is.
    """
    try:
        if isinstance(value, (bool, str)) or int(value) != value or value < low:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{name} must be a whole number, {low} or more; received {value!r}."
        ) from None
    return int(value)


def whole_numbers(name, values, low):
    """Raise a ValueError unless a sequence holds one or more whole numbers, none below `low`."""
    try:
        fit = bool([whole_number(name, value, low) for value in values])
    except ValueError:
        fit = False
    if not fit:
        raise ValueError(
            f"{name} must be one or more whole numbers, each {low} or more; received {values!r}."
        )


def in_range(name, value, low, high, closed_low=True, closed_high=True, error=ValueError):
    """Raise an error unless a number is finite and lies between two others."""
    inside = (value >= low if closed_low else value > low) and (
        value <= high if closed_high else value < high
    )
    if not inside or not math.isfinite(value):
        if high == math.inf:
            wanted = f"{low} or more" if closed_low else f"above {low}"
        else:
            wanted = f"in {'[' if closed_low else '('}{low}, {high}{']' if closed_high else ')'}"
        share = low == 0 and high == 1 and 5 <= value < 100
        meant = f" Did you mean {value / 100:g}?" if share else ""
        raise error(f"{name} must be a number {wanted}; received {value:g}.{meant}")


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
