"""Sketches as arrays of pixels, for image models and for the Fréchet distance."""

from __future__ import annotations

import operator

import numpy as np

from keras_sparse_dm.data.sketch import Sketch
from keras_sparse_dm.lazy import lazy_module

Image = lazy_module("PIL.Image")
ImageDraw = lazy_module("PIL.ImageDraw")

# KanjiVG's pen is 3 wide on a canvas of 109 x 109.
LINE_SHARE = 3 / 109
KANJIVG_BOX = (0.0, 0.0, 109.0, 109.0)

# Each pixel is the mean of this many subpixels squared: 65 levels of grey along an edge.
_SUBPIXELS = 8
# Pictures of this size or more have enough pixels, so they use fewer subpixels to save time.
_LARGE = 192
# Greatest error of a simplified line, in pixels.
_VISIBLE = 0.02
# A turn by more than this, in radians, is a corner, which simplification keeps.
_CORNER = 0.3
# Greatest distance of a point, in pixels, at which a line to it still crosses the picture within a
# fraction of a pixel of the right place.
_FAR = 1e9


def rasterize(
    sketch: Sketch,
    size: int,
    line_width: float | None = None,
    box: tuple[float, float, float, float] | None = None,
    margin: float = 0.05,
) -> np.ndarray:
    """Draw a sketch with a round pen, black on white, with smooth edges.

    Equal sketches give equal pixels.

    Args:
        sketch: any sketch. A stroke of one point is a dot; a sketch without strokes is white.
        size: width and height of the picture in pixels, at least 1.
        line_width: width of the pen in pixels; by default KanjiVG's, 3/109 of the picture.
        box: visible area `(left, top, right, bottom)` in the sketch's unit, for KanjiVG
            `KANJIVG_BOX`, its canvas of 109 x 109. An area that is not square is shown completely
            and centred; lines outside the picture are cut off. By default the sketch's bounds.
        margin: without a `box`, the free space on each side of the lines, as a share of the
            picture, from 0 to below 0.5.

    Returns:
        uint8 array of shape `(size, size)`: 0 black, 255 white.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> sketch = Sketch([[(0, 0, 0), (3, 4, 1)]])
    >>> rasterize(sketch, size=32).shape
    (32, 32)
    """
    size = _check_size(size)
    if line_width is None:
        line_width = size * LINE_SHARE
    if not (line_width > 0 and np.isfinite(line_width)):
        raise ValueError(f"line_width={line_width!r} must be a positive number of pixels")
    if not 0 <= margin < 0.5:
        raise ValueError(f"margin={margin!r} must be from 0 to below 0.5, a share of the picture")
    subpixels = _SUBPIXELS if size < _LARGE else _SUBPIXELS // 2
    picture = Image.new("L", (size * subpixels, size * subpixels), 255)
    if len(sketch) > 0:
        lengths = [len(stroke) for stroke in sketch]
        points = np.concatenate(sketch.strokes)[:, :2]
        scale, shift = _placement(points, size, line_width, box, margin)
        with np.errstate(over="ignore"):
            points = np.clip((points * scale + shift) * subpixels, -_FAR, _FAR)
        points, starts = _simplify(points, lengths, _VISIBLE * subpixels)
        _draw_lines(ImageDraw.Draw(picture), points, starts, line_width * subpixels, picture.width)
    return np.asarray(picture.reduce(subpixels))


def _check_size(size) -> int:
    try:
        whole = operator.index(size)
    except TypeError:
        whole = 0
    if whole < 1:
        raise ValueError(f"size={size!r} must be a whole number of pixels, 1 or more")
    return whole


def _placement(points, size, line_width, box, margin) -> tuple[float, np.ndarray]:
    """Return scale and shift from the sketch's unit to pixels."""
    if box is None:
        low, high = points.min(axis=0), points.max(axis=0)
        room = size * (1 - 2 * margin) - line_width
        if room <= 0:
            raise ValueError(
                f"line_width={line_width!r} and margin={margin!r} leave no room to draw in "
                f"{size} pixels; make them smaller"
            )
    else:
        box = np.asarray(box, np.float64)
        if box.shape != (4,) or not np.isfinite(box).all() or not (box[2:] > box[:2]).all():
            raise ValueError(
                f"box={box.tolist()!r} must be (left, top, right, bottom) with right > left and "
                "bottom > top"
            )
        low, high = box[:2], box[2:]
        room = size
    # Halve first: the sum of two large numbers might overflow.
    middle = low / 2 + high / 2
    extent = (high / 2 - low / 2).max()
    # If all points lie at one place, they are a dot in the middle at any scale.
    scale = room / extent / 2 if extent > 0 else 0.0
    if not np.isfinite(scale):
        scale = 0.0
    return scale, size / 2 - middle * scale


def _simplify(points, lengths, tolerance) -> tuple[np.ndarray, np.ndarray]:
    """Drop points that lie within about `tolerance` of the line through the others.

    A chord of length s misses an arc of curvature k by k s^2 / 8. So the number of chords needed
    is the integral of the square root of k / (8 tolerance) along the line.

    Returns:
        The remaining points, with each stroke's first and last, and the index at which each stroke
        starts, followed by the number of points.
    """
    ends = np.cumsum(lengths)
    steps, turns = _steps_and_turns(points)
    needed = np.floor(np.cumsum(np.sqrt(turns * steps / (8 * tolerance))))
    keep = np.diff(needed, prepend=-1.0) > 0
    keep |= turns > _CORNER
    keep[ends - 1] = True
    keep[ends - lengths] = True
    return points[keep], np.concatenate([[0], np.cumsum(keep)[ends - 1]])


def _steps_and_turns(points) -> tuple[np.ndarray, np.ndarray]:
    """Return the length of the step to each point, and the angle by which the line turns there."""
    steps = np.diff(points, axis=0, prepend=points[:1])
    direction = np.arctan2(steps[:, 1], steps[:, 0])
    turns = np.abs(np.diff(direction, append=direction[-1:]))
    return np.hypot(*steps.T), np.minimum(turns, 2 * np.pi - turns)


def _draw_lines(draw, points, starts, width, side) -> None:
    """Draw bars along the steps, and discs at the ends and wherever two bars would leave a gap."""
    # Two bars that meet at an angle leave a wedge open on the outer side.
    discs = _steps_and_turns(points)[1] * width / 2 > 0.5
    discs[starts[:-1]] = True
    discs[starts[1:] - 1] = True
    # Shapes farther outside the picture are invisible, and may overflow Pillow's integers.
    low, high = -width, side + width
    discs &= ((points >= low) & (points <= high)).all(axis=1)
    # From here on, integers are the middles of pixels. Pillow also fills the pixels on the outline,
    # which widens a slanted shape by about a quarter of a pixel on each side.
    points = points - 0.5
    radius = max(width - 0.5, 0) / 2
    boxes = np.concatenate([points[discs] - radius, points[discs] + radius], axis=1)
    for box in np.rint(boxes).tolist():
        draw.ellipse(box, fill=0)

    drawn = np.ones(len(points) - 1, bool)
    drawn[starts[1:-1] - 1] = False  # the pen is lifted between strokes
    start, end = _cut(points[:-1][drawn], points[1:][drawn], low, high)
    along = end - start
    length = np.hypot(*along.T)
    start, end, along, length = (a[length > 0] for a in (start, end, along, length))
    along *= radius / length[:, None]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    bars = np.concatenate([start + across, end + across, end - across, start - across], axis=1)
    for bar in np.rint(bars).tolist():
        draw.polygon(bar, fill=0)


def _cut(start, end, low, high) -> tuple[np.ndarray, np.ndarray]:
    """Return the parts of lines from `start` to `end` with both coordinates in [low, high]."""
    outside = ((start < low) | (start > high) | (end < low) | (end > high)).any(axis=1)
    if not outside.any():
        return start, end
    step = end - start
    # Positions along the line, from 0 to 1, where it crosses the bounds of each coordinate. For a
    # line parallel to the bounds, division by zero correctly gives infinity.
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = np.stack([(low - start) / step, (high - start) / step])
    bounds = np.nan_to_num(bounds, nan=0.0, posinf=np.inf, neginf=-np.inf)
    enters = np.maximum(bounds.min(axis=0).max(axis=1), 0)
    leaves = np.minimum(bounds.max(axis=0).min(axis=1), 1)
    seen = enters < leaves
    start, step = start[seen], step[seen]
    return start + enters[seen, None] * step, start + leaves[seen, None] * step
