"""sketch-rnn's `.npz` files: parts train, valid and test of sketches as rows of pen movements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from keras_sparse_dm.data.formats.common import (
    MAX_COORDINATE,
    OnBroken,
    existing_file,
    named,
    report,
    with_travel_times,
)
from keras_sparse_dm.data.formats.npz import array_names, read_array
from keras_sparse_dm.data.sketch import Sketch

SPLITS = ("train", "valid", "test")


def read_sketch_rnn(
    path, on_broken: OnBroken | None = None, splits: Iterable[str] = SPLITS
) -> Iterator[Sketch]:
    """Iterates over the sketches of one of sketch-rnn's files, "stroke-3".

    The file holds one array of objects for each split; each object is an array of shape
    `(points, 3)`: the step in x and in y from the point before, and whether the pen is lifted
    after the point (1) or not (0). The first step leads from the origin to where drawing begins
    and leaves no line. Files that Python 2 wrote are read too.

    Args:
        path: the `.npz` file. Its objects are pickled; plain values are read and nothing in it
            is run. See `read_array` for its greatest size.
        on_broken: called as `on_broken(where, error)` with a text such as
            `"kanji.npz, train[5]"`, or the file's name where that is broken, and a ValueError;
            what is broken is skipped. By default the error is raised.
        splits: which parts to read, in this order. Of the default, all three, those that the
            file has not are left out.

    Returns:
        Iterator of `Sketch`es, named `"kanji-train-5"` by file, split and number, without a
        label, in the file's units, y downwards. The format holds no times: they are the distance
        travelled as a share of the whole, as `read_svg` has them. One split is in memory at a
        time.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if `splits` names others; and, while iterating without an `on_broken`, for a
            file or sketch that cannot be read. The message begins with what `where` would be.
    """
    splits = check_splits(splits)
    return _read(existing_file(path), on_broken, splits)


def check_splits(splits: Iterable[str]) -> tuple[str, ...]:
    """The splits as a tuple; raises the ValueError that says so where one is unknown."""
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
            # Sketches of one length may have been packed as a single array.
            if rows.ndim not in (1, 3) or rows.ndim == 1 and not rows.dtype.hasobject:
                raise ValueError(f"holds an array of shape {rows.shape}, which is no list")
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
    """The sketch that one array of sketch-rnn's describes.

    Args:
        rows: array of numbers of shape `(points, 3)`: steps in x and y, pen lifted after (0, 1).
        name: the sketch's name.

    Raises:
        ValueError: if it is no such array, or has values that are out of range.
    """
    rows = numbers(rows, 3, "step in x, step in y, pen")
    lifted = pen_bits(rows[:, 2])
    positions = np.cumsum(rows[:, :2], axis=0)
    if not (np.abs(positions) <= MAX_COORDINATE).all():
        raise ValueError(f"has a coordinate that is infinite or NaN or beyond {MAX_COORDINATE:g}")
    return Sketch(tuple(with_travel_times(positions, stroke_lengths(lifted))), name)


def numbers(rows, width: int, columns: str) -> np.ndarray:
    """Rows of finite numbers as float64 of shape `(1 or more, width)`, else a ValueError."""
    if isinstance(rows, np.ndarray) and rows.dtype.hasobject and rows.ndim == 2:
        # Sketches of one length, which NumPy takes apart into their numbers.
        values = rows.ravel().tolist()
        if set(map(type, values)) <= {int, float}:
            try:
                rows = np.array(values, np.float64).reshape(rows.shape)
            except OverflowError:
                raise ValueError("has a number that is too large") from None
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "biuf":
        raise ValueError("is no array of numbers")
    if rows.ndim != 2 or rows.shape[1] != width or len(rows) == 0:
        raise ValueError(
            f"has shape {rows.shape}; it must be (points, {width}), at least one point: {columns}"
        )
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("has a number that is infinite or NaN")
    return rows


def pen_bits(pen: np.ndarray) -> np.ndarray:
    """Whether the pen is lifted after each point, of a column of 0 and 1."""
    if not np.isin(pen, (0, 1)).all():
        wrong = pen[~np.isin(pen, (0, 1))][0]
        raise ValueError(f"has {wrong:g} for the pen's state, which must be 0 or 1")
    return pen == 1


def stroke_lengths(lifted: np.ndarray) -> list[int]:
    """Number of points of each stroke; what no lift ends is a stroke too."""
    ends = np.flatnonzero(lifted) + 1
    if not len(ends) or ends[-1] != len(lifted):
        ends = np.append(ends, len(lifted))
    return np.diff(ends, prepend=0).tolist()
