import itertools
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from keras_sparse_dm.data import row_files
from keras_sparse_dm.data.cache import (
    cache_folder,
    check_free_space,
    fingerprint_of,
    new_cache_file,
    state_of,
)
from keras_sparse_dm.data.row_files import Rows, read_rows, read_rows_or_warn, write_description
from keras_sparse_dm.data.summary import PreparationSummary, check_broken
from keras_sparse_dm.data.worker_processes import map_chunks, map_in_processes

# The summary


def test_a_summary_of_images_says_what_was_left_out():
    broken = tuple((f"{i}", f"{i}.png: why") for i in range(7))
    summary = PreparationSummary(
        "CelebA-HQ", 13_000, 12_993, broken, unit="images", available=30_000, enlarged=4
    )
    assert str(summary) == (
        "CelebA-HQ: 13,000 of 30,000 images read, 12,993 kept, 4 enlarged, 7 broken "
        "(0.png: why; 1.png: why; 2.png: why; 3.png: why; 4.png: why, ...)"
    )


def test_more_than_a_twentieth_broken_is_an_error():
    broken = [(str(i), f"{i}.png: why") for i in range(5)]
    check_broken(broken, 100, "here")
    with pytest.raises(ValueError, match=r"here: 5 of 99 files are broken, more than 5%.*0\.png"):
        check_broken(broken, 99, "here")


# Worker processes. They run built-in functions, because they may be unable to import this module.


def test_processes_keep_the_order_and_take_no_more_than_they_need():
    taken = []

    def chunks():
        for i in range(40):
            taken.append(i)
            yield f"[{i}]"

    results = map_in_processes(eval, chunks(), 2)
    assert next(results) == [0]
    assert len(taken) < 10
    assert list(results) == [[i] for i in range(1, 40)]
    assert not multiprocessing.active_children()


def test_an_error_in_a_worker_or_in_the_source_ends_the_workers():
    with pytest.raises(ZeroDivisionError):
        list(map_in_processes(eval, ["1 / 0"] * 8, 2))

    def source():
        yield "[1]"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(map_in_processes(eval, source(), 2))
    assert not multiprocessing.active_children()


def test_chunks_give_one_result_per_item_in_one_process(capfd):
    sizes = []

    def work(items):
        sizes.append(len(items))
        return [i * i for i in items]

    results = map_chunks(work, iter(range(10)), 10, 4, 1, True, "Squaring")
    assert list(results) == [i * i for i in range(10)]
    assert sizes == [4, 4, 2]
    assert "Squaring: 100%" in capfd.readouterr().err
    list(map_chunks(work, range(3), 3, 4, 1, False, "Squaring"))
    assert capfd.readouterr().err == ""


# Cache files


def test_the_argument_goes_before_the_environment_and_that_before_the_users_folder(
    monkeypatch, tmp_path
):
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name, **_: f"/user/{name}")
    monkeypatch.setenv("KERAS_SPARSE_DM_CACHE", "/environment")
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder(None) == Path("/environment")
    monkeypatch.setenv("KERAS_SPARSE_DM_CACHE", "")
    assert cache_folder(None) == Path("/user/keras_sparse_dm")
    assert cache_folder("~/here") == Path.home() / "here"


def test_fingerprints_follow_values_and_the_state_of_files(tmp_path):
    assert fingerprint_of([1, "a"]) == fingerprint_of((1, "a"))
    assert fingerprint_of([1, "a"]) != fingerprint_of([1, "b"])
    assert len(fingerprint_of(None)) == 20
    file = tmp_path / "below" / "a"
    file.parent.mkdir()
    file.write_text("123")
    os.utime(file, (5, 5))
    assert state_of([file]) == [("a", 3, 5)]
    assert state_of([file], tmp_path) == [("below/a", 3, 5)]


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "rows.npy"
    with new_cache_file(path, "*.tmp") as file:
        file.write(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error), new_cache_file(path, "*.tmp") as file:
            file.write(b"half")
            raise error
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == ["rows.npy"]


def test_only_old_leftovers_of_this_kind_are_removed(tmp_path):
    for name, age in (("a-1.tmp", 1), ("b-1.tmp", 1), ("a-2.tmp", None)):
        (tmp_path / name).write_text("")
        if age:
            os.utime(tmp_path / name, (age, age))
    with new_cache_file(tmp_path / "a", "a-*.tmp"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["a", "a-2.tmp", "b-1.tmp"]


def test_too_little_space_is_said_before_work_begins(tmp_path, monkeypatch):
    check_free_space(tmp_path / "not" / "yet" / "there", 1000)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**9, "path": path})
    )
    message = r"cache_dir='.*there' has 1.00 GB free, but 2.50 GB are needed.*KERAS_SPARSE_DM_CACHE"
    with pytest.raises(OSError, match=message):
        check_free_space(tmp_path / "there", 2_500_000_000)


def write_rows(path, parts, shape=(2, 3), dtype=np.int16, **description):
    with new_cache_file(path, "*.tmp") as file:
        rows = Rows(file, shape, dtype)
        for part in parts:
            rows.add(part)
        description["checksum"] = rows.finish()
    write_description(path, description, "*.tmp")


def test_rows_added_piece_by_piece_come_back_mapped(tmp_path):
    path = tmp_path / "rows.npy"
    rng = np.random.default_rng(0)
    parts = [rng.integers(-9, 9, (n, 2, 3)).astype(np.int16) for n in (3, 0, 1, 9996)]
    write_rows(path, parts, names=["a", "ü"])
    rows, description = read_rows(path)
    assert isinstance(rows, np.memmap) and not rows.flags.writeable
    np.testing.assert_array_equal(rows, np.concatenate(parts))
    assert description["names"] == ["a", "ü"]
    # Other programs can read the file too.
    np.testing.assert_array_equal(np.load(path), rows)


def test_no_row_at_all_is_a_file_too(tmp_path):
    write_rows(tmp_path / "rows.npy", [])
    assert read_rows(tmp_path / "rows.npy")[0].shape == (0, 2, 3)


def test_damage_is_told_and_absence_is_not(tmp_path):
    path = tmp_path / "rows.npy"
    assert read_rows_or_warn(path) is None
    write_rows(path, [np.arange(6000, dtype=np.int16).reshape(-1, 2, 3)], names=["a"])
    assert read_rows_or_warn(path) is not None
    whole, described = path.read_bytes(), path.with_suffix(".json").read_bytes()
    for damage in (
        b"",
        b"x" * len(whole),
        whole[:-1],
        whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
    ):
        path.write_bytes(damage)
        with pytest.warns(UserWarning, match="rows.npy cannot be read .*preparing the data again"):
            assert read_rows_or_warn(path) is None
    path.write_bytes(whole)
    for damage in (b"", described[:-20], b"[]", b"\xff\xfe", described.replace(b'"a"', b'"b"')):
        path.with_suffix(".json").write_bytes(damage)
        with pytest.warns(UserWarning, match="cannot be read"):
            assert read_rows_or_warn(path) is None
    path.with_suffix(".json").unlink()  # a run that was killed between the two files
    assert read_rows_or_warn(path) is None

    def refuse(rows, description):
        raise ValueError("not these")

    path.with_suffix(".json").write_bytes(described)
    with pytest.warns(UserWarning, match="not these"):
        assert read_rows_or_warn(path, refuse) is None


def test_checking_reads_in_pieces(tmp_path, monkeypatch):
    path = tmp_path / "rows.npy"
    write_rows(path, [np.zeros((5000, 1000), np.uint8)] * 10, shape=(1000,), dtype=np.uint8)
    pieces = []
    ascontiguousarray = np.ascontiguousarray

    def spy(array, *args):
        pieces.append(array.nbytes)
        return ascontiguousarray(array, *args)

    monkeypatch.setattr(row_files.np, "ascontiguousarray", spy)
    read_rows(path)
    assert sum(pieces) == 50_000_000 and max(pieces) <= 2**24


def test_names_that_are_no_text_survive(tmp_path):
    # A file's name may hold bytes that are not UTF-8; Python represents them as surrogates.
    name = os.fsdecode(b"caf\xe9.png")
    write_rows(tmp_path / "rows.npy", [np.zeros((1, 2, 3), np.int16)], names=[name])
    assert read_rows(tmp_path / "rows.npy")[1]["names"] == [name]
    assert len(set(itertools.chain([fingerprint_of([name])], [fingerprint_of(["caf.png"])]))) == 2
