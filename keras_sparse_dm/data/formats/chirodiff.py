"""Files of the original ChiroDiff program, packed and unpacked.

**Unpacked** (``data/unpack_ndjson.py``): a folder for each category with files ``sketch_0``,
``sketch_1``, ... Each is a pickle of the dictionary on a line of QuickDraw's `.ndjson` files:
``drawing`` is a list of strokes, each a list of xs, ys and times; QuickDraw also has ``word``,
``key_id`` and ``recognized``. KanjiVG and VectorMNIST were published in the same layout.

**Packed** (``data/qd.py``): an `.npz` file with an array of objects ``attr0`` and, for conditional
models, ``attr1``; the last one holds the sketches. Each is a prepared sketch, a float32 array of
shape ``(points - 1, 4)``, in one of two representations:

- "threeseqabs": x, y, pen bit and time of each point but the first, which is the origin at time 0;
- "threeseqdel": the step in x and y and the difference of the pen bit from each point to the next,
  and the time at which the step begins. The time of the last point, 1, is omitted.

The pen bit is 1 at a stroke's last point. If ``attr0`` holds integers, they are the classes of the
sketches. For other models ``attr0`` holds point clouds or simplified sketches, which are ignored.
The file does not name its representation, but its times reveal it: those of "threeseqdel" begin
with 0, those of "threeseqabs" end with 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from keras_sparse_dm.data.formats.bounded_files import read_bounded
from keras_sparse_dm.data.formats.broken_input import OnBroken, named, report
from keras_sparse_dm.data.formats.ndjson import check_max_strokes, parse_record
from keras_sparse_dm.data.formats.npz import array_names, read_array
from keras_sparse_dm.data.formats.restricted_pickle import unpickle
from keras_sparse_dm.data.formats.strokes import (
    MAX_COORDINATE,
    cut,
    numbers,
    pen_bits,
    stroke_lengths,
)
from keras_sparse_dm.data.sketch import Sketch

# A drawing has about 50 kB.
MAX_PICKLE_BYTES = 2**24

_ATTRIBUTE = re.compile(r"attr\d")
_REPRESENTATIONS = ("absolute", "delta")


def read_chirodiff(
    path,
    on_broken: OnBroken | None = None,
    representation: str | None = None,
    max_strokes: int | None = None,
) -> Iterator[Sketch]:
    """Iterate over the sketches in files of the original ChiroDiff program.

    Args:
        path: a packed `.npz` file; or an unpacked file, a folder of them, or a folder of such
            folders, one for each category. Files are read in lexicographic order of their names.
            Only plain values in their pickles are read; nothing in them is run. `read_array`
            describes the size limit of an `.npz` file; an unpacked file has at most 16 MiB.
        on_broken: called as `on_broken(where, error)` with a text such as
            `"cat_threeseqabs.npz, attr0[5]"`, or the file's name, and a ValueError or, for an
            unpacked file, an OSError; the broken sketch or file is skipped. By default the error
            is raised.
        representation: representation of a packed file, `"absolute"` positions ("threeseqabs") or
            differences, `"delta"` ("threeseqdel"); None to infer it from the times.
        max_strokes: number of strokes kept of an unpacked drawing, the first ones; None for all.

    Returns:
        Iterator of `Sketch`es. Packed ones are named `"cat_threeseqabs-5"` by file and number,
        are prepared (from the origin at time 0 to time 1), and are labelled with the number of
        their class, if any. Unpacked ones are named by `key_id`, or else by the file, and
        labelled with `word`, or else with their category's folder.

    Raises:
        FileNotFoundError: if the file or folder does not exist.
        ValueError: if an argument is out of its range or a folder holds no file; and, while
            iterating without `on_broken`, for a file or sketch that cannot be read. The message
            begins with the `where` above.
    """
    path = Path(path)
    if representation not in (None, *_REPRESENTATIONS):
        raise ValueError(
            f"representation={representation!r} must be 'absolute', 'delta', or None to infer it "
            "from the times"
        )
    check_max_strokes(max_strokes)
    if path.suffix.lower() == ".npz" and path.is_file():
        return _read_packed(path, on_broken, representation)
    return _read_unpacked(_unpacked_files(path), on_broken, max_strokes)


# Unpacked ----------------------------------------------------------------------------------


def _unpacked_files(path: Path) -> list[tuple[str, str, Path]]:
    """Return the name for messages, the category (of its folder, or "") and the path of files."""
    if not path.exists():
        raise FileNotFoundError(f"path={str(path)!r} does not exist; give a file or a folder")
    if not path.is_dir():
        return [(path.name, "", path)]
    files = [(file.name, "", file) for file in _files(path)]
    if not files:
        folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
        files = [(f"{f.name}/{file.name}", f.name, file) for f in folders for file in _files(f)]
    if not files:
        raise ValueError(f"path={str(path)!r} holds no file; give a folder of unpacked sketches")
    return files


def _files(folder: Path) -> list[Path]:
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in files if file.is_file())


def _read_unpacked(files, on_broken, max_strokes) -> Iterator[Sketch]:
    for where, category, file in files:
        try:
            sketch = _unpacked(file, where, category, max_strokes)
        except (OSError, ValueError) as error:
            report(on_broken, where, error)
        else:
            yield sketch


def _unpacked(file: Path, where: str, category: str, max_strokes: int | None) -> Sketch:
    try:
        record = unpickle(read_bounded(file, MAX_PICKLE_BYTES, "no drawing has"))
        if type(record) is dict and "drawing" in record:
            record["drawing"] = _listed(record["drawing"], 2, {})
            if category and not record.get("word"):
                record["word"] = category
        return parse_record(record, file.stem, max_strokes).sketch
    except ValueError as error:
        raise named(where, error) from error


def _listed(value, depth: int, done: dict):
    """Convert arrays and tuples to lists down to this depth; the parser refuses anything else.

    `done` holds the converted values, so that each value is converted once, however often the
    pickle refers to it.
    """
    if id(value) not in done:
        listed = value
        if isinstance(listed, np.ndarray):
            listed = listed.tolist()
        if type(listed) in (list, tuple):
            listed = [_listed(v, depth - 1, done) for v in listed] if depth else list(listed)
        # Keeping the value too ensures that no other value gets its identity.
        done[id(value)] = value, listed
    return done[id(value)][1]


# Packed ------------------------------------------------------------------------------------


def is_packed(names: list[str]) -> bool:
    """Return whether an `.npz` file with arrays of these names is one of ChiroDiff's."""
    return "attr0" in names


def _read_packed(path: Path, on_broken, representation) -> Iterator[Sketch]:
    try:
        attributes = sorted(filter(_ATTRIBUTE.fullmatch, names := array_names(path)))
        if not attributes:
            raise ValueError(
                "holds no 'attr0'; it holds " + (", ".join(map(repr, names[:10])) or "no array")
            )
        rows = read_array(path, attributes[-1])
        if rows.ndim not in (1, 3) or rows.ndim == 1 and not rows.dtype.hasobject:
            raise ValueError(
                f"{attributes[-1]}: holds an array of shape {rows.shape}, which is not a list"
            )
        labels = _labels(path, attributes, len(rows))
        representation = representation or _representation(rows)
    except ValueError as error:
        return report(on_broken, path.name, named(path.name, error))
    for i, row in enumerate(rows):
        where = f"{path.name}, {attributes[-1]}[{i}]"
        try:
            sketch = _from_packed(row, representation, f"{path.stem}-{i}", labels[i])
        except ValueError as error:
            report(on_broken, where, named(where, error))
        else:
            yield sketch


def _labels(path: Path, attributes: list[str], count: int) -> list[str]:
    """Return the numbers of the classes, or empty texts if the file holds none."""
    if len(attributes) == 2:
        classes = read_array(path, attributes[0])
        # The program packed the class of a sketch even if it dropped the sketch as too long. If
        # the numbers differ, the classes cannot be matched.
        if classes.shape == (count,):
            # Each is an array without dimensions that holds an integer.
            values = [v.item() if np.shape(v) == () and hasattr(v, "item") else v for v in classes]
            if all(type(value) is int and 0 <= value < 2**31 for value in values):
                return list(map(str, values))
    return [""] * count


def _representation(rows: np.ndarray) -> str:
    """Infer the representation from the times of the sketches that can be read."""
    begin = end = 0
    for row in rows:
        try:
            row = numbers(row, 4, "")
        except ValueError:
            continue
        begin += row[0, 3] == 0
        end += row[-1, 3] == 1
    if begin == end:
        raise ValueError(
            "may hold positions or differences: "
            f"{begin} of its sketches begin at time 0 and {end} end at time 1; give "
            "representation='absolute' or 'delta', or check that it is a packed file of ChiroDiff"
        )
    return "delta" if begin > end else "absolute"


def _from_packed(row, representation: str, name: str, label: str) -> Sketch:
    row = numbers(row, 4, "x, y, pen bit, time")
    positions, times = row[:, :2], row[:, 3:]
    if representation == "delta":
        positions = np.cumsum(positions, axis=0)
        times = np.append(times, [[1.0]], axis=0)
    else:
        times = np.append([[0.0]], times, axis=0)
    if not (np.abs(positions) <= MAX_COORDINATE).all():
        raise ValueError(f"has a coordinate beyond {MAX_COORDINATE:g}")
    if (times[1:] < times[:-1]).any():
        raise ValueError(f"has times that go back, read as {representation} positions")
    points = np.hstack([np.append([[0.0, 0.0]], positions, axis=0), times])
    lengths = stroke_lengths(np.append(False, pen_bits(row[:, 2])))
    return Sketch(tuple(cut(points, lengths)), name, label)
