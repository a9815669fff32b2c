"""SVG's shapes and transforms as Bezier curves, and the curves as polylines."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from keras_sparse_dm.lazy import lazy_module

svg_path = lazy_module("svg.path")

# Curves become chords of the drawing's diagonal divided by this number. For a kanji that is about
# 0.01 of the enclosing circle's radius, a fifth of the spacing of the later resampling.
CHORDS_PER_DIAGONAL = 256
# A kanji has about 1,500 chords. The limits keep a hostile file from filling the memory.
MAX_CHORDS = 1_000_000
MAX_PATH_LENGTH = 2**20

Curve = tuple[complex, complex, complex, complex]
# As in SVG's matrix(a, b, c, d, e, f): x' = a x + c y + e, y' = b x + d y + f.
Matrix = tuple[float, float, float, float, float, float]


def path_data(tag: str, attributes: dict[str, str]) -> str | None:
    """Return the path data of an element, or None if it is not a shape."""
    if tag == "path":
        return attributes.get("d", "")
    if tag in ("polyline", "polygon"):
        points = _numbers(attributes.get("points", ""), f"the points of a <{tag}>")
        if len(points) % 2:
            raise ValueError(
                f"has a <{tag}> with {len(points)} numbers; it must have pairs of x and y"
            )
        pairs = [f"{x!r},{y!r}" for x, y in zip(points[::2], points[1::2], strict=True)]
        return f"M{' L'.join(pairs)}{'z' if tag == 'polygon' else ''}" if pairs else ""
    if tag not in ("line", "rect", "circle", "ellipse"):
        return None

    def length(name: str, default: float = 0.0) -> float:
        text = attributes.get(name, "").strip().removesuffix("px")
        if not text or text == "auto":
            return default
        values = _numbers(text, f"{name} of a <{tag}>")
        if len(values) != 1:
            raise ValueError(f"has {text[:50]!r} for {name} of a <{tag}>, which is not a number")
        return values[0]

    if tag == "line":
        ends = [length(name) for name in ("x1", "y1", "x2", "y2")]
        return "M{!r},{!r} L{!r},{!r}".format(*ends)
    if tag == "rect":
        x, y, width, height = (length(name) for name in ("x", "y", "width", "height"))
        rx, ry = length("rx", math.nan), length("ry", math.nan)
        # A single radius counts for both axes.
        rx, ry = (
            min(0.0 if math.isnan(r) else r, side / 2)
            for r, side in (
                (ry if math.isnan(rx) else rx, width),
                (rx if math.isnan(ry) else ry, height),
            )
        )
        if min(width, height, rx, ry) < 0:
            raise ValueError("has a <rect> with a negative size")
        if width == 0 or height == 0:
            return ""
        if rx == 0 or ry == 0:
            return f"M{x!r},{y!r} h{width!r} v{height!r} h{-width!r} z"
        w, h = width - 2 * rx, height - 2 * ry
        return (
            f"M{x + rx!r},{y!r} h{w!r} a{rx!r},{ry!r} 0 0 1 {rx!r},{ry!r} "
            f"v{h!r} a{rx!r},{ry!r} 0 0 1 {-rx!r},{ry!r} "
            f"h{-w!r} a{rx!r},{ry!r} 0 0 1 {-rx!r},{-ry!r} "
            f"v{-h!r} a{rx!r},{ry!r} 0 0 1 {rx!r},{-ry!r}"
        )
    cx, cy = length("cx"), length("cy")
    rx = length("r") if tag == "circle" else length("rx")
    ry = length("r") if tag == "circle" else length("ry")
    if min(rx, ry) < 0:
        raise ValueError(f"has a <{tag}> with a negative radius")
    if rx == 0 or ry == 0:
        return ""
    arc = f"a{rx!r},{ry!r} 0 0 1"
    return f"M{cx + rx!r},{cy!r} {arc} {-2 * rx!r},0 {arc} {2 * rx!r},0"


# Possessive quantifiers only: matching takes linear time on any text.
_NUMBER = r"[+-]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d++)?+"
_NUMBERS = re.compile(rf"\s*+(?:{_NUMBER}\s*+(?:,\s*+)?+)*+")
_COMMA = r"\s*+(?:,\s*+)?+"


def _arguments(numbers: int) -> str:
    """Return the pattern of a command's arguments: this many numbers, once or more."""
    return rf"\s*+(?:(?:{_NUMBER}{_COMMA}){{{numbers}}}+)++"


# Radii and angle, two flags, which may touch, and the end point.
_ARC = rf"\s*+(?:(?:{_NUMBER}{_COMMA}){{3}}+(?:[01]{_COMMA}){{2}}+(?:{_NUMBER}{_COMMA}){{2}}+)++"
_PATH = re.compile(
    rf"\s*+(?=[Mm])(?:[MmLlTt]{_arguments(2)}|[HhVv]{_arguments(1)}|[SsQq]{_arguments(4)}"
    rf"|[Cc]{_arguments(6)}|[Aa]{_ARC}|[Zz]\s*+)*+"
)
_FUNCTION = re.compile(r"\s*(\w+)\s*\(([^()]*)\)\s*,?")


def _numbers(text: str, what: str) -> list[float]:
    if len(text) > MAX_PATH_LENGTH or not _NUMBERS.fullmatch(text):
        raise ValueError(f"has {text[:50]!r} for {what}; they must be numbers")
    return [float(number) for number in re.findall(_NUMBER, text)]


def parse_transform(text: str) -> Matrix:
    """Return the matrix of a `transform` attribute."""
    matrix, position = None, 0
    text = text.strip()
    while position < len(text):
        match = _FUNCTION.match(text, position)
        if match is None:
            raise ValueError(f"has the invalid transform {text[:50]!r}")
        values = _numbers(match[2].strip(), f"the transform {match[1][:20]}")
        matrix = product(matrix, _matrix(match[1], values))
        position = match.end()
    return matrix


def _matrix(function: str, values: list[float]) -> Matrix:
    """Return the matrix of one function of a transform."""
    match function, values:
        case "matrix", [a, b, c, d, e, f]:
            return a, b, c, d, e, f
        case "translate", [x, *y] if len(y) <= 1:
            return 1.0, 0.0, 0.0, 1.0, x, *(y or [0.0])
        case "scale", [x, *y] if len(y) <= 1:
            return x, 0.0, 0.0, *(y or [x]), 0.0, 0.0
        case "rotate", [angle]:
            cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            return cos, sin, -sin, cos, 0.0, 0.0
        case "rotate", [angle, x, y]:
            there = product((1.0, 0.0, 0.0, 1.0, x, y), _matrix("rotate", [angle]))
            return product(there, (1.0, 0.0, 0.0, 1.0, -x, -y))
        case "skewX", [angle]:
            return 1.0, 0.0, math.tan(math.radians(angle)), 1.0, 0.0, 0.0
        case "skewY", [angle]:
            return 1.0, math.tan(math.radians(angle)), 0.0, 1.0, 0.0, 0.0
    raise ValueError(
        f"has the transform {function[:20]} with {len(values)} numbers, which is not supported"
    )


def _transformed(point: complex, a, b, c, d, e, f) -> complex:
    x, y = point.real, point.imag
    return complex(a * x + c * y + e, b * x + d * y + f)


def product(first: Matrix | None, second: Matrix) -> Matrix:
    """Return the matrix that applies `second`, then `first`."""
    if first is None:
        return second
    a, b, c, d, e, f = first
    g, h, i, j, k, m = second
    return (
        a * g + c * h,
        b * g + d * h,
        a * i + c * j,
        b * i + d * j,
        a * k + c * m + e,
        b * k + d * m + f,
    )


def polylines(curves: list[tuple[bool, bool, Curve]]) -> tuple[np.ndarray, list[int]]:
    """Return the points `(points, 2)` of the polylines of all subpaths, and the length of each.

    Args:
        curves: `(starts, straight, curve)`, see `path_curves`.
    """
    if not curves:
        return np.zeros((0, 2)), []
    is_start, straight, curves = map(np.array, zip(*curves, strict=True))
    corners = curves.ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        diagonal = np.hypot(np.ptp(corners.real), np.ptp(corners.imag))
        # The control polygon is at least as long as its curve.
        lengths = np.abs(np.diff(curves, axis=1)).sum(axis=1)
    if not np.isfinite(lengths).all() or not np.isfinite(diagonal):
        raise ValueError("has coordinates that are infinite or too large")
    chords = np.ones(len(curves), int)
    if diagonal > 0:
        needed = np.maximum(1, np.ceil(lengths / diagonal * CHORDS_PER_DIAGONAL)).astype(int)
        chords = np.where(straight, 1, needed)
    if chords.sum() > MAX_CHORDS:
        raise ValueError(f"makes {chords.sum():,} line segments; {MAX_CHORDS:,} is the maximum")

    # Each curve gives its points at t = 1/chords, 2/chords, ... 1. It starts at the end of the
    # previous curve, or at the subpath's first point.
    last = np.cumsum(chords)
    t = (np.arange(last[-1]) - np.repeat(last - chords, chords) + 1) / np.repeat(chords, chords)
    s = 1 - t
    p0, p1, p2, p3 = np.repeat(curves, chords, axis=0).T
    points = s**3 * p0 + 3 * s**2 * t * p1 + 3 * s * t**2 * p2 + t**3 * p3
    starts = (last - chords)[is_start]
    points = np.insert(points, starts, curves[is_start, 0])
    counts = np.diff(starts, append=last[-1]) + 1
    return np.stack([points.real, points.imag], axis=1), counts.tolist()


def path_curves(d: str, matrix: Matrix | None) -> Iterator[tuple[bool, bool, Curve]]:
    """Iterate over a path's segments as cubic Bezier curves.

    Args:
        d: path data.
        matrix: transform of the path, or None.

    Yields:
        `(starts, straight, curve)`: whether the curve starts a subpath, whether it is a straight
        line, and its four control points.

    Raises:
        ValueError: if the path is too long or invalid.
    """
    if len(d) > MAX_PATH_LENGTH:
        raise ValueError(f"has a path of {len(d):,} characters; {MAX_PATH_LENGTH:,} is the maximum")
    # The parser silently skips what it does not understand.
    if not _PATH.fullmatch(d):
        raise ValueError(f"has the path {d[:50]!r}, which is invalid, here or further on")
    starts = True
    for segment in svg_path.parse_path(d):
        straight = False
        if isinstance(segment, svg_path.Move):
            starts = True
            continue
        if isinstance(segment, svg_path.CubicBezier):
            curves = [(segment.start, segment.control1, segment.control2, segment.end)]
        elif isinstance(segment, svg_path.QuadraticBezier):
            a, b, c = segment.start, segment.control, segment.end
            curves = [(a, (a + 2 * b) / 3, (c + 2 * b) / 3, c)]
        elif isinstance(segment, svg_path.Arc):
            # A full circle becomes a polygon of 256 sides, 7.5e-5 of the radius inside it.
            straight = True
            ends = [segment.point(t) for t in np.linspace(0, 1, 257)]
            curves = [_line(a, b) for a, b in zip(ends, ends[1:], strict=False)]
        else:  # Line, Close
            straight = True
            curves = [_line(segment.start, segment.end)]
        for curve in curves:
            if matrix is not None:
                curve = tuple(_transformed(point, *matrix) for point in curve)
            yield starts, straight, curve
            starts = False


def _line(a: complex, b: complex) -> Curve:
    return a, (2 * a + b) / 3, (a + 2 * b) / 3, b
