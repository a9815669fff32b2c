"""SVG drawings: KanjiVG's, and others of simple shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.parsers import expat

import numpy as np

from keras_sparse_dm.data.formats.common import named, with_travel_times
from keras_sparse_dm.data.sketch import Sketch
from keras_sparse_dm.files import whole_file

# Curves become chords of the drawing's diagonal over this number: for a kanji about 0.01 of the
# enclosing circle's radius, a fifth of the spacing that sketches are resampled to later.
CHORDS_PER_DIAGONAL = 256
# A kanji makes about 1,500. The bounds keep a hostile file from filling the memory.
MAX_CHORDS = 1_000_000
MAX_BYTES = 2**25
MAX_PATH_LENGTH = 2**20
MAX_DEPTH = 1000

# What they hold is not drawn where it stands.
_UNDRAWN = ("defs", "clipPath", "symbol", "mask", "pattern", "marker")

Curve = tuple[complex, complex, complex, complex]
# As in SVG's matrix(a, b, c, d, e, f): x' = a x + c y + e, y' = b x + d y + f.
Matrix = tuple[float, float, float, float, float, float]


def read_svg(path) -> Sketch:
    """Reads an SVG drawing: each subpath of each shape is a stroke, in document order.

    Shapes are `<path>`, `<line>`, `<polyline>`, `<polygon>`, `<rect>`, `<circle>` and
    `<ellipse>`, with the `transform`s on them and around them; all else, filling and style too,
    is left out, and so is what `display: none` hides. Made for KanjiVG, where one `<path>` is one
    stroke of the brush. An SVG holds no times, so the pen is taken to move at constant speed,
    between strokes too: time is the distance travelled since the start as a fraction of the whole,
    0 at the first point and 1 at the last.

    Args:
        path: the `.svg` file, of at most 32 MiB, a path in it of at most 1 MiB.

    Returns:
        The sketch, named by the file's stem, in the file's own unit of length (KanjiVG: a square
        of 109 x 109, y downwards). Straight lines have their two ends. Curves are sampled as
        chords of about 1/256 and never more than 3/256 of the drawing's diagonal.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no XML, declares entities (they could swell without bounds),
            holds a path, shape or transform that is none, a `<use>` (not supported), or nothing
            to draw; the message holds file name and reason.
    """
    path = Path(path)
    try:
        points, lengths = _flatten(_curves(path))
        if not lengths:
            raise ValueError("holds no stroke, no shape that draws something")
        return Sketch(tuple(with_travel_times(points, lengths)), name=path.stem)
    except OSError:
        raise
    except Exception as error:  # the parsers answer bad input with whatever they stumble over
        raise named(path.name, error) from error


# XML ---------------------------------------------------------------------------------------


def _curves(path: Path) -> list[tuple[bool, bool, Curve]]:
    """All curves of the document's shapes, as `_bezier_curves` gives them."""
    document = _Document()
    with open(path, "rb") as file:
        if file.seek(0, 2) > MAX_BYTES:
            raise ValueError(f"has more than {MAX_BYTES:,} bytes")
        file.seek(0)
        document.parser.ParseFile(file)
    return document.curves


class _Document:
    """Takes the curves from a document while it is parsed; none of its tree is kept."""

    def __init__(self):
        self.curves: list[tuple[bool, bool, Curve]] = []
        # For each open element whether what it holds is drawn, and how it is transformed.
        self.open: list[tuple[bool, Matrix | None]] = []
        self.parser = expat.ParserCreate(namespace_separator="}")
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = lambda tag: self.open.pop()
        self.parser.EntityDeclHandler = self.refuse_entity

    def refuse_entity(self, name, *_):
        raise ValueError(f"declares the entity {name[:50]!r}, which no drawing needs; remove it")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        tag = tag.rpartition("}")[2]
        if not self.open and tag != "svg":
            raise ValueError(f"is no SVG: its root element is <{tag}>")
        if len(self.open) == MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} deep")
        drawn, matrix = self.open[-1] if self.open else (True, None)
        # KanjiVG's second group labels the strokes with their numbers.
        drawn = (
            drawn
            and tag not in _UNDRAWN
            and "StrokeNumbers" not in attributes.get("id", "")
            and attributes.get("display") != "none"
            # As Inkscape hides layers.
            and not _HIDDEN.search(attributes.get("style", ""))
        )
        if drawn and attributes.get("transform", "").strip():
            matrix = _product(matrix, _parse_transform(attributes["transform"]))
        self.open.append((drawn, matrix))
        if not drawn:
            return
        if tag == "use":
            raise ValueError("holds a <use>, a copy of a shape, which is not supported")
        if (d := _path_data(tag, attributes)) and d.strip():
            self.draw(d, matrix)

    def draw(self, d: str, matrix: Matrix | None) -> None:
        if len(d) > MAX_PATH_LENGTH:
            raise ValueError(f"has a path of {len(d):,} characters; {MAX_PATH_LENGTH:,} are read")
        # The parser leaves out, without a word, what it does not understand.
        if not _PATH.fullmatch(d):
            raise ValueError(f"has the path {d[:50]!r}, which is none, at its beginning or later")
        for starts, straight, curve in _bezier_curves(d):
            if matrix is not None:
                curve = tuple(_transformed(point, *matrix) for point in curve)
            self.curves.append((starts, straight, curve))
            if len(self.curves) > MAX_CHORDS:
                raise ValueError(f"makes more than {MAX_CHORDS:,} line segments")


def _path_data(tag: str, attributes: dict[str, str]) -> str | None:
    """The path that an element draws, None for an element that is no shape."""
    if tag == "path":
        return attributes.get("d", "")
    if tag in ("polyline", "polygon"):
        points = _numbers(attributes.get("points", ""), f"the points of a <{tag}>")
        if len(points) % 2:
            raise ValueError(f"has a <{tag}> with {len(points)} numbers, not pairs of x and y")
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
            raise ValueError(f"has {text[:50]!r} for {name} of a <{tag}>, which is no number")
        return values[0]

    if tag == "line":
        ends = [length(name) for name in ("x1", "y1", "x2", "y2")]
        return "M{!r},{!r} L{!r},{!r}".format(*ends)
    if tag == "rect":
        x, y, width, height = (length(name) for name in ("x", "y", "width", "height"))
        rx, ry = length("rx", math.nan), length("ry", math.nan)
        # One radius alone counts for both.
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


# Possessive throughout: a text is looked at once, whatever it holds.
_NUMBER = r"[+-]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d++)?+"
_NUMBERS = re.compile(rf"\s*+(?:{_NUMBER}\s*+(?:,\s*+)?+)*+")
_COMMA = r"\s*+(?:,\s*+)?+"


def _arguments(numbers: int) -> str:
    """Of a command: so many numbers, at least once."""
    return rf"\s*+(?:(?:{_NUMBER}{_COMMA}){{{numbers}}}+)++"


# Radii and angle, two flags, which may stand without a gap, and the end.
_ARC = rf"\s*+(?:(?:{_NUMBER}{_COMMA}){{3}}+(?:[01]{_COMMA}){{2}}+(?:{_NUMBER}{_COMMA}){{2}}+)++"
_PATH = re.compile(
    rf"\s*+(?=[Mm])(?:[MmLlTt]{_arguments(2)}|[HhVv]{_arguments(1)}|[SsQq]{_arguments(4)}"
    rf"|[Cc]{_arguments(6)}|[Aa]{_ARC}|[Zz]\s*+)*+"
)
_HIDDEN = re.compile(r"(?:^|[;\s])display\s*:\s*none")
_FUNCTION = re.compile(r"\s*(\w+)\s*\(([^()]*)\)\s*,?")


def _numbers(text: str, what: str) -> list[float]:
    if len(text) > MAX_PATH_LENGTH or not _NUMBERS.fullmatch(text):
        raise ValueError(f"has {text[:50]!r} for {what}, which are no numbers")
    return [float(number) for number in re.findall(_NUMBER, text)]


def _parse_transform(text: str) -> Matrix:
    matrix, position = None, 0
    text = text.strip()
    while position < len(text):
        match = _FUNCTION.match(text, position)
        if match is None:
            raise ValueError(f"has the transform {text[:50]!r}, which is none")
        values = _numbers(match[2].strip(), f"the transform {match[1][:20]}")
        matrix = _product(matrix, _matrix(match[1], values))
        position = match.end()
    return matrix


def _matrix(function: str, values: list[float]) -> Matrix:
    """The matrix of one function of a transform."""
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
            there = _product((1.0, 0.0, 0.0, 1.0, x, y), _matrix("rotate", [angle]))
            return _product(there, (1.0, 0.0, 0.0, 1.0, -x, -y))
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


def _product(first: Matrix | None, second: Matrix) -> Matrix:
    """The matrix that applies `second`, then `first`."""
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


# Curves ------------------------------------------------------------------------------------


def _flatten(curves: list[tuple[bool, bool, Curve]]) -> tuple[np.ndarray, list[int]]:
    """Points of shape `(points, 2)` of the polylines of all subpaths, and how many each has."""
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
        raise ValueError(f"makes {chords.sum():,} line segments; {MAX_CHORDS:,} is the most")

    # Each curve gives its points at t = 1/chords, 2/chords, ... 1; its start is the end of the
    # curve before, or the subpath's first point.
    last = np.cumsum(chords)
    t = (np.arange(last[-1]) - np.repeat(last - chords, chords) + 1) / np.repeat(chords, chords)
    s = 1 - t
    p0, p1, p2, p3 = np.repeat(curves, chords, axis=0).T
    points = s**3 * p0 + 3 * s**2 * t * p1 + 3 * s * t**2 * p2 + t**3 * p3
    starts = (last - chords)[is_start]
    points = np.insert(points, starts, curves[is_start, 0])
    counts = np.diff(starts, append=last[-1]) + 1
    return np.stack([points.real, points.imag], axis=1), counts.tolist()


def _bezier_curves(d: str) -> Iterator[tuple[bool, bool, Curve]]:
    """The path's segments as cubic Bezier curves.

    Each with whether a subpath starts with it, and whether it is a straight line.
    """
    from svg.path import Arc, CubicBezier, Move, QuadraticBezier, parse_path

    starts = True
    for segment in parse_path(d):
        straight = False
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
            straight = True
            ends = [segment.point(t) for t in np.linspace(0, 1, 257)]
            curves = [_line(a, b) for a, b in zip(ends, ends[1:], strict=False)]
        else:  # Line, Close
            straight = True
            curves = [_line(segment.start, segment.end)]
        for curve in curves:
            yield starts, straight, curve
            starts = False


def _line(a: complex, b: complex) -> Curve:
    return a, (2 * a + b) / 3, (a + 2 * b) / 3, b


# Writing -----------------------------------------------------------------------------------


def write_svg(path, sketch: Sketch) -> None:
    """Writes a sketch as an SVG drawing of straight lines, black and round, y downwards.

    The `viewBox` is the sketch's bounds with a margin of 5% of the longer side. SVG holds no
    times and no label: those are lost. All else `read_svg` reads back as it was, but that a
    stroke of one point, a dot, comes back as a stroke of twice that point.

    Args:
        path: the file to write; whole, or not at all.
        sketch: a sketch of one stroke or more.

    Raises:
        ValueError: if the sketch has no stroke, or is too large for a canvas.
        OSError: if the file cannot be written.
    """
    if len(sketch) == 0:
        raise ValueError(f"sketch {sketch.name!r} has no stroke; there is nothing to draw")
    points = np.concatenate(sketch.strokes)[:, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    with np.errstate(over="ignore"):
        side = float((high - low).max()) or 1.0
        left, top = (low - 0.05 * side).tolist()
        width, height = (high - low + 0.1 * side).tolist()
    if not math.isfinite(side * CHORDS_PER_DIAGONAL) or not math.isfinite(width + height):
        raise ValueError(f"sketch {sketch.name!r} is too large: its longer side is {side:g}")
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(
            '<svg xmlns="http://www.w3.org/2000/svg" '
            f'viewBox="{left!r} {top!r} {width!r} {height!r}">\n'
            f'<g fill="none" stroke="black" stroke-width="{0.02 * side!r}" '
            'stroke-linecap="round" stroke-linejoin="round">\n'
        )
        for stroke in sketch:
            file.write(f'<path d="{_line_path(stroke[:, :2].tolist())}"/>\n')
        file.write("</g>\n</svg>\n")


def _line_path(points: Iterable[list[float]]) -> str:
    points = [f"{x!r},{y!r}" for x, y in points]
    return "M" + "L".join(points if len(points) > 1 else points * 2)
