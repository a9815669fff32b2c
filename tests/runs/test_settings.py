import dataclasses
import json
import math
import typing
from pathlib import Path

import pytest

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.datasets import IMAGE_DATASETS, SKETCH_DATASETS
from keras_sparse_dm.diffusion.registry import SAMPLERS
from keras_sparse_dm.masks.distributions import DISTRIBUTIONS
from keras_sparse_dm.presets import (
    PRESETS,
    ImageSettings,
    SamplingSettings,
    SketchSettings,
    TrainingSettings,
    get_preset,
)
from keras_sparse_dm.runs.folder import CONFIG_FILE, read_config, write_json
from keras_sparse_dm.runs.settings import RunSettings
from keras_sparse_dm.sparsity.registry import METHODS


def changed(part=None, **values):
    settings = RunSettings.from_preset("quickstart")
    if part is None:
        return dataclasses.replace(settings, **values)
    return dataclasses.replace(
        settings, **{part: dataclasses.replace(getattr(settings, part), **values)}
    )


@pytest.mark.parametrize("name", [n for n in PRESETS if not n.startswith("ldm_")])
def test_presets_pass_the_check(name):
    settings = RunSettings.from_preset(name)
    settings.check()
    assert settings.to_preset() == get_preset(name)


def test_the_registries_are_the_choices():
    for cls, name, registry in (
        (SketchSettings, "dataset", SKETCH_DATASETS),
        (ImageSettings, "dataset", IMAGE_DATASETS),
        (SamplingSettings, "sampler", SAMPLERS),
        (TrainingSettings, "distribution", DISTRIBUTIONS),
    ):
        assert typing.get_args(typing.get_type_hints(cls)[name]) == tuple(registry)
    methods, other = typing.get_args(typing.get_type_hints(TrainingSettings)["method"])
    assert typing.get_args(methods) == tuple(METHODS) and other is str


def test_files_of_ones_own_need_a_folder(tmp_path):
    with pytest.raises(SettingsError, match="--data-dir must be given for --dataset files"):
        changed("data", dataset="files").check()
    settings = changed("data", dataset="files")
    dataclasses.replace(settings, data_dir=tmp_path).check()


BAD = [
    ("training", "sparsity", 1.0, "--sparsity", "[0, 1)"),
    ("training", "sparsity", -0.1, "--sparsity", "[0, 1)"),
    ("training", "sparsity", math.nan, "--sparsity", "[0, 1)"),
    ("training", "sparsity", 0.0, "--sparsity", "dense"),
    ("training", "prune_rate", 0.0, "--prune-rate", "(0, 1]"),
    ("training", "prune_rate", 1.01, "--prune-rate", "(0, 1]"),
    ("training", "prune_rate", math.inf, "--prune-rate", "(0, 1]"),
    ("training", "method", "snip", "--method", "rigl, magran, set, snfs, gmp, static, dense"),
    ("training", "distribution", "erkk", "--distribution", "uniform, er, erk"),
    ("data", "characters", "kana", "--characters", "kanji, kanji+variants, all"),
    ("training", "prune_schedule", "linear", "--prune-schedule", "constant, cosine"),
    ("training", "learning_rate_schedule", "step", "--learning-rate-schedule", "cosine"),
    ("training", "update_every", 0, "--update-every", "1 or more"),
    ("training", "update_every", -5, "--update-every", "1 or more"),
    ("training", "epochs", 0, "--epochs", "1 or more"),
    ("training", "batch_size", 0, "--batch-size", "1 or more"),
    ("training", "learning_rate", 0.0, "--learning-rate", "above 0"),
    ("training", "learning_rate", math.nan, "--learning-rate", "above 0"),
    ("training", "learning_rate", math.inf, "--learning-rate", "above 0"),
    ("training", "weight_decay", -1.0, "--weight-decay", "0 or more"),
    ("training", "global_clipnorm", -1.0, "--global-clipnorm", "0 or more"),
    ("training", "ema_momentum", 1.0, "--ema-momentum", "[0, 1)"),
    ("training", "structure", "blocks", "--structure", "blocks:4"),
    ("training", "structure", "nm:2:4", "--structure", "uniform"),
    ("training", "competition", "all", "--competition", "kernel, global"),
    ("training", "grow_init", "ones", "--grow-init", "zeros, normal"),
    ("training", "gradient_steps", 0, "--gradient-steps", "1 or more"),
    ("training", "gradient_steps", 101, "--gradient-steps", "--update-every"),
    ("training", "start_step", -1, "--start-step", "0 or more"),
    ("training", "stop_step", -2, "--stop-step", "-1 or more"),
    ("model", "kind", "unet", "--kind", "chirodiff"),
    ("model", "units", 0, "--units", "1 or more"),
    ("model", "num_layers", 0, "--num-layers", "1 or more"),
    ("model", "time_features", 3, "--time-features", "even"),
    ("model", "time_features", 0, "--time-features", "2 or more"),
    ("model", "time_scale", -4.0, "--time-scale", "above 0"),
    ("noise", "schedule", "sigmoid", "--noise.schedule", "linear, scaled_linear, cosine"),
    ("noise", "timesteps", 1, "--noise.timesteps", "2 or more"),
    ("noise", "beta_start", 0.0, "--noise.beta-start", "0 < start"),
    ("noise", "beta_end", 1.0, "--noise.beta-end", "< 1"),
    ("noise", "beta_end", math.nan, "--noise.beta-end", "< 1"),
    ("sampling", "sampler", "euler", "--sampling.sampler", "ddim, ddpm"),
    ("sampling", "steps", 0, "--sampling.steps", "1 or more"),
    ("sampling", "steps", 1001, "--sampling.steps", "1000"),
    ("sampling", "evaluation", -1, "--sampling.evaluation", "0 or more"),
    ("sampling", "evaluation", 1, "--sampling.evaluation", "8 or more"),
    ("sampling", "eta", -0.5, "--sampling.eta", "[0, 1]"),
    ("sampling", "eta", 1.5, "--sampling.eta", "[0, 1]"),
    ("data", "dataset", "mnist", "--dataset", "kanjivg"),
    ("data", "categories", (), "--categories", "at least one"),
    ("data", "digits", "some", "--digits", "test, train, all"),
    ("data", "max_sketches", -1, "--max-sketches", "0 or more"),
    ("data", "max_strokes", -1, "--max-strokes", "0 or more"),
    ("data", "simplify", -0.1, "--simplify", "[0, 1]"),
    ("data", "jitter", -0.1, "--jitter", "0 or more"),
    ("data", "representation", "polar", "--representation", "absolute, delta"),
    ("data", "spacing", 0.0, "--spacing", "(0, 1]"),
    ("data", "scale", -10.0, "--scale", "above 0"),
    ("data", "max_points", 2, "--max-points", "3 or more"),
    (None, "seed", -1, "--seed", "0 or more"),
    (None, "seed", 2**31, "--seed", "below 2147483648"),
    (None, "samples", 0, "--samples", "1 or more"),
    (None, "samples_every", -1, "--samples-every", "0 or more"),
    (None, "distance_every", -1, "--distance-every", "0 or more"),
    (None, "verbose", 3, "--verbose", "-1, 0, 1 or 2"),
]


@pytest.mark.parametrize("part, name, value, option, wanted", BAD)
def test_bad_values_are_refused_in_one_line_that_says_what_would_be_right(
    part, name, value, option, wanted
):
    with pytest.raises(SettingsError) as error:
        changed(part, **{name: value}).check()
    message = str(error.value)
    assert option in message and wanted in message
    # Messages about two options name the value of the first one before what they received.
    received = message if isinstance(value, str) else message.rpartition("received")[2]
    assert str(value) in received or f"{value:g}" in received
    assert "\n" not in message


def test_every_number_and_choice_of_a_preset_has_a_bad_value_above():
    tested = {(part, name) for part, name, *_ in BAD}
    for part in ("training", "model", "noise", "sampling", "data"):
        for field in dataclasses.fields(getattr(get_preset("quickstart"), part)):
            assert field.type is bool or (part, field.name) in tested


def test_the_folder_tells_runs_apart():
    folders = {
        settings.folder
        for settings in (
            changed(),
            changed(seed=1),
            changed("training", sparsity=0.25),
            changed("training", method="static"),
            changed("training", method="dense"),
            RunSettings.from_preset("chirodiff_kanjivg"),
        )
    }
    assert len(folders) == 6
    # As `--help` says.
    settings = changed("training", method="magran", sparsity=0.9)
    assert settings.folder == Path("runs/quickstart-magran-s0.9-seed0")
    assert changed(output_dir=Path("here")).folder == Path("here")


def test_stored_settings_come_back_whole(tmp_path):
    settings = dataclasses.replace(
        changed("training", sparsity=0.123456789012345, method="magran"),
        seed=12,
        data_dir=tmp_path / "data",
    )
    write_json(tmp_path / "config.json", settings.to_dict())
    stored = json.loads((tmp_path / "config.json").read_text())
    again = RunSettings.from_preset("chirodiff_kanjivg").with_stored(stored)
    assert again.to_dict() == settings.to_dict()
    assert again.to_preset() == settings.to_preset()
    assert again.data_dir == tmp_path / "data" and again.seed == 12


def test_what_does_not_shape_the_run_is_not_stored():
    a = changed(output_dir=Path("a"), resume=True, verbose=2, cache_dir=Path("c"))
    assert a.to_dict() == changed().to_dict()


@pytest.mark.parametrize("change", [{"preset": None}, {"training": {"epoch": 3}}, {"model": None}])
def test_a_configuration_of_another_version_is_refused(change):
    stored = changed().to_dict() | change
    if stored["preset"] is None:
        del stored["preset"]
    with pytest.raises(SettingsError, match=CONFIG_FILE):
        changed().with_stored(stored)


def test_reading_a_configuration(tmp_path):
    assert read_config(tmp_path) is None
    (tmp_path / CONFIG_FILE).write_text("{half")
    with pytest.raises(SettingsError, match=CONFIG_FILE):
        read_config(tmp_path)


def test_json_is_whole_or_not_there(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_unknown_presets_are_refused_with_a_suggestion():
    with pytest.raises(SettingsError, match="received 'quikstart'. Did you mean 'quickstart'"):
        RunSettings.from_preset("quikstart")
    assert "quickstart" in PRESETS
