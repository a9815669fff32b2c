"""QuickDraw: drawings of 345 categories, 50 million in all (Google, CC BY 4.0).

One folder holds the files, which are found by their category's name: raw drawings with times
(``cat.ndjson``, which the original ChiroDiff uses), simplified ones, either of them compressed
(``cat.ndjson.gz``), sketch-rnn's files (``cat.npz``, ``sketchrnn_cat.full.npz``), files packed by
the original ChiroDiff (``cat_threeseqabs.npz``), or a folder ``cat`` of the pickles that it
unpacks. tensorflow-datasets' QuickDraw holds only bitmaps, no strokes, so it cannot be used.

Raw drawings: https://storage.googleapis.com/quickdraw_dataset/full/raw/cat.ndjson
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from keras_sparse_dm.data.cache import cache_folder, state_of
from keras_sparse_dm.data.reading import read_chirodiff, read_sketches
from keras_sparse_dm.data.sketch_arrays import SketchArrays
from keras_sparse_dm.data.sketches.preparation import prepare_source
from keras_sparse_dm.data.sketches.source import (
    Item,
    SketchSource,
    items_of,
    line_items,
    read_line_or_sketch,
)

# The categories of the paper, which trains one model on each.
PAPER_CATEGORIES = ("cat", "crab", "mosquito")
ADDRESS = "https://storage.googleapis.com/quickdraw_dataset/full/raw"

# The parts of file names that are not the category.
_PREFIX = re.compile(r"^(full[ _/])?(raw|simplified|sketchrnn)[ _/]")
_SUFFIX = re.compile(r"(\.full|_threeseqabs|_threeseqdel)$")
_ENDINGS = (".ndjson", ".ndjson.gz", ".npz")


@functools.cache
def quickdraw_categories() -> tuple[str, ...]:
    """Return the names of QuickDraw's 345 categories, in alphabetical order.

    Returns:
        The names that tensorflow-datasets lists; empty if that package is not installed.
    """
    package = importlib.util.find_spec("tensorflow_datasets")
    if package is None or package.origin is None:
        return ()
    labels = Path(package.origin).parent / "datasets" / "quickdraw_bitmap" / "labels.txt"
    try:
        return tuple(sorted(labels.read_text(encoding="utf-8").split("\n"))[1:])
    except OSError:
        return ()


def quickdraw_folder(cache_dir=None) -> Path:
    """Return the default folder of QuickDraw's files: ``quickdraw`` in the cache's folder.

    Args:
        cache_dir: folder for the cache, see `prepare_source`.

    Returns:
        The folder, which need not exist.
    """
    return cache_folder(cache_dir) / "quickdraw"


def load_quickdraw(
    folder=None,
    categories: Sequence[str] = PAPER_CATEGORIES,
    recognized: bool = False,
    cache_dir=None,
    **preparation,
) -> tuple[SketchArrays, SketchArrays]:
    """Load QuickDraw, prepared as the original ChiroDiff does, for training and validation.

    Args:
        folder: folder of QuickDraw's files, one or more per category; by default
            `quickdraw_folder()`. If a category has several, uncompressed `.ndjson` files are
            preferred, then compressed ones, then `.npz` files, then unpacked pickles.
        categories: names of categories, at least one. The paper trains a separate model on each
            of its three; by default all three are loaded together.
        recognized: whether to read only drawings that the game recognized; requires `.ndjson`
            files, which alone hold this information.
        cache_dir: folder for the cache, see `prepare_source`.
        **preparation: sizes, split and other arguments of `prepare_source`. `max_sketches` counts
            within each category.

    Returns:
        `(train, validation)`, whose `labels` are the categories.

    Raises:
        FileNotFoundError: if the folder, or a category's file in it, does not exist; the message
            says where to get it.
        ValueError: if a category is unknown, or `prepare_source` raises one.
    """
    categories = [categories] if isinstance(categories, str) else list(categories)
    if not categories:
        raise ValueError(
            "categories must hold at least one name, for example ('cat',); received none"
        )
    if len(set(categories)) < len(categories):
        raise ValueError(f"categories={categories!r} must not hold a name twice")
    folder = quickdraw_folder(cache_dir) if folder is None else Path(folder).expanduser()
    files = _find(folder, categories)
    silent = [file.name for file in files.values() if not _is_text(file)]
    if recognized and silent:
        raise ValueError(
            f"recognized=True requires .ndjson files, which alone hold this information; received "
            f"{silent[0]}"
        )
    source = SketchSource(
        title="QuickDraw",
        key="quickdraw",
        argument=f"folder={str(folder)!r}",
        state=[recognized, [(c, state_of(_contents(file))) for c, file in files.items()]],
        items=functools.partial(_items, files),
        read=functools.partial(read_line_or_sketch, recognized=recognized),
    )
    return prepare_source(source, cache_dir=cache_dir, **preparation)


def _find(folder: Path, categories: list[str]) -> dict[str, Path]:
    """Return `{category: its file or folder}`, in the order of `categories`."""
    for category in categories:
        if not isinstance(category, str) or not category.strip() or "/" in category:
            raise ValueError(f"categories holds {category!r}; it must hold names such as 'cat'")
    download = ", ".join(f"{ADDRESS}/{quote(category)}.ndjson" for category in categories)
    try:
        found = {}
        for path in sorted(folder.iterdir()):
            category, rank = _category(path)
            if category is not None:
                found.setdefault(category, []).append((rank, path))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"folder={str(folder)!r} does not exist; make it, and put QuickDraw's drawings there: "
            + download
        ) from None
    except OSError as error:
        raise ValueError(
            f"folder={str(folder)!r} cannot be listed ({error.strerror}); give a folder of "
            "QuickDraw's files, such as cat.ndjson"
        ) from error
    for category in categories:
        if category in found:
            continue
        known = set(quickdraw_categories())
        near = difflib.get_close_matches(category, known | set(found), 1)
        if near and category not in known:
            raise ValueError(
                f"categories holds {category!r}, which is not one of QuickDraw's; did you mean "
                f"{near[0]!r}?"
            )
        if known and category not in known:
            raise ValueError(
                f"categories holds {category!r}, which is not one of QuickDraw's {len(known)}; the "
                f"folder holds {', '.join(sorted(found)) or 'none'}"
            )
        raise FileNotFoundError(
            f"folder={str(folder)!r} holds no drawings of {category!r}"
            + (f", only of {', '.join(sorted(found))}" if found else "")
            + f"; download them into it from {ADDRESS}/{quote(category)}.ndjson"
        )
    return {category: min(found[category])[1] for category in categories}


def _category(path: Path) -> tuple[str | None, int]:
    """Return the category of a file or folder, or None, and its rank: lower ones are preferred."""
    name = unquote(path.name)
    if path.is_dir():
        return name, len(_ENDINGS)
    for rank, ending in enumerate(_ENDINGS):
        if name.lower().endswith(ending):
            return _SUFFIX.sub("", _PREFIX.sub("", name[: -len(ending)])), rank
    return None, 0


def _is_text(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() != ".npz"


def _contents(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())


def _items(files: dict[str, Path], complete: set) -> Iterator[Item]:
    for category, file in files.items():
        if _is_text(file):
            yield from line_items(file, complete, category)
            continue
        reader = read_chirodiff if file.is_dir() else read_sketches
        yield from items_of(functools.partial(reader, file), complete, category, file=file.name)
