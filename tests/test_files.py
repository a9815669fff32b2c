import ctypes
import types

import pytest

from keras_sparse_dm.files import whole_directory


def fill(directory, text):
    (directory / "part").mkdir()
    (directory / "part" / "file").write_text(text)


@pytest.mark.parametrize("system", ["exchanges", "renames"])
def test_a_whole_directory_takes_the_place_of_the_one_before(tmp_path, system, monkeypatch):
    if system == "renames":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: types.SimpleNamespace())
    path = tmp_path / "model"
    with whole_directory(path) as temporary:
        fill(temporary, "one")
        (temporary / "more").write_text("")
        assert not path.exists()
    with whole_directory(str(path)) as temporary:
        fill(temporary, "two")
        assert (path / "part" / "file").read_text() == "one"
    assert (path / "part" / "file").read_text() == "two"
    assert not (path / "more").exists()
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_directory_before_and_nothing_partial(tmp_path):
    path = tmp_path / "model"
    with whole_directory(path) as temporary:
        fill(temporary, "one")
    with pytest.raises(RuntimeError), whole_directory(path) as temporary:
        fill(temporary, "two")
        raise RuntimeError
    assert (path / "part" / "file").read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_directory_can_keep_its_other_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with whole_directory("new", keep_others=True) as temporary:
        (temporary / "a").write_text("one")
        (temporary / "b").write_text("one")
    monkeypatch.chdir(tmp_path / "new")
    with whole_directory(".", keep_others=True) as temporary:
        (temporary / "a").write_text("two")
        assert (tmp_path / "new" / "a").read_text() == "one"
    found = {file.name: file.read_text() for file in (tmp_path / "new").iterdir()}
    assert found == {"a": "two", "b": "one"}
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / ".partial-model"
    left.mkdir()
    fill(left, "of before")
    with whole_directory(tmp_path / "model") as temporary:
        assert not list(temporary.iterdir())
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]
