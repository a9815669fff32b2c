import dataclasses
import json

import keras
import pytest

from keras_sparse_dm.models import (
    PRESETS,
    ChiroDiff,
    Preset,
    UNet,
    VQAutoencoder,
    get_preset,
)
from keras_sparse_dm.presets import TrainingSettings

PAPER = {  # appendix B.1: layers and units
    "chirodiff_kanjivg": (3, 96),
    "chirodiff_quickdraw": (3, 128),
    "chirodiff_vmnist": (2, 48),
}


@pytest.mark.parametrize("name", PAPER)
def test_paper_presets_hold_the_papers_settings(name):
    """Appendices B.1 and B.3, section 3.3.2."""
    preset = get_preset(name)
    assert (preset.model.num_layers, preset.model.units) == PAPER[name]
    assert (preset.model.time_features, preset.model.time_scale) == (8, 4.0)
    training = preset.training
    assert (training.epochs, training.batch_size) == (600, 128)
    assert (training.learning_rate, training.learning_rate_schedule) == (1e-3, "constant")
    assert training.weight_decay == 1e-2
    assert training.update_every == 800
    noise = preset.noise
    assert (noise.schedule, noise.timesteps) == ("linear", 1000)
    assert (noise.beta_start, noise.beta_end) == (1e-4, 2e-2)
    assert (preset.sampling.sampler, preset.sampling.steps, preset.sampling.eta) == (
        "ddim",
        50,
        0.0,
    )


@pytest.mark.parametrize(
    ("name", "learning_rate", "images"),
    [
        ("ldm_celebahq", 2e-6, "celebahq"),
        ("ldm_lsun_bedrooms", 2.4e-5, "lsun_bedrooms"),
        ("ldm_imagenette", 2.4e-5, "imagenette"),
    ],
)
def test_latent_diffusion_presets_hold_the_papers_settings(name, learning_rate, images):
    """Appendices B.1 and B.3, section 3.3.2."""
    preset = get_preset(name)
    training = preset.training
    assert (training.epochs, training.batch_size) == (150, 12)
    assert (training.learning_rate, training.learning_rate_schedule) == (learning_rate, "constant")
    assert (training.weight_decay, training.update_every) == (1e-2, 1100)
    assert training.ema_momentum == 0.9999
    noise = preset.noise
    assert (noise.schedule, noise.timesteps) == ("scaled_linear", 1000)
    assert (noise.beta_start, noise.beta_end) == (0.0015, 0.0195)
    assert (preset.sampling.sampler, preset.sampling.steps) == ("ddim", 100)
    assert (preset.data.dataset, preset.data.image_size) == (images, 256)
    autoencoder = preset.autoencoder
    assert (autoencoder.channels, autoencoder.channel_mult) == (128, (1, 2, 4))
    assert (autoencoder.codes, autoencoder.code_channels) == (8192, 3)


@pytest.mark.slow
def test_every_preset_is_listed_under_its_name_and_makes_a_denoiser():
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert get_preset(name) is preset
        arguments = preset.denoiser_arguments()
        if preset.model.kind == "unet":
            with keras.StatelessScope(initialize_variables=False):
                config = UNet(**arguments).get_config()
                VQAutoencoder(**preset.autoencoder.arguments())
            assert {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()} == (
                {"name": config["name"]} | arguments
            )
            continue
        model = ChiroDiff(**(arguments | {"units": 2, "num_layers": 1}))
        assert arguments.items() <= (model.get_config() | {
            "units": preset.model.units, "num_layers": preset.model.num_layers
        }).items()  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_survives_json_compares_and_prints(name):
    preset = get_preset(name)
    again = Preset.from_dict(json.loads(json.dumps(preset.to_dict())))
    assert again == preset and hash(again) == hash(preset)
    assert name in repr(preset) and "learning_rate" in repr(preset)
    assert get_preset("chirodiff_kanjivg") != get_preset("chirodiff_vmnist")


def test_is_frozen_at_every_level():
    preset = get_preset("chirodiff_kanjivg")
    for part in (preset, preset.model, preset.training, preset.noise, preset.sampling):
        field = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, None)


def test_unknown_names_are_refused_with_the_known_ones_and_the_nearest():
    with pytest.raises(ValueError) as error:
        get_preset("chirodif_kanjivg")
    message = str(error.value)
    assert "received 'chirodif_kanjivg'" in message
    assert "Did you mean 'chirodiff_kanjivg'?" in message
    assert all(name in message for name in PRESETS)
    with pytest.raises(ValueError, match="received 'zzz'") as error:
        get_preset("zzz")
    assert "Did you mean" not in str(error.value)


def test_unknown_settings_are_refused():
    settings = get_preset("chirodiff_vmnist").to_dict()
    settings["training"]["epoch"] = 3
    with pytest.raises(TypeError, match="epoch"):
        Preset.from_dict(settings)
    assert "epoch" not in {field.name for field in dataclasses.fields(TrainingSettings)}
