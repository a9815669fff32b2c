"""Fixtures that several tests of data sets share."""

import shutil

import pytest

from keras_sparse_dm.data import (
    kanjivg_folder,
    load_kanjivg,
    select_characters,
)


@pytest.fixture(scope="module")
def tfds():
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="session")
def kanji_files():
    """Return 60 kanji spread over the set."""
    files = select_characters(sorted(kanjivg_folder().glob("*.svg")))
    return files[:: len(files) // 60][:60]


@pytest.fixture
def kanji_folder(tmp_path, kanji_files):
    folder = tmp_path / "svg"
    folder.mkdir()
    for file in kanji_files:
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def load_kanji(kanji_folder, tmp_path):
    def load(**changes):
        return load_kanjivg(
            **{"folder": kanji_folder, "cache_dir": tmp_path / "cache", "progress": False} | changes
        )

    return load
