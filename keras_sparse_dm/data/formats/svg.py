"""SVG drawings: KanjiVG's, and others of simple shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from xml.parsers import expat

import numpy as np

from keras_sparse_dm.data.formats.broken_input import named
from keras_sparse_dm.data.formats.strokes import with_travel_times
from keras_sparse_dm.data.formats.svg_shapes import (
    CHORDS_PER_DIAGONAL,
    MAX_CHORDS,
    Curve,
    Matrix,
    parse_transform,
    path_curves,
    path_data,
    polylines,
    product,
)
from keras_sparse_dm.data.sketch import Sketch
from keras_sparse_dm.files import whole_file

# The limits keep a hostile file from filling the memory.
MAX_BYTES = 2**25
MAX_DEPTH = 1000

# Elements whose content is not drawn in place.
_UNDRAWN = ("defs", "clipPath", "symbol", "mask", "pattern", "marker")
_HIDDEN = re.compile(r"(?:^|[;\s])display\s*:\s*none")


def read_svg(path) -> Sketch:
    """Read an SVG drawing: each subpath of each shape is a stroke, in document order.

    Shapes are `<path>`, `<line>`, `<polyline>`, `<polygon>`, `<rect>`, `<circle>` and
    `<ellipse>`, with their own and their parents' `transform`s. Everything else is ignored, also
    fill and style, and so are elements with `display: none`. The reader is made for KanjiVG, where
    one `<path>` is one stroke of the brush. SVG holds no times, so the pen is assumed to move at
    constant speed, also between strokes: time is the distance travelled since the start as a share
    of the total, 0 at the first point and 1 at the last.

    Args:
        path: the `.svg` file, of at most 32 MiB, with paths of at most 1 MiB.

    Returns:
        The sketch, named by the file's stem, in the file's own unit of length (KanjiVG: a square
        of 109 x 109, y downwards). Straight lines consist of their two ends. Curves become chords
        of about 1/256 and never more than 3/256 of the drawing's diagonal.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not XML, declares entities (which could expand without limit),
            holds an invalid path, shape or transform, holds a `<use>` (not supported), or draws
            nothing; the message gives file name and reason.
    """
    path = Path(path)
    try:
        points, lengths = polylines(_curves(path))
        if not lengths:
            raise ValueError("holds no stroke: no shape in it draws anything")
        return Sketch(tuple(with_travel_times(points, lengths)), name=path.stem)
    except OSError:
        raise
    except Exception as error:  # the parsers raise almost anything on bad input
        raise named(path.name, error) from error


def _curves(path: Path) -> list[tuple[bool, bool, Curve]]:
    """Return all curves of the document's shapes, as `path_curves` yields them."""
    document = _Document()
    with open(path, "rb") as file:
        if file.seek(0, 2) > MAX_BYTES:
            raise ValueError(f"has more than {MAX_BYTES:,} bytes")
        file.seek(0)
        document.parser.ParseFile(file)
    return document.curves


class _Document:
    """Collector of a document's curves while it is parsed; keeps none of its tree."""

    def __init__(self):
        self.curves: list[tuple[bool, bool, Curve]] = []
        # For each open element, whether its content is drawn, and its transform.
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
            raise ValueError(f"is not SVG: its root element is <{tag}>")
        if len(self.open) == MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} deep")
        drawn, matrix = self.open[-1] if self.open else (True, None)
        # KanjiVG's second group holds the strokes' numbers as labels.
        drawn = (
            drawn
            and tag not in _UNDRAWN
            and "StrokeNumbers" not in attributes.get("id", "")
            and attributes.get("display") != "none"
            # Inkscape hides layers in this way.
            and not _HIDDEN.search(attributes.get("style", ""))
        )
        if drawn and attributes.get("transform", "").strip():
            matrix = product(matrix, parse_transform(attributes["transform"]))
        self.open.append((drawn, matrix))
        if not drawn:
            return
        if tag == "use":
            raise ValueError("holds a <use>, a copy of a shape, which is not supported")
        if (d := path_data(tag, attributes)) and d.strip():
            for curve in path_curves(d, matrix):
                self.curves.append(curve)
                if len(self.curves) > MAX_CHORDS:
                    raise ValueError(f"makes more than {MAX_CHORDS:,} line segments")


def write_svg(path, sketch: Sketch) -> None:
    """Write a sketch as an SVG drawing of round black lines, y downwards.

    The `viewBox` is the sketch's bounds with a margin of 5% of the longer side. SVG holds no
    times and no label, so they are lost. `read_svg` restores the rest exactly, except that a
    stroke of one point, a dot, becomes a stroke of that point twice.

    Args:
        path: the file to write; after an error it is unchanged.
        sketch: a sketch of at least one stroke.

    Raises:
        ValueError: if the sketch has no stroke, or is too large for a canvas.
        OSError: if the file cannot be written.
    """
    if len(sketch) == 0:
        raise ValueError(f"sketch {sketch.name!r} has no stroke, so there is nothing to draw")
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
