"""KanjiVG: 6,422 kanji as brush strokes (Ulrich Apel, CC BY-SA 3.0), prepared once and cached.

The default source is the PyPI package ``kanjivg``, whose folder ``kanji`` holds 11,662 SVG files.
By default one file is read for each unified CJK ideograph, 6,422 in all. Kana, letters, digits,
punctuation and loose radicals (281 files) are no kanji and are skipped. So are 4,959 variants such
as `04e14-Kaisho.svg`: most differ from the main file by a fraction of a stroke, so the validation
set would hold near copies of training sketches.

The paper trained on sketch-rnn's version of KanjiVG, which does hold variants (11,458 sketches in
all); ``characters="all"`` comes closest to it. That version can be read too: ``kanji.rdp25.npz`` or
another file of https://github.com/hardmaru/sketch-rnn-datasets/tree/master/kanji. Its training
split has 10,358 sketches; the paper's 85% of them make 68 batches of 128.
"""

from __future__ import annotations

import importlib.metadata
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from keras_sparse_dm.data.cache import state_of
from keras_sparse_dm.data.reading import list_files, read_sketch_rnn, read_svg
from keras_sparse_dm.data.sketch_arrays import SketchArrays
from keras_sparse_dm.data.sketches.preparation import prepare_source
from keras_sparse_dm.data.sketches.source import (
    Item,
    SketchSource,
    items_of,
    read_line_or_sketch,
)
from keras_sparse_dm.datasets import CHARACTERS
from keras_sparse_dm.lazy import not_installed

_KANJIVG_NAME = re.compile(r"([0-9a-f]{5})(-\w+)?")


def kanjivg_folder() -> Path:
    """Return the folder of the SVG files that the PyPI package ``kanjivg`` installs.

    Returns:
        The path of the folder.

    Raises:
        FileNotFoundError: if the package is not installed; the message explains how to install it.
    """
    try:
        folder = Path(importlib.metadata.distribution("kanjivg").locate_file("kanji"))
    except importlib.metadata.PackageNotFoundError:
        folder = None
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(
            f"{not_installed('kanjivg')}, or give the folder of KanjiVG's .svg files"
        )
    return folder


def select_characters(files: Iterable[Path], characters: str = "kanji") -> list[Path]:
    """Select files by KanjiVG's names: the character's code point in five hexadecimal digits.

    Args:
        files: paths of SVG files.
        characters: `"kanji"` for one file per unified CJK ideograph, `"kanji+variants"` to include
            their variants (`04e14-Kaisho.svg`), `"all"` for every file. A file whose name does
            not have KanjiVG's form is always selected.

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
    folder=None, cache_dir=None, characters: str = "kanji", **preparation
) -> tuple[SketchArrays, SketchArrays]:
    """Load KanjiVG, prepared as the original ChiroDiff does, for training and validation.

    Args:
        folder: folder of `.svg` files, by default that of the installed PyPI package
            ``kanjivg``; or one of sketch-rnn's `.npz` files of KanjiVG, whose training split is
            read, as in the paper; or a folder that holds one.
        cache_dir: folder for the cache, see `prepare_source`.
        characters: selection of `.svg` files, see `select_characters`. A `.npz` file holds no
            names and is read completely.
        **preparation: sizes, split and other arguments of `prepare_source`.

    Returns:
        `(train, validation)`. The `summary` of both counts the drawings that were read, kept and
        dropped, and names the broken files, which are skipped.

    Raises:
        FileNotFoundError: if `folder` does not exist or the package is not installed.
        ValueError: if an argument is out of its range, the folder cannot be read or holds no
            matching file, more than 5% of the drawings are broken, or fewer than two sketches
            remain.
    """
    if characters not in CHARACTERS:
        select_characters([], characters)
    folder = kanjivg_folder() if folder is None else Path(folder).expanduser()
    return prepare_source(_source(folder, characters), cache_dir=cache_dir, **preparation)


def _source(folder: Path, characters: str) -> SketchSource:
    argument = f"folder={str(folder)!r}"
    if folder.suffix.lower() == ".npz" and folder.is_file():
        files = [folder]
    else:
        files = list_files(folder, "folder", (".svg", ".npz"))
    drawings = [file for file in files if file.suffix.lower() == ".svg"]
    if not drawings:
        if len(files) > 1:
            raise ValueError(
                f"{argument} holds several .npz files; give one: "
                + ", ".join(file.name for file in files)
            )
        return SketchSource(
            title=f"KanjiVG ({files[0].name})",
            key="kanjivg",
            argument=argument,
            state=state_of(files),
            items=lambda complete: items_of(
                lambda on_broken: read_sketch_rnn(files[0], on_broken, splits=("train",)),
                complete,
                file=files[0].name,
            ),
            read=read_line_or_sketch,
            unit="sketches",
        )
    drawings = select_characters(drawings, characters)
    if not drawings:
        raise ValueError(
            f"{argument} holds no file for characters={characters!r}; "
            'give KanjiVG\'s folder of kanji, or characters="all"'
        )
    return SketchSource(
        title="KanjiVG",
        key="kanjivg",
        argument=argument,
        state=state_of(drawings),
        items=lambda complete: _until_complete(
            (Item(file.name, file) for file in drawings), complete
        ),
        read=read_svg,
        total=len(drawings),
        unit="files",
    )


def _until_complete(items, complete):
    for item in items:
        if item.group in complete:
            return
        yield item
