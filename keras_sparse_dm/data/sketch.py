"""A sketch, the steps that prepare it for the model, and the model's representations of it.

The steps and their order are those of the original ChiroDiff program
(https://github.com/dasayan05/chirodiff, ``data/sketch.py`` and ``data/batching.py``). Each is a
pure function from one `Sketch` to another, so that a pipeline is a composition of them and
`prepare` is only the original's one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

PEN_THRESHOLD = 0.5
# A drawing makes some hundred. The bound keeps a hostile one from filling the memory.
MAX_POINTS = 1_000_000


@dataclass(frozen=True, eq=False)
class Sketch:
    """A drawing as the pen made it: strokes in the order of drawing, with times.

    Args:
        strokes: iterable of arrays of shape `(points, 3)`, one per stroke, at least one point
            each: x, y and time. x grows to the right and y downwards, as on a screen; the units
            of space and time are the source's until `prepare` sets them. Kept as a tuple of
            read-only float64 arrays.
        name: what to call the sketch in messages, for example its file's stem.
        label: what it shows, where that is known: QuickDraw's category, a digit; else empty.

    Raises:
        ValueError: if a stroke has another shape, no point, or a value that is not finite.
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
                raise ValueError(f"{_title(self.name)}: stroke {i} is no array: {error}") from error
            if stroke.ndim != 2 or stroke.shape[1] != 3 or len(stroke) == 0:
                raise ValueError(
                    f"{_title(self.name)}: stroke {i} has shape {stroke.shape}; it must be "
                    "(points, 3) with at least one point: x, y, time"
                )
            if not np.isfinite(stroke).all():
                raise ValueError(
                    f"{_title(self.name)}: stroke {i} holds a NaN or infinite value; "
                    "x, y and time must be finite numbers"
                )
            stroke.flags.writeable = False
            strokes.append(stroke)
        object.__setattr__(self, "strokes", tuple(strokes))

    @property
    def num_points(self) -> int:
        """Number of points of all strokes together."""
        return sum(map(len, self.strokes))

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.strokes)

    def __len__(self) -> int:
        return len(self.strokes)


def drop_short_strokes(sketch: Sketch) -> Sketch:
    """Drops strokes of a single point: they have no direction and no length.

    Args:
        sketch: any sketch.

    Returns:
        The sketch with the strokes of two points or more, perhaps none.
    """
    return replace(sketch, strokes=tuple(s for s in sketch.strokes if len(s) > 1))


def keep_strokes(sketch: Sketch, n: int) -> Sketch:
    """Keeps the first strokes and leaves the later ones out, as the original does.

    Args:
        sketch: any sketch.
        n: number of strokes to keep, at least 1.

    Returns:
        A sketch of at most `n` strokes.

    Raises:
        ValueError: if `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n={n!r} must be 1 or more strokes")
    return replace(sketch, strokes=sketch.strokes[:n])


def simplify(sketch: Sketch, tolerance: float) -> Sketch:
    """Drops points that lie close to the line without them (Ramer, Douglas and Peucker).

    Args:
        sketch: a sketch whose strokes have at least two points each.
        tolerance: how far off the simplified line a dropped point may lie, in the sketch's unit
            of length; 0 drops only what lies on the line.

    Returns:
        A sketch of as many strokes, whose points are among those given, with their times; each
        stroke keeps its first point and its last.

    Raises:
        ValueError: if `tolerance` is negative or not finite, or a stroke has a single point.
    """
    if not (tolerance >= 0 and np.isfinite(tolerance)):
        raise ValueError(f"tolerance={tolerance!r} must be a number, 0 or more")
    if any(len(s) < 2 for s in sketch.strokes):
        raise ValueError(
            f"{_title(sketch.name)}: a stroke of one point cannot be simplified; "
            "use drop_short_strokes first"
        )
    import shapely

    # The time travels as the third coordinate, which the distances leave out.
    lines = shapely.linestrings(
        np.concatenate([np.zeros((0, 3)), *sketch.strokes]),
        indices=np.repeat(np.arange(len(sketch)), [len(s) for s in sketch.strokes]),
    )
    simple = shapely.simplify(lines, tolerance, preserve_topology=False)
    strokes = []
    for stroke, line in zip(sketch.strokes, simple, strict=True):
        points = shapely.get_coordinates(line, include_z=True)
        # A stroke within the tolerance of one place is left as the line between its ends.
        strokes.append(points if len(points) > 1 else stroke[[0, -1]])
    return replace(sketch, strokes=tuple(strokes))


def move_to_origin(sketch: Sketch) -> Sketch:
    """Moves the first point of the first stroke to (0, 0), which the original calls centring.

    Args:
        sketch: a sketch of at least one stroke.

    Returns:
        The moved sketch, of the same shapes and times.

    Raises:
        ValueError: if the sketch has no stroke, or the result overflows.
    """
    start = _require_strokes(sketch)[0][0] * (1.0, 1.0, 0.0)
    with np.errstate(over="ignore"):
        return replace(sketch, strokes=tuple(s - start for s in sketch.strokes))


def scale_to_circle(sketch: Sketch, radius: float = 1.0) -> Sketch:
    """Scales about the origin so that the farthest point lies at `radius` from it.

    Args:
        sketch: a sketch with a point away from the origin.
        radius: positive length.

    Returns:
        The scaled sketch, of the same shapes and times.

    Raises:
        ValueError: if `radius` is not a positive number, or all points lie at the origin.
    """
    _require_positive("radius", radius)
    farthest = max(np.hypot(s[:, 0], s[:, 1]).max() for s in _require_strokes(sketch))
    if farthest == 0:
        raise ValueError(f"{_title(sketch.name)}: all points lie at one place; it has no size")
    # Divide first: `radius / farthest` overflows where the source's unit is tiny.
    return replace(
        sketch,
        strokes=tuple(
            np.column_stack([s[:, :2] / farthest * radius, s[:, 2]]) for s in sketch.strokes
        ),
    )


def resample(sketch: Sketch, spacing: float = 0.05) -> Sketch:
    """Places points at even distance along each stroke.

    A stroke of length l gets n = max(2, int(l / spacing)) points, l / (n - 1) apart along the
    polyline, from its first point to its last. Their times run linearly from the stroke's first
    time to its last, as in the original: the pen's speed within a stroke is made constant.

    Args:
        sketch: a sketch whose strokes have at least two points each.
        spacing: positive distance, in the sketch's unit of length.

    Returns:
        A sketch of as many strokes, each of shape `(n, 3)`.

    Raises:
        ValueError: if `spacing` is not a positive number, a stroke has a single point, or would
            get more than a million.
    """
    _require_positive("spacing", spacing)
    return replace(sketch, strokes=tuple(_resample(s, spacing, sketch) for s in sketch.strokes))


def _resample(stroke: np.ndarray, spacing: float, sketch: Sketch) -> np.ndarray:
    if len(stroke) < 2:
        raise ValueError(
            f"{_title(sketch.name)}: a stroke of one point cannot be resampled; "
            "use drop_short_strokes first"
        )
    steps = np.hypot(*np.diff(stroke[:, :2], axis=0).T)
    # Repeated points add no length, and np.interp wants distances that grow.
    corners = stroke[np.concatenate([[True], steps > 0])]
    distance = np.concatenate([[0.0], np.cumsum(steps[steps > 0])])
    if distance[-1] / spacing > MAX_POINTS:
        raise ValueError(
            f"{_title(sketch.name)}: a stroke of length {distance[-1]:g} would get "
            f"{distance[-1] / spacing:,.0f} points; {MAX_POINTS:,} is the most"
        )
    count = max(2, int(distance[-1] / spacing))
    at = np.linspace(0.0, distance[-1], count)
    even = np.empty((count, 3))
    even[:, 0] = np.interp(at, distance, corners[:, 0])
    even[:, 1] = np.interp(at, distance, corners[:, 1])
    even[:, 2] = np.linspace(stroke[0, 2], stroke[-1, 2], count)
    return even


def normalize_time(sketch: Sketch) -> Sketch:
    """Maps times linearly, so that the first point has time 0 and the last point time 1.

    Args:
        sketch: a sketch that ends later than it begins.

    Returns:
        The sketch with new times and the same points.

    Raises:
        ValueError: if the sketch has no stroke, or its last time is not after its first.
    """
    strokes = _require_strokes(sketch)
    first, last = strokes[0][0, 2], strokes[-1][-1, 2]
    if not first < last:
        raise ValueError(
            f"{_title(sketch.name)}: time runs from {first:g} to {last:g}; "
            "the last time must be after the first"
        )
    return replace(
        sketch,
        strokes=tuple(
            np.column_stack([s[:, :2], (s[:, 2] - first) / (last - first)]) for s in strokes
        ),
    )


def prepare(
    sketch: Sketch,
    spacing: float = 0.05,
    scale: float = 10.0,
    tolerance: float | None = None,
    max_strokes: int | None = None,
) -> Sketch:
    """The original ChiroDiff's preparation of a sketch.

    Drops strokes of one point, moves the start to the origin, scales to the unit circle,
    resamples, scales to `scale`, and maps time to [0, 1]. The result does not depend on where
    or how large the sketch was drawn. Resampling cuts corners and so may shorten the farthest
    reach a little; the last scaling makes that reach exactly `scale`.

    Args:
        sketch: any sketch with a stroke of two points or more.
        spacing: distance of neighbouring points, as a fraction of the enclosing circle's radius.
        scale: distance of the farthest point from the origin in the result.
        tolerance: `simplify`'s, as a fraction of the enclosing circle's radius, before
            resampling; None to leave it out. (The original simplifies after resampling, which
            leaves points at uneven distances.)
        max_strokes: `keep_strokes`'s, before all else; None for all strokes.

    Returns:
        The prepared sketch: starts at (0, 0) at time 0, ends at time 1.

    Raises:
        ValueError: if no stroke has two points, all points lie at one place, or time stands
            still or goes back; the message names the sketch.
    """
    if max_strokes is not None:
        sketch = keep_strokes(sketch, max_strokes)
    sketch = drop_short_strokes(sketch)
    if not sketch.strokes:
        raise ValueError(f"{_title(sketch.name)}: no stroke has two points or more")
    _require_time_order(sketch)
    sketch = scale_to_circle(move_to_origin(sketch), 1.0)
    if tolerance is not None:
        sketch = simplify(sketch, tolerance)
    return normalize_time(scale_to_circle(resample(sketch, spacing), scale))


def to_absolute(sketch: Sketch) -> np.ndarray:
    """Positions with a pen bit: the original's "three-point absolute" representation.

    The points of all strokes in one row; the pen bit is 1 on a stroke's last point, where the
    pen lifts, and 0 elsewhere. The first point is left out: it is always the origin.

    Args:
        sketch: a sketch that starts at (0, 0), of N points.

    Returns:
        float32 array of shape `(N - 1, 3)`: x, y, pen bit.

    Raises:
        ValueError: if a stroke has a single point, or the sketch does not start at (0, 0).
    """
    points, pen = _join(sketch)
    if points[0].any():
        raise ValueError(
            f"{_title(sketch.name)}: starts at ({points[0, 0]:g}, {points[0, 1]:g}), but the "
            "absolute representation leaves the start out; use move_to_origin first"
        )
    return _as_float32(np.column_stack([points[1:], pen[1:]]), sketch)


def from_absolute(points, threshold: float = PEN_THRESHOLD, name: str = "") -> Sketch:
    """The sketch that `to_absolute` gives `points` for; also for generated points.

    The representation holds no times: they run evenly from 0 to 1 over the points. A row that
    no pen lift ends is a stroke too, as the original has it. Strokes of one point are dropped.

    Args:
        points: finite numbers of shape `(n, 3)`: x, y, pen.
        threshold: the pen lifts after a point whose pen value is greater.
        name: the sketch's name.

    Returns:
        A sketch that starts at the origin; without strokes where there was none to see.

    Raises:
        ValueError: if `points` has another shape or a value that is not finite.
    """
    points = _require_points(points)
    return _split(points[:, :2], points[:, 2] > threshold, name)


def to_delta(sketch: Sketch) -> np.ndarray:
    """Steps with a pen bit: the original's "three-point delta" representation.

    Differences of neighbouring points over all strokes in one row. The pen bit is the difference
    of a counter that is i on the points of stroke i but i + 1 on its last: 1 on the step that
    arrives at a stroke's last point, 0 on all others, the travel to the next stroke included.

    Positions are first rounded to a binary grid some 1e-7 of the sketch's size wide, so that the
    differences are exact in float32 and summing them gives the positions without drift.

    Args:
        sketch: a sketch of N points.

    Returns:
        float32 array of shape `(N - 1, 3)`: step in x, step in y, pen bit.

    Raises:
        ValueError: if the sketch has no stroke, or one of a single point.
    """
    points, pen = _join(sketch)
    # All |values| < 2**exponent, so a difference of two fits in float32's 24 bits on this grid.
    exponent = np.frexp(np.abs(points).max())[1]
    grid = np.ldexp(1.0, max(int(exponent) - 23, -1000))
    steps = np.diff(np.round(points / grid) * grid, axis=0)
    counter = np.cumsum(pen)
    return _as_float32(np.column_stack([steps, np.diff(counter)]), sketch)


def from_delta(points, threshold: float = PEN_THRESHOLD, name: str = "") -> Sketch:
    """The sketch, started at the origin, that `to_delta` gives `points` for.

    As `from_absolute` in all else.

    Args:
        points: finite numbers of shape `(n, 3)`: step in x, step in y, pen.
        threshold: the pen lifts after a step whose pen value is greater.
        name: the sketch's name.

    Returns:
        A sketch that starts at the origin; without strokes where there was none to see.

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
    """The sketch in the named representation.

    Args:
        sketch: a prepared sketch of N points.
        representation: `"absolute"` or `"delta"`.

    Returns:
        float32 array of shape `(N - 1, 3)`.

    Raises:
        ValueError: if `representation` is unknown, and as `to_absolute` and `to_delta`.
    """
    return REPRESENTATIONS[check_representation(representation)][0](sketch)


def from_points(
    points, representation: str = "absolute", threshold: float = PEN_THRESHOLD, name: str = ""
) -> Sketch:
    """The sketch that `points` shows in the named representation.

    Args:
        points: finite numbers of shape `(n, 3)`.
        representation: `"absolute"` or `"delta"`.
        threshold: the pen lifts where the pen value is greater.
        name: the sketch's name.

    Returns:
        A sketch that starts at the origin.

    Raises:
        ValueError: if `representation` is unknown, and as `from_absolute` and `from_delta`.
    """
    return REPRESENTATIONS[check_representation(representation)][1](points, threshold, name)


def check_representation(representation: str) -> str:
    """Returns `representation`, or raises the ValueError that lists the known ones."""
    if representation not in REPRESENTATIONS:
        raise ValueError(
            f"representation={representation!r} is unknown; it must be one of "
            + ", ".join(map(repr, REPRESENTATIONS))
        )
    return representation


def _join(sketch: Sketch) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, 2) of all strokes in one row, and the pen bit (N,): 1 on last points."""
    lengths = np.array([len(s) for s in _require_strokes(sketch)])
    if lengths.min() < 2:
        raise ValueError(
            f"{_title(sketch.name)}: stroke {int(lengths.argmin())} has a single point, which "
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
            f"{_title(sketch.name)}: coordinates overflow float32; use scale_to_circle first"
        )
    return points


def _require_points(points) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points has shape {points.shape}; it must be (n, 3): x, y, pen")
    if not np.isfinite(points).all():
        raise ValueError("points holds a NaN or infinite value; all values must be finite")
    return points


def _require_strokes(sketch: Sketch) -> tuple[np.ndarray, ...]:
    if not sketch.strokes:
        raise ValueError(f"{_title(sketch.name)}: has no stroke")
    return sketch.strokes


def _require_time_order(sketch: Sketch) -> None:
    times = np.concatenate([stroke[:, 2] for stroke in sketch.strokes])
    back = np.flatnonzero(times[1:] < times[:-1])
    if len(back):
        before, after = times[back[0]], times[back[0] + 1]
        raise ValueError(
            f"{_title(sketch.name)}: time goes back from {before:g} to {after:g}; "
            "points must stand in the order of drawing"
        )


def _require_positive(argument: str, value: float) -> None:
    if not (value > 0 and np.isfinite(value)):
        raise ValueError(f"{argument}={value!r} must be a positive number")


def _title(name: str) -> str:
    return f"sketch {name!r}" if name else "sketch"
