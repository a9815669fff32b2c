"""Pen strokes traced from pictures of handwriting.

Thinning reduces the ink to lines one pixel wide, and a pen walks the graph of these lines: straight
on where lines cross, as far as they go. A picture does not show the order and direction in which
its lines were drawn; the simple rules of `trace` decide them.
"""

from __future__ import annotations

import math

import numpy as np
import scipy

from keras_sparse_dm.data.formats.strokes import with_travel_times
from keras_sparse_dm.data.sketch import Sketch
from keras_sparse_dm.data.sketch_preparation import simplify
from keras_sparse_dm.data.sketches.skeleton import pen_paths

# Ink is brighter than this share of the brightest pixel. With this value, the fewest of MNIST's
# digits, whose edges are smooth, fall apart, and small loops stay open.
INK_SHARE = 0.25

# Pieces with less ink than this share of the largest piece's are dirt.
SPECK_SHARE = 0.05

# Standard deviation, in pixels along the line, of the weights that smooth the pixels' steps.
_SMOOTHING = 1.0
# Tolerance of the simplification in pixels: invisible, and a quarter of the points go.
_TOLERANCE = 0.05
# Standard deviation, in pixels, of the blur in which the middle of the ink is sought, and rounds.
_CENTRE_WIDTH = 0.8
_CENTRE_STEPS = 3


def trace(image, name: str = "", label: str = "") -> Sketch:
    """Return the strokes of a pen that draws what a picture shows.

    1. Ink: pixels brighter than `INK_SHARE` of the brightest one, and single dark pixels amid ink.
       Pieces with less than `SPECK_SHARE` of the largest piece's ink are dropped as dirt.
    2. Skeleton: scikit-image's `skeletonize` thins the ink. A branch that ends within half the
       ink's width of its junction, there and in the median, is an artefact of thinning and is
       dropped.
    3. Junctions: where two lines cross or touch, thinning leaves a bridge between them. The ends
       of a bridge of at most 1.5 widths of the ink are taken for one junction. At each junction,
       lines are joined in pairs with the smallest total turn, and no turn above 110 degrees. But
       if two lines meet in a point, as in the middle of a 3, the pen goes to the point's tip and
       back: this applies where three lines meet, one of them ends freely within 1.5 widths of the
       ink, and the turn from it to either other line is at most 80 degrees.
    4. Strokes: each chain of joined lines is moved sideways to the middle of the ink, by at most
       a pixel, smoothed, and simplified by up to a twentieth of a pixel. A loop stays closed: its
       first point is repeated at its end. Free ends, which thinning shortens, are extended
       straight on until a pen as wide as the ink touches the ink's edge.
    5. Order: an open stroke begins at the end with the smaller y + x / 2: at the top, or at the
       left if it is nearly flat. A loop begins at its highest point and runs counter-clockwise as
       seen. The longest stroke comes first; the others follow from top to bottom by their first
       points, then from left to right.

    Args:
        image: uint8 array of shape `(height, width)`, bright ink on 0.
        name: the sketch's name.
        label: the sketch's label.

    Returns:
        A sketch of at least one stroke: x from 0 to `width`, y from 0 to `height`, downwards; the
        middle of the first pixel is (0.5, 0.5). Time is the distance that a pen of constant speed
        has travelled, also between strokes, as a share of the total. A dot is a stroke of a single
        point. Equal images give equal sketches.

    Raises:
        ValueError: if `image` has another type or shape, or no ink.

    Example:

    >>> image = np.zeros((8, 8), "uint8")
    >>> image[1:7, 3] = image[3, 1:7] = 255  # a cross
    >>> len(trace(image))
    2
    """
    ink = ink_of(image)
    slope = _slope(image)
    paths = []
    for points in pen_paths(ink):
        points = np.clip(_smooth(_centre(points, slope)), 0, ink.shape[::-1])
        # Simplification keeps the first and last point, so the start must be known before.
        paths.append(_simplify(_from_its_start(points)))
    paths.sort(key=lambda path: (path[0, 1], path[0, 0], len(path), path.tolist()))
    longest = max(paths, key=_length)
    paths.sort(key=lambda path: path is not longest)
    strokes = with_travel_times(np.concatenate(paths), [len(path) for path in paths])
    return Sketch(strokes, name, label)


def ink_of(image) -> np.ndarray:
    """Return a bool array that is true where a picture has ink; see `trace`."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 2 or image.size == 0:
        raise ValueError(
            f"image has shape {image.shape} and type {image.dtype}; it must be uint8 of shape "
            "(height, width)"
        )
    brightest = int(image.max())
    if brightest == 0:
        raise ValueError("image has no ink: all of its pixels are 0; ink must be bright on 0")
    ink = image > INK_SHARE * brightest
    pieces, _ = scipy.ndimage.label(ink, np.ones((3, 3)))
    sizes = np.bincount(pieces[ink])
    ink = (sizes >= SPECK_SHARE * sizes.max())[pieces]
    # Thinning would lead a line around a single missing pixel.
    return ink | scipy.ndimage.binary_erosion(ink, [[0, 1, 0], [1, 0, 1], [0, 1, 0]])


def _slope(image) -> np.ndarray:
    """Return the gradient of the logarithm of the blurred brightness, `(2, height + 2, width + 2)`.

    The first is downwards, the second to the right; with a border of one pixel.
    """
    bright = np.pad(np.asarray(image, np.float64), 1)
    bright = scipy.ndimage.gaussian_filter(bright / bright.max(), _CENTRE_WIDTH, mode="constant")
    return np.stack(np.gradient(np.log(bright + 1 / 255)))


def _centre(points: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Move points across the line to where the ink is brightest, by at most a pixel."""
    if len(points) < 4:
        return points
    across = np.gradient(_smooth(points), axis=0)[:, ::-1] * (1.0, -1.0)
    if _is_closed(points):
        across[[0, -1]] = across[0] + across[-1]
    across /= np.maximum(np.hypot(*across.T), 1e-9)[:, None]
    moved = np.zeros(len(points))
    for _ in range(_CENTRE_STEPS):
        at = (points + moved[:, None] * across).T[::-1] + 0.5
        down, right = (scipy.ndimage.map_coordinates(s, at, order=1, mode="nearest") for s in slope)
        # The step to the mean position of the brightness around the point.
        moved += _CENTRE_WIDTH**2 * (right * across[:, 0] + down * across[:, 1])
        moved = np.clip(moved, -1, 1)
    return points + moved[:, None] * across


def _smooth(points: np.ndarray) -> np.ndarray:
    """Even out the steps between pixels; ends stay in place, and a loop stays closed."""
    if len(points) < 4:
        return points
    if _is_closed(points):
        smooth = scipy.ndimage.gaussian_filter1d(points[:-1], _SMOOTHING, axis=0, mode="wrap")
        return np.concatenate([smooth, smooth[:1]])
    # The line's point reflection beyond each end keeps the end in place.
    n = min(len(points) - 1, math.ceil(4 * _SMOOTHING))
    longer = np.pad(points, ((n, n), (0, 0)), mode="reflect", reflect_type="odd")
    smooth = scipy.ndimage.gaussian_filter1d(longer, _SMOOTHING, axis=0)[n:-n]
    smooth[[0, -1]] = points[[0, -1]]
    return smooth


def _simplify(points: np.ndarray) -> np.ndarray:
    if len(points) < 3:
        return points
    untimed = Sketch((np.pad(points, ((0, 0), (0, 1))),))
    return simplify(untimed, _TOLERANCE).strokes[0][:, :2]


def _is_closed(points: np.ndarray) -> bool:
    return len(points) > 2 and bool((points[0] == points[-1]).all())


def _from_its_start(path: np.ndarray) -> np.ndarray:
    if not _is_closed(path):
        return min(path, path[::-1], key=lambda way: (way[0, 1] + way[0, 0] / 2, way[0, 1]))
    loop = path[:-1]
    loop = np.roll(loop, -np.lexsort(loop.T)[0], axis=0)
    # A closed stroke goes left first from the top.
    n = max(1, len(loop) // 8)
    if loop[n, 0] > loop[-n, 0]:
        loop = np.concatenate([loop[:1], loop[:0:-1]])
    return np.concatenate([loop, loop[:1]])


def _length(points: np.ndarray) -> float:
    # Summed point by point, as `with_travel_times` does.
    return np.append(0.0, np.cumsum(np.hypot(*np.diff(points, axis=0).T)))[-1]
