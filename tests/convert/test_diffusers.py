"""Networks of the diffusers library, `UNet2DModel` and `VQModel`."""

import importlib.util
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoints import (
    assert_holds,
    new_autoencoder,
    new_unet,
    prefixed,
    random_tensors,
    shared,
    values,
)
from support import assert_same_arrays as assert_equal

from keras_sparse_dm.convert import diffusers, load_pytorch, save_pytorch
from keras_sparse_dm.diffusion import NoiseSchedule
from keras_sparse_dm.models import LatentDiffusion, UNet, VQAutoencoder

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, torch):
    """Folder of networks that diffusers wrote, and their outputs."""
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed")
    folder = tmp_path_factory.mktemp("pipeline")
    script = Path(__file__).with_name("diffusers_script.py")
    result = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def answers(pipeline):
    with np.load(pipeline / "answers.npz") as archive:
        return dict(archive)


def equal_unet():
    return UNet(
        model_channels=32,
        channel_mult=(1, 2, 2),
        num_res_blocks=1,
        attention_factors=(2, 4),
        head_channels=16,
    )


def equal_autoencoder():
    return VQAutoencoder(
        channels=16,
        num_res_blocks=1,
        channel_mult=(1, 2, 2),
        attention_factors=(2,),
        codes=64,
        latent_channels=4,
        norm_groups=8,
    )


@pytest.fixture(scope="module")
def converted(pipeline):
    model = LatentDiffusion(
        equal_unet(), equal_autoencoder(), NoiseSchedule.scaled_linear(1000), image_size=16
    )
    load_pytorch(model, pipeline)
    return model


def test_networks_compute_what_those_of_diffusers_do(converted, answers):
    noise = converted.denoiser((answers["x"], answers["t"]))
    np.testing.assert_allclose(noise, answers["noise"], atol=1e-4)
    autoencoder = converted.autoencoder
    latents = autoencoder.encode(answers["images"])
    np.testing.assert_allclose(latents, answers["latents"], atol=1e-4)
    _, indices = autoencoder.quantize(answers["latents"])
    np.testing.assert_array_equal(indices, answers["indices"])
    decoded = autoencoder.decode(answers["latents"])
    np.testing.assert_allclose(decoded, answers["decoded"], atol=1e-4)
    assert float(converted.scale_factor) == 0.5


@pytest.mark.parametrize("source", ["", "vqvae", f"vqvae/{WEIGHTS}", "bin", "dictionary"])
def test_every_way_to_name_the_same_network(tmp_path, pipeline, converted, torch, source):
    from safetensors.numpy import load_file

    tensors = load_file(pipeline / "vqvae" / WEIGHTS)
    if source == "bin":
        path = tmp_path
        shutil.copy(pipeline / "vqvae" / "config.json", path)
        state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
        torch.save(state, path / "diffusion_pytorch_model.bin")
    else:
        path = tensors if source == "dictionary" else pipeline / source
    model = equal_autoencoder()
    load_pytorch(model, path)
    for mine, theirs in zip(model.weights, converted.autoencoder.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("kind, new", [("unet", new_unet), ("autoencoder", new_autoencoder)])
def test_the_names_that_attention_had_in_2022(kind, new):
    tensors = random_tensors(kind, naming="diffusers")
    old = {}
    for name, tensor in tensors.items():
        for part, was in (
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        ):
            name = name.replace(part, was)
        old[name] = tensor
    assert set(old) != set(tensors)
    model, again = new(), new()
    load_pytorch(model, tensors)
    load_pytorch(again, prefixed({"unet": "unet.", "autoencoder": "vqvae."}[kind], old))
    assert_equal(values(model), values(again))


def test_what_is_saved_is_what_diffusers_saves(tmp_path, pipeline, converted):
    from safetensors.numpy import load_file

    save_pytorch(converted, tmp_path / "mine", naming="diffusers")
    for folder in ("unet", "vqvae"):
        mine, theirs = (load_file(f / folder / WEIGHTS) for f in (tmp_path / "mine", pipeline))
        assert set(mine) == set(theirs)
        for name, tensor in theirs.items():
            np.testing.assert_array_equal(mine[name], tensor)
        mine, theirs = (
            json.loads((f / folder / "config.json").read_text())
            for f in (tmp_path / "mine", pipeline)
        )
        derived = ("attn_norm_num_groups", "time_embedding_dim")
        assert {k: v for k, v in mine.items() if k not in derived}.items() <= theirs.items()
    with pytest.raises(ValueError, match=r"config\.json exists; pass overwrite=True"):
        save_pytorch(converted, tmp_path / "mine", naming="diffusers")


@pytest.mark.slow
def test_a_saved_folder_loads_again(tmp_path):
    model, again = new_unet(), new_unet()
    tensors = random_tensors("unet")
    load_pytorch(model, tensors)
    save_pytorch(model, tmp_path, naming="diffusers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    load_pytorch(again, tmp_path)
    assert_holds("unet", again, tensors)


@pytest.mark.parametrize(
    "setting, value",
    [
        ("flip_sin_to_cos", False),
        ("freq_shift", 1),
        ("center_input_sample", True),
        ("downsample_padding", 0),
        ("time_embedding_type", "fourier"),
        ("norm_eps", 1e-6),
        ("norm_num_groups", 16),
        ("attention_head_dim", 8),
        ("block_out_channels", [32, 64, 128]),
        ("layers_per_block", 3),
        ("sample_size", 99),
    ],
)
def test_settings_in_config_json_that_compute_otherwise_are_refused(tmp_path, setting, value):
    model = shared(new_unet)
    save_pytorch(model, tmp_path, naming="diffusers")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text()) | {setting: value}
    file.write_text(json.dumps(config))
    if setting == "sample_size":
        load_pytorch(new_unet(), tmp_path)
        return
    before = values(model)
    for source in (tmp_path, tmp_path / WEIGHTS):
        with pytest.raises(ValueError, match=f"config.json of the U-Net: {setting} is .* the mo"):
            load_pytorch(model, source)
    assert_equal(values(model), before)


def test_what_config_json_leaves_out_is_what_diffusers_takes_for_it(tmp_path):
    save_pytorch(shared(new_unet), tmp_path, naming="diffusers")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["attention_head_dim"]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="attention_head_dim is 8, the model's 32"):
        load_pytorch(shared(new_unet), tmp_path)


def test_the_published_settings_are_the_defaults():
    # The settings of CompVis/ldm-celebahq-256, written by a version that had no others.
    levels = 3
    unet = {
        "_class_name": "UNet2DModel",
        "act_fn": "silu",
        "attention_head_dim": 32,
        "block_out_channels": [224, 448, 672, 896],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * levels,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 64,
        "time_embedding_type": "positional",
        "up_block_types": ["AttnUpBlock2D"] * levels + ["UpBlock2D"],
    }
    vqvae = {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": 3,
        "layers_per_block": 2,
        "num_vq_embeddings": 8192,
        "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    for kind, config, cls in (("unet", unet, UNet), ("autoencoder", vqvae, VQAutoencoder)):
        parameters = inspect.signature(cls.__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters}
        assert diffusers.config_differences(kind, SimpleNamespace(**defaults), config) == []
        told = diffusers.arguments_of(kind, config)
        assert told.items() <= defaults.items()


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("new", [new_autoencoder, lambda: shared(new_unet)])
def test_folders_without_the_network_are_refused(tmp_path, new):
    with pytest.raises(ValueError, match="config.json of a (VQModel|UNet2DModel); .* has none"):
        load_pytorch(new(), tmp_path)
    save_pytorch(shared(new_unet), tmp_path / "unet", naming="diffusers")
    (tmp_path / "unet" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="has that of a UNet2DModel|must have diffusion_pytorch"):
        load_pytorch(new(), tmp_path)
