"""Arguments of a network from the shapes of its tensors in a checkpoint."""

import itertools

# Names, without prefix, of the tensors whose shapes or presence determine the arguments.
_UNET_NAMES = {
    "original": {
        "input": "input_blocks.0.0.weight",
        "output": "out.2.weight",
        "block": "input_blocks.{number}.0.out_layers.3.weight",
        "attention": "input_blocks.{number}.1.qkv.weight",
    },
    "diffusers": {
        "input": "conv_in.weight",
        "output": "conv_out.weight",
        "block": "down_blocks.{level}.resnets.{i}.conv2.weight",
        "attention": "down_blocks.{level}.attentions.{i}.group_norm.weight",
    },
}
_AUTOENCODER_NAMES = {
    "original": {
        "block": "encoder.down.{level}.block.{i}.conv2.weight",
        "attention": "encoder.down.{level}.attn.{i}.norm.weight",
    },
    "diffusers": {
        "block": "encoder.down_blocks.{level}.resnets.{i}.conv2.weight",
        "attention": "encoder.down_blocks.{level}.attentions.{i}.group_norm.weight",
    },
}


def arguments_from_shapes(kind, naming, shapes):
    """Return the arguments of the network whose tensors have these shapes.

    Shapes do not determine the channels of an attention head, the groups of group norms, the number
    of timesteps and the representation of ChiroDiff's points.

    Args:
        kind: `"unet"`, `"autoencoder"` or `"chirodiff"`.
        naming: `"original"` or `"diffusers"`.
        shapes: `{tensor name without prefix: shape}`.

    Returns:
        Dictionary of arguments of the class.

    Raises:
        ValueError: if a tensor is missing, or the network is of another kind.
    """
    try:
        if kind == "unet":
            return _unet(_UNET_NAMES[naming], shapes)
        if kind == "autoencoder":
            return _autoencoder(_AUTOENCODER_NAMES[naming], shapes)
        return _chirodiff(shapes)
    except KeyError as error:
        raise ValueError(f"The tensor {error} is missing.") from None
    except (LookupError, ArithmeticError):
        raise ValueError(f"The shapes of the tensors fit no {kind}.") from None


def _unet(names, shapes):
    channels, in_channels = shapes[names["input"]][:2]
    return {
        "model_channels": channels,
        **_levels(names, shapes, channels),
        "in_channels": in_channels,
        "out_channels": shapes[names["output"]][0],
    }


def _autoencoder(names, shapes):
    channels, image_channels = shapes["encoder.conv_in.weight"][:2]
    codes, code_channels = shapes["quantize.embedding.weight"]
    return {
        "channels": channels,
        **_levels(names, shapes, channels),
        "codes": codes,
        "code_channels": code_channels,
        "latent_channels": shapes["encoder.conv_out.weight"][0],
        "image_channels": image_channels,
    }


def _levels(names, shapes, first_channels):
    """Return the arguments about resolutions: factors on the channels, blocks, attention."""

    def name(key, level, i):
        # The original U-Net numbers all blocks in one sequence, downsampling included.
        return names[key].format(level=level, i=i, number=1 + level * (blocks + 1) + i)

    blocks = 0
    while name("block", 0, blocks) in shapes:
        blocks += 1
    channel_mult, attention_factors = [], []
    for level in itertools.count():
        if blocks == 0 or name("block", level, 0) not in shapes:
            break
        channels = shapes[name("block", level, 0)][0]
        if channels % first_channels:
            raise ValueError(
                f"The channels at each resolution must be multiples of the first, "
                f"{first_channels}; the tensors have {channels}."
            )
        channel_mult.append(channels // first_channels)
        if name("attention", level, 0) in shapes:
            attention_factors.append(2**level)
    return {
        "channel_mult": tuple(channel_mult),
        "num_res_blocks": blocks,
        "attention_factors": tuple(attention_factors),
    }


def _chirodiff(shapes):
    layers = 0
    while f"model.rnn.weight_hh_l{layers}" in shapes:
        layers += 1
    return {
        "units": shapes["model.out_proj.weight"][0],
        "num_layers": layers,
        "time_features": 2 * shapes["pe_proj_W"][0],
    }
