"""Sketch files of any known format: `read_sketches`, and each format's own reader and writer."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from keras_sparse_dm.data.formats.chirodiff import is_packed, read_chirodiff
from keras_sparse_dm.data.formats.common import OnBroken, named, report
from keras_sparse_dm.data.formats.ndjson import (
    Drawing,
    check_max_strokes,
    lines,
    parse_line,
    read_quickdraw,
)
from keras_sparse_dm.data.formats.npz import array_names
from keras_sparse_dm.data.formats.sketch_json import read_sketch_json, write_sketch_json
from keras_sparse_dm.data.formats.sketch_rnn import SPLITS, check_splits, read_sketch_rnn
from keras_sparse_dm.data.formats.svg import read_svg, write_svg
from keras_sparse_dm.data.sketch import Sketch

__all__ = [
    "Drawing",
    "find_files",
    "lines",
    "list_files",
    "parse_line",
    "read_chirodiff",
    "read_quickdraw",
    "read_sketch_json",
    "read_sketch_rnn",
    "read_sketches",
    "read_svg",
    "write_sketch_json",
    "write_svg",
]


def _read_one_svg(path, on_broken, options) -> Iterator[Sketch]:
    try:
        sketch = read_svg(path)
    except ValueError as error:
        report(on_broken, path.name, error)
    else:
        yield sketch


def _read_ndjson(path, on_broken, options) -> Iterator[Sketch]:
    return read_quickdraw(path, on_broken, options["recognized"], options["max_strokes"])


def _read_npz(path, on_broken, options) -> Iterator[Sketch]:
    try:
        names = array_names(path)
    except ValueError as error:
        return report(on_broken, path.name, named(path.name, error))
    if set(names) & set(SPLITS):
        yield from read_sketch_rnn(path, on_broken, options["splits"])
    elif is_packed(names):
        yield from read_chirodiff(path, on_broken)
    else:
        reason = (
            "holds neither 'train', 'valid' or 'test', as sketch-rnn's files do, nor 'attr0', as "
            f"ChiroDiff's; it holds {', '.join(map(repr, names[:10])) or 'no array'}"
        )
        report(on_broken, path.name, named(path.name, reason))


def _read_pickle(path, on_broken, options) -> Iterator[Sketch]:
    return read_chirodiff(path, on_broken, max_strokes=options["max_strokes"])


def _read_json(path, on_broken, options) -> Iterator[Sketch]:
    return read_sketch_json(path, on_broken)


# By the ending of the file's name.
READERS: dict[str, Callable[[Path, OnBroken | None, dict], Iterator[Sketch]]] = {
    ".svg": _read_one_svg,
    ".ndjson": _read_ndjson,
    ".ndjson.gz": _read_ndjson,
    ".npz": _read_npz,
    ".json": _read_json,
    ".pkl": _read_pickle,
    ".pickle": _read_pickle,
    "sketch_0": _read_pickle,
}
# ChiroDiff's unpacked files have no ending.
_UNPACKED = re.compile(r"sketch_\d+")


def _kind(path: Path) -> str | None:
    """The key of `READERS` for a file, None if its format is unknown."""
    name = path.name.lower()
    if _UNPACKED.fullmatch(name):
        return "sketch_0"
    return next((kind for kind in READERS if kind[0] == "." and name.endswith(kind)), None)


def is_ndjson(path: Path) -> bool:
    """Whether a file is one of QuickDraw's, by its name."""
    return READERS.get(_kind(path)) is _read_ndjson


def holds_several(path: Path) -> bool:
    """Whether a file is of a format that can hold more than one sketch, by its name."""
    return READERS.get(_kind(path)) not in (_read_one_svg, _read_pickle)


def read_sketches(
    path,
    on_broken: OnBroken | None = None,
    recognized: bool = False,
    max_strokes: int | None = None,
    splits: Iterable[str] = SPLITS,
) -> Iterator[Sketch]:
    """Iterates over the sketches of a file, of all sketch files of a folder, or of a pattern.

    Formats are told by the names of files: `.svg` (`read_svg`), QuickDraw's `.ndjson` and
    `.ndjson.gz` (`read_quickdraw`), sketch-rnn's and ChiroDiff's packed `.npz`, by the names of
    the arrays in it (`read_sketch_rnn`, `read_chirodiff`), ChiroDiff's unpacked `sketch_0`,
    `sketch_1`, ... and such pickles that end in `.pkl` or `.pickle`, and `.json`
    (`read_sketch_json`).

    Args:
        path: a file of a known format; a folder of such files, of which subfolders and other
            files are left out; or a pattern such as `"drawings/*.svg"` or `"**/*.npz"`. Files
            are read in the order of their names.
        on_broken: called as `on_broken(where, error)` for what cannot be read, which is then
            skipped: `where` is a text such as `"cat.ndjson, line 17"`, or a file's name, `error`
            a ValueError or OSError. By default the error is raised.
        recognized: of QuickDraw's drawings, whether to leave out those that the game did not
            recognize.
        max_strokes: of QuickDraw's and ChiroDiff's unpacked drawings, the strokes that are kept,
            the first ones; None for all.
        splits: of sketch-rnn's files, which parts are read.

    Returns:
        Iterator of `Sketch`es; of most formats only one is in memory at a time, see their
        readers.

    Raises:
        FileNotFoundError: if `path` does not exist, or fits no file.
        ValueError: if a file's format is unknown, a folder holds no sketch file, an argument is
            out of its range; and, while iterating without an `on_broken`, for what cannot be
            read: the message begins with what `where` would be.
    """
    check_max_strokes(max_strokes)
    options = {
        "recognized": recognized,
        "max_strokes": max_strokes,
        "splits": check_splits(splits),
    }
    # Checked here rather than at the first sketch, where a generator would raise.
    return _read_files(find_files(path), on_broken, options)


def find_files(path) -> list[Path]:
    """The files that `read_sketches` reads, in that order.

    Args:
        path: a file, a folder, or a pattern.

    Returns:
        The paths, at least one.

    Raises:
        FileNotFoundError: if `path` does not exist, or fits no file.
        ValueError: if a file's format is unknown, or a folder or pattern holds no sketch file.
    """
    path = os.path.expanduser(path)
    if Path(path).is_dir():
        return list_files(path)
    if not Path(path).exists() and glob.has_magic(str(path)):
        found = [Path(f) for f in glob.glob(str(path), recursive=True)]
        files = sorted(file for file in found if _kind(file) and file.is_file())
        if not files:
            raise FileNotFoundError(
                f"path={str(path)!r} fits no sketch file ({_known_kinds()}), of "
                f"{len(found):,} files and folders that it fits"
            )
        return files
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"path={str(path)!r} does not exist; give a sketch file ({_known_kinds()}), a folder "
            "of them, or a pattern with *"
        )
    if _kind(path) is None:
        raise ValueError(f"path={str(path)!r} has no known format; known are {_known_kinds()}")
    return [path]


def list_files(folder, argument: str = "path", suffixes: Iterable[str] | None = None) -> list[Path]:
    """The sketch files of a folder, sorted by name.

    Args:
        folder: an existing folder.
        argument: what the caller calls the folder, for the messages.
        suffixes: the formats to list, by their endings, for example `(".svg",)`; None for all.

    Returns:
        The paths, at least one.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it cannot be listed, or holds no sketch file.
    """
    folder = Path(folder)
    wanted = tuple(READERS if suffixes is None else suffixes)
    kinds = _known_kinds(wanted)
    try:
        files = sorted(f for f in folder.iterdir() if _kind(f) in wanted and f.is_file())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{argument}={str(folder)!r} does not exist; give a folder of sketch files ({kinds})"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{argument}={str(folder)!r} cannot be listed ({error.strerror}); "
            f"give a readable folder of sketch files ({kinds})"
        ) from error
    if not files:
        raise ValueError(
            f"{argument}={str(folder)!r} holds no sketch file; give a folder with files of a "
            f"known format ({kinds})"
        )
    return files


def _known_kinds(kinds: Iterable[str] = tuple(READERS)) -> str:
    return ", ".join(kinds)


def _read_files(files, on_broken, options) -> Iterator[Sketch]:
    for file in files:
        try:
            yield from READERS[_kind(file)](file, on_broken, options)
        except OSError as error:
            report(on_broken, file.name, error)
