"""What the readers of all formats share: how broken input is told, lines, checked strokes."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

OnBroken = Callable[[str, Exception], None]

# Coordinates beyond it are damage: QuickDraw's are pixels.
MAX_COORDINATE = 1e9
# Milliseconds since 1970 stay below it, and float64 still tells neighbouring ones apart.
MAX_TIME = 1e15

# A drawing of a person has some thousands. Pickles can repeat one list for ever.
MAX_POINTS = 2**20

# A compressed file may unpack to this many bytes, or, where that is more, to this many times its
# own size. Real sketch files unpack to 3 to 10 times theirs; deflate reaches 1,032 times.
UNPACKED_BYTES = 2**24
UNPACKED_RATIO = 100


def named(where: str, error) -> ValueError:
    """The ValueError that says, in one line, what is broken where."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{where}: {reason[:500]}")


def report(on_broken: OnBroken | None, where: str, error: Exception) -> None:
    """Tells `on_broken` of a sketch or file that cannot be read; without it, raises the error."""
    if on_broken is None:
        raise error
    on_broken(where, error)


def existing_file(path) -> Path:
    """The path of a file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path={str(path)!r} is a folder; give a sketch file")
    if not path.exists():
        raise FileNotFoundError(f"path={str(path)!r} does not exist; give a sketch file")
    return path


def read_bounded(path: Path, limit: int, remedy: str) -> bytes:
    """The content of a file; a ValueError, which ends with `remedy`, if it is beyond `limit`."""
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        if size > limit:
            raise ValueError(f"has {size:,} bytes, more than {limit:,}; {remedy}")
        file.seek(0)
        return file.read(size)


def unpacked_limit(size: int) -> int:
    """Number of bytes that a compressed file of `size` bytes may unpack to."""
    return max(UNPACKED_BYTES, UNPACKED_RATIO * size)


def bounded_lines(
    path: Path, max_line: int, on_broken: OnBroken | None
) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file, or of a `.gz` file of one, of bounded length.

    Args:
        path: the file.
        max_line: bytes of the longest line.
        on_broken: called with `"FILE, line N"` and a ValueError for a longer line, which is
            skipped, and where a compressed file is damaged or unpacks to more than
            `unpacked_limit`, which ends it. Without it, the error is raised.

    Yields:
        `(number, line)`: the number counts from 1, blank lines too, which are left out; the line
        has no line end.
    """
    compressed = path.name.lower().endswith(".gz")
    limit = unpacked_limit(path.stat().st_size) if compressed else None
    number = unpacked = 0
    with open(path, "rb") as raw, gzip.GzipFile(fileobj=raw) if compressed else raw as file:
        while True:
            number += 1
            try:
                line = part = file.readline(max_line + 1)
                unpacked += len(part)
                # What is too long is read to its end in parts, of which none is kept.
                too_long = len(line) > max_line and not line.endswith(b"\n")
                while too_long and part and not part.endswith(b"\n"):
                    part = file.readline(2**20)
                    unpacked += len(part)
                    if limit is not None and unpacked > limit:
                        break
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                where = f"{path.name}, line {number}"
                error = named(where, f"the compressed file is damaged: {error}")
                return report(on_broken, where, error)
            if limit is not None and unpacked > limit:
                where = f"{path.name}, line {number}"
                error = named(
                    where,
                    f"the compressed file unpacks to more than {limit:,} bytes, "
                    f"{UNPACKED_RATIO} times its size; no file of sketches does",
                )
                return report(on_broken, where, error)
            if not line:
                return
            if too_long:
                where = f"{path.name}, line {number}"
                error = named(where, f"is longer than {max_line:,} bytes; no sketch is")
                report(on_broken, where, error)
            elif line := line.rstrip():
                # Some editors begin a file with a byte order mark.
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def strokes_from_columns(
    drawing,
    max_strokes: int | None = None,
    max_coordinate: float = MAX_COORDINATE,
    max_time: float = MAX_TIME,
    in_order: bool = True,
) -> list[np.ndarray]:
    """The strokes of a drawing that lists each stroke's xs, ys and, perhaps, times.

    Args:
        drawing: list of strokes, each a list of two or three lists of as many numbers: the x,
            the y and, in all strokes or in none, the times of its points.
        max_strokes: the strokes to keep, the first ones; None for all.
        max_coordinate: greatest x and y, as an absolute value.
        max_time: greatest time, as an absolute value.
        in_order: whether no time may be before that of the point before.

    Returns:
        Arrays of shape `(points, 3)`: x, y, time; without times, `with_travel_times`.

    Raises:
        ValueError: if the drawing is not of that form or a number is out of range; the message
            tells the stroke.
    """
    if type(drawing) is not list or not drawing:
        raise ValueError("holds no stroke; a drawing must be a list of strokes, at least one")
    if set(map(type, drawing)) != {list} or len(set(map(len, drawing)) - {2, 3}):
        raise ValueError(_bad_stroke(drawing))
    widths = set(map(len, drawing))
    if len(widths) > 1:
        raise ValueError("has times in some strokes and in others none; all or none must have them")
    width = widths.pop()
    if set(map(type, chain.from_iterable(drawing))) != {list}:
        raise ValueError(_bad_stroke(drawing))
    rows = list(zip(*drawing, strict=True))
    lengths = list(map(len, rows[0]))
    if any(list(map(len, row)) != lengths for row in rows[1:]) or 0 in lengths:
        raise ValueError(_bad_stroke(drawing))
    if sum(lengths) > MAX_POINTS:
        raise ValueError(f"has {sum(lengths):,} points; {MAX_POINTS:,} are the most")
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
            "damaged, it seems"
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
    """What is wrong with the first stroke that is not of the form."""
    for i, stroke in enumerate(drawing):
        if type(stroke) is not list or len(stroke) not in (2, 3):
            kind = f"{len(stroke)} lists" if type(stroke) is list else type(stroke).__name__
            return f"stroke {i} is {kind}; it must be two or three lists: x, y and perhaps times"
        if any(type(row) is not list for row in stroke):
            return f"stroke {i} holds no lists; it must be lists of x, y and perhaps times"
        lengths = list(map(len, stroke))
        if len(set(lengths)) > 1:
            texts = ", ".join(map(str, lengths))
            return f"stroke {i} has lists of {texts} numbers; x, y and times must be as many"
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
    """Cuts rows into pieces of the given lengths."""
    pieces, start = [], 0
    for length in lengths:
        pieces.append(points[start : start + length])
        start += length
    return pieces


def with_travel_times(points: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    """Strokes with the times of a pen that moves at constant speed, between strokes too.

    Args:
        points: positions of shape `(points, 2)`, of all strokes in one row.
        lengths: number of points of each stroke.

    Returns:
        Arrays of shape `(points, 3)`, one per stroke: x, y, and the distance travelled since the
        first point as a share of the whole: from 0 to 1, all 0 where there is none.
    """
    timed = np.zeros((len(points), 3))
    timed[:, :2] = points
    # What overflows becomes a NaN, which no sketch may hold.
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.diff(points, axis=0)
        np.cumsum(np.hypot(steps[:, 0], steps[:, 1]), out=timed[1:, 2])
        if timed[-1, 2] > 0:
            timed[:, 2] /= timed[-1, 2]
    return cut(timed, lengths)
