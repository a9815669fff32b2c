import dataclasses
import string
import subprocess
import sys

import pytest

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.runs.settings import RunSettings
from keras_sparse_dm.study.differences import differences_from_paper, setting_clashes
from keras_sparse_dm.study.grid import Cell, grid
from keras_sparse_dm.study.paper import PAPER_COSTS
from keras_sparse_dm.study.scales import FULL_CELEBAHQ, sampling_steps_of, settings_of
from keras_sparse_dm.study.studies import STUDIES, find_study
from keras_sparse_dm.study.study_file import read_study


def names(cells):
    return {cell.name for cell in cells}


def test_grids_have_as_many_runs_as_in_the_paper():
    # Rows of the table times seeds, and for QuickDraw times three categories.
    assert {name: len(study.cells) for name, study in STUDIES.items()} == {
        "table1": 12 * 3,
        "table2": 4 * 3 * (3 + 1 + 1),
        "table3": 4 * 2,
        "table4": 4 * 2,
        "table5": 3 * 5 * 3,
        "table6": 5 * 3 * (3 + 1 + 1),
        "figure2": 3 * (1 + 3 * 5) * 3,
        "figure3": (3 + 1 + 1) * (1 + 3 * 5) * 3,
        "figure4": 2 * 4 * 3,
        "figure5": (1 + 2 * 5) * 2,
        "figure6": 3 * (1 + 3 * 5) * 3,
        "figure7": (3 + 1 + 1) * (1 + 3 * 5) * 3,
        "sketches": 2 * 22,
    }


def test_studies_share_runs_and_names_tell_them_apart():
    every = {cell for study in STUDIES.values() for cell in study.cells}
    assert len(names(every)) == len(every)
    # "approximately 620 training runs" (paper, section 3.3.2)
    assert 600 < len(every) < 650
    assert names(STUDIES["table2"].cells) <= names(STUDIES["figure3"].cells)
    safe = set(string.ascii_letters + string.digits + "._-")
    assert all(set(name) <= safe for name in names(every))


def test_names_are_readable_and_do_not_change():
    rigl = Cell("chirodiff_kanjivg", "rigl", 0.5, 0.05, 0)
    assert rigl.name == "chirodiff_kanjivg-rigl-s0.5-p0.05-seed0"
    assert dataclasses.replace(rigl, update_every=100).name.endswith("-p0.05-u100-seed0")
    assert Cell("chirodiff_vmnist", "dense", 0, None, 2).name == "chirodiff_vmnist-dense-seed2"
    cat = Cell("chirodiff_quickdraw", "static", 0.9, None, 1, category="cat")
    assert cat.name == "chirodiff_quickdraw-cat-static-s0.9-seed1"
    full = Cell("ldm_celebahq", "magran", 0.5, 0.5, 0, full=True)
    assert full.name == "ldm_celebahq-full-magran-s0.5-p0.5-seed0"


def test_tables_1_and_2_have_the_printed_rows():
    for table in (1, 2):
        rows = {(row.preset, row.method, row.sparsity) for row in PAPER_COSTS if row.table == table}
        cells = STUDIES[f"table{table}"].cells
        assert {(cell.preset, cell.method, cell.sparsity) for cell in cells} == rows
        assert {cell.prune_rate for cell in cells if cell.method == "rigl"} == {0.5}
    assert STUDIES["table4"].sampling_steps == (50, 100, 200)
    assert {cell.seed for cell in STUDIES["table3"].cells} == {0}


@pytest.mark.parametrize(
    "values",
    [
        ("chirodiff_kanji", "dense", 0.0, None, 0),
        ("chirodiff_kanjivg", "rigel", 0.5, 0.5, 0),
        ("chirodiff_kanjivg", "dense", 0.5, None, 0),
        ("chirodiff_kanjivg", "rigl", 0.0, 0.5, 0),
        ("chirodiff_kanjivg", "rigl", 1.0, 0.5, 0),
        ("chirodiff_kanjivg", "rigl", 0.5, None, 0),
        ("chirodiff_kanjivg", "static", 0.5, 0.5, 0),
        ("chirodiff_kanjivg", "static", 0.5, None, -1),
        ("chirodiff_kanjivg", "static", 0.5, None, 0, "cat"),
        ("chirodiff_quickdraw", "static", 0.5, None, 0),
        ("chirodiff_kanjivg", "static", 0.5, None, 0, None, True),
        ("chirodiff_kanjivg", "rigl", 0.5, 0.5, 0, None, False, 0),
    ],
)
def test_contradictory_cells_are_refused(values):
    with pytest.raises(SettingsError, match="received|only"):
        Cell(*values)


def test_other_numbers_of_seeds():
    study = STUDIES["table3"].with_seeds(2)
    assert len(study.cells) == 16 and len(names(study.cells)) == 16
    assert len(STUDIES["table2"].with_seeds(1).cells) == 20


@pytest.mark.parametrize("scale", ["smoke", "reduced", "paper"])
def test_every_cell_has_valid_settings(scale, tmp_path):
    autoencoder = tmp_path / "autoencoder.keras"
    autoencoder.touch()
    for folder in ("quickdraw", "mnist", "celebahq", "lsun_bedrooms", "imagenette"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for cell in {cell for study in STUDIES.values() for cell in study.cells}:
        settings = settings_of(
            cell, scale, tmp_path / "data", folder=tmp_path, autoencoder=autoencoder
        )
        settings.check()
        assert settings.training.method == cell.method and settings.seed == cell.seed
        assert settings.training.sparsity == cell.sparsity
        assert settings.folder == tmp_path / "runs" / cell.name
        if cell.category:
            assert settings.data.categories == (cell.category,)


def test_paper_scale_is_the_preset_itself(tmp_path):
    (tmp_path / "celebahq").mkdir()
    cell = Cell("ldm_celebahq", "rigl", 0.25, 0.5, 0)
    settings = settings_of(cell, "paper", tmp_path)
    preset = RunSettings.from_preset("ldm_celebahq")
    assert settings.model == preset.model and settings.data == preset.data
    training = dataclasses.replace(
        preset.training, method="rigl", sparsity=0.25, prune_rate=0.5, update_every=1100
    )
    assert settings.training == training and settings.sampling.evaluation == 10_000
    assert differences_from_paper(cell, "paper", settings, ("fid.pth",)) == []
    full = settings_of(dataclasses.replace(cell, full=True), "paper", tmp_path)
    assert full.data.training_images == FULL_CELEBAHQ == 2 * 12_500


def test_differences_from_the_paper_are_listed(tmp_path):
    cell = Cell("chirodiff_kanjivg", "rigl", 0.5, 0.05, 0)
    settings = settings_of(cell, "reduced", epochs={"chirodiff_kanjivg": 6})
    lines = differences_from_paper(cell, "reduced", settings)
    assert "epochs: 6 instead of 600" in lines
    assert "update every: 100 instead of 800" in lines
    assert "samples evaluated: 1,000 instead of 10,000" in lines
    assert "distance: FD-kanji instead of the FID" in lines
    assert any("6,422 kanji instead of sketch-rnn's 10,358" in line for line in lines)
    static = dataclasses.replace(cell, method="static", prune_rate=None)
    told = differences_from_paper(static, "reduced", settings_of(static, "reduced"))
    assert not any("update" in line for line in told)
    # The file of sketch-rnn is the paper's data set.
    (tmp_path / "kanji.rdp25.npz").touch()
    same = settings_of(cell, "paper", tmp_path)
    assert same.data_dir == tmp_path / "kanji.rdp25.npz"
    assert not any("data set" in line for line in differences_from_paper(cell, "paper", same))


def test_missing_data_sets_are_named(tmp_path):
    cell = Cell("chirodiff_vmnist", "dense", 0.0, None, 0)
    for data_dir in (None, tmp_path):
        with pytest.raises(SettingsError, match="mnist.*t10k-images-idx3-ubyte.gz"):
            settings_of(cell, "reduced", data_dir)
    assert settings_of(cell, "smoke", tmp_path).data_dir is None
    with pytest.raises(SettingsError, match="smoke, reduced, paper; received 'smol'.*smoke"):
        settings_of(cell, "smol")


def test_smoke_replaces_missing_data_sets(tmp_path):
    quickdraw = Cell("chirodiff_quickdraw", "dense", 0.0, None, 0, category="cat")
    assert settings_of(quickdraw, "smoke").data.dataset == "kanjivg"
    (tmp_path / "quickdraw").mkdir()
    there = settings_of(quickdraw, "smoke", tmp_path)
    assert there.data.dataset == "quickdraw" and there.data_dir == tmp_path / "quickdraw"
    images = settings_of(Cell("ldm_imagenette", "dense", 0.0, None, 0), "smoke", tmp_path)
    assert images.data.dataset == "kanjivg" and images.data_dir is None


def test_masks_are_updated_at_every_scale(tmp_path):
    (tmp_path / "mnist").mkdir()
    for preset, steps in (("chirodiff_kanjivg", 85), ("chirodiff_vmnist", 66)):
        cell = Cell(preset, "rigl", 0.5, 0.05, 0)
        reduced = settings_of(cell, "reduced", tmp_path).training
        assert reduced.epochs * steps > 4 * reduced.update_every
        smoke = settings_of(cell, "smoke").training
        assert smoke.epochs * 3 > 2 * smoke.update_every


def test_own_sampling_steps_come_last():
    cell = Cell("chirodiff_kanjivg", "dense", 0.0, None, 0)
    settings = settings_of(cell, "reduced")
    assert sampling_steps_of(STUDIES["figure4"], settings) == (100, 150, 200, 50)
    assert sampling_steps_of(STUDIES["table2"], settings) == (50,)


def test_settings_that_do_not_affect_training_do_not_clash(tmp_path):
    cell = Cell("chirodiff_kanjivg", "rigl", 0.5, 0.05, 0)
    settings = settings_of(cell, "reduced")
    stored = settings.to_dict()
    moved = dataclasses.replace(settings, data_dir=tmp_path, samples=3)
    assert setting_clashes(moved, stored) == []
    other = settings_of(cell, "reduced", epochs={"chirodiff_kanjivg": 3})
    assert setting_clashes(other, stored) == ["--epochs is 3 but was 8"]


def test_unknown_studies_get_a_hint():
    with pytest.raises(SettingsError, match="received 'tabel6'. Did you mean 'table"):
        find_study("tabel6")
    with pytest.raises(SettingsError, match="no study .*mine.yaml"):
        find_study("mine.yaml")


def test_a_study_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: Mine\npresets: [chirodiff_kanjivg]\nmethods: [dense, static, rigl]\n"
        "sparsities: [0.5, 0.9]\nprune_rates: [0.05, 0.5]\nupdate_intervals: [50, 100]\n"
        "seeds: [0, 7]\nsampling_steps: [10, 20]\n"
    )
    study = find_study(str(path))
    assert study.name == "mine" and study.title == "Mine" and study.sampling_steps == (10, 20)
    # Dense, static at two sparsities, RigL with all settings; two seeds each.
    assert len(study.cells) == 2 * (1 + 2 + 2 * 2 * 2)
    assert set(study.cells) == set(
        grid(
            ("chirodiff_kanjivg",),
            ("dense", "static", "rigl"),
            (0.5, 0.9),
            (0.05, 0.5),
            (0, 7),
            (50, 100),
        )
    )


OPTIONS = """
presets: [chirodiff_kanjivg]
methods: [dense, static, gmp, rigl]
sparsities: [0.5]
prune_rates: [0.1]
seeds: [0]
distribution: [uniform]
structure: [none, 'blocks:4', 'nm:2:4']
grow_init: [zeros, normal]
grow_warmup: [false, true]
"""


def test_a_study_of_options_of_train(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(OPTIONS)
    study = find_study(str(path))
    # Dense runs have none of these options, and nothing grows in static runs and GMP's.
    assert len(study.cells) == 1 + 3 + 3 + 3 * 2 * 2 and len(names(study.cells)) == 19
    safe = set(string.ascii_letters + string.digits + "._-")
    assert all(set(name) <= safe for name in names(study.cells))
    by_name = {cell.name: cell for cell in study.cells}
    assert "chirodiff_kanjivg-dense-seed0" in by_name
    start = "chirodiff_kanjivg-rigl-s0.5-p0.1-"
    # Defaults are not in the name.
    assert f"{start}distribution_uniform-seed0" in by_name
    cell = by_name[
        f"{start}structure_nm.2.4-distribution_uniform-grow_init_normal-grow_warmup-seed0"
    ]
    settings = settings_of(cell, "smoke")
    settings.check()
    training = settings.training
    assert (training.structure, training.distribution) == ("nm:2:4", "uniform")
    assert training.grow_init == "normal" and training.grow_warmup is True
    told = differences_from_paper(cell, "smoke", settings)
    assert "structure: nm:2:4 instead of none" in told
    plain = dataclasses.replace(cell, options=())
    assert "options" not in plain.to_dict() and set(plain.to_dict()) < set(cell.to_dict())
    assert settings_of(plain, "smoke").training.structure == "none"


def test_default_options_give_the_same_cells_as_none():
    arguments = (("ldm_celebahq",), ("rigl",), (0.5,), (0.5,), (0,))
    plain = grid(*arguments)
    assert grid(*arguments, structure=("none",), training_images=(0,), stop_step=(-1,)) == plain
    (cell,) = grid(*arguments, training_images=(1000,), gradient_steps=(4,))
    assert cell.name.endswith("-gradient_steps_4-training_images_1000-seed0")
    with pytest.raises(SettingsError, match="received 'grow_initt'. Did you mean 'grow_init'"):
        grid(*arguments, grow_initt=("normal",))


def test_images_of_a_study_can_be_fewer(tmp_path):
    (tmp_path / "celebahq").mkdir()
    (cell,) = grid(("ldm_celebahq",), ("dense",), seeds=(0,), training_images=(1000,))
    settings = settings_of(cell, "paper", tmp_path)
    assert settings.data.training_images == 1000 and settings.data.validation_images == 0
    assert settings_of(cell, "smoke").data.training_images == 1000


@pytest.mark.parametrize(
    "text, message",
    [
        ("presets: [chirodiff_kanjivg", "cannot be read"),
        (
            "presets: [chirodiff_kanjivg]\nmethods: [dense]\ntraining_images: [9]",
            "training_images must be left out for chirodiff_kanjivg",
        ),
        (
            "presets: [chirodiff_kanjivg]\nmethods: [dense]\ngrow_warmup: [1]",
            "grow_warmup must hold true or false; received 1",
        ),
        ("presets: [chirodiff_kanjivg]\nmethods: [dense]\nstructure: []", "at least one"),
        (
            "presets: [chirodiff_kanjivg]\nmethods: [dense, 'a b:C']",
            "method must be one of .* or package.module:Class; received 'a b:C'",
        ),
        ("- 3", "must hold lists"),
        ("presets: [chirodiff_kanjivg]\nmethod: [rigl]", "'method' is unknown.*methods"),
        ("presets: chirodiff_kanjivg\nmethods: [dense]", "presets must be a list"),
        ("presets: [chirodiff_kanjivg]", "methods must name at least one"),
        ("presets: [kanji]\nmethods: [dense]", "preset must be one of"),
        ("presets: [chirodiff_kanjivg]\nmethods: [rigl]", "sparsities must be given .* rigl"),
        (
            "presets: [chirodiff_kanjivg]\nmethods: [rigl]\nsparsities: [0.5]",
            "prune_rates must be given .* rigl",
        ),
        ("presets: [chirodiff_kanjivg]\nmethods: [static]\nsparsities: [x]", "numbers; .* 'x'"),
        ("presets: [chirodiff_kanjivg]\nmethods: [dense]\nseeds: [0.5]", "whole numbers"),
        ("presets: [chirodiff_kanjivg]\nmethods: [dense]\nseeds: []", "at least one"),
    ],
)
def test_files_that_describe_no_study(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_study(path)


def test_the_command_and_the_launcher_load_no_keras():
    modules = ("commands.study", "study.launcher", "study.worker", "study.scores")
    imports = ", ".join(f"keras_sparse_dm.{name}" for name in modules)
    code = f"import sys, {imports}; assert not {{'keras', 'tensorflow'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
