"""Counts with their nouns."""


def counted(number, noun):
    """Return a count with its noun: "1 run", "2 runs", "1,200 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
