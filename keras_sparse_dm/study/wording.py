"""Phrases of messages: counts with their nouns, and suggestions for mistyped names."""

import difflib


def counted(number, noun):
    """Return a count with its noun: "1 run", "2 runs", "1,200 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def did_you_mean(value, choices, most=1):
    """Return " Did you mean ...?" with the closest choices, or "" where none is close."""
    close = difflib.get_close_matches(str(value), choices, n=most)
    return f" Did you mean {' or '.join(close)}?" if close else ""
