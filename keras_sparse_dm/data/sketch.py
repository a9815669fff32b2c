"""A sketch: pen strokes with times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Sketch:
    """A drawing as the pen made it: strokes in the order of drawing, with times.

    Args:
        strokes: iterable of arrays of shape `(points, 3)`, one per stroke, at least one point
            each: x, y and time. x grows to the right and y downwards, as on a screen; space and
            time have the source's units until `prepare_sketch` rescales them. Stored as a tuple
            of read-only float64 arrays.
        name: name of the sketch in messages, for example its file's stem.
        label: category of the drawing, such as QuickDraw's or a digit; empty if unknown.

    Raises:
        ValueError: if a stroke has another shape, no point, or a value that is not finite.

    Example:

    >>> sketch = Sketch([[(0, 0, 0), (3, 4, 1)], [(3, 0, 2), (0, 4, 3)]], name="cross")
    >>> len(sketch), sketch.num_points
    (2, 4)
    """

    strokes: tuple[np.ndarray, ...]
    name: str = ""
    label: str = ""

    def __post_init__(self):
        strokes = []
        for i, stroke in enumerate(self.strokes):
            try:
                stroke = np.array(stroke, dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{title_of(self.name)}: stroke {i} is not an array: {error}"
                ) from error
            if stroke.ndim != 2 or stroke.shape[1] != 3 or len(stroke) == 0:
                raise ValueError(
                    f"{title_of(self.name)}: stroke {i} has shape {stroke.shape}; it must be "
                    "(points, 3) with at least one point: x, y, time"
                )
            if not np.isfinite(stroke).all():
                raise ValueError(
                    f"{title_of(self.name)}: stroke {i} holds a NaN or infinite value; "
                    "x, y and time must be finite numbers"
                )
            stroke.flags.writeable = False
            strokes.append(stroke)
        object.__setattr__(self, "strokes", tuple(strokes))

    @property
    def num_points(self) -> int:
        """Number of points in all strokes together."""
        return sum(map(len, self.strokes))

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.strokes)

    def __len__(self) -> int:
        return len(self.strokes)


def require_strokes(sketch: Sketch) -> tuple[np.ndarray, ...]:
    """Return the strokes of a sketch, or raise a ValueError if it has none."""
    if not sketch.strokes:
        raise ValueError(f"{title_of(sketch.name)}: has no stroke")
    return sketch.strokes


def title_of(name: str) -> str:
    """Return the words with which error messages call a sketch of this name."""
    return f"sketch {name!r}" if name else "sketch"
