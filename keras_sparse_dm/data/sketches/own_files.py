"""Data sets of sketch files in any known format."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from keras_sparse_dm.data.cache import state_of
from keras_sparse_dm.data.reading import find_files, holds_several, is_ndjson, read_sketches
from keras_sparse_dm.data.sketch import Sketch
from keras_sparse_dm.data.sketch_arrays import SketchArrays
from keras_sparse_dm.data.sketches.preparation import prepare_source
from keras_sparse_dm.data.sketches.source import (
    SketchSource,
    items_of,
    line_items,
    read_line_or_sketch,
)


def load_sketches(path, **preparation) -> tuple[SketchArrays, SketchArrays]:
    """Load sketches from files of any known format, for training and validation.

    Args:
        path: a file, a folder of files, or a pattern such as `"drawings/*.svg"`; see
            `read_sketches` for the formats.
        **preparation: further arguments of `prepare_source`.

    Returns:
        `(train, validation)`, two `SketchArrays`.

    Raises:
        FileNotFoundError: if the file or folder does not exist.
        ValueError: if a format is unknown, or `prepare_source` raises one.

    Example:

    >>> sketch = Sketch([[(0, 0, 0), (3, 4, 1)]])
    >>> write_sketch_json("drawings.json", [sketch] * 20)
    >>> train, validation = load_sketches("*.json", split=0.9, workers=1, progress=False)
    >>> len(train), len(validation)
    (18, 2)
    """
    files = find_files(path)

    def items(complete):
        for file in files:
            if is_ndjson(file):
                yield from line_items(file, complete)
            else:
                read = partial(_read_file, file)
                yield from items_of(read, complete, file=file.name, numbered=holds_several(file))

    # An SVG file holds one drawing, so the number of drawings is known.
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
