"""Small sketch files and measures of reading them, shared by the tests of formats."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from keras_sparse_dm.data.sketch import Sketch

RAW = {
    "word": "cat",
    "countrycode": "VE",
    "recognized": True,
    "key_id": "5201136883597312",
    "drawing": [[[10, 13.5], [20, 24], [0, 50]], [[7], [8], [90]]],
}


def dump(record, path, mode="wb"):
    with open(path, mode) as file:
        file.write((json.dumps(record) + "\n").encode())
    return path


def objects(*elements) -> np.ndarray:
    array = np.empty(len(elements), object)
    for i, element in enumerate(elements):
        array[i] = element
    return array


def peak_of(work):
    """Return the result of `work` and its peak memory in bytes."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def failure(work) -> str:
    with pytest.raises(ValueError) as caught:
        work()
    return str(caught.value)


def assert_same_sketches(a, b):
    assert a.points.tobytes() == b.points.tobytes()
    np.testing.assert_array_equal(a.lengths, b.lengths)
    assert a.names == b.names
    assert a.summary == b.summary
    assert a.representation == b.representation


def write_paths(path: Path, *path_data: str, inside: str = "") -> Path:
    """Write an SVG file of these paths."""
    paths = "".join(f'<path d="{d}"/>' for d in path_data)
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg">{inside}<g>{paths}</g></svg>')
    return path


def sketch(*strokes):
    """Return a `Sketch` of arrays (points, 2), whose points are one second apart."""
    return Sketch([np.column_stack([s, np.arange(len(s))]) for s in strokes])
