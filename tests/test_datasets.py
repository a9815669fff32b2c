"""The registries of data sets are all that options, loading and studies know of them."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from keras_sparse_dm import datasets
from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.data import Sketch, load_images, write_sketch_json
from keras_sparse_dm.datasets import Dataset
from keras_sparse_dm.places import load_place
from keras_sparse_dm.runs.settings import RunSettings
from keras_sparse_dm.runs.sketch_data import load_sketch_data
from keras_sparse_dm.study.grid import Cell
from keras_sparse_dm.study.scales import settings_of

MODULE = """
from keras_sparse_dm.data import load_sketches
from keras_sparse_dm.data.images.folder import list_images, plan_folder

def load(folder, part, **preparation):
    return load_sketches(f"{folder}/{part}.json", **preparation)

def plan(dataset, data_dir, counts, seed, **options):
    return plan_folder("Mine", list_images(data_dir), data_dir, counts, seed)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_data_set_of_sketches_is_one_line(module, tmp_path, monkeypatch):
    place = Dataset("my_data:load", {"part": "digits"}, ("mine*",), "them")
    monkeypatch.setitem(datasets.SKETCH_DATASETS, "mine", place)
    settings = RunSettings.from_preset("chirodiff_vmnist")
    settings = replace(settings, data=replace(settings.data, dataset="mine", digits="train"))
    monkeypatch.setattr(RunSettings, "from_preset", lambda name: settings)
    cell = Cell("chirodiff_vmnist", "dense", 0.0, None, 0)
    with pytest.raises(SettingsError, match=r"in which mine\* holds the data set.*Put them there"):
        settings_of(cell, "reduced", tmp_path)
    # At smoke scale, a data set that comes with a package takes the place of one that is missing.
    assert settings_of(cell, "smoke", tmp_path).data.dataset == "kanjivg"
    folder = tmp_path / "mine-1"
    folder.mkdir()
    angle = np.linspace(0, 6, 30)
    stroke = np.column_stack([np.cos(angle), np.sin(angle), angle])
    write_sketch_json(folder / "train.json", [Sketch([stroke], name=str(i)) for i in range(8)])
    assert settings_of(cell, "reduced", tmp_path).data_dir == folder
    train, validation = load_sketch_data(settings.data, folder, tmp_path / "cache", progress=False)
    assert len(train) + len(validation) == 8


def test_a_data_set_of_images_is_one_line(module, tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.IMAGE_DATASETS, "mine", Dataset("my_data:plan"))
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(folder / f"{i}.png")
    train, validation = load_images(
        "mine", folder, tmp_path / "cache", 8, workers=1, progress=False, train_images=3
    )
    assert len(train) == 3 and len(validation) == 3


def test_every_place_exists_and_the_registries_load_no_keras():
    for facts in (*datasets.SKETCH_DATASETS.values(), *datasets.IMAGE_DATASETS.values()):
        assert callable(load_place(facts.place))
        assert facts.own or facts.folders
        assert facts.own or facts.source or facts.packaged == "whole"
    code = "import sys, keras_sparse_dm.datasets; print({'keras', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
