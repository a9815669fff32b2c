"""This project's own file format: JSON with all data of each sketch.

    {"format": "keras_sparse_dm sketches", "version": 1, "sketches": [
    {"name": "cat-1", "label": "cat", "strokes": [[[0.0, 1.5], [2.0, 2.5], [0.0, 0.25]], ...]},
    ...
    ]}

A stroke is three lists of equal length: the x, the y (downwards) and the times of its points.
`name` and `label` are optional texts. With one sketch per line, as above, a file of any size is
read sketch by sketch. A file with another layout of the same JSON is read if it has at most 16 MiB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from keras_sparse_dm.data.formats.bounded_files import bounded_lines, existing_file, read_bounded
from keras_sparse_dm.data.formats.broken_input import OnBroken, named, report
from keras_sparse_dm.data.formats.strokes import MAX_POINTS, strokes_from_columns
from keras_sparse_dm.data.sketch import Sketch
from keras_sparse_dm.files import whole_file

FORMAT = "keras_sparse_dm sketches"
VERSION = 1
# Enough for a sketch of MAX_POINTS points with all digits of their numbers.
MAX_LINE = 2**27
MAX_OTHER_LAYOUT = 2**24

_HEADER = f'{{"format": {json.dumps(FORMAT)}, "version": {VERSION}, "sketches": ['
_END = "]}"


def write_sketch_json(path, sketches: Iterable[Sketch]) -> int:
    """Write sketches as JSON, without any loss.

    Args:
        path: the `.json` file to write; after an error it is unchanged.
        sketches: any number of sketches; memory holds one at a time.

    Returns:
        The number of sketches.

    Raises:
        ValueError: if a sketch has more than 1,048,576 points, which could not be read back.
        OSError: if the file cannot be written.
    """
    count = 0
    with whole_file(path) as temporary, open(temporary, "w", encoding="ascii") as file:
        file.write(_HEADER)
        for sketch in sketches:
            if sketch.num_points > MAX_POINTS:
                raise ValueError(
                    f"sketch {sketch.name[:100]!r} has {sketch.num_points:,} points; "
                    f"{MAX_POINTS:,} is the maximum"
                )
            # Python writes the shortest text that gives the same float64 when read.
            strokes = [stroke.T.tolist() for stroke in sketch]
            line = json.dumps({"name": sketch.name, "label": sketch.label, "strokes": strokes})
            file.write(",\n" if count else "\n")
            file.write(line)
            count += 1
        file.write(f"\n{_END}\n")
    return count


def read_sketch_json(path, on_broken: OnBroken | None = None) -> Iterator[Sketch]:
    """Iterate over the sketches of a file that `write_sketch_json` wrote, or of the same form.

    Args:
        path: the `.json` file, in UTF-8; the module's docstring shows its form.
        on_broken: called as `on_broken(where, error)` with a text such as
            `"mine.json, line 17"` (`"mine.json, sketch 16"` in another layout), or the file's
            name, and a ValueError; the broken sketch is skipped. By default the error is raised.

    Returns:
        Iterator of `Sketch`es, as they were written. Memory holds one at a time if each has a
        line of its own, of at most 128 MiB; else the whole file, of at most 16 MiB.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: while iterating without `on_broken`, for a file or sketch that cannot be read;
            the message begins with the `where` above.
    """
    return _read(existing_file(path), on_broken)


def _read(path: Path, on_broken) -> Iterator[Sketch]:
    with open(path, "rb") as file:
        begins = file.read(len(_HEADER) + 2)
    if begins.startswith(_HEADER.encode()) and begins[len(_HEADER) :].lstrip(b"\r")[:1] == b"\n":
        yield from _read_lines(path, on_broken)
    else:
        yield from _read_whole(path, on_broken)


def _read_lines(path: Path, on_broken) -> Iterator[Sketch]:
    rows = bounded_lines(path, MAX_LINE, on_broken)
    next(rows)
    ended = False
    for number, line in rows:
        where = f"{path.name}, line {number}"
        try:
            if ended:
                raise ValueError("follows the end of the sketches")
            if line == _END.encode():
                ended = True
                continue
            sketch = _sketch(json.loads(line.removesuffix(b",").decode("utf-8")))
        except (ValueError, RecursionError) as error:
            report(on_broken, where, named(where, error))
        else:
            yield sketch
    if not ended:
        report(on_broken, path.name, named(path.name, f"is cut short: it lacks the line {_END!r}"))


def _read_whole(path: Path, on_broken) -> Iterator[Sketch]:
    try:
        remedy = f"only files that begin with the line {_HEADER!r} may"
        content = json.loads(read_bounded(path, MAX_OTHER_LAYOUT, remedy).decode("utf-8-sig"))
        if type(content) is not dict or content.get("format") != FORMAT:
            raise ValueError(f'is not a file of sketches: it must have "format": "{FORMAT}"')
        if content.get("version") != VERSION:
            raise ValueError(f'must have "version": {VERSION}; a later release may read others')
        if type(content.get("sketches")) is not list:
            raise ValueError('must have a list of "sketches"')
    except (ValueError, RecursionError) as error:
        return report(on_broken, path.name, named(path.name, error))
    for i, record in enumerate(content["sketches"]):
        where = f"{path.name}, sketch {i}"
        try:
            sketch = _sketch(record)
        except ValueError as error:
            report(on_broken, where, named(where, error))
        else:
            yield sketch


def _sketch(record) -> Sketch:
    if type(record) is not dict or "strokes" not in record:
        raise ValueError('is not a sketch, which is a dictionary with the key "strokes"')
    texts = [record.get(key, "") for key in ("name", "label")]
    if set(map(type, texts)) != {str}:
        raise ValueError('has a "name" or "label" that is not a text')
    strokes = record["strokes"]
    if strokes == []:
        return Sketch((), *texts)
    if type(strokes) is list and any(type(s) is list and len(s) == 2 for s in strokes):
        raise ValueError("has a stroke without times; it must be lists of x, y and times")
    # `write_sketch_json` writes sketches of any size and with any times.
    return Sketch(
        tuple(
            strokes_from_columns(
                strokes, max_coordinate=_LARGEST, max_time=_LARGEST, in_order=False
            )
        ),
        *texts,
    )


_LARGEST = math.nextafter(math.inf, 0)
