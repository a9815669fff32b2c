"""Layers of the vector-quantized autoencoder: residual blocks, attention and resampling."""

import keras
from keras import ops

from keras_sparse_dm.models.blocks import (
    Downsample,
    GroupNorm,
    ResidualBlock,
    Upsample,
    attention,
    conv_layer,
)


# `.keras` files name layers in lists after their class, so the class must keep its name.
class _AttentionBlock(keras.layers.Layer):
    """Residual self-attention of all positions in one head.

    Args:
        channels: Channels, in and out.
        groups: Groups of the group norm.

    Call arguments:
        x: Float tensor (batch_size, height, width, channels).
    """

    def __init__(self, channels, groups, **kwargs):
        super().__init__(**kwargs)
        self.norm = GroupNorm(groups, 1e-6, name="norm")
        self.query = conv_layer(keras.layers.Conv2D, channels, 1, name="query")
        self.key = conv_layer(keras.layers.Conv2D, channels, 1, name="key")
        self.value = conv_layer(keras.layers.Conv2D, channels, 1, name="value")
        self.output_projection = conv_layer(
            keras.layers.Conv2D, channels, 1, name="output_projection"
        )

    def build(self, input_shape):
        for layer in (self.norm, self.query, self.key, self.value, self.output_projection):
            layer.build(input_shape)
        self.built = True

    def call(self, x):
        batch_size, height, width, channels = (*ops.shape(x)[:3], x.shape[-1])
        normalized = self.norm(x)
        query, key, value = (
            ops.reshape(layer(normalized), (batch_size, height * width, 1, channels))
            for layer in (self.query, self.key, self.value)
        )
        hidden = attention(query, key, value)
        return x + self.output_projection(ops.reshape(hidden, ops.shape(x)))


def resolutions(side, channels, channel_mult, num_res_blocks, attention_factors, groups):
    """Return the layers of encoder or decoder at each resolution, except for the coarsest point.

    Residual blocks come first, each with its attention, then the resampling.

    Args:
        side: `"encoder"` or `"decoder"`; the decoder has one residual block more per resolution.
        channels, channel_mult, num_res_blocks, attention_factors: As in `VQAutoencoder`.
        groups: Groups of the group norms.

    Returns:
        List of lists of layers, from full resolution to coarse on both sides.
    """
    conv = keras.layers.Conv2D
    levels = []
    for level, multiple in enumerate(channel_mult):
        width, layers = multiple * channels, []
        for i in range(num_res_blocks + (side == "decoder")):
            name = f"{side}_{level}_{i}"
            layers.append(_residual_block(width, groups, name))
            if 2**level in attention_factors:
                layers.append(_AttentionBlock(width, groups, name=f"{name}_attention"))
        if side == "encoder" and level + 1 < len(channel_mult):
            name = f"encoder_{level}_downsample"
            layers.append(Downsample(width, conv, padding=(0, 1), name=name))
        if side == "decoder" and level:
            layers.append(Upsample(width, conv, name=f"decoder_{level}_upsample"))
        levels.append(layers)
    return levels


def coarsest_point(side, channels, groups):
    """Return the layers at the coarsest point: a residual block, attention, a residual block.

    Args:
        side: `"encoder"` or `"decoder"`, the prefix of the layers' names.
        channels: Channels, in and out.
        groups: Groups of the group norms.
    """
    return [
        _residual_block(channels, groups, f"{side}_middle_0"),
        _AttentionBlock(channels, groups, name=f"{side}_middle_1_attention"),
        _residual_block(channels, groups, f"{side}_middle_2"),
    ]


def _residual_block(channels, groups, name):
    return ResidualBlock(
        channels, keras.layers.Conv2D, groups=groups, epsilon=1e-6, zero=False, name=name
    )


def apply(layers, x, training):
    """Apply layers in order to a tensor (batch_size, height, width, channels)."""
    for layer in layers:
        x = layer(x, training=training) if isinstance(layer, ResidualBlock) else layer(x)
    return x
