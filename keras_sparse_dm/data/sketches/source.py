"""Sources of sketches: the drawings of a data set and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from keras_sparse_dm.data.reading import lines, parse_line
from keras_sparse_dm.data.sketch import Sketch


@dataclass(frozen=True)
class Item:
    """Drawing that has not been read yet.

    Args:
        where: name of the drawing in messages: file, and line or number.
        content: argument of `SketchSource.read`; an exception if the drawing is known to be broken.
        group: category within which `max_sketches` counts.
    """

    where: str
    content: Any
    group: str = ""


@dataclass(frozen=True)
class SketchSource:
    """Drawings of a data set, and the function that reads one.

    Args:
        title: name of the data set in messages.
        key: first part of its cache files' names.
        argument: name of its folder in messages, such as `"folder='...'"`.
        state: plain values that change with the drawings: names, sizes and times of files.
        items: function of a set of complete groups that returns the `Item`s. The caller adds
            groups to the set while it takes items, and gets no more items of these.
        read: function from an item's content to its `Sketch`, or to None for a drawing that was
            not requested; can be pickled. Raises a ValueError for a broken drawing.
        total: number of items, if known.
        unit: plural noun for the items.
    """

    title: str
    key: str
    argument: str
    state: Any
    items: Callable[[set], Iterable[Item]]
    read: Callable[[Any], Sketch | None]
    total: int | None = None
    unit: str = "drawings"


def items_of(
    read, complete: set, group: str = "", item=None, file: str = "", numbered: bool = True
) -> Iterator[Item]:
    """Iterate over a reader's items, including broken ones, until the group is complete.

    Args:
        read: function of an `on_broken` that iterates over sketches or other values.
        complete: the set of complete groups, see `SketchSource.items`.
        group: group of the items.
        item: function from a value to its `Item`; by default for a sketch.
        file: name of the file, used in the default items' names.
        numbered: whether the default names include the sketch's number, counted from 0 with
            broken ones included.

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
    """Iterate over the lines of one of QuickDraw's `.ndjson` files, for `read_line_or_sketch`.

    Worker processes then parse the lines, and messages name broken ones by their line.

    Args:
        file: the file.
        complete: the set of complete groups, see `SketchSource.items`.
        group: group of the items.

    Yields:
        An `Item` for each, in order.
    """

    def item(line):
        where = f"{file.name}, line {line[0]}"
        return Item(where, (line[1], where), group)

    yield from items_of(partial(lines, file), complete, group, item)


def read_line_or_sketch(content, recognized: bool = False) -> Sketch | None:
    """Return the sketch of an item of `line_items`, or of one that holds a sketch.

    A `SketchSource.read`.

    Args:
        content: content of the item.
        recognized: whether to return None for drawings that the game did not recognize.

    Raises:
        ValueError: if a line is not a drawing.
    """
    if isinstance(content, Sketch):
        return content
    drawing = parse_line(*content)
    return drawing.sketch if drawing.recognized or not recognized else None
