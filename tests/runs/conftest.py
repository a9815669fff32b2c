"""A small run that several test files look at."""

import shutil

import pytest

from keras_sparse_dm.commands.train import train_command
from keras_sparse_dm.data import kanjivg_folder, select_characters

TINY = (
    *("--units", "8", "--num-layers", "1", "--batch-size", "16", "--noise.timesteps", "50"),
    *("--update-every", "2", "--prune-rate", "0.2", "--seed", "3", "--epochs", "2"),
    *("--sampling.steps", "3", "--samples", "4", "--verbose", "0"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, private_cache):
    """A run on 60 kanji that ends with an evaluation of 20 samples."""
    data = tmp_path_factory.mktemp("data") / "svg"
    data.mkdir()
    files = select_characters(sorted(kanjivg_folder().glob("*.svg")))
    for file in files[:: len(files) // 60][:60]:
        shutil.copy(file, data)
    run = tmp_path_factory.mktemp("run") / "tiny"
    options = ("--data-dir", data, "--output-dir", run, "--sampling.evaluation", "20")
    options += ("--distance-every", "2")
    assert train_command([*TINY, *map(str, options)]) == 0
    return run
