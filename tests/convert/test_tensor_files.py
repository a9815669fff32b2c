"""Reading of PyTorch files: tensors, and never code."""

import collections
import pickle
import sys
import types

import numpy as np
import pytest
from checkpoints import (
    assert_holds,
    networks_in_checkpoint,
    new_autoencoder,
    new_latent_diffusion,
    random_tensors,
    shared,
    values,
    whole_checkpoint,
)
from safetensors.numpy import save_file
from support import assert_same_arrays as assert_equal

from keras_sparse_dm.convert import load_pytorch


@pytest.mark.slow
def test_a_whole_checkpoint_file(tmp_path, torch):
    state = {name: torch.from_numpy(np.array(t)) for name, t in whole_checkpoint().items()}
    content = {"state_dict": state, "epoch": 3, "lr_schedulers": [{"last_epoch": 2}]}
    model = new_latent_diffusion()
    # The formats since PyTorch 1.6, and before.
    for zipped, ema, part in ((True, True, "averaged"), (False, None, "unet")):
        path = tmp_path / f"{part}.ckpt"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        load_pytorch(model, path, ema=ema)
        assert_holds("unet", model.denoiser, networks_in_checkpoint()[part])
        assert_holds("autoencoder", model.autoencoder, networks_in_checkpoint()["autoencoder"])
        assert float(model.scale_factor) == 0.75


@pytest.fixture
def lightning(monkeypatch):
    """A class that a file names as one of PyTorch Lightning, which is not installed."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for end in range(1, name.count(".") + 2):
        parent = ".".join(name.split(".")[:end])
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    callback = type("ModelCheckpoint", (), {"__module__": name})
    sys.modules[name].ModelCheckpoint = callback
    yield callback


@pytest.mark.cases(1)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_lightning_as_the_published_ones_are(
    tmp_path, torch, lightning, monkeypatch, zipped
):
    tensors = random_tensors("autoencoder")
    made = lightning()
    made.monitor = "val/rec_loss"
    content = {
        "epoch": 3,
        "callbacks": {
            lightning: {"best_model_score": torch.tensor(0.5), "current": np.float64(0.5)}
        },
        "hyper_parameters": collections.defaultdict(dict, {"callback": made, "kind": dict}),
        "state_dict": {name: torch.from_numpy(t) for name, t in tensors.items()},
    }
    path = tmp_path / "model.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    model = new_autoencoder()
    load_pytorch(model, path)
    assert_holds("autoencoder", model, tensors)
    # Exceptions for this file do not hold for another.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


class Callback:
    """Example of an object that a program saves beside the weights."""


@pytest.mark.slow
def test_a_file_with_objects_says_how_to_write_its_weights_alone(tmp_path, torch):
    model = new_autoencoder()
    tensors = random_tensors("autoencoder")
    state = {name: torch.from_numpy(t) for name, t in tensors.items()}
    path = tmp_path / "lightning.ckpt"
    torch.save({"state_dict": state, "callbacks": {Callback: Callback()}}, path)
    before = values(model)
    with pytest.raises(ValueError, match="more than weights.*Callback.*none was run") as error:
        load_pytorch(model, path)
    assert_equal(values(model), before)

    # And the two lines do it.
    _, *lines = str(error.value).splitlines()
    assert len(lines) == 2
    code = "\n".join(line.strip() for line in lines)
    code = code.replace("'weights.ckpt'", repr(str(tmp_path / "weights.ckpt")))
    exec(code, {"torch": torch})
    load_pytorch(model, tmp_path / "weights.ckpt")
    assert_holds("autoencoder", model, tensors)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["tensor", "name", "file"])
def test_code_in_a_file_is_never_run(tmp_path, torch, zipped, place):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    content = {
        "tensor": {"state_dict": {"quant_conv.weight": Evil()}},
        "name": {"state_dict": collections.OrderedDict({"a": torch.zeros(1)}), "x": [Evil()]},
        "file": Evil(),
    }[place]
    path = tmp_path / "evil.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    model = shared(new_autoencoder)
    before = values(model)
    with pytest.raises(ValueError, match="more than weights"):
        load_pytorch(model, path)
    assert not (tmp_path / "pwned").exists()
    assert_equal(values(model), before)


@pytest.mark.parametrize(
    "content, named",
    [
        ({"model": {"a": 1}, "epoch": 3}, "epoch.*model"),
        ({"state_dict": {"a": 1.5}}, "state_dict"),
        ([1, 2], "list"),
    ],
)
def test_a_file_without_named_tensors_is_refused(tmp_path, torch, content, named):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"must hold named tensors.*{named}"):
        load_pytorch(shared(new_autoencoder), tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.9, 0.001])
def test_a_damaged_file_is_named(tmp_path, torch, suffix, kept):
    path = tmp_path / f"model{suffix}"
    tensors = random_tensors("autoencoder")
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
        torch.save(state, path, _use_new_zipfile_serialization=suffix == ".ckpt")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=rf"model\{suffix} cannot be read") as error:
        load_pytorch(shared(new_autoencoder), path)
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)
