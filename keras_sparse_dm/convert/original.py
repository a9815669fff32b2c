"""Plans with the names of the original programs: CompVis/latent-diffusion, dasayan05/chirodiff."""

import numpy as np

from keras_sparse_dm.convert.plan import (
    Slot,
    autoencoder_layers,
    plan_as_convolution,
    plan_of,
    plan_of_codes,
    plan_of_parts,
)
from keras_sparse_dm.models.blocks import Downsample, ResidualBlock, Upsample
from keras_sparse_dm.models.unet import AttentionBlock

# Prefixes of the networks' names in a published checkpoint of the whole model.
PREFIXES = {
    "unet": "model.diffusion_model.",
    "autoencoder": "first_stage_model.",
    "chirodiff": "scorefn.",
}
# Tensors of a whole checkpoint that are not weights: the buffers of `DDPM.register_schedule`, and
# the loss weights of the timesteps if they are learned or saved.
BUFFERS = frozenset(
    {
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "lvlb_weights",
        "logvar",
    }
)
# Another buffer, which a `LatentDiffusion` reads.
SCALE_FACTOR = "scale_factor"
# ChiroDiff's frequencies, which belong to the module around the network.
FREQUENCIES = "pe_proj_W"


def unet(model):
    """Return the plan of a `UNet`."""
    parts = {
        ResidualBlock: {
            "norm_1": "in_layers.0",
            "conv_1": "in_layers.2",
            "time_projection": "emb_layers.1",
            "norm_2": "out_layers.0",
            "conv_2": "out_layers.3",
            "shortcut": "skip_connection",
        },
        Downsample: {"conv": "op"},
        Upsample: {"conv": "conv"},
    }
    blocks = {f"input_blocks.{i}": layers for i, layers in enumerate(model.input_blocks)}
    blocks["middle_block"] = model.middle_block
    blocks |= {f"output_blocks.{i}": layers for i, layers in enumerate(model.output_blocks)}

    plan = plan_of("time_embed.0", model.time_embedding[0])
    plan |= plan_of("time_embed.2", model.time_embedding[1])
    for block, layers in blocks.items():
        for i, layer in enumerate(layers):
            name = f"{block}.{i}"
            if isinstance(layer, AttentionBlock):
                plan |= plan_of(f"{name}.norm", layer.norm)
                plan |= plan_as_convolution(f"{name}.qkv", layer.qkv)
                plan |= plan_as_convolution(f"{name}.proj_out", layer.output_projection)
            elif type(layer) in parts:
                plan |= plan_of_parts(name, layer, parts[type(layer)])
            else:
                plan |= plan_of(name, layer)
    return plan | plan_of("out.0", model.output_norm) | plan_of("out.2", model.output_conv)


def autoencoder(model):
    """Return the plan of a `VQAutoencoder`."""
    block_parts = {
        "norm_1": "norm1",
        "conv_1": "conv1",
        "norm_2": "norm2",
        "conv_2": "conv2",
        "shortcut": "nin_shortcut",
    }
    attention_parts = {
        "norm": "norm",
        "query": "q",
        "key": "k",
        "value": "v",
        "output_projection": "proj_out",
    }
    ends = {"input": "conv_in", "norm": "norm_out", "output": "conv_out"}
    plan = {}
    for side, level, kind, i, layer in autoencoder_layers(model):
        direction = {"encoder": "down", "decoder": "up"}[side]
        name, number = f"{side}.{direction}.{level}", f".{i}"
        if level is None:
            name, number = f"{side}.mid", f"_{i + 1}"
        if kind in ends:
            plan |= plan_of(f"{side}.{ends[kind]}", layer)
        elif kind == "block":
            plan |= plan_of_parts(f"{name}.block{number}", layer, block_parts)
        elif kind == "attention":
            plan |= plan_of_parts(f"{name}.attn{number}", layer, attention_parts)
        else:
            plan |= plan_of(f"{name}.{direction}sample.conv", layer.conv)
    return plan | plan_of_codes(model)


def chirodiff(model):
    """Return the plan of a `ChiroDiff`."""
    frequencies = Slot(model.time_frequencies, to_pytorch=lambda f: f.reshape(-1, 1))
    plan = {FREQUENCIES: frequencies}
    for i, bidirectional in enumerate(model.recurrent):
        for suffix, layer in (
            ("", bidirectional.forward_layer),
            ("_reverse", bidirectional.backward_layer),
        ):
            cell = layer.cell
            matrix = (lambda w: _swapped_gates(w).T, lambda k: _swapped_gates(k.T))
            gates = (_swapped_gates, _swapped_gates)
            plan |= {
                f"model.rnn.weight_ih_l{i}{suffix}": Slot(cell.kernel, *matrix),
                f"model.rnn.weight_hh_l{i}{suffix}": Slot(cell.recurrent_kernel, *matrix),
                f"model.rnn.bias_ih_l{i}{suffix}": Slot(cell.bias, *gates, index=(0,)),
                f"model.rnn.bias_hh_l{i}{suffix}": Slot(cell.bias, *gates, index=(1,)),
            }
    plan |= plan_of("model.out_proj", model.output_projection)
    return plan | plan_of("final_proj.0", model.noise_projection)


def _swapped_gates(gates):
    # PyTorch stacks the gates as reset, update, new; Keras as update, reset, new.
    first, second, new = np.split(gates, 3)
    return np.concatenate([second, first, new])


PLANS = {"unet": unet, "autoencoder": autoencoder, "chirodiff": chirodiff}
