"""Checked strokes, built from the columns and rows of numbers that files hold."""

from __future__ import annotations

from itertools import chain

import numpy as np

# Greater coordinates are damage: QuickDraw's are pixels.
MAX_COORDINATE = 1e9
# Milliseconds since 1970 stay below this value, and float64 still resolves single ones.
MAX_TIME = 1e15

# A person's drawing has some thousands of points. A pickle can repeat one list without end.
MAX_POINTS = 2**20


def strokes_from_columns(
    drawing,
    max_strokes: int | None = None,
    max_coordinate: float = MAX_COORDINATE,
    max_time: float = MAX_TIME,
    in_order: bool = True,
) -> list[np.ndarray]:
    """Return the strokes of a drawing that lists each stroke's xs, ys and, optionally, times.

    Args:
        drawing: list of strokes, each a list of two or three lists of equal length: the x, the y
            and, in all strokes or in none, the times of its points.
        max_strokes: number of strokes to keep, the first ones; None for all.
        max_coordinate: greatest absolute value of x and y.
        max_time: greatest absolute value of a time.
        in_order: whether to refuse times that decrease.

    Returns:
        Arrays of shape `(points, 3)`: x, y, time. Without times, those of `with_travel_times`.

    Raises:
        ValueError: if the drawing has another form or a number is out of range; the message names
            the stroke.
    """
    if type(drawing) is not list or not drawing:
        raise ValueError("holds no stroke; a drawing must be a list of strokes, at least one")
    if set(map(type, drawing)) != {list} or len(set(map(len, drawing)) - {2, 3}):
        raise ValueError(_bad_stroke(drawing))
    widths = set(map(len, drawing))
    if len(widths) > 1:
        raise ValueError("has times in some strokes only; all or none must have them")
    width = widths.pop()
    if set(map(type, chain.from_iterable(drawing))) != {list}:
        raise ValueError(_bad_stroke(drawing))
    rows = list(zip(*drawing, strict=True))
    lengths = list(map(len, rows[0]))
    if any(list(map(len, row)) != lengths for row in rows[1:]) or 0 in lengths:
        raise ValueError(_bad_stroke(drawing))
    if sum(lengths) > MAX_POINTS:
        raise ValueError(f"has {sum(lengths):,} points; {MAX_POINTS:,} is the maximum")
    rows = [list(chain.from_iterable(row)) for row in rows]
    if not set(map(type, chain.from_iterable(rows))) <= {int, float}:
        raise ValueError(_bad_stroke(drawing))
    try:
        columns = np.array(rows, np.float64)
    except OverflowError:
        raise ValueError("has a number that is too large") from None
    # Comparisons are false for NaN.
    if not (np.abs(columns[:2]) <= max_coordinate).all():
        raise ValueError(
            f"has a coordinate that is infinite or NaN or beyond {max_coordinate:g}; "
            "the file seems damaged"
        )
    if width == 3:
        if not (np.abs(columns[2]) <= max_time).all():
            raise ValueError(f"has a time that is infinite or NaN or beyond {max_time:g}")
        if in_order and (columns[2, 1:] < columns[2, :-1]).any():
            raise ValueError(_back_in_time(columns[2], lengths))
    lengths = lengths[:max_strokes]
    points = columns[:, : sum(lengths)].T
    return cut(points, lengths) if width == 3 else with_travel_times(points, lengths)


def _bad_stroke(drawing: list) -> str:
    """Return the reason why the first malformed stroke is refused."""
    for i, stroke in enumerate(drawing):
        if type(stroke) is not list or len(stroke) not in (2, 3):
            kind = f"{len(stroke)} lists" if type(stroke) is list else type(stroke).__name__
            return f"stroke {i} is {kind}; it must be two or three lists: x, y and optional times"
        if any(type(row) is not list for row in stroke):
            return f"stroke {i} holds no lists; it must be lists of x, y and optional times"
        lengths = list(map(len, stroke))
        if len(set(lengths)) > 1:
            texts = ", ".join(map(str, lengths))
            return (
                f"stroke {i} has lists of {texts} numbers; x, y and times must have equal lengths"
            )
        if not lengths[0]:
            return f"stroke {i} has no point"
        wrong = {type(value).__name__ for row in stroke for value in row} - {"int", "float"}
        if wrong:
            return f"stroke {i} holds {', '.join(sorted(wrong))}; it must hold numbers"
    raise AssertionError("all strokes are right")


def _back_in_time(times: np.ndarray, lengths: list[int]) -> str:
    at = int(np.argmax(times[1:] < times[:-1])) + 1
    stroke = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
    return f"time goes back from {times[at - 1]:g} to {times[at]:g} in stroke {stroke}"


def cut(points: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    """Cut rows into pieces of the given lengths."""
    pieces, start = [], 0
    for length in lengths:
        pieces.append(points[start : start + length])
        start += length
    return pieces


def with_travel_times(points: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    """Return strokes with the times of a pen that moves at constant speed, also between strokes.

    Args:
        points: positions of shape `(points, 2)` of all strokes, in order.
        lengths: number of points of each stroke.

    Returns:
        Arrays of shape `(points, 3)`, one per stroke: x, y, and the distance travelled since the
        first point as a share of the total, from 0 to 1; all 0 if the total is 0.
    """
    timed = np.zeros((len(points), 3))
    timed[:, :2] = points
    # Overflow gives NaN, which `Sketch` refuses.
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.diff(points, axis=0)
        np.cumsum(np.hypot(steps[:, 0], steps[:, 1]), out=timed[1:, 2])
        if timed[-1, 2] > 0:
            timed[:, 2] /= timed[-1, 2]
    return cut(timed, lengths)


def numbers(rows, width: int, columns: str) -> np.ndarray:
    """Return rows of finite numbers as float64 `(1 or more, width)`, or raise a ValueError."""
    if isinstance(rows, np.ndarray) and rows.dtype.hasobject and rows.ndim == 2:
        # NumPy stores sketches of equal length as one array of number objects.
        values = rows.ravel().tolist()
        if set(map(type, values)) <= {int, float}:
            try:
                rows = np.array(values, np.float64).reshape(rows.shape)
            except OverflowError:
                raise ValueError("has a number that is too large") from None
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "biuf":
        raise ValueError("is not an array of numbers")
    if rows.ndim != 2 or rows.shape[1] != width or len(rows) == 0:
        raise ValueError(
            f"has shape {rows.shape}; it must be (points, {width}), at least one point: {columns}"
        )
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("has a number that is infinite or NaN")
    return rows


def pen_bits(pen: np.ndarray) -> np.ndarray:
    """Return whether the pen lifts after each point, given a column of 0 and 1."""
    if not np.isin(pen, (0, 1)).all():
        wrong = pen[~np.isin(pen, (0, 1))][0]
        raise ValueError(f"has {wrong:g} for the pen's state, which must be 0 or 1")
    return pen == 1


def stroke_lengths(lifted: np.ndarray) -> list[int]:
    """Return the number of points of each stroke; points after the last lift are a stroke too."""
    ends = np.flatnonzero(lifted) + 1
    if not len(ends) or ends[-1] != len(lifted):
        ends = np.append(ends, len(lifted))
    return np.diff(ends, prepend=0).tolist()
