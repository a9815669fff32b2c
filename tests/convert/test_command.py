"""`sparse-dm convert`."""

import re

import keras
import numpy as np
import pytest
from checkpoints import (
    assert_holds,
    networks_in_checkpoint,
    new_chirodiff,
    new_unet,
    random_tensors,
    shared,
    whole_checkpoint,
)

from keras_sparse_dm import models
from keras_sparse_dm.commands.convert import convert_command
from keras_sparse_dm.convert import load_pytorch, save_pytorch
from keras_sparse_dm.diffusion import DiffusionModel, NoiseSchedule


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Function that runs the command in its own folder: `(exit code, stdout, stderr)`."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = convert_command([*argv])
        return code, *capsys.readouterr()

    return run


def write(tensors, path="source.safetensors"):
    from safetensors.numpy import save_file

    save_file({name: np.asarray(t) for name, t in tensors.items()}, path)


@pytest.mark.slow
def test_a_whole_checkpoint_there_and_back(command):
    write(whole_checkpoint())
    norm_groups = ("--norm-groups", "4", "--image-size", "16")
    code, out, err = command("source.safetensors", "all.keras", "--ema", *norm_groups)
    assert (code, err) == (0, "")
    assert "Found the U-Net and autoencoder" in out and "by the names of its tensors" in out
    assert "model_channels=32" in out and "codes=16" in out and "timesteps=20" in out
    networks = networks_in_checkpoint()
    count = len(networks["unet"]) + len(networks["autoencoder"]) + 1
    parameters = 1 + sum(
        t.size for part in ("unet", "autoencoder") for t in networks[part].values()
    )
    assert f"Converted {count} tensors with {parameters:,} parameters, averaged weights" in out
    assert f"model ({len(networks['unet'])})" in out and "noise schedule (5)" in out

    model = keras.saving.load_model("all.keras")
    assert isinstance(model, models.LatentDiffusion)
    assert_holds("unet", model.denoiser, networks["averaged"])
    assert_holds("autoencoder", model.autoencoder, networks["autoencoder"])
    assert model.noise_schedule == NoiseSchedule.scaled_linear(20)
    assert float(model.scale_factor) == 0.75

    code, out, err = command("all.keras", "unet.safetensors", "--part", "unet", "--prefix")
    assert (code, err) == (0, "")
    assert f"Converted {len(networks['unet'])} tensors" in out
    again = new_unet()
    load_pytorch(again, "unet.safetensors")
    assert_holds("unet", again, networks["averaged"])
    code, out, err = command("all.keras", "folder", "--naming", "diffusers")
    assert (code, err) == (0, "")
    code, out, err = command("folder", "vq.keras", "--part", "autoencoder")
    assert (code, err) == (0, "")
    assert_holds("autoencoder", keras.saving.load_model("vq.keras"), networks["autoencoder"])


@pytest.mark.slow
def test_pytorch_s_own_files_and_sketches(command, torch):
    tensors = random_tensors("chirodiff")
    save_pytorch(loaded(new_chirodiff, tensors), "source.ckpt", prefix=True)
    code, out, err = command("source.ckpt", "a.keras", "--representation", "delta")
    assert (code, err) == (0, "")
    assert "Found the ChiroDiff network" in out and "units=6, num_layers=2" in out
    model = keras.saving.load_model("a.keras")
    assert model.representation == "delta"
    assert_holds("chirodiff", model, tensors)
    # In the state after a training run.
    DiffusionModel(model, NoiseSchedule.linear(1000)).save("run.keras")
    code, out, err = command("run.keras", "back.pt")
    assert (code, err) == (0, "")
    again = new_chirodiff()
    load_pytorch(again, "back.pt")
    assert_holds("chirodiff", again, tensors)


def loaded(new, tensors):
    model = new()
    load_pytorch(model, tensors)
    return model


def test_a_preset_is_taken_as_it_is(command):
    write(random_tensors("chirodiff"))
    code, out, err = command("source.safetensors", "a.keras", "--preset", "chirodiff_vmnist")
    assert code == 1 and out.count("\n") == 1
    assert "`units` of the ChiroDiff network is 6 there, the model's is 48" in err
    code, _, err = command("source.safetensors", "a.keras", "--preset", "nonsense")
    assert code == 2 and "--preset must be one of" in err


@pytest.mark.parametrize(
    "argv, code, message",
    [
        (["source.safetensors"], 2, "sparse-dm convert: error: .*TARGET.*required"),
        (["gone.ckpt", "a.keras"], 2, r"SOURCE must exist; received gone\.ckpt"),
        (["source.safetensors", "a.pt"], 2, "must be a .keras file, and not both"),
        (["source.safetensors", "there.keras"], 2, "there.keras exists; --overwrite replaces"),
        (["source.safetensors", "no/a.keras"], 2, r"folder of TARGET must exist; .*no/a\.keras"),
        (["source.safetensors", "a.keras", "--part", "x"], 2, "--part"),
        (["source.safetensors", "a.keras", "--part", "unet"], 1, "holds no U-Net"),
        (["source.safetensors", "a.keras"], 1, "`norm_groups`; received 8"),
        (["source.safetensors", "a.keras", "--ema", "--norm-groups=4"], 1, "averaged weights"),
        (["there.keras", "a.ckpt"], 1, "there.keras cannot be read"),
        (["other.safetensors", "a.keras"], 1, "none of the networks that can be converted"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_an_exit_code(command, argv, code, message):
    write(random_tensors("autoencoder"))
    write({"a.weight": np.ones(2)}, "other.safetensors")
    with open("there.keras", "w") as file:
        file.write("precious")
    got, _, err = command(*argv)
    assert got == code
    (line,) = err.splitlines()
    assert line.startswith("sparse-dm convert: error: ")
    assert re.search(message, line)
    with open("there.keras") as file:
        assert file.read() == "precious"


@pytest.mark.slow
def test_overwriting_is_asked_for(command):
    save_pytorch(shared(new_unet), "source.safetensors")
    with open("a.keras", "w") as file:
        file.write("old")
    code, out, err = command("source.safetensors", "a.keras", "--overwrite")
    assert (code, err) == (0, "")
    assert isinstance(keras.saving.load_model("a.keras"), models.UNet)
    assert "Wrote a.keras" in out


def test_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        convert_command(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    for option in ("--part", "--preset", "--ema", "--head-channels", "--overwrite"):
        assert option in out
