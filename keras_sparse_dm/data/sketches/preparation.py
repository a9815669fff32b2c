"""Preparation of a data set of sketches: read, prepared, cached, and split in two."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from keras_sparse_dm.checks import check_positive, check_whole
from keras_sparse_dm.data.cache import (
    cache_folder,
    fingerprint_of,
    new_cache_file,
    warn_of_damage,
)
from keras_sparse_dm.data.representations import check_representation, to_points
from keras_sparse_dm.data.sketch_arrays import SketchArrays
from keras_sparse_dm.data.sketch_preparation import prepare_sketch
from keras_sparse_dm.data.sketches.source import Item, SketchSource
from keras_sparse_dm.data.summary import PreparationSummary, check_broken
from keras_sparse_dm.data.worker_processes import map_chunks

# Part of the cache's file name. Increase it with every change of the file's layout, or of the
# points that reading and preparing make of the same file.
CACHE_VERSION = 3

# With fewer drawings, starting processes takes more time than it saves.
_SERIAL = 256
_CHUNK = 32
# With more broken drawings, the data set is not worth reading to its end.
_GIVE_UP = 10_000


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
    """Prepare a data set as the original ChiroDiff does, and split it in two.

    The first call reads and prepares all drawings in parallel; later calls with the same settings
    and files load the result from a cache.

    Args:
        source: the data set.
        cache_dir: folder for the cache; by default that of the environment variable
            `KERAS_SPARSE_DM_CACHE`, or else the user's cache folder. If it cannot be written,
            nothing is cached and a warning is issued.
        representation: `"absolute"` or `"delta"`, see `to_absolute` and `to_delta`.
        spacing: distance of neighbouring points along a stroke, as a fraction of the radius.
        scale: radius of the prepared sketches.
        tolerance: greatest distance of a dropped point from its simplified stroke, as a fraction
            of the radius, see `simplify`; None for no simplification.
        max_strokes: number of strokes kept of a sketch, the first ones; None for all.
        max_sketches: number of sketches read of each category, the first readable ones; None for
            all.
        max_points: number of points, including the first, from which a sketch is dropped.
        split: share of the sketches for training, between 0 and 1: `int(n * split)` of them.
        split_seed: seed of the permutation that is split.
        workers: number of processes; by default one per available core.
        progress: whether to show a progress bar (on standard error) while preparing.

    Returns:
        `(train, validation)`. The `summary` of both counts the drawings that were read, kept and
        dropped, and names the broken ones, which are skipped.

    Raises:
        ValueError: if an argument is out of its range, more than 5% of the drawings are broken,
            or fewer than two sketches remain.
    """
    check_representation(representation)
    check_positive("spacing", spacing)
    check_positive("scale", scale)
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
        prepared = _prepare_drawings(source, settings, max_sketches, workers, progress)
        _write_cache(cache, prepared)
    arrays = prepared.arrays

    # The representation omits the first point, so a sketch has one point more than its rows.
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
    """Return the number of each label, in alphabetical order; empty if no label is known."""
    return dict(sorted(Counter(labels).items())) if any(labels) else {}


@dataclass(frozen=True)
class _Prepared:
    """Content of the cache: all readable sketches, also those that are too long, and counts."""

    arrays: SketchArrays
    broken: tuple[tuple[str, str], ...]
    read: int
    left_out: int


def _prepare_drawings(source, settings, max_sketches, workers, progress) -> _Prepared:
    """Read and prepare all drawings, in the source's order for any number of workers."""
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
            # Items that were under way when the group became complete.
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
            f"{len(broken):,} are broken and {left_out:,} were not requested"
        )
    arrays = SketchArrays.from_list(points, names, settings["representation"], labels=labels)
    return _Prepared(arrays, tuple(broken), read, left_out)


def _prepare_chunk(items: list[Item], read, settings: dict) -> list[tuple]:
    """Return `(group, name, label, points, error)` of each item; runs in worker processes."""
    return [_prepare_item(item, read, **settings) for item in items]


def _prepare_item(item, read, representation, **settings):
    where, group = item.where, item.group
    try:
        if isinstance(item.content, Exception):
            raise item.content
        sketch = read(item.content)
        if sketch is None:
            return group, where, "", None, None
        points = to_points(prepare_sketch(sketch, **settings), representation)
        return group, sketch.name or where, sketch.label or group, points, None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        return group, where, "", None, reason if where in reason else f"{where}: {reason}"


def _read_cache(cache: Path) -> _Prepared | None:
    """Read the file of `_write_cache`; None if it does not exist or cannot be read."""
    try:
        if not cache.exists():
            return None
        # The zip's checksums reveal damage; without pickles, reading runs no code.
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
    """Write the cache file, or warn that it cannot be written."""
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
