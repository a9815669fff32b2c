"""Steps that prepare a sketch for the model.

The steps and their order follow the original ChiroDiff program
(https://github.com/dasayan05/chirodiff, ``data/sketch.py`` and ``data/batching.py``). Each step is
a pure function from one `Sketch` to another. `prepare_sketch` composes them as the original does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from keras_sparse_dm.checks import check_positive
from keras_sparse_dm.data.sketch import Sketch, require_strokes, title_of
from keras_sparse_dm.lazy import lazy_module

shapely = lazy_module("shapely")

# A drawing has some hundred points. The limit keeps a hostile file from filling the memory.
MAX_POINTS = 1_000_000


def drop_short_strokes(sketch: Sketch) -> Sketch:
    """Drop strokes of a single point, which have no direction and no length.

    Args:
        sketch: any sketch.

    Returns:
        A sketch of the strokes with two points or more; it may have none.
    """
    return replace(sketch, strokes=tuple(s for s in sketch.strokes if len(s) > 1))


def keep_strokes(sketch: Sketch, n: int) -> Sketch:
    """Keep the first strokes and drop the later ones, as the original does.

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
    """Drop points close to the line through the others (Ramer, Douglas and Peucker).

    Args:
        sketch: a sketch whose strokes have at least two points each.
        tolerance: greatest distance of a dropped point from the simplified line, in the sketch's
            unit of length; 0 drops only points on the line.

    Returns:
        A sketch with the same number of strokes. Their points are a subset of the given ones, with
        their times; each stroke keeps its first and last point.

    Raises:
        ValueError: if `tolerance` is negative or not finite, or a stroke has a single point.

    Example:

    >>> sketch = Sketch([[(0, 0, 0), (1, 0.01, 1), (2, 0, 2)]])
    >>> simplify(sketch, tolerance=0.1).num_points
    2
    """
    if not (tolerance >= 0 and np.isfinite(tolerance)):
        raise ValueError(f"tolerance={tolerance!r} must be a number, 0 or more")
    if any(len(s) < 2 for s in sketch.strokes):
        raise ValueError(
            f"{title_of(sketch.name)}: a stroke of one point cannot be simplified; "
            "use drop_short_strokes first"
        )
    # The third coordinate carries the time; the distances ignore it.
    lines = shapely.linestrings(
        np.concatenate([np.zeros((0, 3)), *sketch.strokes]),
        indices=np.repeat(np.arange(len(sketch)), [len(s) for s in sketch.strokes]),
    )
    simple = shapely.simplify(lines, tolerance, preserve_topology=False)
    strokes = []
    for stroke, line in zip(sketch.strokes, simple, strict=True):
        points = shapely.get_coordinates(line, include_z=True)
        # A stroke within the tolerance of one place becomes the line between its ends.
        strokes.append(points if len(points) > 1 else stroke[[0, -1]])
    return replace(sketch, strokes=tuple(strokes))


def move_to_origin(sketch: Sketch) -> Sketch:
    """Move the first point of the first stroke to (0, 0), which the original calls centring.

    Args:
        sketch: a sketch of at least one stroke.

    Returns:
        The moved sketch, with the same shapes and times.

    Raises:
        ValueError: if the sketch has no stroke, or the result overflows.
    """
    start = require_strokes(sketch)[0][0] * (1.0, 1.0, 0.0)
    with np.errstate(over="ignore"):
        return replace(sketch, strokes=tuple(s - start for s in sketch.strokes))


def scale_to_circle(sketch: Sketch, radius: float = 1.0) -> Sketch:
    """Scale about the origin so that the farthest point lies at distance `radius` from it.

    Args:
        sketch: a sketch with a point away from the origin.
        radius: positive length.

    Returns:
        The scaled sketch, with the same shapes and times.

    Raises:
        ValueError: if `radius` is not a positive number, or all points lie at the origin.
    """
    check_positive("radius", radius)
    farthest = max(np.hypot(s[:, 0], s[:, 1]).max() for s in require_strokes(sketch))
    if farthest == 0:
        raise ValueError(f"{title_of(sketch.name)}: all points lie at one place, so it has no size")
    # Divide first: `radius / farthest` overflows if the source's unit is tiny.
    return replace(
        sketch,
        strokes=tuple(
            np.column_stack([s[:, :2] / farthest * radius, s[:, 2]]) for s in sketch.strokes
        ),
    )


def resample(sketch: Sketch, spacing: float = 0.05) -> Sketch:
    """Place points at equal distances along each stroke.

    A stroke of length l gets n = max(2, int(l / spacing)) points, l / (n - 1) apart along the
    polyline, from its first point to its last. Their times run linearly from the stroke's first
    time to its last, as in the original: the pen moves at constant speed within a stroke.

    Args:
        sketch: a sketch whose strokes have at least two points each.
        spacing: positive distance, in the sketch's unit of length.

    Returns:
        A sketch with the same number of strokes, each of shape `(n, 3)`.

    Raises:
        ValueError: if `spacing` is not a positive number, or a stroke has a single point or would
            get more than a million.

    Example:

    >>> sketch = Sketch([[(0, 0, 0), (1, 0, 1)]])
    >>> resample(sketch, spacing=0.2).strokes[0][:, 0]
    array([0.  , 0.25, 0.5 , 0.75, 1.  ])
    """
    check_positive("spacing", spacing)
    return replace(sketch, strokes=tuple(_resample(s, spacing, sketch) for s in sketch.strokes))


def _resample(stroke: np.ndarray, spacing: float, sketch: Sketch) -> np.ndarray:
    if len(stroke) < 2:
        raise ValueError(
            f"{title_of(sketch.name)}: a stroke of one point cannot be resampled; "
            "use drop_short_strokes first"
        )
    steps = np.hypot(*np.diff(stroke[:, :2], axis=0).T)
    # Repeated points add no length, and np.interp needs increasing distances.
    corners = stroke[np.concatenate([[True], steps > 0])]
    distance = np.concatenate([[0.0], np.cumsum(steps[steps > 0])])
    if distance[-1] / spacing > MAX_POINTS:
        raise ValueError(
            f"{title_of(sketch.name)}: a stroke of length {distance[-1]:g} would get "
            f"{distance[-1] / spacing:,.0f} points; {MAX_POINTS:,} is the maximum"
        )
    count = max(2, int(distance[-1] / spacing))
    at = np.linspace(0.0, distance[-1], count)
    even = np.empty((count, 3))
    even[:, 0] = np.interp(at, distance, corners[:, 0])
    even[:, 1] = np.interp(at, distance, corners[:, 1])
    even[:, 2] = np.linspace(stroke[0, 2], stroke[-1, 2], count)
    return even


def normalize_time(sketch: Sketch) -> Sketch:
    """Map times linearly so that the first point has time 0 and the last point time 1.

    Args:
        sketch: a sketch that ends later than it begins.

    Returns:
        A sketch with the new times and the same points.

    Raises:
        ValueError: if the sketch has no stroke, or its last time is not after its first.
    """
    strokes = require_strokes(sketch)
    first, last = strokes[0][0, 2], strokes[-1][-1, 2]
    if not first < last:
        raise ValueError(
            f"{title_of(sketch.name)}: time runs from {first:g} to {last:g}; "
            "the last time must be after the first"
        )
    return replace(
        sketch,
        strokes=tuple(
            np.column_stack([s[:, :2], (s[:, 2] - first) / (last - first)]) for s in strokes
        ),
    )


def prepare_sketch(
    sketch: Sketch,
    spacing: float = 0.05,
    scale: float = 10.0,
    tolerance: float | None = None,
    max_strokes: int | None = None,
) -> Sketch:
    """Prepare a sketch as the original ChiroDiff does.

    Drops strokes of one point, moves the start to the origin, scales to the unit circle,
    resamples, scales to `scale`, and maps time to [0, 1]. The result does not depend on the place
    or the size at which the sketch was drawn. Resampling cuts corners, so the farthest point may
    move inwards a little; the last scaling puts it exactly at distance `scale`.

    Args:
        sketch: any sketch with a stroke of two points or more.
        spacing: distance of neighbouring points, as a fraction of the enclosing circle's radius.
        scale: distance of the farthest point from the origin in the result.
        tolerance: tolerance of `simplify`, as a fraction of the enclosing circle's radius, before
            resampling; None to skip it. (The original simplifies after resampling, which leaves
            points at uneven distances.)
        max_strokes: number of strokes that `keep_strokes` keeps, before the other steps; None for
            all strokes.

    Returns:
        The prepared sketch, which starts at (0, 0) at time 0 and ends at time 1.

    Raises:
        ValueError: if no stroke has two points, all points lie at one place, or time stands
            still or decreases; the message names the sketch.

    Example:

    >>> sketch = Sketch([[(0, 0, 0), (3, 4, 1)], [(3, 0, 2), (0, 4, 3)]])
    >>> prepared = prepare_sketch(sketch)
    >>> len(prepared), prepared.num_points
    (2, 40)
    """
    if max_strokes is not None:
        sketch = keep_strokes(sketch, max_strokes)
    sketch = drop_short_strokes(sketch)
    if not sketch.strokes:
        raise ValueError(f"{title_of(sketch.name)}: no stroke has two points or more")
    _require_time_order(sketch)
    sketch = scale_to_circle(move_to_origin(sketch), 1.0)
    if tolerance is not None:
        sketch = simplify(sketch, tolerance)
    return normalize_time(scale_to_circle(resample(sketch, spacing), scale))


def _require_time_order(sketch: Sketch) -> None:
    times = np.concatenate([stroke[:, 2] for stroke in sketch.strokes])
    back = np.flatnonzero(times[1:] < times[:-1])
    if len(back):
        before, after = times[back[0]], times[back[0] + 1]
        raise ValueError(
            f"{title_of(sketch.name)}: time goes back from {before:g} to {after:g}; "
            "points must stand in the order of drawing"
        )
