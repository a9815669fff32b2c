"""KanjiVG, prepared and split."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sketch_files import assert_same_sketches, write_paths

import keras_sparse_dm.data.sketches.kanjivg as kanjivg
import keras_sparse_dm.data.sketches.preparation as preparation
from keras_sparse_dm.data import (
    from_points,
    load_kanjivg,
    prepare_sketch,
    read_svg,
    select_characters,
    to_absolute,
)
from keras_sparse_dm.data.worker_processes import map_in_processes

pytestmark = pytest.mark.usefixtures("own_cache")

SOURCE = kanjivg.kanjivg_folder()


# Which files


def test_the_package_holds_one_file_for_each_of_6422_kanji():
    files = sorted(SOURCE.glob("*.svg"))
    kanji = select_characters(files)
    # Later versions of KanjiVG may add a few.
    assert 6400 <= len(kanji) <= 6600
    names = {file.stem for file in kanji}
    assert {"04e00", "06c34", "09f8d"} <= names
    assert len({name[:5] for name in names}) == len(names)
    # A kana, a letter, a comma, a loose radical, a variant.
    assert not {"03042", "00041", "03001", "02e89", "04e14-Kaisho"} & names
    variants = select_characters(files, "kanji+variants")
    assert "04e14-Kaisho" in {file.stem for file in variants}
    assert {file.stem[:5] for file in variants} == names
    assert select_characters(files, "all") == files
    assert select_characters([Path("mine.svg")]) == [Path("mine.svg")]
    with pytest.raises(ValueError, match="characters='kana' is unknown"):
        select_characters(files, "kana")


# Loading


def test_loaded_sketches_are_the_prepared_files(load_kanji, kanji_files):
    train, validation = load_kanji()
    assert (len(train), len(validation)) == (51, 9)
    assert not set(train.names) & set(validation.names)
    assert set(train.names) | set(validation.names) == {file.stem for file in kanji_files}
    for arrays in (train, validation):
        for name, points in zip(arrays.names, arrays, strict=True):
            expected = to_absolute(prepare_sketch(read_svg(SOURCE / f"{name}.svg")))
            np.testing.assert_array_equal(points, expected)
            # The pen lifts once for each stroke of the file.
            text = (SOURCE / f"{name}.svg").read_text(encoding="utf-8")
            assert points[:, 2].sum() == text.count("<path ")
    summary = train.summary
    assert (summary.read, summary.kept, summary.broken, summary.too_long) == (60, 60, (), ())
    assert validation.summary is summary


def test_delta_holds_the_same_sketches(load_kanji):
    absolute, delta = load_kanji()[0], load_kanji(representation="delta")[0]
    assert delta.representation == "delta"
    assert delta.names == absolute.names
    for a, d in zip(absolute, delta, strict=True):
        np.testing.assert_allclose(np.cumsum(d[:, :2], axis=0), a[:, :2], atol=1e-5)
        sketch = from_points(d, "delta")
        assert len(sketch) == a[:, 2].sum()


@pytest.mark.slow
def test_spacing_and_scale_reach_the_preparation(load_kanji):
    fine, coarse = load_kanji()[0], load_kanji(spacing=0.2, scale=3.0)[0]
    assert np.linalg.norm(coarse[0][:, :2], axis=1).max() == pytest.approx(3, rel=1e-6)
    assert np.linalg.norm(fine[0][:, :2], axis=1).max() == pytest.approx(10, rel=1e-6)
    assert len(coarse.points) < len(fine.points) / 2


def test_split_depends_on_its_seed_alone(load_kanji, tmp_path):
    first = load_kanji()
    assert_same_sketches(first[0], load_kanji(cache_dir=tmp_path / "other")[0])
    other = load_kanji(split_seed=1)
    assert set(other[0].names) != set(first[0].names)
    half = load_kanji(split=0.5)
    assert [len(a) for a in half] == [30, 30]


def test_long_sketches_are_dropped_and_counted(load_kanji):
    everything = load_kanji()
    points = {
        name: length + 1
        for arrays in everything
        for name, length in zip(arrays.names, arrays.lengths, strict=True)
    }
    limit = sorted(points.values())[-10]
    train, validation = load_kanji(max_points=limit)
    dropped = {name for name, count in points.items() if count >= limit}
    assert len(dropped) >= 10
    assert set(train.summary.too_long) == dropped
    assert set(train.names) | set(validation.names) == set(points) - dropped
    assert train.summary.kept == len(train) + len(validation) == 60 - len(dropped)
    assert f"{len(dropped)} too long ({limit} points or more)" in str(train.summary)


def test_broken_files_are_skipped_counted_and_named(load_kanji, kanji_folder):
    (kanji_folder / "broken.svg").write_text("<svg><path d='M0 0 L1'/></svg>")
    write_paths(kanji_folder / "dot.svg", "M 1 1 L 1 1")
    for _ in range(2):  # prepared, then from the cache
        train, validation = load_kanji()
        assert len(train) + len(validation) == 60
        assert train.summary.read == 62
        assert [name for name, _ in train.summary.broken] == ["broken.svg", "dot.svg"]
        assert "2 broken (broken.svg: " in str(train.summary)
        assert "all points lie at one place" in str(train.summary)


def test_many_broken_files_stop_with_the_counts(load_kanji, kanji_folder, tmp_path):
    for i in range(4):
        (kanji_folder / f"broken{i}.svg").write_text("broken")
    with pytest.raises(
        ValueError, match=r"folder=.*4 of 64 files are broken, more than 5%.*broken0"
    ):
        load_kanji()
    assert not list(tmp_path.glob("cache/*"))


@pytest.mark.slow
def test_processes_give_what_one_process_gives(load_kanji, monkeypatch, tmp_path):
    alone = load_kanji(workers=1)
    monkeypatch.setattr(preparation, "_SERIAL", 0)
    monkeypatch.setattr(preparation, "_CHUNK", 7)
    pooled = load_kanji(workers=2, cache_dir=tmp_path / "other")
    for a, b in zip(alone, pooled, strict=True):
        assert_same_sketches(a, b)


@pytest.mark.slow
def test_a_script_without_main_guard_prepares_in_processes_once(kanji_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "print('started')\n"
        "import keras_sparse_dm.data.sketches.kanjivg as kanjivg\n"
        "import keras_sparse_dm.data.sketches.preparation as preparation\n"
        "preparation._SERIAL = 0\n"
        f"folders = {str(kanji_folder)!r}, {str(tmp_path / 'cache')!r}\n"
        "train, _ = kanjivg.load_kanjivg(*folders, workers=2)\n"
        "print(len(train), 'tensorflow' in sys.modules)\n"
    )
    out = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert out.stdout == "started\n51 False\n", out.stderr
    assert "Preparing KanjiVG" in out.stderr  # the progress bar
    assert "Traceback" not in out.stderr


def test_workers_do_not_import_tensorflow():
    # The work is a built-in function: a worker may be unable to import this test module.
    prepare_one = (
        "(lambda sets, kanji, path: sets._prepare_chunk([sets.Item('04e00', path)], kanji.read_svg,"
        " {'representation': 'absolute', 'spacing': 0.05, 'scale': 10.0})[0][4])("
        "__import__('keras_sparse_dm.data.sketches.preparation', fromlist=['_']),"
        "__import__('keras_sparse_dm.data.sketches.kanjivg', fromlist=['_']),"
        f"__import__('pathlib').Path({str(SOURCE / '04e00.svg')!r}))"
    )
    imported = "[m for m in ('numpy', 'tensorflow', 'keras') if m in __import__('sys').modules]"
    results = map_in_processes(eval, [prepare_one, imported], 1)
    assert list(results) == [None, ["numpy"]]


def test_closing_the_preparation_early_ends_the_workers():
    import multiprocessing

    results = map_in_processes(time.sleep, [0.01] + [60] * 3, 2)
    next(results)
    assert multiprocessing.active_children()
    start = time.monotonic()
    results.close()  # the effect of Ctrl-C
    assert not multiprocessing.active_children()
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"representation": "polar"}, "representation='polar'"),
        ({"spacing": 0}, "spacing=0"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"max_points": 2}, "max_points=2"),
        ({"split": 1.0}, "split=1.0"),
        ({"split": 0}, "split=0"),
        ({"split_seed": -1}, "split_seed=-1"),
        ({"workers": 0}, "workers=0"),
        ({"characters": "kana"}, "characters='kana'"),
        ({"max_points": 3}, "0 kept"),
    ],
)
def test_bad_settings_are_named(load_kanji, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_kanji(**changes)
    assert "\n" not in str(caught.value)


def test_bad_folders_are_named(load_kanji, tmp_path):
    with pytest.raises(FileNotFoundError, match="folder='.*nowhere' does not exist"):
        load_kanji(folder=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="folder='.*empty' holds no sketch file"):
        load_kanji(folder=tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder='.*file' cannot be listed"):
        load_kanji(folder=tmp_path / "file")
    shutil.copy(SOURCE / "03042.svg", tmp_path / "empty")
    with pytest.raises(ValueError, match="folder='.*empty' holds no file for characters='kanji'"):
        load_kanji(folder=tmp_path / "empty")


def test_a_missing_package_is_answered_with_the_command(monkeypatch):
    def missing(name):
        raise kanjivg.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(kanjivg.importlib.metadata, "distribution", missing)
    with pytest.raises(FileNotFoundError, match=r"kanjivg is not .*pip install .*\[train\]"):
        load_kanjivg()
