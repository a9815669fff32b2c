"""Pen paths in a picture's skeleton: lines, the junctions where they meet, and walks along them.

Pixels are numbers `row * width + column`. `tracing.trace` describes the rules.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import scipy

from keras_sparse_dm.lazy import lazy_module

morphology = lazy_module("skimage.morphology")

# A bridge of at most this many widths of the ink belongs to one junction.
_BRIDGE_WIDTHS = 1.5
# The direction of a line that leaves a junction is measured over this many pixels.
_REACH = 5
# Largest turn of a pen at a junction, in radians; otherwise it is lifted.
_MAX_TURN = math.radians(110)
# A pen runs into a free branch and back if both turns are at most this, in radians, and the branch
# is no longer than this many widths of the ink.
_POINT_TURN = math.radians(80)
_POINT_WIDTHS = 1.5
# Cost, in radians, of closing a loop on itself where other lines meet it: a pen draws the loop of
# a 6 and its tail in one go.
_LOOP_COST = math.radians(90)
# If more line ends meet at a junction, the straightest pairs are chosen one by one.
_MAX_ENDS = 6

_STEPS = [(-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]


@dataclass(eq=False)
class _End:
    """A line seen from one of its ends: its pixels from there to the other end."""

    pixels: list[int]
    # The same line seen from its other end.
    other: _End | None = None


@dataclass(eq=False)
class _Junction:
    """Place where lines meet: a pixel, or several that bridges join."""

    # The neighbours of each of its pixels; together they form a tree.
    links: dict[int, set[int]]
    # Number of steps of all bridges.
    span: int = 0
    # The lines' ends that lie here.
    ends: list[_End] = field(default_factory=list)


def pen_paths(ink: np.ndarray) -> list[np.ndarray]:
    """Return the strokes of a pen that follows the skeleton of the ink.

    Args:
        ink: bool array `(height, width)`.

    Returns:
        Arrays `(n, 2)` of x and y of pixels' middles, in any order and direction.
    """
    # With a border, every pixel has all its neighbours.
    ink = np.pad(ink, 1)
    width = ink.shape[1]
    radius = scipy.ndimage.distance_transform_edt(ink).ravel().tolist()
    neighbours = _neighbours(np.flatnonzero(morphology.skeletonize(ink)).tolist(), width)
    half_width = float(np.median([radius[pixel] for pixel in neighbours]))
    _drop_spurs(neighbours, radius, half_width)
    lines, dots = _lines(neighbours)
    lines, junctions = _junctions(lines, neighbours, radius)
    free = {pixel for pixel, found in neighbours.items() if len(found) == 1}
    partners, branches = {}, set()
    for junction in junctions:
        directions = [_direction(junction, end, width) for end in junction.ends]
        point = _point(junction, directions, free, 2 * half_width * _POINT_WIDTHS)
        if point is None:
            partners.update(_pair(junction, directions))
        else:
            branches |= {point[1], point[1].other}
            partners.update(_turn_back(junction, *point))
    paths = []
    ends = [end for line in lines for end in (line, line.other) if end not in branches]
    for stroke in (*_walk(ends, partners), *([dot] for dot in dots)):
        points = np.column_stack([np.mod(stroke, width), np.floor_divide(stroke, width)])
        if stroke[-1] in free:
            points = _lengthen(points, ink, half_width)
        if stroke[0] in free:
            points = _lengthen(points[::-1], ink, half_width)
        paths.append(points - 0.5)
    return paths


def _lengthen(points: np.ndarray, ink: np.ndarray, half_width: float) -> np.ndarray:
    """Continue straight on from the last point until the pen touches the ink's edge.

    Thinning shortens lines by up to the width of the ink.
    """
    step = points[-1] - points[-min(_REACH, len(points))]
    step = step / np.hypot(*step)
    ahead = points[-1] + step * np.arange(1, math.ceil(3 * half_width) + 1)[:, None]
    columns, rows = np.clip(np.rint(ahead).astype(int), 0, np.array(ink.shape[::-1]) - 1).T
    inside = int(np.cumprod(ink[rows, columns]).sum())
    # The edge is half a pixel beyond the last pixel's middle. `half_width`, measured to the next
    # pixel's middle, counts another half.
    return np.concatenate([points, ahead[: max(0, round(inside - half_width + 1))]])


# Lines of pixels ---------------------------------------------------------------------------


def _neighbours(pixels: list[int], width: int) -> dict[int, list[int]]:
    """Return the connected pixels of each pixel of the skeleton.

    A diagonal step that two straight ones can replace is omitted: it would make a triangle of
    every stair.
    """
    there = set(pixels)
    neighbours = {}
    for pixel in pixels:
        neighbours[pixel] = [
            pixel + down * width + right
            for down, right in _STEPS
            if pixel + down * width + right in there
            and not (down and right and (pixel + down * width in there or pixel + right in there))
        ]
    return neighbours


def _follow(neighbours: dict[int, list[int]], start: int, second: int) -> list[int]:
    """Return the pixels from `start` by way of `second` to the next junction or end, or back."""
    path = [start, second]
    while len(neighbours[path[-1]]) == 2 and path[-1] != start:
        a, b = neighbours[path[-1]]
        path.append(b if a == path[-2] else a)
    return path


def _drop_spurs(neighbours: dict[int, list[int]], radius: list[float], half_width: float) -> None:
    """Remove branches that end within half the ink's width of their junction, shortest first.

    One by one: once the second to last branch is gone, the last one is the line's own end.
    """
    waiting = [(0, end) for end, found in neighbours.items() if len(found) == 1]
    while waiting:
        length, end = heapq.heappop(waiting)
        branch = _follow(neighbours, end, neighbours[end][0])
        junction = branch[-1]
        if len(neighbours[junction]) < 3:
            continue
        if len(branch) - 1 > length:  # not measured yet, or longer by now
            heapq.heappush(waiting, (len(branch) - 1, end))
        elif length <= min(radius[junction], half_width):
            for pixel in branch[:-1]:
                del neighbours[pixel]
            neighbours[junction].remove(branch[-2])


def _lines(neighbours: dict[int, list[int]]) -> tuple[list[list[int]], list[int]]:
    """Return the lines between junctions and ends, with closed loops, and the single pixels."""
    lines, seen = [], set()

    def add(start, second):
        path = _follow(neighbours, start, second)
        lines.append(path)
        seen.update(path[1:-1])

    for start, found in neighbours.items():
        if len(found) != 2:
            for second in found:
                # Each line is met from both of its ends.
                if second not in seen and (len(neighbours[second]) == 2 or start < second):
                    add(start, second)
    for start, found in neighbours.items():
        if len(found) == 2 and start not in seen:
            add(start, found[0])
            seen.add(start)
    return lines, [pixel for pixel, found in neighbours.items() if not found]


# Junctions ---------------------------------------------------------------------------------


def _junctions(
    lines: list[list[int]], neighbours: dict[int, list[int]], radius: list[float]
) -> tuple[list[_End], list[_Junction]]:
    """Merge junctions that a short bridge joins.

    Returns:
        The first end of each line that is not a bridge, and the junctions.
    """
    at = {
        pixel: _Junction({pixel: set()})
        for line in lines
        for pixel in (line[0], line[-1])
        if len(neighbours[pixel]) > 2
    }
    left = []
    for line in sorted(lines, key=lambda line: (len(line), line)):
        first, last, steps = line[0], line[-1], len(line) - 1
        a, b = at.get(first), at.get(last)
        if a is None or b is None:
            left.append(line)
        elif a is b:
            # A loop, unless it only joins two neighbouring pixels of one junction.
            if steps > 1:
                left.append(line)
        elif a.span + b.span + steps <= max(1, _BRIDGE_WIDTHS * (radius[first] + radius[last])):
            a.span += b.span + steps
            a.links.update(b.links)
            for pixel in b.links:
                at[pixel] = a
            for p, q in itertools.pairwise(line):
                a.links.setdefault(p, set()).add(q)
                a.links.setdefault(q, set()).add(p)
        else:
            left.append(line)
    firsts = []
    for line in left:
        end = _End(line)
        end.other = _End(line[::-1], end)
        firsts.append(end)
        for one in (end, end.other):
            if one.pixels[0] in at:
                at[one.pixels[0]].ends.append(one)
    return firsts, list(dict.fromkeys(at.values()))


def _direction(junction: _Junction, end: _End, width: int) -> float:
    """Return the angle at which a line leaves a junction."""
    pixels = end.pixels
    reach = len(pixels) - 1
    if len(pixels) > 2 and pixels[0] == pixels[-1]:
        reach = reach // 3
    y, x = divmod(pixels[min(_REACH, reach)], width)
    rows, columns = zip(*(divmod(pixel, width) for pixel in junction.links), strict=True)
    return math.atan2(y - sum(rows) / len(rows), x - sum(columns) / len(columns))


def _turn(arrives: float, leaves: float) -> float:
    """Return the turn, from 0 to pi, of a pen that arrives by one line and leaves by another.

    Both directions point away from the junction.
    """
    return math.pi - abs(math.remainder(arrives - leaves, 2 * math.pi))


def _point(junction: _Junction, directions: list[float], free: set[int], longest: float):
    """Return arm, short free branch and arm of a point, as in the middle of a 3, or None."""
    if len(junction.ends) != 3:
        return None
    for k, branch in enumerate(junction.ends):
        i, j = (n for n in range(3) if n != k)
        if (
            len(branch.pixels) - 1 <= longest
            and branch.pixels[-1] in free
            and junction.ends[i].other is not junction.ends[j]
            and _turn(directions[i], directions[k]) <= _POINT_TURN
            and _turn(directions[j], directions[k]) <= _POINT_TURN
        ):
            return junction.ends[i], branch, junction.ends[j]
    return None


def _turn_back(junction: _Junction, arm: _End, branch: _End, other: _End) -> dict:
    """Return `_pair`'s result for a pen that goes from arm to arm by way of the branch's tip."""
    between = [
        *_route(junction, arm.pixels[0], branch.pixels[0]),
        *branch.pixels,
        *branch.other.pixels,
        *_route(junction, branch.pixels[0], other.pixels[0]),
    ]
    return {arm: (other, between), other: (arm, between[::-1])}


def _pair(junction: _Junction, directions: list[float]) -> dict[_End, tuple[_End, list[int]]]:
    """Return for each paired end the end as which it continues, and the pixels between."""
    ends = junction.ends
    costs = {}
    for i, j in itertools.combinations(range(len(ends)), 2):
        turn = _turn(directions[i], directions[j])
        if turn <= _MAX_TURN:
            costs[i, j] = turn + (_LOOP_COST if ends[i].other is ends[j] else 0.0)
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
        between = _route(junction, ends[i].pixels[0], ends[j].pixels[0])
        partners[ends[i]] = ends[j], between
        partners[ends[j]] = ends[i], between[::-1]
    return partners


def _cheapest_pairs(free: tuple[int, ...], costs: dict) -> tuple[float, list[tuple[int, int]]]:
    """Return the pairs of least total cost; a single end costs half the largest turn."""
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


def _route(junction: _Junction, start: int, goal: int) -> list[int]:
    """Return the pixels between two pixels of a junction, both included."""
    ways, here = {start: [start]}, [start]
    while goal not in ways:
        pixel = here.pop()
        for other in junction.links[pixel]:
            if other not in ways:
                ways[other] = [*ways[pixel], other]
                here.append(other)
    return ways[goal]


def _walk(ends: list[_End], partners: dict[_End, tuple[_End, list[int]]]) -> list[list[int]]:
    """Follow lines from one to its partner; return the pixels of each stroke."""
    strokes, done = [], set()
    # Lines that no free end leads to form closed strokes.
    for start in sorted(ends, key=lambda end: end in partners):
        if start in done:
            continue
        path, here = [], start
        while here is not None:
            done |= {here, here.other}
            path += here.pixels
            here, between = partners.get(here.other, (None, []))
            path += between
            if here is start:
                break
        strokes.append([pixel for pixel, _ in itertools.groupby(path)])
    return strokes
