"""U-Net, autoencoder and both together from checkpoints with the original names."""

import numpy as np
import pytest
from checkpoints import (
    NETWORKS,
    assert_holds,
    networks_in_checkpoint,
    new_autoencoder,
    new_latent_diffusion,
    new_unet,
    prefixed,
    random_tensors,
    shared,
    values,
    whole_checkpoint,
)
from support import assert_same_arrays as assert_equal

from keras_sparse_dm import sparsify, sparsity_report
from keras_sparse_dm.convert import load_pytorch, original
from keras_sparse_dm.models import UNet, VQAutoencoder


def channels_last(array):
    return array.transpose(0, 2, 3, 1)


@pytest.mark.slow
def test_the_unet_computes_what_the_original_does(reference):
    arrays = reference.arrays("ldm_unet_small.npz")
    model = UNet(model_channels=32)
    load_pytorch(model, reference.state_dict("ldm_unet_small.npz"))
    noise = model((channels_last(arrays["x_nchw"]), arrays["t"]))
    np.testing.assert_allclose(noise, channels_last(arrays["eps_nchw"]), atol=1e-4)


@pytest.mark.slow
def test_the_autoencoder_computes_what_the_original_does(reference):
    arrays = reference.arrays("vq_f4_small.npz")
    model = VQAutoencoder(channels=32, codes=256)
    load_pytorch(model, reference.state_dict("vq_f4_small.npz"))
    latents = model.encode(channels_last(arrays["image_nchw"]))
    quantized, indices = model.quantize(latents)
    np.testing.assert_array_equal(indices, arrays["indices"])
    for mine, name in (
        (latents, "latent_nchw"),
        (quantized, "quantized_nchw"),
        (model.decode(latents), "decoded_nchw"),
    ):
        np.testing.assert_allclose(mine, channels_last(arrays[name]), atol=1e-4)


@pytest.mark.cases(1)
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_plan_covers_every_weight_and_no_part_twice(kind):
    network = shared(NETWORKS[kind])
    covered = {}
    for slot in original.PLANS[kind](network).values():
        count = covered.setdefault(slot.variable.path, np.zeros(slot.variable.shape, "int"))
        slot.write(count, slot.read(count) + 1)
    masks = {
        mask.path for layer in network._flatten_layers() for _, mask in getattr(layer, "masks", ())
    }
    weights = {v.path for v in network.weights} - masks
    if kind == "autoencoder":
        weights.remove(network.unused_steps.path)
    assert set(covered) == weights
    assert all(np.all(count == 1) for count in covered.values())


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "kind, prefix",
    [
        ("unet", "model.diffusion_model."),
        ("unet", "diffusion_model."),
        ("autoencoder", "first_stage_model."),
    ],
)
def test_names_may_have_the_published_prefix(kind, prefix):
    network, tensors = NETWORKS[kind](), random_tensors(kind)
    load_pytorch(network, prefixed(prefix, tensors))
    assert_holds(kind, network, tensors)


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "kind, ema, part",
    [
        ("unet", None, "unet"),
        ("unet", False, "unet"),
        ("unet", True, "averaged"),
        ("autoencoder", None, "autoencoder"),
    ],
)
def test_each_network_finds_its_part_of_a_whole_checkpoint(kind, ema, part):
    network = NETWORKS[kind]()
    load_pytorch(network, whole_checkpoint(), ema=ema)
    assert_holds(kind, network, networks_in_checkpoint()[part])


@pytest.mark.slow
def test_latent_diffusion_takes_all_of_it():
    model = new_latent_diffusion()
    for ema, part in ((None, "unet"), (True, "averaged")):
        load_pytorch(model, whole_checkpoint(), ema=ema)
        assert_holds("unet", model.denoiser, networks_in_checkpoint()[part])
        assert_holds("autoencoder", model.autoencoder, networks_in_checkpoint()["autoencoder"])
        assert float(model.scale_factor) == 0.75
        # Training must not replace it by the first batch's value.
        assert float(model.scale_known) == 1.0


@pytest.mark.slow
def test_latent_diffusion_without_a_scale_factor_keeps_its_own():
    model = new_latent_diffusion()
    model.scale_factor.assign(1.5)
    load_pytorch(model, whole_checkpoint("scale_factor", "averaged", "buffers"))
    assert float(model.scale_factor) == 1.5
    assert float(model.scale_known) == 0.0


@pytest.mark.slow
def test_averaged_weights_alone_are_taken_by_default_and_refused_where_others_are_wanted():
    model = new_unet()
    load_pytorch(model, whole_checkpoint("unet"))
    assert_holds("unet", model, networks_in_checkpoint()["averaged"])
    with pytest.raises(ValueError, match="holds no U-Net"):
        load_pytorch(model, whole_checkpoint("unet"), ema=False)
    with pytest.raises(ValueError, match="holds no U-Net with averaged weights"):
        load_pytorch(model, whole_checkpoint("averaged"), ema=True)


@pytest.mark.slow
def test_averaged_names_may_lack_the_module_around_the_unet():
    model, tensors = new_unet(), random_tensors("unet")
    dotless = {name.replace(".", ""): tensor for name, tensor in tensors.items()}
    load_pytorch(model, prefixed("model_ema.", dotless))
    assert_holds("unet", model, tensors)


@pytest.mark.slow
def test_the_file_of_the_first_stage_holds_its_training_losses_too():
    tensors = random_tensors("autoencoder")
    losses = {
        "loss.perceptual_loss.net.slice1.0.weight": np.zeros((64, 3, 3, 3), "float32"),
        "loss.discriminator.main.0.weight": np.zeros((64, 3, 4, 4), "float32"),
    }
    model = new_autoencoder()
    load_pytorch(model, tensors | losses)
    assert_holds("autoencoder", model, tensors)
    with pytest.raises(ValueError, match="loss.discriminator.*no place"):
        load_pytorch(shared(new_unet), random_tensors("unet") | losses)


@pytest.mark.slow
@pytest.mark.parametrize(
    "new, name",
    [
        (new_unet, "extra"),
        (new_unet, "model.diffusion_model.label_emb.0.weight"),
        (new_unet, "cond_stage_model.transformer.weight"),
        (new_autoencoder, "first_stage_model.encoder.conv_in.extra"),
        (new_latent_diffusion, "first_stage_model.quant_conv2.weight"),
        (new_latent_diffusion, "betas_of_another_kind"),
    ],
)
def test_what_belongs_nowhere_is_refused_and_nothing_changes(new, name):
    model = shared(new)
    before = values(model)
    tensors = whole_checkpoint() | {name: np.zeros(3, "float32")}
    with pytest.raises(ValueError, match=f"{name} has no place in the model"):
        load_pytorch(model, tensors)
    assert_equal(values(model), before)


@pytest.mark.parametrize("new", [new_unet, new_autoencoder, new_latent_diffusion])
def test_missing_and_misshaped_tensors_are_listed_and_nothing_changes(new):
    model = shared(new)
    before = values(model)
    gone = ("model.diffusion_model.middle_block.1.qkv.bias", "first_stage_model.quant_conv.bias")
    damaged = {
        "model.diffusion_model.out.2.weight": np.zeros((3, 33, 3, 3), "float32"),
        "first_stage_model.quant_conv.weight": np.zeros((5, 3, 1, 1), "float32"),
    }
    tensors = {n: t for n, t in (whole_checkpoint() | damaged).items() if n not in gone}
    with pytest.raises(ValueError) as error:
        load_pytorch(model, tensors)
    message = str(error.value)
    assert "\n" not in message
    for part, wanted in (("model.diffusion", new_autoencoder), ("first_stage", new_unet)):
        for name, problem in ((gone, "is missing"), (damaged, "of shape")):
            (name,) = (n for n in name if n.startswith(part))
            assert (f"{name} {problem}" in message) == (new is not wanted)
    assert_equal(values(model), before)


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "new, arguments, told",
    [
        (new_autoencoder, {"codes": 32}, r"`codes` of the autoencoder is 16 there.* is 32"),
        (new_autoencoder, {"channel_mult": (1, 2, 4)}, r"`channel_mult`.*\(1, 2\) there"),
        (new_unet, {"model_channels": 64}, "`model_channels` of the U-Net is 32 there"),
        (new_unet, {"attention_factors": (1, 2)}, r"`attention_factors`.*\(2,\) there"),
        (new_unet, {"num_res_blocks": 2}, "`num_res_blocks`.* is 1 there"),
    ],
)
def test_another_structure_is_told_by_its_arguments_and_the_list_is_short(new, arguments, told):
    model = new(**arguments)
    before = values(model)
    with pytest.raises(ValueError, match=told) as error:
        load_pytorch(model, random_tensors("unet" if new is new_unet else "autoencoder"))
    assert len(str(error.value)) < 2000
    assert_equal(values(model), before)


def test_a_source_without_the_network_is_told_from_a_damaged_one():
    with pytest.raises(ValueError, match="holds no U-Net; its .* tensors are encoder.conv_in"):
        load_pytorch(shared(new_unet), random_tensors("autoencoder"))
    with pytest.raises(ValueError, match="holds no autoencoder; its .* time_embed"):
        load_pytorch(shared(new_latent_diffusion), random_tensors("unet"))
    with pytest.raises(ValueError, match="holds no U-Net; its 0 tensors are none"):
        load_pytorch(shared(new_unet), {})
    with pytest.raises(ValueError, match="`source` must be a path or a dictionary.*int"):
        load_pytorch(shared(new_unet), 3)
    with pytest.raises(ValueError, match="names of tensors as keys; received 0"):
        load_pytorch(shared(new_unet), {0: np.zeros(3)})
    with pytest.raises(ValueError, match="`ema` must be True, False or None; received 'yes'"):
        load_pytorch(shared(new_unet), {}, ema="yes")


@pytest.mark.slow
def test_a_converted_unet_is_dense():
    model = new_unet()
    sparsify(model, 0.8, seed=0)
    load_pytorch(model, random_tensors("unet"))
    report = sparsity_report(model)
    assert report.sparsity == 0.0
    assert all(k.active == k.nonzeros == k.size for k in report.kernels)


def test_codes_that_were_trained_are_not_restarted():
    model = new_autoencoder()
    assert np.all(model.unused_steps == model.restart_after)
    load_pytorch(model, random_tensors("autoencoder"))
    assert np.all(model.unused_steps == 0)


@pytest.mark.cases(1)
@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float64"])
def test_every_precision_becomes_float32(tmp_path, torch, precision):
    stored = {
        name: torch.from_numpy(tensor).to(getattr(torch, precision))
        for name, tensor in random_tensors("autoencoder").items()
    }
    torch.save({"state_dict": stored}, tmp_path / "model.ckpt")
    pytest.importorskip("safetensors.torch").save_file(stored, tmp_path / "model.safetensors")
    model = new_autoencoder()
    for source in (stored, tmp_path / "model.ckpt", tmp_path / "model.safetensors"):
        load_pytorch(model, random_tensors("autoencoder", seed=5))
        load_pytorch(model, source)
        assert_holds("autoencoder", model, {n: t.float().numpy() for n, t in stored.items()})
    assert model.codebook.dtype == "float32"
