"""Small networks of every kind, and the tensors of their PyTorch checkpoints."""

import functools

import numpy as np
from keras import ops

from keras_sparse_dm.convert import diffusers, original
from keras_sparse_dm.convert.plan import read_plan
from keras_sparse_dm.diffusion import NoiseSchedule
from keras_sparse_dm.models import ChiroDiff, LatentDiffusion, UNet, VQAutoencoder


def new_unet(**arguments):
    small = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
    return UNet(**(small | {"attention_factors": (2,), "timesteps": 20} | arguments))


def new_autoencoder(**arguments):
    small = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
    return VQAutoencoder(**(small | {"codes": 16, "attention_factors": (2,)} | arguments))


def new_chirodiff(**arguments):
    return ChiroDiff(**({"units": 6, "num_layers": 2, "timesteps": 50} | arguments))


def new_latent_diffusion():
    schedule = NoiseSchedule.scaled_linear(20)
    return LatentDiffusion(new_unet(), new_autoencoder(), schedule, image_size=16)


NETWORKS = {"unet": new_unet, "autoencoder": new_autoencoder, "chirodiff": new_chirodiff}
PLANS = {"original": original.PLANS, "diffusers": diffusers.PLANS}


@functools.cache
def shared(new):
    """Model for tests of errors; none may change it."""
    return new()


def random_tensors(kind, seed=0, naming="original"):
    """`{PyTorch name: array}` for the small network of a kind, drawn at random."""
    random = np.random.default_rng(seed)
    plan = PLANS[naming][kind](shared(NETWORKS[kind]))
    return {
        name: (0.3 * random.standard_normal(slot.shape)).astype("float32")
        for name, slot in plan.items()
    }


def assert_holds(kind, network, tensors):
    """Check that a network's weights equal tensors with the original names, bit for bit."""
    held = read_plan(original.PLANS[kind](network))
    assert set(held) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(held[name], tensor, err_msg=name)


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


@functools.cache
def networks_in_checkpoint():
    """Contents of `whole_checkpoint` with the networks' own names: `{part: {name: array}}`."""
    return {
        "unet": random_tensors("unet", 0),
        "averaged": random_tensors("unet", 1),
        "autoencoder": random_tensors("autoencoder", 2),
    }


def whole_checkpoint(*left_out):
    """Return a checkpoint of latent diffusion without some parts: `{name: array}`."""
    networks = networks_in_checkpoint()
    betas = NoiseSchedule.scaled_linear(20).betas
    parts = {
        "unet": prefixed("model.diffusion_model.", networks["unet"]),
        "averaged": {
            "model_ema.decay": np.float32(0.9999),
            "model_ema.num_updates": np.int32(7),
            **{
                "model_ema." + f"diffusion_model.{name}".replace(".", ""): tensor
                for name, tensor in networks["averaged"].items()
            },
        },
        "autoencoder": prefixed("first_stage_model.", networks["autoencoder"]),
        "buffers": {
            "betas": betas.astype("float32"),
            "alphas_cumprod": np.cumprod(1 - betas).astype("float32"),
            "sqrt_recipm1_alphas_cumprod": np.ones(20, "float32"),
            "posterior_log_variance_clipped": np.ones(20, "float32"),
            "logvar": np.zeros(20, "float32"),
        },
        "scale_factor": {"scale_factor": np.float32(0.75)},
    }
    return {n: t for part, named in parts.items() if part not in left_out for n, t in named.items()}


def values(model):
    """Weights and masks, without the random state among a model's variables."""
    return [ops.convert_to_numpy(v) for v in model.weights]
