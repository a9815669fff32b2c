"""Pictures of handwriting turned into the pen strokes that may have made them.

The ink is thinned to lines one pixel wide, and the graph of these lines is walked as a pen would:
straight on where lines cross, as far as they go. A picture does not tell in which order and
direction its lines were drawn; here simple rules say so, see `trace`.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from keras_sparse_dm.data.sketch import Sketch, simplify

# Ink is what is brighter than this share of the brightest pixel: of MNIST's digits, whose edges
# are smooth, it parts the fewest in two and still leaves small loops open.
INK_SHARE = 0.25

# A piece of less ink than this share of the largest piece's is dirt.
SPECK_SHARE = 0.05

# Standard deviation, in pixels along the line, of the weights that smooth the pixels' steps.
_SMOOTHING = 1.0
# How far off, in pixels, a simplified line may lie: no one sees it, and a quarter of the points go.
_TOLERANCE = 0.05
# Width, in pixels, over which brightness counts to find the middle of the ink, and rounds.
_CENTRE_WIDTH = 0.8
_CENTRE_STEPS = 3
# A bridge no longer than this many widths of the ink belongs to one junction.
_BRIDGE_WIDTHS = 1.5
# Where a line leaves a junction its direction is taken over this many pixels.
_REACH = 5
# A pen that arrives at a junction turns by at most this, in radians; else it is lifted.
_MAX_TURN = math.radians(110)
# A pen runs into a free branch and back where it turns by at most this at either time, in radians,
# and the branch is no longer than this many widths of the ink.
_POINT_TURN = math.radians(80)
_POINT_WIDTHS = 1.5
# What it counts, in radians, to close a loop on itself where other lines meet it: a pen makes
# the loop of a 6 and its tail in one go.
_LOOP_COST = math.radians(90)
# With more line ends than this at one junction the straightest pairs are taken one by one.
_MAX_ENDS = 6

_STEPS = [(-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]


def trace(image, name: str = "", label: str = "") -> Sketch:
    """The strokes of a pen that draws what a picture shows.

    Ink is what is brighter than `INK_SHARE` of the brightest pixel, and a single dark pixel amid
    ink; pieces of less than `SPECK_SHARE` of the largest piece's ink are dirt and left out. The
    ink is thinned by scikit-image's `skeletonize`. A branch that ends no more pixels from where
    it leaves than half the ink's width, there and in the median, is an artefact of thinning and
    is dropped. Where two lines cross or touch, thinning leaves a bridge from one to the other: if
    it is no longer than 1.5 widths of the ink, its ends are taken for one junction. There lines
    are joined in pairs so that the turns are smallest in sum, none above 110 degrees.
    But where two lines meet in a point, as in the middle of a 3, the pen goes to the point's tip
    and back: where three lines meet, one of them ends freely after at most 1.5 widths of the ink,
    and from it to either other is a turn of at most 80 degrees. What is joined is one stroke,
    moved sideways to the middle of the ink, by at most a pixel, smoothed along its length, and
    simplified: what lies within a twentieth of a pixel of the line without it is left out. A
    loop stays closed: its first point is repeated at its end. Free ends, which thinning shortens,
    are drawn straight on to where a pen as wide as the ink touches the ink's edge.

    An open stroke begins at the end where y + x / 2 is smaller: at the top, or at the left where
    it lies nearly flat. A loop begins at its highest point and runs counter-clockwise as seen.
    The longest stroke comes first, the others from top to bottom by where they begin, then from
    left to right.

    Args:
        image: uint8 array of shape `(height, width)`, ink bright on 0.
        name: the sketch's name.
        label: the sketch's label.

    Returns:
        A sketch of at least one stroke: x from 0 to `width`, y from 0 to `height`, downwards; the
        middle of the first pixel is (0.5, 0.5). Time is the distance that a pen of constant speed
        has travelled, as a share of the whole, moves from stroke to stroke included. A dot is a
        stroke of a single point. Equal images give equal sketches.

    Raises:
        ValueError: if `image` has another type or shape, or no ink.
    """
    ink = _ink(image)
    slope = _slope(image)
    paths = [_smooth(_centre(points, slope)) for points in _pen_paths(ink)]
    paths = [np.clip(points, 0, ink.shape[::-1]) for points in paths]
    return Sketch(_with_travel_times(_in_order_of_drawing(paths)), name, label)


def ink_overlap(image, sketch: Sketch) -> float:
    """How well the strokes, drawn with a pen as wide as the ink is on average, cover the ink.

    Args:
        image: the picture that was traced, uint8 `(height, width)`.
        sketch: its strokes, in the picture's coordinates.

    Returns:
        Intersection over union of the pixels drawn and the ink's, from 0 to 1. The share of the
        drawn pixels alone would be 1 for a sketch that misses half of the ink. Ink of uneven
        width, which no pen of one width can draw, stays below 1.

    Raises:
        ValueError: as `trace`.
    """
    from keras_sparse_dm.data.rendering import render

    ink = _ink(image)
    # Strokes of length l and width w, with round ends, cover about l w + pi w^2 / 4.
    length = sum(_lengths(stroke[:, :2])[-1] for stroke in sketch)
    ends = math.pi * max(1, len(sketch))
    width = 2 * (math.sqrt(length**2 + ends * ink.sum()) - length) / ends
    size = max(ink.shape)
    drawn = render(sketch, size, line_width=width, box=(0, 0, size, size)) < 128
    drawn = drawn[: ink.shape[0], : ink.shape[1]]
    return float((drawn & ink).sum() / (drawn | ink).sum())


def skeleton_coverage(image, sketch: Sketch, distance: float = 1.0) -> float:
    """How much of the thinned ink the strokes follow.

    Args:
        image: the picture that was traced, uint8 `(height, width)`.
        sketch: its strokes, in the picture's coordinates.
        distance: how far off a stroke may run, in pixels, 0 or more.

    Returns:
        Share of the pixels of the ink's skeleton, artefacts of thinning included, whose middle is
        no farther than `distance` from a stroke, from 0 to 1.

    Raises:
        ValueError: if `distance` is negative or no number, and as `trace`.
    """
    import shapely
    from skimage.morphology import skeletonize

    if not distance >= 0:
        raise ValueError(f"distance={distance!r} must be 0 or more pixels")
    rows, columns = np.nonzero(skeletonize(_ink(image)))
    strokes = [s[:, :2] if len(s) > 1 else np.repeat(s[:, :2], 2, axis=0) for s in sketch]
    lines = shapely.MultiLineString(strokes)
    gaps = shapely.distance(shapely.points(columns + 0.5, rows + 0.5), lines)
    # Where there is no stroke the distance is NaN.
    return float((gaps <= distance).mean())


def _ink(image) -> np.ndarray:
    """True where the picture, which is checked, has ink."""
    from scipy.ndimage import label

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
    pieces, count = label(ink, np.ones((3, 3)))
    if count > 1:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        ink = (sizes >= SPECK_SHARE * sizes.max())[pieces] & ink
    # With a border the picture's edge is the ink's edge.
    ink = np.pad(ink, 1)
    inner = ink[1:-1, 1:-1]
    # Thinning would lead a line round a pixel that was missed.
    return inner | (ink[:-2, 1:-1] & ink[2:, 1:-1] & ink[1:-1, :-2] & ink[1:-1, 2:])


# From ink to lines of pixels ---------------------------------------------------------------


@dataclass(eq=False)
class _Line:
    """Pixels of the skeleton from one junction or free end to the next, both included."""

    pixels: list[int]


@dataclass(eq=False)
class _Junction:
    """Where lines meet: a pixel, or several that bridges join."""

    # The pixels that one can walk to from each; together a tree.
    links: dict[int, set[int]]
    # Number of steps of all bridges.
    span: int = 0
    # (line, 0) where a line's first pixel lies here, (line, 1) for its last.
    ends: list[tuple[_Line, int]] = field(default_factory=list)


def _pen_paths(ink: np.ndarray) -> list[np.ndarray]:
    """Strokes as positions `(n, 2)` of pixels' middles, in any order and direction."""
    from scipy.ndimage import distance_transform_edt
    from skimage.morphology import skeletonize

    # With a border no pixel lacks a neighbour.
    ink = np.pad(ink, 1)
    width = ink.shape[1]
    radius = distance_transform_edt(ink).ravel().tolist()
    neighbours = _neighbours(np.flatnonzero(skeletonize(ink)).tolist(), width)
    half_width = float(np.median([radius[pixel] for pixel in neighbours]))
    _drop_spurs(neighbours, radius, half_width)
    lines, dots = _lines(neighbours)
    lines, junctions = _junctions(lines, neighbours, radius)
    free = {pixel for pixel, found in neighbours.items() if len(found) == 1}
    partners, twice = {}, set()
    for junction in junctions:
        directions = [_direction(junction, line, end, width) for line, end in junction.ends]
        point = _point(junction, directions, free, 2 * half_width * _POINT_WIDTHS)
        if point is None:
            partners.update(_pair(junction, directions))
        else:
            twice.add(point[1][0])
            partners.update(_turn_back(junction, *point))
    lines = [line for line in lines if line not in twice]
    paths = []
    for stroke in (*_walk(lines, partners), *([dot] for dot in dots)):
        points = np.column_stack([np.mod(stroke, width), np.floor_divide(stroke, width)])
        if stroke[-1] in free:
            points = _lengthen(points, ink, half_width)
        if stroke[0] in free:
            points = _lengthen(points[::-1], ink, half_width)
        paths.append(points - 0.5)
    return paths


def _lengthen(points: np.ndarray, ink: np.ndarray, half_width: float) -> np.ndarray:
    """Goes straight on from the last point until the pen touches the ink's edge.

    Thinning shortens lines by up to the width of the ink.
    """
    step = points[-1] - points[-min(_REACH, len(points))]
    step = step / np.hypot(*step)
    ahead = points[-1] + step * np.arange(1, math.ceil(3 * half_width) + 1)[:, None]
    columns, rows = np.clip(np.rint(ahead).astype(int), 0, np.array(ink.shape[::-1]) - 1).T
    inside = int(np.cumprod(ink[rows, columns]).sum())
    # From the last pixel's middle it is half a pixel to the edge; `half_width`, measured to the
    # next pixel's middle, counts another half.
    return np.concatenate([points, ahead[: max(0, round(inside - half_width + 1))]])


def _neighbours(pixels: list[int], width: int) -> dict[int, list[int]]:
    """Pixels of the skeleton that are joined, as numbers row * width + column.

    A diagonal step that two straight ones could replace is left out: it would make a triangle
    of every stair.
    """
    there = set(pixels)
    neighbours = {}
    for pixel in pixels:
        found = []
        for down, right in _STEPS:
            other = pixel + down * width + right
            if other in there and not (
                down and right and (pixel + down * width in there or pixel + right in there)
            ):
                found.append(other)
        neighbours[pixel] = found
    return neighbours


def _lines(neighbours: dict[int, list[int]]) -> tuple[list[_Line], list[int]]:
    """The lines between pixels that have not two neighbours, loops without such, and dots."""
    lines, seen = [], set()

    def follow(start, second):
        path = [start, second]
        while len(neighbours[path[-1]]) == 2 and path[-1] != start:
            a, b = neighbours[path[-1]]
            path.append(b if a == path[-2] else a)
        lines.append(_Line(path))
        seen.update(path[1:-1])

    for start, found in neighbours.items():
        if len(found) != 2:
            for second in found:
                # Each line is met from both of its ends.
                if second not in seen and (len(neighbours[second]) == 2 or start < second):
                    follow(start, second)
    for start, found in neighbours.items():
        if len(found) == 2 and start not in seen:
            follow(start, found[0])
            seen.add(start)
    return lines, [pixel for pixel, found in neighbours.items() if not found]


def _drop_spurs(neighbours: dict[int, list[int]], radius: list[float], half_width: float) -> None:
    """Removes branches that end within half the ink's width of where they leave; shortest first.

    One after the other: where the last but one is gone, the last is the line's own end.
    """
    ends = [end for end, found in neighbours.items() if len(found) == 1]
    waiting = [(0, end) for end in ends]
    while waiting:
        length, end = heapq.heappop(waiting)
        branch = _branch(neighbours, end)
        if branch is None:
            continue
        if len(branch) - 1 > length:  # not measured yet, or longer by now
            heapq.heappush(waiting, (len(branch) - 1, end))
        elif length <= min(radius[branch[-1]], half_width):
            for pixel in branch[:-1]:
                del neighbours[pixel]
            neighbours[branch[-1]].remove(branch[-2])


def _branch(neighbours: dict[int, list[int]], end: int) -> list[int] | None:
    """The pixels from a free end to the first junction, or None where there is none."""
    path = [end, neighbours[end][0]]
    while len(neighbours[path[-1]]) == 2:
        a, b = neighbours[path[-1]]
        path.append(b if a == path[-2] else a)
    return path if len(neighbours[path[-1]]) > 2 else None


# Junctions ---------------------------------------------------------------------------------


def _junctions(
    lines: list[_Line], neighbours: dict[int, list[int]], radius: list[float]
) -> tuple[list[_Line], list[_Junction]]:
    """Makes one junction of two that a short bridge joins.

    Returns the lines, without the bridges, and the junctions.
    """
    at = {
        pixel: _Junction({pixel: set()})
        for line in lines
        for pixel in (line.pixels[0], line.pixels[-1])
        if len(neighbours[pixel]) > 2
    }
    left = []
    for line in sorted(lines, key=lambda line: (len(line.pixels), line.pixels)):
        first, last, steps = line.pixels[0], line.pixels[-1], len(line.pixels) - 1
        a, b = at.get(first), at.get(last)
        if a is None or b is None:
            left.append(line)
        elif a is b:
            # A loop, unless there is nothing between two neighbours of one junction.
            if steps > 1:
                left.append(line)
        elif a.span + b.span + steps <= max(1, _BRIDGE_WIDTHS * (radius[first] + radius[last])):
            a.span += b.span + steps
            a.links.update(b.links)
            for pixel in b.links:
                at[pixel] = a
            for p, q in itertools.pairwise(line.pixels):
                a.links.setdefault(p, set()).add(q)
                a.links.setdefault(q, set()).add(p)
        else:
            left.append(line)
    for line in left:
        for end in (0, 1):
            junction = at.get(line.pixels[-end])
            if junction is not None:
                junction.ends.append((line, end))
    return left, list(dict.fromkeys(at.values()))


def _point(junction: _Junction, directions: list[float], free: set[int], longest: float):
    """The ends at a point, as in the middle of a 3: arm, short free branch, arm; None elsewhere."""
    if len(junction.ends) != 3:
        return None
    for k, (line, end) in enumerate(junction.ends):
        i, j = (n for n in range(3) if n != k)
        far = line.pixels[end - 1]
        if (
            len(line.pixels) - 1 <= longest
            and far in free
            and junction.ends[i][0] is not junction.ends[j][0]
            and _turn(directions[i], directions[k]) <= _POINT_TURN
            and _turn(directions[j], directions[k]) <= _POINT_TURN
        ):
            return junction.ends[i], junction.ends[k], junction.ends[j]
    return None


def _turn_back(junction: _Junction, arm: tuple, branch: tuple, other: tuple) -> dict[tuple, tuple]:
    """As `_pair`, for a pen that comes by one arm, runs to the branch's end, and back."""
    pixels = branch[0].pixels[:: -1 if branch[1] else 1]
    between = [
        *_route(junction, _pixel(arm), pixels[0]),
        *pixels,
        *pixels[::-1],
        *_route(junction, pixels[0], _pixel(other)),
    ]
    return {arm: (other, between), other: (arm, between[::-1])}


def _turn(arrives: float, leaves: float) -> float:
    """How far a pen turns that arrives by one line and leaves by another, from 0 to pi.

    Both directions are those away from the junction.
    """
    return math.pi - abs(math.remainder(arrives - leaves, 2 * math.pi))


def _pair(junction: _Junction, directions: list[float]) -> dict[tuple, tuple]:
    """Which line's end goes on as which other's, and the pixels between.

    Returns `{(line, end): ((line, end), pixels)}`, both ways.
    """
    ends = junction.ends
    costs = {}
    for i, j in itertools.combinations(range(len(ends)), 2):
        turn = _turn(directions[i], directions[j])
        if turn <= _MAX_TURN:
            costs[i, j] = turn + (_LOOP_COST if ends[i][0] is ends[j][0] else 0.0)
    free, pairs = tuple(range(len(ends))), []
    if len(free) == 2:
        pairs = [free]
    else:
        for pair in sorted(costs, key=costs.get):
            if len(free) > _MAX_ENDS and pair[0] in free and pair[1] in free:
                pairs.append(pair)
                free = tuple(i for i in free if i not in pair)
        pairs += _cheapest_pairs(free[:_MAX_ENDS], costs)[1]
    partners = {}
    for i, j in pairs:
        between = _route(junction, _pixel(ends[i]), _pixel(ends[j]))
        partners[ends[i]] = ends[j], between
        partners[ends[j]] = ends[i], between[::-1]
    return partners


def _cheapest_pairs(free: tuple[int, ...], costs: dict) -> tuple[float, list[tuple[int, int]]]:
    """The pairs of least cost in sum; an end that stays alone costs half the largest turn."""
    if not free:
        return 0.0, []
    first, *others = free
    cost, pairs = _cheapest_pairs(tuple(others), costs)
    best = cost + _MAX_TURN / 2, pairs
    for other in others:
        if (first, other) in costs:
            cost, pairs = _cheapest_pairs(tuple(i for i in others if i != other), costs)
            cost += costs[first, other]
            if cost < best[0]:
                best = cost, [(first, other), *pairs]
    return best


def _direction(junction: _Junction, line: _Line, end: int, width: int) -> float:
    """Angle at which a line leaves a junction."""
    pixels = line.pixels if end == 0 else line.pixels[::-1]
    reach = len(pixels) - 1
    if _is_loop(pixels):
        reach = reach // 3
    y, x = divmod(pixels[min(_REACH, reach)], width)
    rows, columns = zip(*(divmod(pixel, width) for pixel in junction.links), strict=True)
    return math.atan2(y - sum(rows) / len(rows), x - sum(columns) / len(columns))


def _is_loop(path) -> bool:
    return len(path) > 2 and path[0] == path[-1]


def _pixel(end: tuple[_Line, int]) -> int:
    """The pixel at which a line's end lies."""
    return end[0].pixels[-end[1]]


def _route(junction: _Junction, start: int, goal: int) -> list[int]:
    """The pixels on the way from one of a junction's to another, both included."""
    ways, here = {start: [start]}, [start]
    while goal not in ways:
        pixel = here.pop()
        for other in junction.links[pixel]:
            if other not in ways:
                ways[other] = [*ways[pixel], other]
                here.append(other)
    return ways[goal]


# From lines to strokes ---------------------------------------------------------------------


def _walk(lines: list[_Line], partners: dict[tuple, tuple]) -> list[list[int]]:
    """Follows lines from one to its partner: the pixels of each stroke."""
    strokes, done = [], set()
    # Whatever no free end leads to is closed.
    starts = [(line, end) for line in lines for end in (0, 1) if (line, end) not in partners]
    for start in (*starts, *((line, 0) for line in lines)):
        if start[0] in done:
            continue
        path, here = [], start
        while here is not None:
            line, end = here
            done.add(line)
            path += line.pixels if end == 0 else line.pixels[::-1]
            here, between = partners.get((line, 1 - end), (None, []))
            path += between
            if here == start:
                break
        strokes.append([pixel for pixel, _ in itertools.groupby(path)])
    return strokes


def _slope(image) -> np.ndarray:
    """Gradient of the logarithm of the smoothed brightness, `(2, height + 2, width + 2)`.

    Downwards and to the right, with a border of one pixel.
    """
    from scipy.ndimage import gaussian_filter

    bright = np.pad(np.asarray(image, np.float64), 1)
    bright = gaussian_filter(bright / bright.max(), _CENTRE_WIDTH, mode="constant")
    return np.stack(np.gradient(np.log(bright + 1 / 255)))


def _centre(points: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Moves points across the line to where the ink is brightest, by a pixel at most."""
    from scipy.ndimage import map_coordinates

    if len(points) < 4:
        return points
    across = np.gradient(_smooth(points), axis=0)[:, ::-1] * (1.0, -1.0)
    if _is_closed(points):
        across[[0, -1]] = across[0] + across[-1]
    across /= np.maximum(np.hypot(*across.T), 1e-9)[:, None]
    moved = np.zeros(len(points))
    for _ in range(_CENTRE_STEPS):
        at = (points + moved[:, None] * across).T[::-1] + 0.5
        down, right = (map_coordinates(s, at, order=1, mode="nearest") for s in slope)
        # The way to the mean position of the brightness about the point.
        moved += _CENTRE_WIDTH**2 * (right * across[:, 0] + down * across[:, 1])
        moved = np.clip(moved, -1, 1)
    return points + moved[:, None] * across


def _smooth(points: np.ndarray) -> np.ndarray:
    """Evens the steps between pixels out; ends stay, and a loop stays closed."""
    from scipy.ndimage import gaussian_filter1d

    if len(points) < 4:
        return points
    if _is_closed(points):
        smooth = gaussian_filter1d(points[:-1], _SMOOTHING, axis=0, mode="wrap")
        return np.concatenate([smooth, smooth[:1]])
    # Going on beyond an end as the line's mirror image in it keeps the end where it is.
    n = min(len(points) - 1, math.ceil(4 * _SMOOTHING))
    before = 2 * points[0] - points[n:0:-1]
    after = 2 * points[-1] - points[-2 : -n - 2 : -1]
    smooth = gaussian_filter1d(np.concatenate([before, points, after]), _SMOOTHING, axis=0)
    smooth = smooth[n : n + len(points)]
    smooth[[0, -1]] = points[[0, -1]]
    return smooth


def _simplify(points: np.ndarray) -> np.ndarray:
    if len(points) < 3:
        return points
    untimed = Sketch((np.pad(points, ((0, 0), (0, 1))),))
    return simplify(untimed, _TOLERANCE).strokes[0][:, :2]


def _is_closed(points: np.ndarray) -> bool:
    return len(points) > 2 and bool((points[0] == points[-1]).all())


def _in_order_of_drawing(paths: list[np.ndarray]) -> list[np.ndarray]:
    # Simplified only now, for that keeps the first point and the last.
    paths = [_simplify(_from_its_start(path)) for path in paths]
    paths.sort(key=lambda path: (path[0, 1], path[0, 0], len(path), path.tolist()))
    longest = max(range(len(paths)), key=lambda i: _lengths(paths[i])[-1])
    return [paths[longest], *paths[:longest], *paths[longest + 1 :]]


def _from_its_start(path: np.ndarray) -> np.ndarray:
    if _is_closed(path):
        loop = path[:-1]
        top = min(range(len(loop)), key=lambda i: (loop[i, 1], loop[i, 0]))
        loop = np.roll(loop, -top, axis=0)
        # Of the two ways from the top the one that goes left first.
        n = max(1, len(loop) // 8)
        if loop[n, 0] > loop[-n, 0]:
            loop = np.concatenate([loop[:1], loop[:0:-1]])
        return np.concatenate([loop, loop[:1]])
    first, last = (end[1] + end[0] / 2 for end in (path[0], path[-1]))
    return path if (first, path[0, 1]) <= (last, path[-1, 1]) else path[::-1]


def _lengths(points: np.ndarray) -> np.ndarray:
    """Distance travelled at each point."""
    return np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])


def _with_travel_times(paths: list[np.ndarray]) -> list[np.ndarray]:
    points = np.concatenate(paths)
    travelled = _lengths(points)
    if travelled[-1] > 0:
        travelled = travelled / travelled[-1]
    ends = np.cumsum([len(path) for path in paths])[:-1]
    return np.split(np.column_stack([points, travelled]), ends)
