"""Representations of a sketch: the arrays of points that models see, and the way back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from keras_sparse_dm.data.sketch import Sketch, require_strokes, title_of

PEN_THRESHOLD = 0.5


def to_absolute(sketch: Sketch) -> np.ndarray:
    """Return positions with a pen bit, the original's "three-point absolute" representation.

    The rows hold the points of all strokes in order. The pen bit is 1 at a stroke's last point,
    where the pen lifts, and 0 elsewhere. The first point is omitted: it is always the origin.

    Args:
        sketch: a sketch of N points that starts at (0, 0).

    Returns:
        float32 array of shape `(N - 1, 3)`: x, y, pen bit.

    Raises:
        ValueError: if a stroke has a single point, or the sketch does not start at (0, 0).

    Example:

    >>> sketch = Sketch([[(0, 0, 0), (3, 4, 1)], [(3, 0, 2), (0, 4, 3)]])
    >>> to_absolute(sketch)
    array([[3., 4., 1.],
           [3., 0., 0.],
           [0., 4., 1.]], dtype=float32)
    """
    points, pen = _join(sketch)
    if points[0].any():
        raise ValueError(
            f"{title_of(sketch.name)}: starts at ({points[0, 0]:g}, {points[0, 1]:g}), but the "
            "absolute representation omits the start; use move_to_origin first"
        )
    return _as_float32(np.column_stack([points[1:], pen[1:]]), sketch)


def from_absolute(points, threshold: float = PEN_THRESHOLD, name: str = "") -> Sketch:
    """Return the sketch of points in the absolute representation, the inverse of `to_absolute`.

    Accepts generated points too. The representation holds no times, so they run evenly from 0 to 1
    over the points. As in the original, points after the last pen lift form a stroke too. Strokes
    of one point are dropped.

    Args:
        points: finite numbers of shape `(n, 3)`: x, y, pen.
        threshold: the pen lifts after a point whose pen value is greater.
        name: the sketch's name.

    Returns:
        A sketch that starts at the origin; without strokes if no stroke has two points.

    Raises:
        ValueError: if `points` has another shape or a value that is not finite.
    """
    points = _require_points(points)
    return _split(points[:, :2], points[:, 2] > threshold, name)


def to_delta(sketch: Sketch) -> np.ndarray:
    """Return steps with a pen bit, the original's "three-point delta" representation.

    The rows hold the differences of consecutive points of all strokes. The pen bit is the
    difference of a counter that is i on the points of stroke i but i + 1 on its last one: it is 1
    on the step to a stroke's last point and 0 on all others, including the step to the next stroke.

    Positions are first rounded to a binary grid of about 1e-7 of the sketch's size, so that the
    differences are exact in float32 and their sums give the positions without drift.

    Args:
        sketch: a sketch of N points.

    Returns:
        float32 array of shape `(N - 1, 3)`: step in x, step in y, pen bit.

    Raises:
        ValueError: if the sketch has no stroke, or a stroke has a single point.

    Example:

    >>> sketch = Sketch([[(0, 0, 0), (3, 4, 1)], [(3, 0, 2), (0, 4, 3)]])
    >>> to_delta(sketch)
    array([[ 3.,  4.,  1.],
           [ 0., -4.,  0.],
           [-3.,  4.,  1.]], dtype=float32)
    """
    points, pen = _join(sketch)
    # All |values| < 2**exponent, so a difference of two fits in float32's 24 bits on this grid.
    exponent = np.frexp(np.abs(points).max())[1]
    grid = np.ldexp(1.0, max(int(exponent) - 23, -1000))
    steps = np.diff(np.round(points / grid) * grid, axis=0)
    counter = np.cumsum(pen)
    return _as_float32(np.column_stack([steps, np.diff(counter)]), sketch)


def from_delta(points, threshold: float = PEN_THRESHOLD, name: str = "") -> Sketch:
    """Return the sketch of points in the delta representation, the inverse of `to_delta`.

    See `from_absolute` for times, unfinished strokes and strokes of one point.

    Args:
        points: finite numbers of shape `(n, 3)`: step in x, step in y, pen.
        threshold: the pen lifts after a step whose pen value is greater.
        name: the sketch's name.

    Returns:
        A sketch that starts at the origin; without strokes if no stroke has two points.

    Raises:
        ValueError: if `points` has another shape or a value that is not finite.
    """
    points = _require_points(points)
    return _split(np.cumsum(points[:, :2], axis=0), points[:, 2] > threshold, name)


REPRESENTATIONS: dict[str, tuple[Callable, Callable]] = {
    "absolute": (to_absolute, from_absolute),
    "delta": (to_delta, from_delta),
}


def to_points(sketch: Sketch, representation: str = "absolute") -> np.ndarray:
    """Return the sketch in the named representation.

    Args:
        sketch: a prepared sketch of N points.
        representation: `"absolute"` or `"delta"`.

    Returns:
        float32 array of shape `(N - 1, 3)`.

    Raises:
        ValueError: if `representation` is unknown, or `to_absolute` or `to_delta` raises one.
    """
    return REPRESENTATIONS[check_representation(representation)][0](sketch)


def from_points(
    points, representation: str = "absolute", threshold: float = PEN_THRESHOLD, name: str = ""
) -> Sketch:
    """Return the sketch of points in the named representation.

    Args:
        points: finite numbers of shape `(n, 3)`.
        representation: `"absolute"` or `"delta"`.
        threshold: the pen lifts after a point whose pen value is greater.
        name: the sketch's name.

    Returns:
        A sketch that starts at the origin.

    Raises:
        ValueError: if `representation` is unknown, or `from_absolute` or `from_delta` raises one.

    Example:

    >>> sketch = from_points([[3, 4, 1], [0, -4, 0], [-3, 4, 1]], "delta", name="cross")
    >>> [stroke[:, :2].tolist() for stroke in sketch]
    [[[0.0, 0.0], [3.0, 4.0]], [[3.0, 0.0], [0.0, 4.0]]]
    """
    return REPRESENTATIONS[check_representation(representation)][1](points, threshold, name)


def check_representation(representation: str) -> str:
    """Return `representation`, or raise a ValueError that lists the known ones."""
    if representation not in REPRESENTATIONS:
        raise ValueError(
            f"representation={representation!r} is unknown; it must be one of "
            + ", ".join(map(repr, REPRESENTATIONS))
        )
    return representation


def _join(sketch: Sketch) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions `(N, 2)` of all strokes, and the pen bits `(N,)`: 1 on last points."""
    lengths = np.array([len(s) for s in require_strokes(sketch)])
    if lengths.min() < 2:
        raise ValueError(
            f"{title_of(sketch.name)}: stroke {int(lengths.argmin())} has a single point, which "
            "no representation can tell from a pen lift; use drop_short_strokes first"
        )
    pen = np.zeros(lengths.sum())
    pen[np.cumsum(lengths) - 1] = 1
    return np.concatenate([s[:, :2] for s in sketch.strokes]), pen


def _split(positions: np.ndarray, pen_lifts: np.ndarray, name: str) -> Sketch:
    positions = np.concatenate([np.zeros((1, 2)), positions])
    timed = np.column_stack([positions, np.linspace(0.0, 1.0, len(positions))])
    strokes = np.split(timed, np.flatnonzero(pen_lifts) + 2)  # + 1 for the origin, + 1 for "after"
    return Sketch(tuple(s for s in strokes if len(s) > 1), name)


def _as_float32(points: np.ndarray, sketch: Sketch) -> np.ndarray:
    with np.errstate(over="ignore"):
        points = points.astype(np.float32)
    if not np.isfinite(points).all():
        raise ValueError(
            f"{title_of(sketch.name)}: coordinates overflow float32; use scale_to_circle first"
        )
    return points


def _require_points(points) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points has shape {points.shape}; it must be (n, 3): x, y, pen")
    if not np.isfinite(points).all():
        raise ValueError("points holds a NaN or infinite value; all values must be finite")
    return points
