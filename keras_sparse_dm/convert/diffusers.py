"""Plans with the names of the diffusers library, and its `config.json`."""

import numpy as np

from keras_sparse_dm.convert.plan import (
    Slot,
    autoencoder_layers,
    numbered,
    plan_as_matrix,
    plan_of,
    plan_of_codes,
    plan_of_parts,
)

# Classes of diffusers, and the folders of a pipeline that hold them.
CLASSES = {"unet": "UNet2DModel", "autoencoder": "VQModel"}
FOLDERS = {"unet": ("unet",), "autoencoder": ("vqvae", "vae")}
CONFIG_FILE = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model"

_BLOCK = {
    "norm_1": "norm1",
    "conv_1": "conv1",
    "time_projection": "time_emb_proj",
    "norm_2": "norm2",
    "conv_2": "conv2",
    "shortcut": "conv_shortcut",
}


def old_attention_name(name):
    """Return the name that files of 2022 have for a tensor of an attention."""
    for part, old in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ):
        name = name.replace(f".{part}.", f".{old}.")
    return name


def unet(model):
    """Return the plan of a `UNet` as a `UNet2DModel`."""
    plan = plan_of("time_embedding.linear_1", model.time_embedding[0])
    plan |= plan_of("time_embedding.linear_2", model.time_embedding[1])
    plan |= plan_of("conv_in", model.input_blocks[0][0])
    # On the way down, each resolution but the last ends with a downsampling. On the way up, it has
    # one block more, with the upsampling after it.
    per_level = model.num_res_blocks + 1
    for direction, blocks, resampling in (
        ("down", model.input_blocks[1:], "downsamplers"),
        ("up", model.output_blocks, "upsamplers"),
    ):
        for number, layers in enumerate(blocks):
            level, i = divmod(number, per_level)
            name = f"{direction}_blocks.{level}"
            for kind, _, layer in numbered(layers):
                if kind == "block":
                    plan |= plan_of_parts(f"{name}.resnets.{i}", layer, _BLOCK)
                elif kind == "attention":
                    plan |= _heads(f"{name}.attentions.{i}", layer)
                else:
                    plan |= plan_of(f"{name}.{resampling}.0.conv", layer.conv)
    for kind, i, layer in numbered(model.middle_block):
        if kind == "block":
            plan |= plan_of_parts(f"mid_block.resnets.{i}", layer, _BLOCK)
        else:
            plan |= _heads(f"mid_block.attentions.{i}", layer)
    plan |= plan_of("conv_norm_out", model.output_norm)
    return plan | plan_of("conv_out", model.output_conv)


def _heads(name, layer):
    """Return the plan of the U-Net's attention, whose one projection is three in diffusers."""
    channels, head_channels = layer.channels, layer.head_channels
    heads = channels // head_channels
    plan = plan_of(f"{name}.group_norm", layer.norm)
    plan |= plan_as_matrix(f"{name}.to_out.0", layer.output_projection)
    for i, part in enumerate(("to_q", "to_k", "to_v")):
        plan[f"{name}.{part}.weight"] = Slot(
            layer.qkv.kernel,
            np.transpose,
            lambda kernel: kernel.reshape(len(kernel), -1).T,
            view=(channels, heads, 3, head_channels),
            index=(slice(None), slice(None), i),
        )
        plan[f"{name}.{part}.bias"] = Slot(
            layer.qkv.bias,
            to_pytorch=np.ravel,
            view=(heads, 3, head_channels),
            index=(slice(None), i),
        )
    return plan


def autoencoder(model):
    """Return the plan of a `VQAutoencoder` as a `VQModel`."""
    ends = {"input": "conv_in", "norm": "conv_norm_out", "output": "conv_out"}
    plan = {}
    coarsest = len(model.channel_mult) - 1
    for side, level, kind, i, layer in autoencoder_layers(model):
        direction = {"encoder": "down", "decoder": "up"}[side]
        if level is None:
            name = f"{side}.mid_block"
        else:
            # The decoder's blocks count from the coarsest resolution up.
            name = f"{side}.{direction}_blocks.{level if side == 'encoder' else coarsest - level}"
        if kind in ends:
            plan |= plan_of(f"{side}.{ends[kind]}", layer)
        elif kind == "block":
            plan |= plan_of_parts(f"{name}.resnets.{i}", layer, _BLOCK)
        elif kind == "attention":
            plan |= _one_head(f"{name}.attentions.{i}", layer)
        else:
            plan |= plan_of(f"{name}.{direction}samplers.0.conv", layer.conv)
    return plan | plan_of_codes(model)


def _one_head(name, layer):
    plan = plan_of(f"{name}.group_norm", layer.norm)
    for attribute, suffix in (
        ("query", "to_q"),
        ("key", "to_k"),
        ("value", "to_v"),
        ("output_projection", "to_out.0"),
    ):
        plan |= plan_as_matrix(f"{name}.{suffix}", getattr(layer, attribute))
    return plan


PLANS = {"unet": unet, "autoencoder": autoencoder}

# Defaults of the classes for settings that a file leaves out, without settings that affect neither
# the weights nor the computation.
_DEFAULTS = {
    "unet": {
        "in_channels": 3,
        "out_channels": 3,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
        "block_out_channels": [224, 448, 672, 896],
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "downsample_padding": 1,
        "downsample_type": "conv",
        "upsample_type": "conv",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "default",
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": None,
    },
    "autoencoder": {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "block_out_channels": [64],
        "layers_per_block": 1,
        "act_fn": "silu",
        "latent_channels": 3,
        "num_vq_embeddings": 256,
        "norm_num_groups": 32,
        "norm_type": "group",
        "mid_block_add_attention": True,
    },
}


def config_of(kind, model):
    """Return the contents of a model's `config.json`: `{setting: value}`."""
    return {"unet": _unet_config, "autoencoder": _autoencoder_config}[kind](model)


def _unet_config(model):
    attention = [2**level in model.attention_factors for level in range(len(model.channel_mult))]
    return _DEFAULTS["unet"] | {
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in attention[::-1]],
        "block_out_channels": [m * model.model_channels for m in model.channel_mult],
        "layers_per_block": model.num_res_blocks,
        "attention_head_dim": model.head_channels,
        "attn_norm_num_groups": 32,
        "time_embedding_dim": 4 * model.model_channels,
    }


def _autoencoder_config(model):
    attention = [2**level in model.attention_factors for level in range(len(model.channel_mult))]
    return _DEFAULTS["autoencoder"] | {
        "in_channels": model.image_channels,
        "out_channels": model.image_channels,
        "down_block_types": [f"{'Attn' * a}DownEncoderBlock2D" for a in attention],
        "up_block_types": [f"{'Attn' * a}UpDecoderBlock2D" for a in attention[::-1]],
        "block_out_channels": [m * model.channels for m in model.channel_mult],
        "layers_per_block": model.num_res_blocks,
        "latent_channels": model.latent_channels,
        "num_vq_embeddings": model.codes,
        "norm_num_groups": model.norm_groups,
        "vq_embed_dim": model.code_channels,
    }


def completed(kind, config):
    """Return a `config.json` completed with the defaults of its class in diffusers."""
    config = _DEFAULTS[kind] | config
    if kind == "unet":
        derived = {
            "attn_norm_num_groups": config["norm_num_groups"],
            "time_embedding_dim": 4 * config["block_out_channels"][0],
        }
    else:
        derived = {"vq_embed_dim": config["latent_channels"]}
    return config | {k: v for k, v in derived.items() if config.get(k) is None}


def config_differences(kind, model, config):
    """List the differences between a `config.json` and a model, as texts.

    Args:
        kind: `"unet"` or `"autoencoder"`.
        model: The `UNet` or `VQAutoencoder`.
        config: Contents of the file.
    """
    config = completed(kind, config)
    return [
        f"{setting} is {config[setting]!r}, the model's {value!r}"
        for setting, value in config_of(kind, model).items()
        if config[setting] != value
    ]


def arguments_of(kind, config):
    """Return the arguments of the `UNet` or `VQAutoencoder` that a `config.json` describes.

    Raises:
        ValueError: if neither class can have that architecture.
    """
    config = completed(kind, config)
    first, *_ = channels = config["block_out_channels"]
    if any(c % first for c in channels):
        raise ValueError(
            f"`block_out_channels` must be multiples of the first; config.json has {channels}."
        )
    arguments = {
        "channel_mult": tuple(c // first for c in channels),
        "num_res_blocks": config["layers_per_block"],
        "attention_factors": tuple(
            2**level
            for level, name in enumerate(config["down_block_types"])
            if name.startswith("Attn")
        ),
    }
    if kind == "unet":
        return arguments | {
            "model_channels": first,
            "head_channels": config["attention_head_dim"],
            "in_channels": config["in_channels"],
            "out_channels": config["out_channels"],
        }
    return arguments | {
        "channels": first,
        "codes": config["num_vq_embeddings"],
        "code_channels": config["vq_embed_dim"],
        "latent_channels": config["latent_channels"],
        "image_channels": config["in_channels"],
        "norm_groups": config["norm_num_groups"],
    }
