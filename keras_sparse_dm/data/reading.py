"""Readers of sketch files: one function per format, and `read_sketches` for any of them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from keras_sparse_dm.data.sketch import Sketch

# Curves become chords of the drawing's diagonal over this number: for a kanji about 0.01 of the
# enclosing circle's radius, a fifth of the spacing that sketches are resampled to later.
CHORDS_PER_DIAGONAL = 256
# A kanji makes about 1,500. The bound keeps a hostile file from filling the memory.
MAX_CHORDS = 1_000_000


def read_svg(path) -> Sketch:
    """Reads an SVG drawing: each subpath of each `<path>` is a stroke, in document order.

    Made for KanjiVG, where one `<path>` is one stroke of the brush. An SVG holds no times, so
    the pen is taken to move at constant speed, between strokes too: time is the distance
    travelled since the start as a fraction of the whole, 0 at the first point and 1 at the last.

    Args:
        path: the `.svg` file.

    Returns:
        The sketch, named by the file's stem, in the file's own unit of length (KanjiVG: a square
        of 109 x 109, y downwards). Curves are sampled as chords of about 1/256 and never more
        than 3/256 of the drawing's diagonal.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no XML, holds a path that is none, a `transform` on a path
            (not supported), or nothing to draw; the message holds file name and reason.
    """
    path = Path(path)
    try:
        strokes = [
            np.stack([stroke.real, stroke.imag], axis=1)
            for stroke in _flatten([d for d in _path_data(path) if d.strip()])
        ]
    except OSError:
        raise
    except Exception as error:  # the parsers answer bad input with whatever they stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path.name}: {reason}") from error
    if not strokes:
        raise ValueError(f"{path.name}: holds no stroke, no <path> that draws something")
    return Sketch(_with_travel_times(strokes), name=path.stem)


def _path_data(path: Path) -> Iterator[str]:
    """The `d` attributes of the stroke paths in document order."""
    stack = [(ET.parse(path).getroot(), False)]
    if _tag(stack[0][0]) != "svg":
        raise ValueError(f"is no SVG: its root element is <{_tag(stack[0][0])}>")
    while stack:
        element, transformed = stack.pop()
        # KanjiVG's second group labels the strokes with their numbers; definitions are not drawn.
        if _tag(element) in ("defs", "clipPath", "symbol", "mask", "pattern", "marker") or (
            "StrokeNumbers" in element.get("id", "")
        ):
            continue
        transformed = transformed or "transform" in element.attrib
        if _tag(element) == "path":
            if transformed:
                raise ValueError("has a transform on a path, which is not supported")
            yield element.get("d", "")
        stack.extend((child, transformed) for child in reversed(element))


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _flatten(path_data: list[str]) -> list[np.ndarray]:
    """The polylines, as complex numbers, of the subpaths of all paths, in order."""
    # Curves of all kinds become cubic Bezier curves, so that one numpy expression samples a file.
    curves, subpath = [], []
    count = 0
    for d in path_data:
        for is_start, curve in _bezier_curves(d):
            count += is_start
            curves.append(curve)
            subpath.append(count)
    if not curves:
        return []
    curves, subpath = np.array(curves), np.array(subpath)
    corners = curves.ravel()
    diagonal = np.hypot(np.ptp(corners.real), np.ptp(corners.imag))
    # The control polygon is at least as long as its curve.
    lengths = np.abs(np.diff(curves, axis=1)).sum(axis=1)
    if not np.isfinite(lengths).all() or not np.isfinite(diagonal):
        raise ValueError("has coordinates that are infinite or too large")
    chords = np.ones(len(curves), int)
    if diagonal > 0:
        chords = np.maximum(1, np.ceil(lengths / diagonal * CHORDS_PER_DIAGONAL)).astype(int)
    if chords.sum() > MAX_CHORDS:
        raise ValueError(f"makes {chords.sum():,} line segments; {MAX_CHORDS:,} is the most")

    # Each curve gives its points at t = 1/chords, 2/chords, ... 1; its start is the end of the
    # curve before, or the subpath's first point.
    last = np.cumsum(chords)
    t = (np.arange(last[-1]) - np.repeat(last - chords, chords) + 1) / np.repeat(chords, chords)
    s = 1 - t
    p0, p1, p2, p3 = np.repeat(curves, chords, axis=0).T
    points = s**3 * p0 + 3 * s**2 * t * p1 + 3 * s * t**2 * p2 + t**3 * p3
    is_start = np.concatenate([[True], np.diff(subpath) > 0])
    pieces = np.split(points, (last - chords)[is_start][1:])
    return [
        np.concatenate([[start], piece])
        for start, piece in zip(curves[is_start, 0], pieces, strict=True)
    ]


def _bezier_curves(d: str) -> Iterator[tuple[bool, tuple[complex, complex, complex, complex]]]:
    """The path's segments as cubic Bezier curves, each with whether a subpath starts with it."""
    from svg.path import Arc, CubicBezier, Move, QuadraticBezier, parse_path

    starts = True
    for segment in parse_path(d):
        if isinstance(segment, Move):
            starts = True
            continue
        if isinstance(segment, CubicBezier):
            curves = [(segment.start, segment.control1, segment.control2, segment.end)]
        elif isinstance(segment, QuadraticBezier):
            a, b, c = segment.start, segment.control, segment.end
            curves = [(a, (a + 2 * b) / 3, (c + 2 * b) / 3, c)]
        elif isinstance(segment, Arc):
            # A full circle is then a polygon of 256 sides, 7.5e-5 of the radius inside it.
            ends = [segment.point(t) for t in np.linspace(0, 1, 257)]
            curves = [_line(a, b) for a, b in zip(ends, ends[1:], strict=False)]
        else:  # Line, Close
            curves = [_line(segment.start, segment.end)]
        for curve in curves:
            yield starts, curve
            starts = False


def _line(a: complex, b: complex) -> tuple[complex, complex, complex, complex]:
    return a, (2 * a + b) / 3, (a + 2 * b) / 3, b


def _with_travel_times(strokes: list[np.ndarray]) -> list[np.ndarray]:
    points = np.concatenate(strokes)
    travelled = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    if travelled[-1] > 0:
        travelled = travelled / travelled[-1]
    ends = np.cumsum([len(s) for s in strokes])[:-1]
    return np.split(np.column_stack([points, travelled]), ends)


READERS: dict[str, Callable[[Path], Iterator[Sketch]]] = {
    ".svg": lambda path: iter([read_svg(path)]),
}


def read_sketches(
    path, on_broken: Callable[[Path, Exception], None] | None = None
) -> Iterator[Sketch]:
    """Iterates over the sketches of a file, or of all sketch files of a folder sorted by name.

    Args:
        path: a file of a known format (`.svg`), or a folder of such files; subfolders and files
            of other formats in it are left out.
        on_broken: called as `on_broken(file, error)` for a file that cannot be read, which is
            then skipped. By default such a file raises.

    Yields:
        One `Sketch` after the other; only one file is in memory at a time.

    Raises:
        FileNotFoundError: if `path` does not exist.
        ValueError: if a file's format is unknown, a folder holds no sketch file, or a file does
            not parse.
    """
    path = Path(path)
    # Checked here rather than at the first sketch, where a generator would raise.
    return _read_files(list_files(path) if path.is_dir() else [_known(path)], on_broken)


def list_files(folder, argument: str = "path") -> list[Path]:
    """The sketch files of a folder, sorted by name.

    Args:
        folder: an existing folder.
        argument: what the caller calls the folder, for the messages.

    Returns:
        The paths, at least one.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it cannot be listed, or holds no sketch file.
    """
    folder = Path(folder)
    kinds = ", ".join(READERS)
    try:
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() in READERS and f.is_file())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{argument}={str(folder)!r} does not exist; give a folder of sketch files ({kinds})"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{argument}={str(folder)!r} cannot be listed ({error.strerror}); "
            f"give a readable folder of sketch files ({kinds})"
        ) from error
    if not files:
        raise ValueError(
            f"{argument}={str(folder)!r} holds no sketch file; give a folder with files of a "
            f"known format ({kinds})"
        )
    return files


def _known(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"path={str(path)!r} does not exist; give a sketch file ({', '.join(READERS)}) "
            "or a folder of them"
        )
    if path.suffix.lower() not in READERS:
        raise ValueError(f"path={str(path)!r} has no known format; known are {', '.join(READERS)}")
    return path


def _read_files(files, on_broken) -> Iterator[Sketch]:
    for file in files:
        try:
            yield from READERS[file.suffix.lower()](file)
        except (OSError, ValueError) as error:
            if on_broken is None:
                raise
            on_broken(file, error)
