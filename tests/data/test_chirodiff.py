"""Files of the original ChiroDiff program."""

import pickle

import numpy as np
import pytest
from sketch_files import RAW, failure, objects, peak_of

from keras_sparse_dm.data import Sketch, prepare_sketch, to_absolute, to_delta
from keras_sparse_dm.data.reading import (
    read_chirodiff,
)


@pytest.fixture
def drawing():
    strokes = [[[0, 0, 0], [30, 40, 100]], [[30, 0, 150], [0, 50, 200], [10, 10, 260]]]
    return prepare_sketch(Sketch(strokes))


def times_of(sketch) -> np.ndarray:
    return np.concatenate(sketch.strokes)[:, 2:].astype(np.float32)


def as_packed(sketch, representation):
    """Return an array as ChiroDiff's data/qd.py packs it."""
    if representation == "absolute":
        return np.hstack([to_absolute(sketch), times_of(sketch)[1:]])
    return np.hstack([to_delta(sketch), times_of(sketch)[:-1]])


@pytest.mark.parametrize("representation", ["absolute", "delta"])
def test_packed_sketches_come_back_with_their_times(tmp_path, drawing, representation):
    other = prepare_sketch(Sketch([[[0, 0, 0], [5, 1, 1], [3, 3, 2]]]))
    rows = [as_packed(sketch, representation) for sketch in (drawing, other)]
    # Like the program: arrays of equal length become an array of three dimensions.
    for packed in (
        np.array(rows, dtype=np.ndarray) if len(rows[0]) != len(rows[1]) else objects(*rows),
        np.array(rows[:1] * 2, dtype=np.ndarray),
    ):
        np.savez(tmp_path / "cat.npz", attr0=packed)
        for chosen in (None, representation):
            sketches = list(read_chirodiff(tmp_path / "cat.npz", representation=chosen))
            assert [s.name for s in sketches] == ["cat-0", "cat-1"]
            for a, b in zip(sketches[0], drawing, strict=True):
                np.testing.assert_allclose(a, b, atol=2e-6)
            assert len(sketches[1]) == (1 if packed.ndim == 1 else 2)


def test_classes_are_labels_and_conditions_are_left_out(tmp_path, drawing):
    row = as_packed(drawing, "delta")
    path = tmp_path / "a.npz"
    # The program packs tensors without dimensions.
    classes = np.array([np.array(3), np.array(0)], dtype=np.ndarray)
    np.savez(path, attr0=classes, attr1=objects(row, row))
    assert [s.label for s in read_chirodiff(path)] == ["3", "0"]
    np.savez(path, attr0=classes[:1], attr1=objects(row, row))
    assert [s.label for s in read_chirodiff(path)] == ["", ""]
    cloud = np.zeros((7, 2), np.float32)
    np.savez(path, attr0=objects(cloud, cloud[:5]), attr1=objects(row, row))
    assert [(s.label, len(s)) for s in read_chirodiff(path)] == [("", 2), ("", 2)]


def test_a_packed_file_that_does_not_tell_what_it_is(tmp_path):
    row = np.array([[1, 0, 0, 0.2], [2, 0, 1, 0.8]], np.float32)
    path = tmp_path / "a.npz"
    np.savez(path, attr0=objects(row))
    text = failure(lambda: list(read_chirodiff(path)))
    assert text.startswith("a.npz: may hold positions or differences") and "representation=" in text
    (sketch,) = read_chirodiff(path, representation="absolute")
    np.testing.assert_allclose(sketch.strokes[0], [[0, 0, 0], [1, 0, 0.2], [2, 0, 0.8]], atol=1e-7)
    (sketch,) = read_chirodiff(path, representation="delta")
    np.testing.assert_allclose(sketch.strokes[0], [[0, 0, 0.2], [1, 0, 0.8], [3, 0, 1]], atol=1e-7)
    with pytest.raises(ValueError, match="representation='points' must be"):
        read_chirodiff(path, representation="points")
    np.savez(path, train=objects(row))
    assert "a.npz: holds no 'attr0'; it holds 'train'" in failure(
        lambda: list(read_chirodiff(path))
    )


def test_broken_packed_sketches_are_told_and_skipped(tmp_path, drawing):
    good = as_packed(drawing, "absolute")
    back, pen = good.copy(), good.copy()
    back[3, 3] = 0
    pen[1, 2] = 7
    np.savez(
        tmp_path / "a.npz", attr0=objects(good, good[:, :3], back, None, pen, good * np.nan, good)
    )
    broken = []
    sketches = read_chirodiff(tmp_path / "a.npz", lambda *told: broken.append(told))
    assert [s.name for s in sketches] == ["a-0", "a-6"]
    assert [where for where, _ in broken] == [f"a.npz, attr0[{i}]" for i in range(1, 6)]
    texts = [str(error) for _, error in broken]
    for text, reason in zip(
        texts, ("(points, 4)", "go back", "not an array", "pen", "NaN"), strict=True
    ):
        assert reason in text


def test_unpacked_folders_of_one_and_of_several_categories(tmp_path):
    nameless = {"drawing": RAW["drawing"]}
    folder = tmp_path / "unpacked"
    for category in ("dog", "cat"):
        (folder / category).mkdir(parents=True)
        for i, record in enumerate((nameless, RAW)):
            (folder / category / f"sketch_{i}").write_bytes(pickle.dumps(record))
    (folder / "cat" / ".hidden").write_text("")
    named = RAW["key_id"]
    found = [(s.name, s.label) for s in read_chirodiff(folder)]
    assert found == [("sketch_0", "cat"), (named, "cat"), ("sketch_0", "dog"), (named, "cat")]
    found = [(s.name, s.label) for s in read_chirodiff(folder / "dog")]
    assert found == [("sketch_0", ""), (named, "cat")]
    (sketch,) = read_chirodiff(folder / "dog" / "sketch_1", max_strokes=1)
    assert [s.tolist() for s in sketch] == [[[10, 20, 0], [13.5, 24, 50]]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty' holds no file"):
        read_chirodiff(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="none' does not exist"):
        read_chirodiff(tmp_path / "none")


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_unpacked_drawings_of_arrays_are_read_too(tmp_path, protocol):
    strokes = [
        tuple(np.array(column, np.float32) for column in stroke) for stroke in RAW["drawing"]
    ]
    (tmp_path / "sketch_0").write_bytes(pickle.dumps({"drawing": strokes}, protocol))
    (sketch,) = read_chirodiff(tmp_path / "sketch_0")
    assert [s.tolist() for s in sketch] == [[[10, 20, 0], [13.5, 24, 50]], [[7, 8, 90]]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a readable pickle"),
        (b"text", "not a readable pickle"),
        (pickle.dumps([]), "not a drawing"),
        (pickle.dumps({"drawing": {}}), "holds no stroke"),
        (pickle.dumps({"drawing": [[[1], [2], [1j]]]}), "complex"),
        (pickle.dumps({"drawing": [[[1], [2], ["x"]]]}), "stroke 0 holds str"),
        (pickle.dumps({"drawing": np.array(3.0)}), "holds no stroke"),
        (pickle.dumps({"drawing": [[[1, 2], [2, 3], [4, 3]]]}), "goes back"),
        (b"\x80\x04]" + b"N" * 2**24, "more than 16,777,216; no drawing has"),
    ],
)
def test_broken_unpacked_drawings_are_told_by_their_file(tmp_path, content, reason):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "sketch_3").write_bytes(content)
    text = failure(lambda: list(read_chirodiff(tmp_path)))
    assert text.startswith("cat/sketch_3: ") and reason in text


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("column", [[0] * 1000, np.zeros(1000)])
def test_a_stroke_that_is_repeated_for_ever_takes_a_bounded_memory(tmp_path, column):
    (tmp_path / "sketch_0").write_bytes(pickle.dumps({"drawing": [[column] * 3] * 100_000}))
    text, peak = peak_of(lambda: failure(lambda: list(read_chirodiff(tmp_path))))
    assert text == "sketch_0: has 100,000,000 points; 1,048,576 is the maximum"
    assert peak < 2**25
