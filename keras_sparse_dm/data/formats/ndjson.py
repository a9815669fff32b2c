"""QuickDraw's `.ndjson` files: one drawing in JSON per line, raw or simplified."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from keras_sparse_dm.data.formats.bounded_files import bounded_lines, existing_file
from keras_sparse_dm.data.formats.broken_input import OnBroken, named, report
from keras_sparse_dm.data.formats.strokes import strokes_from_columns
from keras_sparse_dm.data.sketch import Sketch

# QuickDraw's longest raw lines, 20 seconds of drawing, have about 100 kB. Hostile JSON takes about
# 20 times its length in memory.
MAX_LINE = 2**23


@dataclass(frozen=True)
class Drawing:
    """Drawing on a line of a QuickDraw file.

    Args:
        sketch: the drawing, with its category as the label.
        recognized: whether QuickDraw's game recognized the drawing; False if the line omits it.
    """

    sketch: Sketch
    recognized: bool


def read_quickdraw(
    path,
    on_broken: OnBroken | None = None,
    recognized: bool = False,
    max_strokes: int | None = None,
) -> Iterator[Sketch]:
    """Iterate over the drawings of a QuickDraw file.

    Args:
        path: an `.ndjson` or `.ndjson.gz` file in the raw format (strokes of xs, ys and times in
            milliseconds) or the simplified one (xs and ys; time is then the distance travelled as
            a share of the total, as in `read_svg`).
        on_broken: called as `on_broken(where, error)` with a text such as
            `"cat.ndjson, line 17"` and a ValueError for a line that cannot be read, which is then
            skipped; see also `lines`. By default the error is raised.
        recognized: whether to skip drawings that the game did not recognize.
        max_strokes: number of strokes kept of a drawing, the first ones; None for all.

    Returns:
        Iterator of `Sketch`es, named by their `key_id` (or by file and line), labelled with their
        `word`, in the file's units, y downwards. Memory holds one line at a time.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if `max_strokes` is out of range; and, while iterating without `on_broken`,
            for a line that is not a drawing: no JSON, no stroke, lists of unequal lengths, numbers
            that are infinite, NaN or beyond 1e9, or times that decrease. The message begins with
            file and line.
    """
    check_max_strokes(max_strokes)
    return _read(existing_file(path), on_broken, recognized, max_strokes)


def check_max_strokes(max_strokes: int | None) -> None:
    """Raise a ValueError unless `max_strokes` is None or an integer of 1 or more."""
    if max_strokes is not None and not (isinstance(max_strokes, int) and max_strokes >= 1):
        raise ValueError(f"max_strokes={max_strokes!r} must be 1 or more, or None for all strokes")


def _read(path, on_broken, recognized, max_strokes) -> Iterator[Sketch]:
    for number, line in lines(path, on_broken):
        where = f"{path.name}, line {number}"
        try:
            drawing = parse_line(line, where, max_strokes)
        except ValueError as error:
            report(on_broken, where, error)
        else:
            if drawing.recognized or not recognized:
                yield drawing.sketch


def lines(path, on_broken: OnBroken | None = None) -> Iterator[tuple[int, bytes]]:
    """Iterate over the lines of a QuickDraw file, for `parse_line`, possibly in other processes.

    Args:
        path: an `.ndjson` or `.ndjson.gz` file.
        on_broken: called as `on_broken(where, error)` for a line of more than 8 MiB, which is
            skipped, and if a `.gz` file is damaged or unpacks to more than both 16 MiB and 100
            times its size, which ends the iteration. By default the error, a ValueError, is
            raised.

    Returns:
        Iterator of `(number, line)`: numbers count from 1; blank lines are skipped.

    Raises:
        FileNotFoundError: if the file does not exist.
    """
    return bounded_lines(existing_file(path), MAX_LINE, on_broken)


def parse_line(line: bytes, where: str, max_strokes: int | None = None) -> Drawing:
    """Return the drawing on a line of a QuickDraw file.

    Args:
        line: the line, JSON in UTF-8.
        where: name of the line in messages, for example `"cat.ndjson, line 17"`; also the sketch's
            name if the line holds none.
        max_strokes: number of strokes that are kept, the first ones; None for all.

    Raises:
        ValueError: if the line is not a drawing; the message begins with `where`.
    """
    try:
        record = json.loads(line.decode("utf-8"))
        return parse_record(record, where, max_strokes)
    except (ValueError, RecursionError) as error:
        raise named(where, error) from error


def parse_record(record, name: str, max_strokes: int | None = None) -> Drawing:
    """Return the drawing of a dictionary in QuickDraw's form, or raise a ValueError."""
    if type(record) is not dict or "drawing" not in record:
        raise ValueError("is not a drawing, which is a dictionary with the key 'drawing'")
    word = record.get("word", "")
    if type(word) is not str:
        raise ValueError(f"has a word of type {type(word).__name__}; it must be a text")
    key = record.get("key_id", "")
    if type(key) is str and 0 < len(key) <= 100:
        name = key
    elif type(key) is int and 0 <= key < 2**64:
        name = str(key)
    strokes = strokes_from_columns(record["drawing"], max_strokes)
    return Drawing(Sketch(tuple(strokes), name, word), record.get("recognized") is True)
