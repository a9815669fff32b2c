"""Counts of the sketches or images that a preparation read, kept and skipped."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_BROKEN = 0.05
# Longer lists of categories do not fit in one line.
MANY_LABELS = 12


@dataclass(frozen=True)
class PreparationSummary:
    """Counts of a data set's preparation; `print` shows them in one line.

    Args:
        source: name of the data set.
        read: number of sketches or images that were read.
        kept: number of them that were prepared and kept.
        broken: `(name, reason)` of each one that could not be read or prepared.
        too_long: names of the sketches that were dropped for their length.
        max_points: number of points from which a sketch counts as too long.
        unit: counted things, `"sketches"` or `"images"`.
        available: number that the source holds, if only part of it was read; else None.
        enlarged: number of images that were smaller than the requested size.
        left_out: number of drawings that were read but not requested.
        labels: number of kept sketches in each category, if there are categories.
    """

    source: str
    read: int
    kept: int
    broken: tuple[tuple[str, str], ...] = ()
    too_long: tuple[str, ...] = ()
    max_points: int | None = None
    unit: str = "sketches"
    available: int | None = None
    enlarged: int = 0
    left_out: int = 0
    labels: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        of = "" if self.available is None else f" of {self.available:,}"
        text = f"{self.source}: {self.read:,}{of} {self.unit} read, {self.kept:,} kept"
        if 1 < len(self.labels) <= MANY_LABELS:
            text += f" ({', '.join(f'{label} {n:,}' for label, n in self.labels.items())})"
        if self.left_out:
            text += f", {self.left_out:,} left out"
        if self.max_points is not None:
            text += f", {len(self.too_long):,} too long ({self.max_points} points or more)"
        if self.enlarged:
            text += f", {self.enlarged:,} enlarged"
        text += f", {len(self.broken):,} broken"
        if self.broken:
            text += " (" + "; ".join(reason for _, reason in self.broken[:5])
            text += ", ...)" if len(self.broken) > 5 else ")"
        return text


def check_broken(broken, read: int, source: str, unit: str = "files") -> None:
    """Raise a ValueError that names the first broken items if more than 5% are broken."""
    if len(broken) > MAX_BROKEN * read:
        raise ValueError(
            f"{source}: {len(broken)} of {read} {unit} are broken, more than {MAX_BROKEN:.0%}; "
            "the first are " + "; ".join(reason for _, reason in broken[:3])
        )
