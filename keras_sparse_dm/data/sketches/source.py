"""What all data sets of sketches share: prepared once, cached, split for training and validation.

A data set is described by a `SketchSource`: where its drawings lie and how one is read. The rest,
worker processes, the cache, what is too long or broken, and the split, is the same for all.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keras_sparse_dm.data.batches import SketchArrays, check_whole
from keras_sparse_dm.data.cache import (
    PreparationSummary,
    cache_folder,
    check_broken,
    fingerprint_of,
    map_chunks,
    new_cache_file,
    state_of,
    warn_of_damage,
)
from keras_sparse_dm.data.reading import (
    find_files,
    holds_several,
    is_ndjson,
    lines,
    parse_line,
    read_sketches,
)
from keras_sparse_dm.data.sketch import Sketch, check_representation, prepare, to_points

# Part of the cache's file name: raise it with every change of the file's layout or of what
# reading and preparing give for the same file.
CACHE_VERSION = 3

# Below this number of drawings starting processes costs more time than it saves.
_SERIAL = 256
_CHUNK = 32
# So many broken drawings and the data set is not worth reading on.
_GIVE_UP = 10_000


@dataclass(frozen=True)
class Item:
    """One drawing that is still to be read.

    Args:
        where: what to call it in messages: file, and line or number.
        content: what `SketchSource.read` takes; an exception for a drawing known to be broken.
        group: the category that `max_sketches` counts in.
    """

    where: str
    content: Any
    group: str = ""


@dataclass(frozen=True)
class SketchSource:
    """Where the drawings of a data set lie and how one is read.

    Args:
        title: the data set's name, for messages.
        key: beginning of its cache files' names.
        argument: what its user calls the folder, for messages: `"folder='...'"`.
        state: what changes with the drawings, of plain values: names, sizes and times of files.
        items: called with a set of groups, to which are added those that are complete while
            the items are taken; gives the `Item`s, of these groups no more.
        read: function of an item's content that gives the `Sketch`, or None for a drawing that
            was not asked for; can be pickled. Raises a ValueError for a broken one.
        total: number of items, where it is known.
        unit: what an item is, in the plural.
    """

    title: str
    key: str
    argument: str
    state: Any
    items: Callable[[set], Iterable[Item]]
    read: Callable[[Any], Sketch | None]
    total: int | None = None
    unit: str = "drawings"


def load_sketches(path, **preparation) -> tuple[SketchArrays, SketchArrays]:
    """Sketches of one's own, from files of any known format.

    Args:
        path: a file, a folder of files, or a pattern such as `"drawings/*.svg"`; see
            `read_sketches` for the formats.
        **preparation: as `prepare_source` takes.

    Returns:
        `(train, validation)`, two `SketchArrays`.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: as `prepare_source`, and for formats that are unknown.
    """
    files = find_files(path)

    def items(complete):
        for file in files:
            if is_ndjson(file):
                yield from line_items(file, complete)
            else:
                read = partial(_read_file, file)
                yield from items_of(read, complete, file=file.name, numbered=holds_several(file))

    # One drawing each, as a rule: then their number is known.
    one_each = all(file.suffix.lower() == ".svg" for file in files)
    source = SketchSource(
        title=Path(path).name or "sketches",
        key="sketches",
        argument=f"path={str(path)!r}",
        state=state_of(files),
        items=items,
        read=read_line_or_sketch,
        total=len(files) if one_each else None,
        unit="sketches",
    )
    return prepare_source(source, **preparation)


def _read_file(file: Path, on_broken) -> Iterator[Sketch]:
    return read_sketches(file, on_broken)


def items_of(
    read, complete: set, group: str = "", item=None, file: str = "", numbered: bool = True
) -> Iterator[Item]:
    """The items of a reader, what is broken included, until the group is complete.

    Args:
        read: called with an `on_broken`, gives sketches, or what else the reader reads.
        complete: the groups that are complete, as `SketchSource.items` is given.
        group: the items' group.
        item: makes an `Item` of what is read; by default of a sketch.
        file: the name of the file, with which the items that are made by default are called.
        numbered: whether their number is part of that, from 0 on, broken ones counted too.

    Yields:
        An `Item` for each, in order.
    """
    broken: list[tuple[str, Exception]] = []
    values = iter(read(lambda where, error: broken.append((str(where), error))))
    number = 0
    while group not in complete:
        value = next(values, None)
        for where, error in broken:
            yield Item(where, error, group)
        number += len(broken)
        broken.clear()
        if value is None:
            return
        if item is None:
            where = [file] * bool(file) + [f"sketch {number}"] * numbered
            yield Item(", ".join(where), value, group)
        else:
            yield item(value)
        number += 1


def line_items(file: Path, complete: set, group: str = "") -> Iterator[Item]:
    """The lines of one of QuickDraw's `.ndjson` files, for `read_line_or_sketch`.

    So the worker processes take them apart, and what is broken is told by its line.

    Args:
        file: the file.
        complete: the groups that are complete, as `SketchSource.items` is given.
        group: the items' group.

    Yields:
        An `Item` for each, in order.
    """

    def item(line):
        where = f"{file.name}, line {line[0]}"
        return Item(where, (line[1], where), group)

    yield from items_of(partial(lines, file), complete, group, item)


def read_line_or_sketch(content, recognized: bool = False) -> Sketch | None:
    """The sketch: `SketchSource.read` for the items of `line_items`, and those of sketches.

    Args:
        content: an item's.
        recognized: whether lines are left out, None, whose drawing the game did not recognize.

    Raises:
        ValueError: if a line is no drawing.
    """
    if isinstance(content, Sketch):
        return content
    drawing = parse_line(*content)
    return drawing.sketch if drawing.recognized or not recognized else None


def as_it_is(sketch: Sketch) -> Sketch:
    """The sketch: `SketchSource.read` where items hold sketches."""
    return sketch


def prepare_source(
    source: SketchSource,
    cache_dir=None,
    representation: str = "absolute",
    spacing: float = 0.05,
    scale: float = 10.0,
    tolerance: float | None = None,
    max_strokes: int | None = None,
    max_sketches: int | None = None,
    max_points: int = 300,
    split: float = 0.85,
    split_seed: int = 4321,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[SketchArrays, SketchArrays]:
    """A data set, prepared as the original ChiroDiff does, split for training and validation.

    The first call reads and prepares all drawings, in parallel; later calls with the same
    settings and files load the result from a cache.

    Args:
        source: the data set.
        cache_dir: folder for the cache; by default what the environment variable
            `KERAS_SPARSE_DM_CACHE` names, else the user's cache folder. Where it cannot be
            written, a warning says so and nothing is cached.
        representation: `"absolute"` or `"delta"`, see `sketch.to_absolute` and `to_delta`.
        spacing: distance of neighbouring points along a stroke, as a fraction of the radius.
        scale: radius of the prepared sketches.
        tolerance: how far off a simplified stroke may lie, as a fraction of the radius, see
            `sketch.simplify`; None to simplify nothing.
        max_strokes: strokes of a sketch that are kept, the first ones; None for all.
        max_sketches: sketches that are read of each category, the first ones that can be read;
            None for all.
        max_points: sketches of this many points or more, the first included, are dropped.
        split: share of the sketches for training, between 0 and 1: `int(n * split)`.
        split_seed: seed of the permutation that the split cuts.
        workers: processes that prepare; by default one per available core.
        progress: whether to show a progress bar (on standard error) while preparing.

    Returns:
        `(train, validation)`. The `summary` of both counts what was read, kept and dropped, and
        names the broken drawings, which are skipped.

    Raises:
        ValueError: if an argument is out of its range, more than 5% of the drawings are broken,
            or fewer than two sketches are left.
    """
    check_representation(representation)
    for argument, value in (("spacing", spacing), ("scale", scale)):
        if not (value > 0 and np.isfinite(value)):
            raise ValueError(f"{argument}={value!r} must be a positive number")
    if tolerance is not None and not (tolerance >= 0 and np.isfinite(tolerance)):
        raise ValueError(f"tolerance={tolerance!r} must be a number, 0 or more, or None")
    for argument, value in (
        ("max_strokes", max_strokes),
        ("max_sketches", max_sketches),
        ("workers", workers),
    ):
        if value is not None:
            check_whole(argument, value, 1, 2**31)
    if max_points < 3:
        raise ValueError(f"max_points={max_points!r} must be 3 or more")
    if not 0 < split < 1:
        raise ValueError(f"split={split!r} must be between 0 and 1, for example 0.85")
    if split_seed < 0:
        raise ValueError(f"split_seed={split_seed!r} must be 0 or more")

    settings = {
        "representation": representation,
        "spacing": spacing,
        "scale": scale,
        "tolerance": tolerance,
        "max_strokes": max_strokes,
    }
    fingerprint = fingerprint_of([CACHE_VERSION, settings, max_sketches, source.state])
    cache = cache_folder(cache_dir) / f"{source.key}-v{CACHE_VERSION}-{fingerprint}.npz"
    prepared = _read_cache(cache)
    if prepared is None:
        prepared = _prepare(source, settings, max_sketches, workers, progress)
        _write_cache(cache, prepared)
    arrays = prepared.arrays

    # The representation leaves the first point out, so a sketch has one point more than its row.
    fits = arrays.lengths + 1 < max_points
    summary = PreparationSummary(
        source=source.title,
        read=prepared.read,
        kept=int(fits.sum()),
        broken=prepared.broken,
        too_long=tuple(arrays.names[i] for i in np.flatnonzero(~fits)),
        max_points=max_points,
        left_out=prepared.left_out,
        labels=_counts([arrays.labels[i] for i in np.flatnonzero(fits)]),
    )
    arrays = SketchArrays(
        arrays.points, arrays.lengths, arrays.names, representation, summary, arrays.labels
    ).subset(np.flatnonzero(fits))
    if len(arrays) == 0:
        raise ValueError(
            f"max_points={max_points!r} leaves no sketch: the shortest has "
            f"{prepared.arrays.lengths.min() + 1} points, and max_points must be more ({summary})"
        )
    order = np.random.default_rng(split_seed).permutation(len(arrays))
    train = int(len(arrays) * split)
    if not 0 < train < len(arrays):
        raise ValueError(
            f"split={split} of {len(arrays)} sketches leaves {train} for training and "
            f"{len(arrays) - train} for validation; both need at least one ({summary})"
        )
    return arrays.subset(order[:train]), arrays.subset(order[train:])


def _counts(labels: list[str]) -> dict[str, int]:
    """How many there are of each label, in alphabetical order; none where none is known."""
    return dict(sorted(Counter(labels).items())) if any(labels) else {}


# Preparation -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prepared:
    """What the cache holds: all that could be read, too long or not, and counts."""

    arrays: SketchArrays
    broken: tuple[tuple[str, str], ...]
    read: int
    left_out: int


def _prepare(source, settings, max_sketches, workers, progress) -> _Prepared:
    """Reads and prepares all drawings, in the source's order, whatever the number of workers."""
    complete: set[str] = set()
    few = source.total is not None and source.total < _SERIAL
    results = map_chunks(
        partial(_prepare_chunk, read=source.read, settings=settings),
        source.items(complete),
        total=source.total,
        chunk=_CHUNK,
        workers=1 if few else workers,
        progress=progress,
        title=f"Preparing {source.title}",
        unit=source.unit,
    )
    points, names, labels, broken = [], [], [], []
    read = left_out = 0
    kept: Counter[str] = Counter()
    with contextlib.closing(results):
        for group, name, label, one, reason in results:
            # What was under way when the group became complete.
            if group in complete:
                continue
            read += 1
            if reason is not None:
                broken.append((name, reason))
                if len(broken) > _GIVE_UP:
                    break
            elif one is None:
                left_out += 1
            else:
                points.append(one)
                names.append(name)
                labels.append(label)
                kept[group] += 1
                if kept[group] == max_sketches:
                    complete.add(group)
    check_broken(broken, read, source.argument, source.unit)
    if not points:
        raise ValueError(
            f"{source.argument} holds no sketch to train on: of {read:,} {source.unit} "
            f"{len(broken):,} are broken and {left_out:,} are not what was asked for"
        )
    arrays = SketchArrays.from_list(points, names, settings["representation"], labels=labels)
    return _Prepared(arrays, tuple(broken), read, left_out)


def _prepare_chunk(items: list[Item], read, settings: dict) -> list[tuple]:
    """(group, name, label, points, reason of failure) of each; runs in worker processes."""
    return [_prepare_item(item, read, **settings) for item in items]


def _prepare_item(item, read, representation, **settings):
    where, group = item.where, item.group
    try:
        if isinstance(item.content, Exception):
            raise item.content
        sketch = read(item.content)
        if sketch is None:
            return group, where, "", None, None
        points = to_points(prepare(sketch, **settings), representation)
        return group, sketch.name or where, sketch.label or group, points, None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        return group, where, "", None, reason if where in reason else f"{where}: {reason}"


# Cache -------------------------------------------------------------------------------------


def _read_cache(cache: Path) -> _Prepared | None:
    """What `_write_cache` wrote, or None where there is nothing or nothing that can be read."""
    try:
        if not cache.exists():
            return None
        # The zip's checksums tell damage; no pickles, so reading runs no code.
        with np.load(cache, allow_pickle=False) as stored:
            arrays = SketchArrays(
                stored["points"],
                stored["lengths"],
                tuple(stored["names"]),
                labels=tuple(stored["labels"]),
            )
            counts = json.loads(str(stored["counts"]))
            broken = stored["broken"].reshape(-1, 2)
            broken = tuple((str(name), str(reason)) for name, reason in broken)
            return _Prepared(arrays, broken, counts["read"], counts["left_out"])
    except Exception as error:  # a damaged zip raises almost anything; the remedy is the same
        warn_of_damage(cache, error)
        return None


def _write_cache(cache: Path, prepared: _Prepared) -> None:
    """Writes under a temporary name and renames: the cache file is whole or not there."""
    arrays = prepared.arrays
    try:
        with new_cache_file(cache, leftovers=f"{cache.name.split('-')[0]}-v*.tmp") as file:
            np.savez(
                file,
                points=arrays.points,
                lengths=arrays.lengths,
                names=np.array(arrays.names, dtype=str),
                labels=np.array(arrays.labels, dtype=str),
                counts=json.dumps({"read": prepared.read, "left_out": prepared.left_out}),
                broken=np.array(prepared.broken, dtype=str),
            )
    except OSError as error:
        warnings.warn(
            f"the cache file {cache} cannot be written ({error}); the data will be prepared "
            "again next time; cache_dir or KERAS_SPARSE_DM_CACHE sets another folder",
            stacklevel=4,
        )
