"""This project's own JSON files of sketches."""

import json

import numpy as np
import pytest
from sketch_files import failure, peak_of

from keras_sparse_dm.data import Sketch
from keras_sparse_dm.data.formats import sketch_json, strokes
from keras_sparse_dm.data.reading import (
    read_chirodiff,
    read_quickdraw,
    read_sketch_json,
    read_sketch_rnn,
    read_svg,
    write_sketch_json,
)

EXTREME = [
    Sketch(
        [[[0.1, -0.0, 5e-324], [1.7976931348623157e308, -1e-300, -3]], [[1 / 3, 2 / 3, 0]]],
        "a",
        "b",
    ),
    Sketch([], "nothing"),
    Sketch([[[1, 2, 3]]], 'quotes " \\ \n \u2028 漢字 \ud800', "é"),
]


def assert_same(sketches, expected):
    for a, b in zip(sketches, expected, strict=True):
        assert (a.name, a.label) == (b.name, b.label)
        assert [s.tobytes() for s in a] == [s.tobytes() for s in b]


def test_json_loses_nothing(tmp_path):
    path = tmp_path / "a.json"
    assert write_sketch_json(path, iter(EXTREME)) == 3
    assert_same(read_sketch_json(path), EXTREME)
    # It is JSON of the documented form, and is read in any layout.
    content = json.loads(path.read_text())
    assert content["format"] == "keras_sparse_dm sketches" and content["version"] == 1
    assert [s["name"] for s in content["sketches"]] == [s.name for s in EXTREME]
    for indent in (None, 2):
        path.write_text(json.dumps(content, indent=indent))
        assert_same(read_sketch_json(path), EXTREME)
    assert write_sketch_json(path, []) == 0
    assert list(read_sketch_json(path)) == []
    assert json.loads(path.read_text())["sketches"] == []


@pytest.mark.slow
def test_json_is_read_sketch_by_sketch(tmp_path):
    path = tmp_path / "a.json"
    points = np.random.default_rng(0).normal(size=(1000, 3))
    write_sketch_json(path, (Sketch([points], str(i)) for i in range(100)))
    assert path.stat().st_size > 5e6
    count, peak = peak_of(lambda: sum(1 for _ in read_sketch_json(path)))
    assert count == 100
    assert peak < 1.5e6
    # The carriage returns of some systems change nothing.
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert peak_of(lambda: sum(1 for _ in read_sketch_json(path)))[0] == 100


def test_json_that_fails_leaves_what_there_was(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("before")

    def fails():
        yield EXTREME[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_sketch_json(path, fails())
    monkeypatch.setattr(sketch_json, "MAX_POINTS", 2)
    with pytest.raises(ValueError, match="sketch 'a' has 3 points; 2 is the maximum"):
        write_sketch_json(path, EXTREME)
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "before"


def test_broken_sketches_in_json_are_told_by_line(tmp_path):
    path = tmp_path / "a.json"
    write_sketch_json(path, [Sketch([[[1, 2, 3]]], str(i)) for i in range(6)])
    rows = path.read_text().split("\n")
    rows[2] = rows[2].replace("1.0", "NaN")
    rows[3] = rows[3].replace("[[1.0], [2.0], [3.0]]", "[[1.0], [2.0]]")
    rows[4] = '{"name": 3, "strokes": []},'
    rows[5] = "[" * 100_000
    path.write_text("\n".join(rows + ["more"]))
    broken = []
    sketches = read_sketch_json(path, lambda *told: broken.append(told))
    assert [s.name for s in sketches] == ["0", "5"]
    assert [where for where, _ in broken] == [f"a.json, line {n}" for n in (3, 4, 5, 6, 10)]
    for (where, error), reason in zip(
        broken, ("NaN", "without times", "not a text", "recursion", "follows the end"), strict=True
    ):
        assert str(error).startswith(f"{where}: ") and reason in str(error)
    path.write_text("\n".join(rows[:2]))
    text = failure(lambda: list(read_sketch_json(path)))
    assert text == "a.json: is cut short: it lacks the line ']}'"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "is not a file of sketches"),
        ("{}", "is not a file of sketches"),
        ('{"format": "keras_sparse_dm sketches", "version": 2}', '"version": 1'),
        ('{"format": "keras_sparse_dm sketches", "version": 1}', 'a list of "sketches"'),
        ('{"format": "keras_sparse_dm sketches", "version": 1, "sketches": [3]}', "not a sketch"),
        ("[" * 100_000, "recursion"),
        ("9" * 2**24 + "9", "more than 16,777,216; only files that begin with the line"),
    ],
)
def test_files_that_are_no_sketch_json_are_refused(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_text(content)
    text = failure(lambda: list(read_sketch_json(path)))
    assert text.startswith("a.json") and reason in text


def test_every_reader_tells_of_a_missing_file_at_once(tmp_path):
    for read in (read_quickdraw, read_sketch_rnn, read_chirodiff, read_sketch_json, read_svg):
        with pytest.raises(FileNotFoundError, match="none"):
            read(tmp_path / "none")


def test_travel_times_of_what_overflows_are_refused_by_the_sketch():
    points = np.array([[-1e308, 0], [1e308, 0]])
    with pytest.raises(ValueError, match="NaN or infinite"):
        Sketch(tuple(strokes.with_travel_times(points, [2])))
