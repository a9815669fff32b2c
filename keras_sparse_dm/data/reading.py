"""Readers and writers of sketch files: `read_sketches` for any format, and one per format."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from keras_sparse_dm.data.formats.broken_input import OnBroken, named, report
from keras_sparse_dm.data.formats.chirodiff import is_packed, read_chirodiff
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
            f"ChiroDiff's do; it holds {', '.join(map(repr, names[:10])) or 'no array'}"
        )
        report(on_broken, path.name, named(path.name, reason))


def _read_pickle(path, on_broken, options) -> Iterator[Sketch]:
    return read_chirodiff(path, on_broken, max_strokes=options["max_strokes"])


def _read_json(path, on_broken, options) -> Iterator[Sketch]:
    return read_sketch_json(path, on_broken)


# Readers by the ending of the file's name.
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
    """Return the key of `READERS` for a file, or None if its format is unknown."""
    name = path.name.lower()
    if _UNPACKED.fullmatch(name):
        return "sketch_0"
    return next((kind for kind in READERS if kind[0] == "." and name.endswith(kind)), None)


def is_ndjson(path: Path) -> bool:
    """Return whether a file is one of QuickDraw's, judging by its name."""
    return READERS.get(_kind(path)) is _read_ndjson


def holds_several(path: Path) -> bool:
    """Return whether a file's format can hold several sketches, judging by its name."""
    return READERS.get(_kind(path)) not in (_read_one_svg, _read_pickle)


def read_sketches(
    path,
    on_broken: OnBroken | None = None,
    recognized: bool = False,
    max_strokes: int | None = None,
    splits: Iterable[str] = SPLITS,
) -> Iterator[Sketch]:
    """Iterate over the sketches of a file, of all sketch files in a folder, or of a pattern.

    The name of a file determines its format: `.svg` (`read_svg`); QuickDraw's `.ndjson` and
    `.ndjson.gz` (`read_quickdraw`); `.npz` of sketch-rnn or packed by ChiroDiff, depending on the
    names of its arrays (`read_sketch_rnn`, `read_chirodiff`); ChiroDiff's unpacked `sketch_0`,
    `sketch_1`, ... and pickles of that kind that end in `.pkl` or `.pickle`; and `.json`
    (`read_sketch_json`).

    Args:
        path: a file of a known format; a folder of such files, whose subfolders and other files
            are ignored; or a pattern such as `"drawings/*.svg"` or `"**/*.npz"`. Files are read
            in the order of their names.
        on_broken: called as `on_broken(where, error)` for a sketch or file that cannot be read,
            which is then skipped: `where` is a text such as `"cat.ndjson, line 17"`, or a file's
            name, and `error` a ValueError or OSError. By default the error is raised.
        recognized: for QuickDraw, whether to skip drawings that the game did not recognize.
        max_strokes: for QuickDraw's and ChiroDiff's unpacked drawings, the number of strokes that
            are kept, the first ones; None for all.
        splits: for sketch-rnn's files, the splits to read.

    Returns:
        Iterator of `Sketch`es. For most formats, memory holds one sketch at a time; see their
        readers.

    Raises:
        FileNotFoundError: if `path` does not exist or matches no file.
        ValueError: if a file's format is unknown, a folder holds no sketch file, or an argument is
            out of its range; and, while iterating without `on_broken`, for a sketch or file that
            cannot be read: the message begins with the `where` above.

    Example:

    >>> write_sketch_json("drawings.json", [Sketch([[(0, 0, 0), (3, 4, 1)]], name="line")])
    >>> [sketch.name for sketch in read_sketches("*.json")]
    ['line']
    """
    check_max_strokes(max_strokes)
    options = {
        "recognized": recognized,
        "max_strokes": max_strokes,
        "splits": check_splits(splits),
    }
    # Checked here, because a generator would raise only at the first sketch.
    return _read_files(find_files(path), on_broken, options)


def find_files(path) -> list[Path]:
    """Return the files that `read_sketches` reads, in that order.

    Args:
        path: a file, a folder, or a pattern.

    Returns:
        The paths, at least one.

    Raises:
        FileNotFoundError: if `path` does not exist or matches no sketch file.
        ValueError: if a file's format is unknown or a folder holds no sketch file.
    """
    path = os.path.expanduser(path)
    if Path(path).is_dir():
        return list_files(path)
    if not Path(path).exists() and glob.has_magic(str(path)):
        found = [Path(f) for f in glob.glob(str(path), recursive=True)]
        files = sorted(file for file in found if _kind(file) and file.is_file())
        if not files:
            raise FileNotFoundError(
                f"path={str(path)!r} matches {len(found):,} files and folders, but no sketch file "
                f"({_known_kinds()})"
            )
        return files
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"path={str(path)!r} does not exist; give a sketch file ({_known_kinds()}), a folder "
            "of them, or a pattern with *"
        )
    if _kind(path) is None:
        raise ValueError(f"path={str(path)!r} has an unknown format; known are {_known_kinds()}")
    return [path]


def list_files(folder, argument: str = "path", suffixes: Iterable[str] | None = None) -> list[Path]:
    """Return the sketch files of a folder, sorted by name.

    Args:
        folder: an existing folder.
        argument: the caller's name for the folder in messages.
        suffixes: endings of the formats to list, for example `(".svg",)`; None for all.

    Returns:
        The paths, at least one.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if it cannot be listed or holds no sketch file.
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
