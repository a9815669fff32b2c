"""KanjiVG: 6,422 kanji as brush strokes (Ulrich Apel, CC BY-SA 3.0), prepared once and cached.

The default source is the PyPI package ``kanjivg``, whose SVG files lie in its folder ``kanji``.
Of its 11,662 files the default takes one for each unified CJK ideograph, 6,422 in all. Left out
are kana, letters, digits, punctuation and loose radicals (281 files), which are no kanji, and
4,959 variants (`04e14-Kaisho.svg` and the like): most differ from the main file by a fraction
of a stroke, and with them the validation set would hold near copies of training sketches. The
version of KanjiVG that sketch-rnn made, on which the paper trained, does hold variants
(11,458 sketches in all); ``characters="all"`` comes closest to it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import unicodedata
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from keras_sparse_dm.data.batching import SketchArrays
from keras_sparse_dm.data.preparation import (
    PreparationSummary,
    cache_folder,
    check_broken,
    fingerprint_of,
    map_chunks,
    new_cache_file,
    state_of,
    warn_of_damage,
)
from keras_sparse_dm.data.reading import list_files, read_sketches
from keras_sparse_dm.data.sketch import check_representation, prepare, to_points

# Part of the cache's file name: raise it with every change of the file's layout or of what
# reading and preparing give for the same file.
CACHE_VERSION = 1

CHARACTERS = ("kanji", "kanji+variants", "all")

_KANJIVG_NAME = re.compile(r"([0-9a-f]{5})(-\w+)?")


def kanjivg_folder() -> Path:
    """The folder of the SVG files that the PyPI package ``kanjivg`` installs.

    Returns:
        The path of the folder.

    Raises:
        FileNotFoundError: if the package is not installed; the message says how to install it.
    """
    try:
        folder = Path(importlib.metadata.distribution("kanjivg").locate_file("kanji"))
    except importlib.metadata.PackageNotFoundError:
        folder = None
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(
            "the KanjiVG package is not installed; run `pip install kanjivg`, or give the folder "
            "of KanjiVG's .svg files"
        )
    return folder


def select_characters(files: Iterable[Path], characters: str = "kanji") -> list[Path]:
    """Selects files by KanjiVG's naming: the character's code point in five hexadecimal digits.

    Args:
        files: paths of SVG files.
        characters: `"kanji"` for one file per unified CJK ideograph, `"kanji+variants"` for
            their variant forms too (`04e14-Kaisho.svg`), `"all"` for every file. A file whose
            name is not of KanjiVG's form is always selected.

    Returns:
        The selected paths, in the same order.

    Raises:
        ValueError: if `characters` is unknown.
    """
    if characters not in CHARACTERS:
        raise ValueError(
            f"characters={characters!r} is unknown; it must be one of "
            + ", ".join(map(repr, CHARACTERS))
        )

    def selected(file: Path) -> bool:
        match = _KANJIVG_NAME.fullmatch(file.stem)
        if match is None or characters == "all":
            return True
        name = unicodedata.name(chr(int(match[1], 16)), "")
        return name.startswith("CJK UNIFIED IDEOGRAPH") and (
            match[2] is None or characters == "kanji+variants"
        )

    return [file for file in files if selected(file)]


def load_kanjivg(
    folder=None,
    cache_dir=None,
    representation: str = "absolute",
    spacing: float = 0.05,
    scale: float = 10.0,
    max_points: int = 300,
    split: float = 0.85,
    split_seed: int = 4321,
    workers: int | None = None,
    progress: bool = True,
    characters: str = "kanji",
) -> tuple[SketchArrays, SketchArrays]:
    """KanjiVG, prepared as the original ChiroDiff does, split for training and validation.

    The first call reads and prepares all files, in parallel; later calls with the same settings
    and files load the result from a cache.

    Args:
        folder: folder of `.svg` files; the installed PyPI package ``kanjivg`` by default.
        cache_dir: folder for the cache; by default what the environment variable
            `KERAS_SPARSE_DM_CACHE` names, else the user's cache folder. Where it cannot be
            written, a warning says so and nothing is cached.
        representation: `"absolute"` or `"delta"`, see `sketch.to_absolute` and `to_delta`.
        spacing: distance of neighbouring points along a stroke, as a fraction of the radius.
        scale: radius of the prepared sketches.
        max_points: sketches of this many points or more, the first included, are dropped.
        split: share of the sketches for training, between 0 and 1: `int(n * split)`.
        split_seed: seed of the permutation that the split cuts.
        workers: processes that prepare; by default one per available core.
        progress: whether to show a progress bar (on standard error) while preparing.
        characters: which files, see `select_characters`.

    Returns:
        `(train, validation)`. The `summary` of both counts what was read, kept and dropped, and
        names the broken files, which are skipped.

    Raises:
        FileNotFoundError: if `folder` does not exist or the package is not installed.
        ValueError: if an argument is out of its range, the folder cannot be read or holds no
            fitting file, more than 5% of the files are broken, or fewer than two sketches are
            left.
    """
    _check_settings(representation, spacing, scale, max_points, split, split_seed, workers)
    folder = kanjivg_folder() if folder is None else Path(folder).expanduser()
    files = select_characters(list_files(folder, "folder"), characters)
    if not files:
        raise ValueError(
            f"folder={str(folder)!r} holds no file for characters={characters!r}; "
            'give KanjiVG\'s folder of kanji, or characters="all"'
        )

    settings = {"representation": representation, "spacing": spacing, "scale": scale}
    cache = _cache_file(cache_dir, files, settings)
    prepared = _read_cache(cache)
    if prepared is None:
        prepared = _prepare_files(files, settings, workers, progress)
        arrays, broken = prepared
        check_broken(broken, len(files), f"folder={str(folder)!r}")
        _write_cache(cache, arrays, broken)
    arrays, broken = prepared

    # The representation leaves the first point out, so a sketch has one point more than its row.
    fits = arrays.lengths + 1 < max_points
    summary = PreparationSummary(
        source="KanjiVG",
        read=len(files),
        kept=int(fits.sum()),
        broken=broken,
        too_long=tuple(arrays.names[i] for i in np.flatnonzero(~fits)),
        max_points=max_points,
    )
    arrays = SketchArrays(
        arrays.points, arrays.lengths, arrays.names, representation, summary
    ).subset(np.flatnonzero(fits))
    order = np.random.default_rng(split_seed).permutation(len(arrays))
    train = int(len(arrays) * split)
    if not 0 < train < len(arrays):
        raise ValueError(
            f"split={split} of {len(arrays)} sketches leaves {train} for training and "
            f"{len(arrays) - train} for validation; both need at least one ({summary})"
        )
    return arrays.subset(order[:train]), arrays.subset(order[train:])


def _check_settings(representation, spacing, scale, max_points, split, split_seed, workers):
    check_representation(representation)
    for argument, value in (("spacing", spacing), ("scale", scale)):
        if not (value > 0 and np.isfinite(value)):
            raise ValueError(f"{argument}={value!r} must be a positive number")
    if max_points < 3:
        raise ValueError(f"max_points={max_points!r} must be 3 or more")
    if not 0 < split < 1:
        raise ValueError(f"split={split!r} must be between 0 and 1, for example 0.85")
    if split_seed < 0:
        raise ValueError(f"split_seed={split_seed!r} must be 0 or more")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers!r} must be 1 or more, or None for one per core")


# Preparation -------------------------------------------------------------------------------

# Below this number of files starting processes costs more time than it saves.
_SERIAL_FILES = 256
_CHUNK_FILES = 32


def _prepare_files(
    files: list[Path], settings: dict, workers: int | None, progress: bool
) -> tuple[SketchArrays, tuple[tuple[str, str], ...]]:
    """Reads and prepares all files: arrays in the files' order, and (name, reason) of the broken.

    The result does not depend on the number of workers.
    """
    results = map_chunks(
        partial(_prepare_chunk, settings=settings),
        files,
        total=len(files),
        chunk=_CHUNK_FILES,
        workers=1 if len(files) < _SERIAL_FILES else workers,
        progress=progress,
        title="Preparing KanjiVG",
    )
    sketches, names, broken = [], [], []
    with contextlib.closing(results):
        for name, points, reason in results:
            if points is None:
                broken.append((name, reason))
            else:
                sketches.append(points)
                names.append(name)
    return SketchArrays.from_list(sketches, names, settings["representation"]), tuple(broken)


def _prepare_chunk(
    files: list[Path], settings: dict
) -> list[tuple[str, np.ndarray | None, str | None]]:
    """(name, points, None) or (name, None, reason) for each file; runs in worker processes."""
    return [_prepare_file(file, **settings) for file in files]


def _prepare_file(file: Path, representation: str, spacing: float, scale: float):
    try:
        (sketch,) = read_sketches(file)
        return file.stem, to_points(prepare(sketch, spacing, scale), representation), None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        return file.stem, None, reason if file.name in reason else f"{file.name}: {reason}"


# Cache -------------------------------------------------------------------------------------


def _cache_file(cache_dir, files: list[Path], settings: dict) -> Path:
    """Where the prepared files belong: the name changes with the format, settings and files."""
    fingerprint = fingerprint_of([CACHE_VERSION, settings, state_of(files)])
    return cache_folder(cache_dir) / f"kanjivg-v{CACHE_VERSION}-{fingerprint}.npz"


def _read_cache(cache: Path):
    """What `_write_cache` wrote, or None where there is nothing or nothing that can be read."""
    try:
        if not cache.exists():
            return None
        # The zip's checksums tell damage; no pickles, so reading runs no code.
        with np.load(cache, allow_pickle=False) as stored:
            arrays = SketchArrays(stored["points"], stored["lengths"], tuple(stored["names"]))
            broken = stored["broken"].reshape(-1, 2)
            return arrays, tuple((str(name), str(reason)) for name, reason in broken)
    except Exception as error:  # a damaged zip raises almost anything; the remedy is the same
        warn_of_damage(cache, error)
        return None


def _write_cache(cache: Path, arrays: SketchArrays, broken) -> None:
    """Writes under a temporary name and renames: the cache file is whole or not there."""
    try:
        with new_cache_file(cache, leftovers=f"kanjivg-v{CACHE_VERSION}-*.tmp") as file:
            np.savez(
                file,
                points=arrays.points,
                lengths=arrays.lengths,
                names=np.array(arrays.names, dtype=str),
                broken=np.array(broken, dtype=str),
            )
    except OSError as error:
        warnings.warn(
            f"the cache file {cache} cannot be written ({error}); the data will be prepared "
            "again next time; cache_dir or KERAS_SPARSE_DM_CACHE sets another folder",
            stacklevel=3,
        )
