"""The cache of KanjiVG's prepared sketches."""

import os
import re
import threading
import warnings

import numpy as np
import pytest
from sketch_files import assert_same_sketches, write_paths

import keras_sparse_dm.data.sketches.preparation as preparation

pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_the_second_load_comes_from_the_cache(load_kanji, counted, tmp_path):
    first, second = load_kanji(), load_kanji()
    assert len(counted) == 1
    for a, b in zip(first, second, strict=True):
        assert_same_sketches(a, b)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    load_kanji(split=0.5, split_seed=9, max_points=100)  # applied after the cache
    assert len(counted) == 1


@pytest.mark.slow
def test_other_settings_and_changed_files_are_prepared_anew(load_kanji, counted, kanji_folder):
    load_kanji()
    load_kanji(spacing=0.1)
    load_kanji(representation="delta")
    load_kanji(scale=1.0)
    assert len(counted) == 4
    write_paths(kanji_folder / "new.svg", "M0 0 L1 1")
    assert load_kanji()[0].summary.read == 61
    write_paths(kanji_folder / "new.svg", "M0 0 L1 1 L 2 2 L 3 5")
    load_kanji()
    os.utime(kanji_folder / "new.svg", (1, 1))  # an edit that keeps the size
    load_kanji()
    assert len(counted) == 7
    load_kanji()
    assert len(counted) == 7


def test_the_environment_names_the_cache_folder(load_kanji, tmp_path):
    load_kanji(cache_dir=None)
    (file,) = (tmp_path / "own-cache").iterdir()
    assert re.fullmatch(r"kanjivg-v\d+-[0-9a-f]{20}\.npz", file.name)


def test_without_a_folder_the_users_cache_folder_is_used(load_kanji, monkeypatch, tmp_path):
    import platformdirs

    monkeypatch.delenv("KERAS_SPARSE_DM_CACHE")
    monkeypatch.setattr(
        platformdirs, "user_cache_dir", lambda name, **_: str(tmp_path / "user" / name)
    )
    load_kanji(cache_dir=None)
    assert len(list((tmp_path / "user" / "keras_sparse_dm").iterdir())) == 1


@pytest.mark.slow
def test_damaged_cache_files_are_rebuilt_with_a_warning(load_kanji, counted, tmp_path):
    good = load_kanji()
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
        with pytest.warns(UserWarning, match="cannot be read .*preparing the data again"):
            again = load_kanji()
        assert_same_sketches(good[0], again[0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same_sketches(good[0], load_kanji()[0])  # the cache was mended
    assert len(counted) == 1 + len(damages)


def test_a_damaged_byte_anywhere_never_gives_other_data(load_kanji, tmp_path):
    good = load_kanji(max_points=60)  # the small sketches only; the cache file still holds all
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


def test_a_pickle_in_the_cache_is_not_run(load_kanji, tmp_path):
    good = load_kanji()
    (file,) = (tmp_path / "cache").iterdir()

    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "hacked"),))

    with open(file, "wb") as stream:
        np.savez(stream, points=np.array([Hostile()]), lengths=[1], names=["a"], broken=[])
    with pytest.warns(UserWarning, match="cannot be read"):
        assert_same_sketches(good[0], load_kanji()[0])
    assert not (tmp_path / "hacked").exists()


def test_a_cache_folder_that_cannot_be_written_is_done_without(load_kanji, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be written"):
        train, _ = load_kanji(cache_dir=tmp_path / "file" / "cache")
    assert len(train) == 51


@pytest.mark.parametrize("failing", ["savez", "replace"])
def test_a_failed_write_leaves_nothing_behind(load_kanji, tmp_path, monkeypatch, failing):
    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((np, "savez") if failing == "savez" else (os, "replace")), no_space)
    with pytest.warns(UserWarning, match="cannot be written .*No space left"):
        load_kanji()
    assert not list((tmp_path / "cache").iterdir())


def test_an_interrupted_write_leaves_nothing_behind(load_kanji, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_kanji()
    assert not list((tmp_path / "cache").iterdir())


def test_leftovers_of_killed_runs_are_cleared(load_kanji, tmp_path):
    (tmp_path / "cache").mkdir()
    old = tmp_path / "cache" / f"kanjivg-v{preparation.CACHE_VERSION}-0-x.tmp"
    fresh = tmp_path / "cache" / f"kanjivg-v{preparation.CACHE_VERSION}-1-y.tmp"
    old.write_text("")
    fresh.write_text("")
    os.utime(old, (1, 1))
    load_kanji()
    assert not old.exists()
    assert fresh.exists()


@pytest.mark.filterwarnings("error")
def test_two_at_once_both_get_the_data(load_kanji, tmp_path, counted, monkeypatch):
    # The barrier makes sure that both find no cache and prepare.
    barrier = threading.Barrier(2, timeout=30)
    read_cache = preparation._read_cache

    def read_together(cache):
        found = read_cache(cache)
        barrier.wait()
        return found

    monkeypatch.setattr(preparation, "_read_cache", read_together)
    results = []
    threads = [threading.Thread(target=lambda: results.append(load_kanji())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted) == len(results) == 2
    assert_same_sketches(results[0][0], results[1][0])
    assert len(list((tmp_path / "cache").iterdir())) == 1
