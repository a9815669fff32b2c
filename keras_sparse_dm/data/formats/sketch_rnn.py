"""sketch-rnn's `.npz` files: splits of sketches, each stored as rows of pen movements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from keras_sparse_dm.data.formats.bounded_files import existing_file
from keras_sparse_dm.data.formats.broken_input import OnBroken, named, report
from keras_sparse_dm.data.formats.npz import array_names, read_array
from keras_sparse_dm.data.formats.strokes import (
    MAX_COORDINATE,
    numbers,
    pen_bits,
    stroke_lengths,
    with_travel_times,
)
from keras_sparse_dm.data.sketch import Sketch

SPLITS = ("train", "valid", "test")


def read_sketch_rnn(
    path, on_broken: OnBroken | None = None, splits: Iterable[str] = SPLITS
) -> Iterator[Sketch]:
    """Iterate over the sketches of one of sketch-rnn's files ("stroke-3").

    The file holds one array of objects for each split. Each object is an array of shape
    `(points, 3)`: the step in x and y from the previous point, and whether the pen lifts after
    the point (1) or not (0). The first step leads from the origin to the start of the drawing and
    draws no line. Files written by Python 2 are read too.

    Args:
        path: the `.npz` file. Its objects are pickled; only plain values are read, and nothing in
            it is run. `read_array` describes the size limit.
        on_broken: called as `on_broken(where, error)` with a text such as
            `"kanji.npz, train[5]"`, or the file's name if the whole file is broken, and a
            ValueError; the broken sketch is skipped. By default the error is raised.
        splits: splits to read, in this order. The default reads all that the file has.

    Returns:
        Iterator of `Sketch`es, named `"kanji-train-5"` by file, split and number, without a
        label, in the file's units, y downwards. The format holds no times, so time is the
        distance travelled as a share of the total, as in `read_svg`. Memory holds one split at a
        time.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if `splits` names an unknown split; and, while iterating without `on_broken`,
            for a file or sketch that cannot be read. The message begins with the `where` above.
    """
    splits = check_splits(splits)
    return _read(existing_file(path), on_broken, splits)


def check_splits(splits: Iterable[str]) -> tuple[str, ...]:
    """Return the splits as a tuple, or raise a ValueError if one is unknown."""
    splits = (splits,) if isinstance(splits, str) else tuple(splits)
    if not splits or not set(splits) <= set(SPLITS) or len(set(splits)) < len(splits):
        raise ValueError(f"splits={splits!r} must be some of {', '.join(map(repr, SPLITS))}")
    return splits


def _read(path: Path, on_broken, splits) -> Iterator[Sketch]:
    try:
        names = array_names(path)
        wanted = [split for split in splits if split in names]
        missing = [split for split in splits if split not in names]
        if not wanted or (missing and splits != SPLITS):
            raise ValueError(
                f"holds no {' and no '.join(map(repr, missing))}; it holds "
                + (", ".join(map(repr, names[:10])) or "no array")
            )
    except ValueError as error:
        return report(on_broken, path.name, named(path.name, error))
    for split in wanted:
        try:
            rows = read_array(path, split)
            # Sketches of equal length may have been packed as a single array.
            if rows.ndim not in (1, 3) or rows.ndim == 1 and not rows.dtype.hasobject:
                raise ValueError(f"holds an array of shape {rows.shape}, which is not a list")
        except ValueError as error:
            report(on_broken, path.name, named(path.name, f"{split}: {error}"))
            continue
        for i, row in enumerate(rows):
            where = f"{path.name}, {split}[{i}]"
            try:
                sketch = from_stroke3(row, f"{path.stem}-{split}-{i}")
            except ValueError as error:
                report(on_broken, where, named(where, error))
            else:
                yield sketch


def from_stroke3(rows, name: str = "") -> Sketch:
    """Return the sketch that one of sketch-rnn's arrays describes.

    Args:
        rows: array of numbers of shape `(points, 3)`: step in x, step in y, pen lifts (0 or 1).
        name: the sketch's name.

    Raises:
        ValueError: if the array has another form, or a value is out of range.
    """
    rows = numbers(rows, 3, "step in x, step in y, pen")
    lifted = pen_bits(rows[:, 2])
    positions = np.cumsum(rows[:, :2], axis=0)
    if not (np.abs(positions) <= MAX_COORDINATE).all():
        raise ValueError(f"has a coordinate that is infinite or NaN or beyond {MAX_COORDINATE:g}")
    return Sketch(tuple(with_travel_times(positions, stroke_lengths(lifted))), name)
