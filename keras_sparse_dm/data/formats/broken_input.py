"""Errors about broken input: raised, or passed to the caller's `on_broken`."""

from __future__ import annotations

from collections.abc import Callable

OnBroken = Callable[[str, Exception], None]


def named(where: str, error) -> ValueError:
    """Return a ValueError that gives, in one line, the place and the reason."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{where}: {reason[:500]}")


def report(on_broken: OnBroken | None, where: str, error: Exception) -> None:
    """Pass the error of a sketch or file to `on_broken`, or raise it if there is none."""
    if on_broken is None:
        raise error
    on_broken(where, error)
