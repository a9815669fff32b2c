"""Writing of checkpoints, and reading them back."""

import numpy as np
import pytest
from checkpoints import (
    NETWORKS,
    assert_holds,
    new_autoencoder,
    new_latent_diffusion,
    new_unet,
    random_tensors,
    shared,
    values,
    whole_checkpoint,
)
from safetensors.numpy import load_file
from support import assert_same_arrays as assert_equal

from keras_sparse_dm import sparsify
from keras_sparse_dm.convert import load_pytorch, original, save_pytorch
from keras_sparse_dm.models import UNet, VQAutoencoder


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "file, new",
    [
        ("ldm_unet_small.npz", lambda: UNet(model_channels=32)),
        ("vq_f4_small.npz", lambda: VQAutoencoder(channels=32, codes=256)),
    ],
)
def test_saving_gives_the_tensors_that_were_loaded(tmp_path, reference, file, new):
    tensors = reference.state_dict(file)
    model = new()
    load_pytorch(model, tensors)
    assert save_pytorch(model, tmp_path / "model.safetensors") is None
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(tensors)
    for name, tensor in tensors.items():
        assert saved[name].dtype == "float32"
        np.testing.assert_array_equal(saved[name], tensor)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("kind", NETWORKS)
def test_what_is_saved_loads_to_the_same_bits(tmp_path, torch, kind):
    model, tensors = NETWORKS[kind](), random_tensors(kind)
    load_pytorch(model, tensors)
    for name, prefix in (("a.ckpt", False), ("a.safetensors", False), ("b.pt", True)):
        save_pytorch(model, str(tmp_path / name), prefix=prefix)
        load_pytorch(model, random_tensors(kind, seed=5))
        load_pytorch(model, tmp_path / name)
        assert_holds(kind, model, tensors)
    assert len([*tmp_path.iterdir()]) == 3
    saved = torch.load(tmp_path / "b.pt", weights_only=True)
    assert set(saved) == {"state_dict"}
    prefix = original.PREFIXES[kind]
    named = {n if n == "pe_proj_W" else prefix + n: t for n, t in tensors.items()}
    assert set(saved["state_dict"]) == set(named)


@pytest.mark.slow
def test_latent_diffusion_is_saved_with_the_published_prefixes(tmp_path):
    checkpoint = whole_checkpoint("averaged", "buffers")
    model = new_latent_diffusion()
    load_pytorch(model, checkpoint)
    save_pytorch(model, tmp_path / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(checkpoint)
    for name, tensor in checkpoint.items():
        np.testing.assert_array_equal(saved[name], tensor)
    before = values(model)
    load_pytorch(model.denoiser, random_tensors("unet", seed=5))
    model.scale_factor.assign(1.0)
    load_pytorch(model, tmp_path / "model.safetensors")
    assert_equal(values(model), before)


def test_a_scale_that_is_not_known_yet_is_not_written(tmp_path):
    save_pytorch(shared(new_latent_diffusion), tmp_path / "model.safetensors")
    assert "scale_factor" not in load_file(tmp_path / "model.safetensors")


@pytest.mark.slow
def test_pruned_weights_are_saved_as_zeros(tmp_path):
    model = new_unet()
    sparsify(model, 0.5, seed=0)
    before = [np.array(v) for v in model.trainable_weights]
    save_pytorch(model, tmp_path / "model.safetensors")
    load_pytorch(model, random_tensors("unet"))
    load_pytorch(model, tmp_path / "model.safetensors")
    assert_equal(model.trainable_weights, before)


def test_a_file_that_exists_is_kept_unless_overwriting_is_asked_for(tmp_path):
    model, path = shared(new_autoencoder), tmp_path / "model.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(ValueError, match="model.safetensors exists; pass overwrite=True"):
        save_pytorch(model, path)
    assert path.read_bytes() == b"precious"
    save_pytorch(model, path, overwrite=True)
    assert len(load_file(path)) == len(random_tensors("autoencoder"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"path": "model.h5"}, r"`path` must end in \.ckpt.*model\.h5"),
        ({"path": "model.ckpt", "naming": "keras"}, "`naming` must be one of original.*'keras'"),
        ({"path": "f", "naming": "diffusers", "prefix": True}, "`prefix` must be False"),
    ],
)
def test_what_cannot_be_saved_is_said(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        save_pytorch(shared(new_autoencoder), **arguments)
    assert not [*tmp_path.iterdir()]


def test_chirodiff_has_no_names_in_diffusers(tmp_path):
    with pytest.raises(ValueError, match="diffusers has no ChiroDiff"):
        save_pytorch(shared(NETWORKS["chirodiff"]), tmp_path, naming="diffusers")
