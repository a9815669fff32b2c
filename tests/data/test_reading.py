"""`read_sketches`: detection of formats, folders, patterns, and real files."""

import gzip
import itertools
import json
import pickle
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support import shared_folder

from keras_sparse_dm.data import kanjivg_folder, rasterize
from keras_sparse_dm.data.rasterization import KANJIVG_BOX
from keras_sparse_dm.data.reading import (
    find_files,
    list_files,
    read_sketch_rnn,
    read_sketches,
    read_svg,
    write_sketch_json,
    write_svg,
)
from keras_sparse_dm.data.sketch import Sketch

LINE = {"word": "cat", "key_id": "7", "recognized": True, "drawing": [[[0, 3], [0, 4], [0, 9]]]}
ROWS = np.array([[1, 2, 0], [3, 4, 1]], np.float32)


@pytest.fixture
def real_data():
    return shared_folder("data")


@pytest.fixture
def folder(tmp_path):
    """Write one file of one sketch in each format."""
    folder = tmp_path / "sketches"
    folder.mkdir()
    line = json.dumps(LINE).encode()
    (folder / "a.ndjson").write_bytes(line)
    (folder / "b.ndjson.gz").write_bytes(gzip.compress(line))
    write_sketch_json(folder / "c.json", [Sketch([[[0, 0, 0], [1, 1, 1]]], "own")])
    (folder / "d.pkl").write_bytes(pickle.dumps(LINE | {"key_id": "8"}))
    (folder / "sketch_12").write_bytes(pickle.dumps(LINE | {"key_id": "9"}))
    rows = np.empty(1, object)
    rows[0] = ROWS
    np.savez(folder / "e.npz", train=rows)
    packed = np.empty(1, object)
    packed[0] = np.array([[1, 1, 0, 0.5], [2, 2, 1, 1]], np.float32)
    np.savez(folder / "f.npz", attr0=packed)
    write_svg(folder / "g.SVG", Sketch([[[0, 0, 0], [1, 1, 1]]]))
    (folder / "notes.txt").write_text("not a sketch")
    (folder / "inside").mkdir()
    return folder


NAMES = ["7", "7", "own", "8", "e-train-0", "f-0", "g", "9"]


def test_a_folder_of_all_formats_is_read_in_order_of_names(folder):
    assert [s.name for s in read_sketches(folder)] == NAMES
    assert [s.name for s in read_sketches(str(folder))] == NAMES
    for file, name in zip(find_files(folder), NAMES, strict=True):
        assert [s.name for s in read_sketches(file)] == [name]


def test_patterns_fit_files_of_known_formats(folder, monkeypatch):
    assert [s.name for s in read_sketches(f"{folder}/*.npz")] == ["e-train-0", "f-0"]
    assert [s.name for s in read_sketches(folder / "*")] == NAMES
    monkeypatch.chdir(folder.parent)
    assert [s.name for s in read_sketches("**/[ab].*")] == ["7", "7"]
    # A file of exactly that name wins over the pattern.
    write_svg(folder / "[g].svg", Sketch([[[0, 0, 0], [1, 1, 1]]]))
    assert [s.name for s in read_sketches(folder / "[g].svg")] == ["[g]"]
    with pytest.raises(
        FileNotFoundError, match=r"path='\*\.txt' matches 0 files .* no sketch file"
    ):
        read_sketches("*.txt")


def test_the_home_folder_may_be_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    for path in (f"~/{folder.name}", f"~/{folder.name}/*", Path("~") / folder.name):
        assert [s.name for s in read_sketches(path)] == NAMES


def test_formats_are_restricted_by_their_suffixes(folder):
    assert [f.name for f in list_files(folder, suffixes=(".svg", ".npz"))] == [
        "e.npz",
        "f.npz",
        "g.SVG",
    ]
    assert [f.name for f in list_files(folder, "folder", (".ndjson",))] == ["a.ndjson"]
    with pytest.raises(ValueError, match=r"^images=.* holds no sketch file.*\(\.tif\)"):
        list_files(folder, "images", (".tif",))


def test_arguments_are_checked_before_the_first_sketch(folder):
    with pytest.raises(FileNotFoundError, match="path='.*nowhere' does not exist"):
        read_sketches(folder / "nowhere")
    with pytest.raises(ValueError, match="notes.txt' has an unknown format; known are .svg, .ndj"):
        read_sketches(folder / "notes.txt")
    with pytest.raises(ValueError, match="inside' holds no sketch file"):
        read_sketches(folder / "inside")
    with pytest.raises(ValueError, match="splits=.*must be some of 'train', 'valid', 'test'"):
        read_sketches(folder, splits=("training",))
    with pytest.raises(ValueError, match="max_strokes=0 must be 1 or more"):
        read_sketches(folder, max_strokes=0)


def test_broken_files_are_told_by_name_and_skipped(folder):
    (folder / "a1.svg").write_text("<svg>")
    (folder / "a2.npz").write_bytes(b"no zip")
    np.savez(folder / "a3.npz", other=np.zeros(3))
    (folder / "a4.ndjson").write_bytes(b"\n" + json.dumps(LINE).encode() + b"\n{]\n")
    broken = {}
    sketches = read_sketches(folder, lambda where, error: broken.update({where: str(error)}))
    assert [s.name for s in sketches] == NAMES[:1] + ["7"] + NAMES[1:]
    assert list(broken) == ["a1.svg", "a2.npz", "a3.npz", "a4.ndjson, line 3"]
    assert all(text.startswith(f"{where}: ") for where, text in broken.items())
    assert "holds 'other'" in broken["a3.npz"]
    with pytest.raises(ValueError, match=r"^a1\.svg: "):
        list(read_sketches(folder))


def test_a_file_that_cannot_be_opened_is_told_too(folder, monkeypatch):
    import keras_sparse_dm.data.formats.ndjson as ndjson

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))
        yield

    monkeypatch.setattr(ndjson, "bounded_lines", refuse)
    broken = []
    sketches = read_sketches(folder, lambda where, error: broken.append((where, type(error))))
    assert [s.name for s in sketches] == NAMES[2:]
    assert broken == [("a.ndjson", PermissionError), ("b.ndjson.gz", PermissionError)]
    with pytest.raises(PermissionError):
        list(read_sketches(folder))


def test_options_reach_the_formats(folder):
    strokes = [[[0, 1], [0, 1], [0, 1]], [[2, 3], [2, 3], [2, 3]]]
    no = LINE | {"recognized": False, "drawing": strokes}
    (folder / "a.ndjson").write_text(json.dumps(no))
    assert len(next(read_sketches(folder / "a.ndjson"))) == 2
    assert len(next(read_sketches(folder / "a.ndjson", max_strokes=1))) == 1
    assert list(read_sketches(folder / "a.ndjson", recognized=True)) == []
    (folder / "d.pkl").write_bytes(pickle.dumps(no))
    assert len(next(read_sketches(folder / "d.pkl", max_strokes=1))) == 1
    with pytest.raises(ValueError, match="e.npz: holds no 'test'; it holds 'train'"):
        list(read_sketches(folder / "e.npz", splits=("train", "test")))


# Real files


def test_the_real_quickdraw_files_are_read_stroke_by_stroke(real_data):
    files = sorted((real_data / "quickdraw").glob("*.ndjson"))
    assert len(files) == 7
    for file in files:
        records = [json.loads(line) for line in file.read_text().splitlines()]
        sketches = list(read_sketches(file))
        assert len(sketches) == len(records) >= 14
        for sketch, record in zip(sketches, records, strict=True):
            assert (sketch.name, sketch.label) == (record["key_id"], file.stem)
            # The pen lifts once for each stroke of the source.
            assert len(sketch) == len(record["drawing"])
            for stroke, columns in zip(sketch, record["drawing"], strict=True):
                np.testing.assert_array_equal(stroke, np.array(columns).T)
        recognized = sum(record["recognized"] for record in records)
        assert len(list(read_sketches(file, recognized=True))) == recognized


@pytest.mark.slow
def test_the_real_kanji_file_is_read_wholly(real_data):
    counts, lifts = Counter(), Counter()
    path = real_data / "kanji.rdp100.npz"
    for sketch in read_sketches(path):
        split = sketch.name.split("-")[1]
        counts[split] += 1
        lifts[split] += len(sketch)
    assert counts == {"train": 10358, "valid": 600, "test": 500}
    # NumPy's own reader is the reference; the file is known to be harmless.
    with np.load(path, allow_pickle=True, encoding="latin1") as arrays:
        for split in ("valid", "test"):
            assert lifts[split] == sum(int(rows[:, 2].sum()) for rows in arrays[split])
    (first,) = itertools.islice(read_sketch_rnn(path), 1)
    np.testing.assert_allclose(
        first.strokes[0][:, :2], [[0.945801, 0.172607], [27.481445, -4.100128]], atol=1e-6
    )


def stroke3(sketch) -> np.ndarray:
    points = np.concatenate([s[:, :2] for s in sketch])
    lifted = np.concatenate([[0] * (len(s) - 1) + [1] for s in sketch])
    return np.column_stack([np.diff(points, axis=0, prepend=[[0, 0]]), lifted])


@pytest.mark.parametrize("name", ["06c34", "04e00", "09f8d", "05b57"])
def test_a_kanji_as_stroke3_draws_the_same_picture(tmp_path, name):
    source = read_svg(kanjivg_folder() / f"{name}.svg")
    rows = np.empty(2, object)
    rows[:] = [stroke3(source), stroke3(source)[:1]]
    np.savez(tmp_path / "kanji.npz", test=rows)
    back = next(read_sketches(tmp_path / "kanji.npz"))
    assert [len(s) for s in back] == [len(s) for s in source]
    pictures = [rasterize(s, 109, box=KANJIVG_BOX).astype(int) for s in (source, back)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 8
    # In both formats, time is the distance travelled.
    for a, b in zip(source, back, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


# Found in all of KanjiVG by the nearest starts of strokes, after scaling and shifting.
PAIRS = {
    0: "06a8e",
    2: "070ae",
    4: "060b2",
    5: "080db",
    11: "08a13",
    22: "08482",
    26: "052df",
    33: "09081",
    36: "0975e",
}


@pytest.mark.slow
def test_real_stroke3_sketches_lie_on_the_strokes_of_their_source(real_data):
    from shapely.geometry import LineString, Point

    path = real_data / "kanji.rdp100.npz"
    checked = 0
    for i, sketch in enumerate(itertools.islice(read_sketch_rnn(path, splits=("train",)), 40)):
        if i not in PAIRS:
            continue
        source = read_svg(kanjivg_folder() / f"{PAIRS[i]}.svg")
        assert len(sketch) == len(source)
        starts = [np.array([s[0, :2] for s in drawing]) for drawing in (sketch, source)]
        # One scale for x and y, and a shift, by least squares.
        flat = [points - points.mean(axis=0) for points in starts]
        scale = (flat[0] * flat[1]).sum() / (flat[0] ** 2).sum()
        offset = starts[1].mean(axis=0) - scale * starts[0].mean(axis=0)
        assert scale == pytest.approx(1, abs=0.01)
        for a, b in zip(sketch, source, strict=True):
            line = LineString(b[:, :2])
            # In a square of 109 x 109. The file was rounded: the greatest distance is 0.3.
            assert max(line.distance(Point(p)) for p in a[:, :2] * scale + offset) < 0.5
        checked += 1
    assert checked == len(PAIRS) > 0


def test_splits_are_read_in_the_order_asked_for(tmp_path):
    rows = np.empty(1, object)
    rows[0] = ROWS
    np.savez_compressed(tmp_path / "a.npz", train=rows, valid=rows, test=rows)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert len(archive.namelist()) == 3
    names = [s.name for s in read_sketches(tmp_path / "a.npz", splits=("test", "train"))]
    assert names == ["a-test-0", "a-train-0"]
