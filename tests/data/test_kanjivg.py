import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_sparse_dm.data.sketches.kanjivg as kanjivg
import keras_sparse_dm.data.sketches.preparation as preparation
from keras_sparse_dm.data import (
    from_points,
    load_kanjivg,
    prepare_sketch,
    read_sketches,
    read_svg,
    select_characters,
    to_absolute,
)
from keras_sparse_dm.data.worker_processes import map_in_processes

SOURCE = kanjivg.kanjivg_folder()


def write_svg(path: Path, *path_data: str, inside: str = "") -> Path:
    paths = "".join(f'<path d="{d}"/>' for d in path_data)
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg">{inside}<g>{paths}</g></svg>')
    return path


def length(stroke) -> float:
    return float(np.linalg.norm(np.diff(stroke[:, :2], axis=0), axis=1).sum())


@pytest.fixture(scope="module")
def source_files():
    """Return 60 kanji spread over the set."""
    files = select_characters(sorted(SOURCE.glob("*.svg")))
    return files[:: len(files) // 60][:60]


@pytest.fixture
def folder(tmp_path, source_files):
    folder = tmp_path / "svg"
    folder.mkdir()
    for file in source_files:
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def load(folder, tmp_path):
    def load(**changes):
        return load_kanjivg(
            **{"folder": folder, "cache_dir": tmp_path / "cache", "progress": False} | changes
        )

    return load


@pytest.fixture(autouse=True)
def no_user_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_SPARSE_DM_CACHE", str(tmp_path / "from-environment"))


def assert_same(a, b):
    assert a.points.tobytes() == b.points.tobytes()
    np.testing.assert_array_equal(a.lengths, b.lengths)
    assert a.names == b.names
    assert a.summary == b.summary
    assert a.representation == b.representation


# Reading SVG


def test_one_is_a_single_line_from_left_to_right():
    sketch = read_svg(SOURCE / "04e00.svg")
    assert (sketch.name, len(sketch)) == ("04e00", 1)
    stroke = sketch.strokes[0]
    np.testing.assert_allclose(stroke[0, :2], [11, 54.25])  # "M11,54.25"
    assert (np.diff(stroke[:, 0]) > 0).all()
    assert np.ptp(stroke[:, 0]) > 10 * np.ptp(stroke[:, 1])
    np.testing.assert_allclose(stroke[[0, -1], 2], [0, 1])


def test_water_has_four_strokes_that_start_where_the_file_says():
    sketch = read_svg(SOURCE / "06c34.svg")
    starts = [stroke[0, :2].tolist() for stroke in sketch]
    assert starts == [[52.77, 15.08], [17.5, 45.75], [81.22, 27.5], [57, 46]]
    # The last stroke's end: 57 + 8.82..., summed by hand over "c19.23 ... 92.5,77".
    np.testing.assert_allclose(sketch.strokes[3][-1, :2], [92.5, 77.0])


def test_every_stroke_path_is_a_stroke_of_the_right_length(source_files):
    from svg.path import parse_path

    for file in source_files:
        data = re.findall(r'<path [^>]*\bd="([^"]+)"', file.read_text(encoding="utf-8"))
        sketch = read_svg(file)
        assert len(sketch) == len(data)
        for stroke, d in zip(sketch, data, strict=True):
            # The library's own arc length uses another method (adaptive bisection).
            assert length(stroke) == pytest.approx(parse_path(d).length(error=1e-4), rel=1e-3)


def test_kinds_of_curves_have_their_known_lengths(tmp_path):
    file = write_svg(
        tmp_path / "curves.svg",
        "M 0 0 L 3 4",
        "M 0 0 h 3 v 4 z",
        "M 50 0 A 50 50 0 0 1 -50 0",
        "M 0 0 Q 1 1 2 2 T 4 4",
        "M 0 0 C 1 1 2 2 3 3 S 5 5 6 6",
    )
    lengths = [length(s) for s in read_svg(file)]
    expected = [5, 12, 50 * np.pi, 4 * np.sqrt(2), 6 * np.sqrt(2)]
    np.testing.assert_allclose(lengths, expected, rtol=1e-4)
    # y^2 = x as a quadratic curve from (1, -1) by way of (-1, 0) to (1, 1).
    (parabola,) = read_svg(write_svg(tmp_path / "parabola.svg", "M1,-1 Q-1,0 1,1"))
    np.testing.assert_allclose(parabola[:, 1] ** 2, parabola[:, 0], atol=1e-12)


def test_sampling_is_finer_than_the_later_resampling(source_files):
    for file in source_files:
        raw = read_svg(file)
        reach = max(np.linalg.norm(s[:, :2] - raw.strokes[0][0, :2], axis=1).max() for s in raw)
        gaps = [np.linalg.norm(np.diff(s[:, :2], axis=0), axis=1).max() for s in raw]
        assert max(gaps) / reach < 0.05 / 2


def test_time_is_the_distance_travelled_with_the_pen_up_too(tmp_path):
    file = write_svg(tmp_path / "two.svg", "M0 0 L 3 0", "M 3 4 L 3 5")  # 3 down, 4 up, 1 down
    first, second = read_svg(file)
    np.testing.assert_allclose(first[[0, -1], 2], [0, 3 / 8])
    np.testing.assert_allclose(second[[0, -1], 2], [7 / 8, 1])
    np.testing.assert_allclose(first[:, 0], first[:, 2] * 8)


def test_subpaths_are_strokes_and_undrawn_parts_are_not(tmp_path):
    file = write_svg(
        tmp_path / "parts.svg",
        "M0 0 L1 0 M5 5 l1 1 M 9 9",
        "",
        inside='<defs><path d="M0 0 L9 9"/></defs>'
        '<g id="kvg:StrokeNumbers_x"><path d="M0 0 L9 9"/></g>',
    )
    ends = [s[[0, -1], :2].tolist() for s in read_svg(file)]
    assert ends == [[[0, 0], [1, 0]], [[5, 5], [6, 6]]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no element"),
        ("not XML", "syntax error"),
        ("<svg><path d='M0 0 L1 1'>", "no element|mismatched"),
        ("<html></html>", "is no SVG"),
        ("<svg></svg>", "no stroke"),
        ("<svg><path d=''/></svg>", "no stroke"),
        ("<svg><path d='M 1 1'/></svg>", "no stroke"),
        ("<svg><path d='M 0 0 L 1 one'/></svg>", "."),
        ("<svg><path d='M 0 0 C 1 2'/></svg>", "."),
        ("<svg><path d='M 0 0 L 1e999 3'/></svg>", "infinite or too large"),
        ("<svg><path d='M -1e308 0 L 1e308 3'/></svg>", "infinite or too large"),
        ("<svg><g transform='turn(2)'><path d='M0 0 L1 1'/></g></svg>", "transform"),
        ("<?xml version='1.0' encoding='klingon'?><svg/>", "."),
    ],
)
def test_a_bad_svg_is_named_with_the_reason(tmp_path, content, reason):
    file = tmp_path / "bad.svg"
    file.write_text(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(ValueError, match=rf"bad\.svg: .*({reason})") as caught:
            read_svg(file)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "bad.svg"
    file.write_bytes(b"<svg><path d='M0 0 L1 1' id='\xff\xfe'/></svg>")
    with pytest.raises(ValueError, match="bad.svg: not well-formed"):
        read_svg(file)


@given(st.text("MmLlHhVvCcSsQqTtAaZz 0123456789.,-+eE", max_size=40))
@settings(max_examples=200, deadline=None)
def test_path_data_of_any_kind_gives_a_sketch_or_a_value_error(tmp_path_factory, d):
    file = write_svg(tmp_path_factory.getbasetemp() / "fuzzed.svg", d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            sketch = read_svg(file)
        except ValueError as error:
            assert "fuzzed.svg" in str(error)
        else:
            assert sketch.num_points >= 2


def test_read_sketches_of_a_file_a_folder_and_nothing(tmp_path):
    write_svg(tmp_path / "b.svg", "M0 0 L1 1")
    write_svg(tmp_path / "a.svg", "M0 0 L1 1")
    (tmp_path / "notes.txt").write_text("not a sketch")
    assert [s.name for s in read_sketches(tmp_path)] == ["a", "b"]
    assert [s.name for s in read_sketches(str(tmp_path / "b.svg"))] == ["b"]
    (tmp_path / "aa.svg").write_text("broken")
    with pytest.raises(ValueError, match="aa.svg"):
        list(read_sketches(tmp_path))
    broken = []
    sketches = read_sketches(tmp_path, on_broken=lambda where, error: broken.append(where))
    assert [s.name for s in sketches] == ["a", "b"]
    assert broken == ["aa.svg"]
    with pytest.raises(ValueError, match="notes.txt.*no known format; known are .svg"):
        read_sketches(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="path='.*nowhere' does not exist"):
        read_sketches(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="path='.*empty' holds no sketch file"):
        read_sketches(tmp_path / "empty")


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


def test_loaded_sketches_are_the_prepared_files(load, source_files):
    train, validation = load()
    assert (len(train), len(validation)) == (51, 9)
    assert not set(train.names) & set(validation.names)
    assert set(train.names) | set(validation.names) == {file.stem for file in source_files}
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


def test_delta_holds_the_same_sketches(load):
    absolute, delta = load()[0], load(representation="delta")[0]
    assert delta.representation == "delta"
    assert delta.names == absolute.names
    for a, d in zip(absolute, delta, strict=True):
        np.testing.assert_allclose(np.cumsum(d[:, :2], axis=0), a[:, :2], atol=1e-5)
        sketch = from_points(d, "delta")
        assert len(sketch) == a[:, 2].sum()


def test_spacing_and_scale_reach_the_preparation(load):
    fine, coarse = load()[0], load(spacing=0.2, scale=3.0)[0]
    assert np.linalg.norm(coarse[0][:, :2], axis=1).max() == pytest.approx(3, rel=1e-6)
    assert np.linalg.norm(fine[0][:, :2], axis=1).max() == pytest.approx(10, rel=1e-6)
    assert len(coarse.points) < len(fine.points) / 2


def test_split_depends_on_its_seed_alone(load, tmp_path):
    first = load()
    assert_same(first[0], load(cache_dir=tmp_path / "other")[0])
    other = load(split_seed=1)
    assert set(other[0].names) != set(first[0].names)
    half = load(split=0.5)
    assert [len(a) for a in half] == [30, 30]


def test_long_sketches_are_dropped_and_counted(load):
    everything = load()
    points = {
        name: length + 1
        for arrays in everything
        for name, length in zip(arrays.names, arrays.lengths, strict=True)
    }
    limit = sorted(points.values())[-10]
    train, validation = load(max_points=limit)
    dropped = {name for name, count in points.items() if count >= limit}
    assert len(dropped) >= 10
    assert set(train.summary.too_long) == dropped
    assert set(train.names) | set(validation.names) == set(points) - dropped
    assert train.summary.kept == len(train) + len(validation) == 60 - len(dropped)
    assert f"{len(dropped)} too long ({limit} points or more)" in str(train.summary)


def test_broken_files_are_skipped_counted_and_named(load, folder):
    (folder / "broken.svg").write_text("<svg><path d='M0 0 L1'/></svg>")
    write_svg(folder / "dot.svg", "M 1 1 L 1 1")
    for _ in range(2):  # prepared, then from the cache
        train, validation = load()
        assert len(train) + len(validation) == 60
        assert train.summary.read == 62
        assert [name for name, _ in train.summary.broken] == ["broken.svg", "dot.svg"]
        assert "2 broken (broken.svg: " in str(train.summary)
        assert "all points lie at one place" in str(train.summary)


def test_many_broken_files_stop_with_the_counts(load, folder, tmp_path):
    for i in range(4):
        (folder / f"broken{i}.svg").write_text("broken")
    with pytest.raises(
        ValueError, match=r"folder=.*4 of 64 files are broken, more than 5%.*broken0"
    ):
        load()
    assert not list(tmp_path.glob("cache/*"))


def test_processes_give_what_one_process_gives(load, monkeypatch, tmp_path):
    alone = load(workers=1)
    monkeypatch.setattr(preparation, "_SERIAL", 0)
    monkeypatch.setattr(preparation, "_CHUNK", 7)
    pooled = load(workers=2, cache_dir=tmp_path / "other")
    for a, b in zip(alone, pooled, strict=True):
        assert_same(a, b)


def test_a_script_without_main_guard_prepares_in_processes_once(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "print('started')\n"
        "import keras_sparse_dm.data.sketches.kanjivg as kanjivg\n"
        "import keras_sparse_dm.data.sketches.preparation as preparation\n"
        "preparation._SERIAL = 0\n"
        f"train, _ = kanjivg.load_kanjivg({str(folder)!r}, {str(tmp_path / 'c')!r}, workers=2)\n"
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
    results.close()  # what Ctrl-C leads to
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
def test_bad_settings_are_named(load, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(**changes)
    assert "\n" not in str(caught.value)


def test_bad_folders_are_named(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="folder='.*nowhere' does not exist"):
        load(folder=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="folder='.*empty' holds no sketch file"):
        load(folder=tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder='.*file' cannot be listed"):
        load(folder=tmp_path / "file")
    shutil.copy(SOURCE / "03042.svg", tmp_path / "empty")
    with pytest.raises(ValueError, match="folder='.*empty' holds no file for characters='kanji'"):
        load(folder=tmp_path / "empty")


def test_a_missing_package_is_answered_with_the_command(monkeypatch):
    def missing(name):
        raise kanjivg.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(kanjivg.importlib.metadata, "distribution", missing)
    with pytest.raises(FileNotFoundError, match="pip install kanjivg"):
        load_kanjivg()


# Cache


@pytest.fixture
def counted(monkeypatch):
    """Return a list that grows with each preparation of files."""
    calls = []
    prepare_files = preparation._prepare_drawings

    def counting(*args):
        calls.append(args)
        return prepare_files(*args)

    monkeypatch.setattr(preparation, "_prepare_drawings", counting)
    return calls


def test_the_second_load_comes_from_the_cache(load, counted, tmp_path):
    first, second = load(), load()
    assert len(counted) == 1
    for a, b in zip(first, second, strict=True):
        assert_same(a, b)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    load(split=0.5, split_seed=9, max_points=100)  # applied after the cache
    assert len(counted) == 1


def test_other_settings_and_changed_files_are_prepared_anew(load, counted, folder):
    load()
    load(spacing=0.1)
    load(representation="delta")
    load(scale=1.0)
    assert len(counted) == 4
    write_svg(folder / "new.svg", "M0 0 L1 1")
    assert load()[0].summary.read == 61
    write_svg(folder / "new.svg", "M0 0 L1 1 L 2 2 L 3 5")
    load()
    os.utime(folder / "new.svg", (1, 1))  # an edit that keeps the size
    load()
    assert len(counted) == 7
    load()
    assert len(counted) == 7


def test_the_environment_names_the_cache_folder(load, tmp_path):
    load(cache_dir=None)
    (file,) = (tmp_path / "from-environment").iterdir()
    assert re.fullmatch(r"kanjivg-v\d+-[0-9a-f]{20}\.npz", file.name)


def test_without_a_folder_the_users_cache_folder_is_used(load, monkeypatch, tmp_path):
    import platformdirs

    monkeypatch.delenv("KERAS_SPARSE_DM_CACHE")
    monkeypatch.setattr(
        platformdirs, "user_cache_dir", lambda name, **_: str(tmp_path / "user" / name)
    )
    load(cache_dir=None)
    assert len(list((tmp_path / "user" / "keras_sparse_dm").iterdir())) == 1


def test_damaged_cache_files_are_rebuilt_with_a_warning(load, counted, tmp_path):
    good = load()
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    damages = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "no zip": b"x" * len(whole),
        "a bit flipped in the points": whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
    }
    for damage in damages.values():
        file.write_bytes(damage)
        with pytest.warns(UserWarning, match="cannot be read .*preparing the data anew"):
            again = load()
        assert_same(good[0], again[0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(good[0], load()[0])  # the cache was mended
    assert len(counted) == 1 + len(damages)


def test_a_damaged_byte_anywhere_never_gives_other_data(load, tmp_path):
    good = load(max_points=60)  # the small sketches only; the cache file still holds all
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    # A zip file is most sensitive in its headers and directory.
    tail = rng.integers(len(whole) - 400, len(whole), 15)
    positions = np.concatenate([rng.integers(0, 300, 15), rng.integers(0, len(whole), 10), tail])
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = preparation._read_cache(file)
        if stored is not None:
            points = dict(zip(stored.arrays.names, stored.arrays, strict=True))
            for name, expected in zip(good[0].names, good[0], strict=True):
                np.testing.assert_array_equal(points[name], expected)


def test_a_pickle_in_the_cache_is_not_run(load, tmp_path):
    good = load()
    (file,) = (tmp_path / "cache").iterdir()

    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "hacked"),))

    with open(file, "wb") as stream:
        np.savez(stream, points=np.array([Hostile()]), lengths=[1], names=["a"], broken=[])
    with pytest.warns(UserWarning, match="cannot be read"):
        assert_same(good[0], load()[0])
    assert not (tmp_path / "hacked").exists()


def test_a_cache_folder_that_cannot_be_written_is_done_without(load, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be written"):
        train, _ = load(cache_dir=tmp_path / "file" / "cache")
    assert len(train) == 51


@pytest.mark.parametrize("failing", ["savez", "replace"])
def test_a_failed_write_leaves_nothing_behind(load, tmp_path, monkeypatch, failing):
    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((np, "savez") if failing == "savez" else (os, "replace")), no_space)
    with pytest.warns(UserWarning, match="cannot be written .*No space left"):
        load()
    assert not list((tmp_path / "cache").iterdir())


def test_an_interrupted_write_leaves_nothing_behind(load, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load()
    assert not list((tmp_path / "cache").iterdir())


def test_leftovers_of_killed_runs_are_cleared(load, tmp_path):
    (tmp_path / "cache").mkdir()
    old = tmp_path / "cache" / f"kanjivg-v{preparation.CACHE_VERSION}-0-x.tmp"
    fresh = tmp_path / "cache" / f"kanjivg-v{preparation.CACHE_VERSION}-1-y.tmp"
    old.write_text("")
    fresh.write_text("")
    os.utime(old, (1, 1))
    load()
    assert not old.exists()
    assert fresh.exists()


@pytest.mark.filterwarnings("error")
def test_two_at_once_both_get_the_data(load, tmp_path, counted, monkeypatch):
    # The barrier makes sure that both find no cache and prepare.
    barrier = threading.Barrier(2, timeout=30)
    read_cache = preparation._read_cache

    def read_together(cache):
        found = read_cache(cache)
        barrier.wait()
        return found

    monkeypatch.setattr(preparation, "_read_cache", read_together)
    results = []
    threads = [threading.Thread(target=lambda: results.append(load())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted) == len(results) == 2
    assert_same(results[0][0], results[1][0])
    assert len(list((tmp_path / "cache").iterdir())) == 1
