"""Pen paths in a picture's skeleton: lines, the junctions where they meet, and walks along them.

A pixel is a pair (row, column). Each line has two ends, with numbers `2 n` and `2 n + 1`, so that
`end ^ 1` is the other one; `ends[end]` lists the line's pixels as seen from there. `tracing.trace`
describes the rules.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict

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


def pen_paths(ink: np.ndarray) -> list[np.ndarray]:
    """Return the strokes of a pen that follows the skeleton of the ink.

    Args:
        ink: bool array `(height, width)`.

    Returns:
        Arrays `(n, 2)` of x and y of pixels' middles, in any order and direction.
    """
    # With a border, every pixel has all its neighbours.
    ink = np.pad(ink, 1)
    radius = scipy.ndimage.distance_transform_edt(ink)
    skeleton = morphology.skeletonize(ink)
    half_width = float(np.median(radius[skeleton]))
    neighbours = _neighbours(skeleton)
    _drop_spurs(neighbours, radius, half_width)
    free = {pixel for pixel, found in neighbours.items() if len(found) == 1}
    lines, joined, bridges = _join_junctions(_lines(neighbours), neighbours, radius)
    ends = [pixels for line in lines for pixels in (line, line[::-1])]
    meetings = defaultdict(list)
    for end, pixels in enumerate(ends):
        if len(neighbours[pixels[0]]) > 2:
            meetings[joined[pixels[0]]].append(end)
    partners = {}
    for junction, here in meetings.items():
        middle = np.mean(list(joined.subset(junction)), axis=0)
        turns = _turns(here, ends, middle)
        branch = _point(here, turns, ends, free, 2 * half_width * _POINT_WIDTHS)
        if branch is None:
            pairs = _pairs(here, turns)
        else:
            # The pen draws the branch twice, to its tip and back: as two lines in place of it.
            (first, last), new = (end for end in here if end != branch), len(ends)
            ends += 2 * [ends[branch], ends[branch ^ 1]]
            ends[branch] = ends[branch ^ 1] = []
            pairs = [(first, new), (new + 1, new + 3), (new + 2, last)]
        for a, b in pairs:
            partners[a], partners[b] = b, a
    paths = []
    for stroke in _walk(ends, partners, bridges):
        points = np.array(stroke)
        for end in (stroke[-1], stroke[0]):
            points = (_lengthen(points, ink, half_width) if end in free else points)[::-1]
        paths.append(points[:, ::-1] - 0.5)
    return paths


def _lengthen(points: np.ndarray, ink: np.ndarray, half_width: float) -> np.ndarray:
    """Continue straight on from the last point until the pen touches the ink's edge.

    Thinning shortens lines by up to the width of the ink.
    """
    step = points[-1] - points[-min(_REACH, len(points))]
    step = step / np.hypot(*step)
    ahead = points[-1] + step * np.arange(1, math.ceil(3 * half_width) + 1)[:, None]
    rows, columns = np.clip(np.rint(ahead).astype(int), 0, np.array(ink.shape) - 1).T
    inside = int(np.cumprod(ink[rows, columns]).sum())
    # The edge is half a pixel beyond the last pixel's middle. `half_width`, measured to the next
    # pixel's middle, counts another half.
    return np.concatenate([points, ahead[: max(0, round(inside - half_width + 1))]])


# Lines of pixels ---------------------------------------------------------------------------


def _neighbours(skeleton: np.ndarray) -> dict[tuple, list[tuple]]:
    """Return the connected pixels of each pixel of the skeleton.

    A diagonal step that two straight ones can replace is omitted: it would make a triangle of
    every stair.
    """
    return {
        (y, x): [
            (y + down, x + right)
            for down, right in _STEPS
            if skeleton[y + down, x + right]
            and not (down and right and (skeleton[y + down, x] or skeleton[y, x + right]))
        ]
        for y, x in np.argwhere(skeleton).tolist()
    }


def _follow(neighbours: dict, start: tuple, second: tuple) -> list[tuple]:
    """Return the pixels from `start` by way of `second` to the next junction or end, or back."""
    path = [start, second]
    while len(neighbours[path[-1]]) == 2 and path[-1] != start:
        a, b = neighbours[path[-1]]
        path.append(b if a == path[-2] else a)
    return path


def _drop_spurs(neighbours: dict, radius: np.ndarray, half_width: float) -> None:
    """Remove branches that end within half the ink's width of their junction, shortest first.

    One by one: once the second to last branch is gone, the last one is the line's own end.
    """
    waiting = [(0, end) for end, found in neighbours.items() if len(found) == 1]
    while waiting:
        length, end = heapq.heappop(waiting)
        *spur, junction = _follow(neighbours, end, *neighbours[end])
        if len(neighbours[junction]) < 3:
            continue
        if len(spur) > length:  # not measured yet, or longer by now
            heapq.heappush(waiting, (len(spur), end))
        elif length <= min(radius[junction], half_width):
            neighbours[junction].remove(spur[-1])
            for pixel in spur:
                del neighbours[pixel]


def _lines(neighbours: dict) -> list[list[tuple]]:
    """Return the lines between junctions and ends, the single pixels, and the closed loops."""
    lines, seen = [], set()
    # Closed loops come last: they begin anywhere.
    for start in sorted(neighbours, key=lambda pixel: len(neighbours[pixel]) == 2):
        if not neighbours[start]:
            lines.append([start])
        for second in neighbours[start]:
            if (start, second) not in seen:
                line = _follow(neighbours, start, second)
                lines.append(line)
                seen.update(itertools.pairwise(line), itertools.pairwise(line[::-1]))
    return lines


# Junctions ---------------------------------------------------------------------------------


def _join_junctions(lines: list[list[tuple]], neighbours: dict, radius: np.ndarray):
    """Join junctions between which there is a short bridge.

    Returns:
        The lines that are not bridges; the skeleton's pixels as a `DisjointSet`, in which those of
        a junction and its bridges are one; and the trees of bridges, as a dictionary of neighbours.
    """
    joined = scipy.cluster.hierarchy.DisjointSet(neighbours)
    left, bridges = [], defaultdict(set)
    for line in sorted(lines, key=lambda line: (len(line), line)):
        first, last, steps = line[0], line[-1], len(line) - 1
        together = joined.connected(first, last)
        span = joined.subset_size(first) + joined.subset_size(last) - 2 + steps
        if (
            not together
            and len(neighbours[first]) > 2 < len(neighbours[last])
            and span <= max(1, _BRIDGE_WIDTHS * (radius[first] + radius[last]))
        ):
            for a, b in itertools.pairwise(line):
                joined.merge(a, b)
                bridges[a].add(b)
                bridges[b].add(a)
        # A single step between two pixels of one junction is no loop.
        elif not together or steps != 1:
            left.append(line)
    return left, joined, bridges


def _turns(here: list[int], ends: list, middle: np.ndarray) -> dict[tuple[int, int], float]:
    """Return the turn, from 0 to pi, of a pen that arrives by one end and leaves by another."""
    away = {}
    for end in here:
        reach = len(ends[end]) - 1
        if ends[end][0] == ends[end][-1]:
            reach //= 3
        away[end] = math.atan2(*(ends[end][min(_REACH, reach)] - middle))
    return {
        (a, b): math.pi - abs(math.remainder(away[a] - away[b], 2 * math.pi))
        for a, b in itertools.permutations(here, 2)
    }


def _point(here: list[int], turns: dict, ends: list, free: set, longest: float) -> int | None:
    """Return the short free branch that makes a point, as in the middle of a 3, or None."""
    for branch in here if len(here) == 3 else []:
        a, b = (end for end in here if end != branch)
        if (
            len(ends[branch]) - 1 <= longest
            and ends[branch][-1] in free
            and a ^ 1 != b
            and max(turns[a, branch], turns[b, branch]) <= _POINT_TURN
        ):
            return branch
    return None


def _pairs(here: list[int], turns: dict) -> list[tuple[int, int]]:
    """Return the pairs of ends that the pen joins."""
    if len(here) == 2:
        return [tuple(here)]
    costs = {
        (a, b): turn + (_LOOP_COST if a ^ 1 == b else 0.0)
        for (a, b), turn in turns.items()
        if a < b and turn <= _MAX_TURN
    }
    left, pairs = here, []
    for a, b in sorted(costs, key=costs.get):
        if len(left) > _MAX_ENDS and a in left and b in left:
            pairs.append((a, b))
            left = [end for end in left if end not in (a, b)]
    costs |= {(end, end): _MAX_TURN / 2 for end in here}
    return pairs + [(a, b) for a, b in _cheapest(left[:_MAX_ENDS], costs)[1] if a != b]


def _cheapest(ends: list[int], costs: dict) -> tuple[float, list[tuple[int, int]]]:
    """Return the least total cost, and its pairs; an end that is paired with itself is single."""
    if not ends:
        return 0.0, []
    first, *others = ends
    choices = []
    for partner in ends:
        if (first, partner) in costs:
            cost, pairs = _cheapest([end for end in others if end != partner], costs)
            choices.append((cost + costs[first, partner], [(first, partner), *pairs]))
    return min(choices)


def _route(bridges: dict, start: tuple, goal: tuple) -> list[tuple]:
    """Return the pixels between two pixels of a junction, both included."""
    ways, here = {start: [start]}, [start]
    while goal not in ways:
        pixel = here.pop()
        for other in bridges[pixel] - ways.keys():
            ways[other] = [*ways[pixel], other]
            here.append(other)
    return ways[goal]


def _walk(ends: list, partners: dict[int, int], bridges: dict) -> list[list[tuple]]:
    """Follow lines from one to its partner; return the pixels of each stroke."""
    strokes, done = [], set()
    # Lines that no free end leads to form closed strokes.
    for start in sorted(range(len(ends)), key=partners.__contains__):
        path, here = [], start
        while here not in done:
            done |= {here, here ^ 1}
            path += ends[here]
            if here ^ 1 in partners:
                here = partners[here ^ 1]
                path += _route(bridges, path[-1], ends[here][0])
        if path:
            strokes.append([pixel for pixel, _ in itertools.groupby(path)])
    return strokes
