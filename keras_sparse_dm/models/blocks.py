"""Blocks that the U-Net and the autoencoder are made of (Rombach et al. 2022). Channels last."""

import math

import keras
from keras import ops

# As PyTorch draws the kernels of convolutions and linear layers.
KERNEL_INITIALIZER = {
    "class_name": "VarianceScaling",
    "config": {"scale": 1 / 3, "mode": "fan_in", "distribution": "uniform"},
}
# Attention scores that one head of one example holds at a time.
SCORES = 2**18


class GroupNorm(keras.layers.GroupNormalization):
    """`keras.layers.GroupNormalization` over images, in fewer passes, and SiLU after it.

    The moments of groups follow from those of channels, and scale and shift are joined before
    they meet the image. Computed in float32, whatever the inputs.

    Args:
        activation: `"silu"` or None.

    Other arguments as those of the Keras layer. Input and output: (batch_size, height, width,
    channels).
    """

    def __init__(self, groups=32, epsilon=1e-5, activation=None, **kwargs):
        super().__init__(groups=groups, epsilon=epsilon, **kwargs)
        self.activation = activation

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"A group norm of {self.groups} groups needs a multiple of as many channels; "
                f"received {channels}."
            )
        super().build(input_shape)

    def call(self, inputs):
        x = ops.cast(inputs, "float32")
        batch_size, channels = ops.shape(x)[0], x.shape[-1]
        groups = (batch_size, self.groups, channels // self.groups)
        channel_mean = ops.mean(x, axis=(1, 2), keepdims=True)
        channel_variance = ops.mean(ops.square(x - channel_mean), axis=(1, 2))
        channel_mean = ops.reshape(channel_mean, groups)
        mean = ops.mean(channel_mean, axis=-1, keepdims=True)
        variance = ops.mean(
            ops.reshape(channel_variance, groups) + ops.square(channel_mean - mean),
            axis=-1,
            keepdims=True,
        )
        gamma = ops.reshape(ops.cast(self.gamma, "float32"), groups[1:])
        beta = ops.reshape(ops.cast(self.beta, "float32"), groups[1:])
        scale = gamma * ops.rsqrt(variance + self.epsilon)
        shift = beta - mean * scale
        per_channel = (batch_size, 1, 1, channels)
        x = x * ops.reshape(scale, per_channel) + ops.reshape(shift, per_channel)
        if self.activation == "silu":
            x = ops.silu(x)
        return ops.cast(x, self.compute_dtype)

    def get_config(self):
        return super().get_config() | {"activation": self.activation}


class ResidualBlock(keras.layers.Layer):
    """Two normalized convolutions beside the identity, or a 1x1 convolution, of their input.

    Args:
        filters: Output channels.
        conv: Class of the convolutions.
        dense: Class of the projection of the timestep embedding; None for a block without.
        dropout: Rate before the second convolution.
        groups, epsilon: Of the group norms.
        zero: Whether the second convolution starts at zero, so that the block starts as the
            identity.

    Call arguments:
        x: Float tensor (batch_size, height, width, channels).
        embedding: Timestep embedding (batch_size, features), after its activation.
    """

    def __init__(
        self,
        filters,
        conv,
        dense=None,
        dropout=0.0,
        groups=32,
        epsilon=1e-5,
        zero=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.norm_1 = GroupNorm(groups, epsilon, activation="silu", name="norm_1")
        self.conv_1 = conv_layer(conv, filters, name="conv_1")
        self.time_projection = None
        if dense is not None:
            self.time_projection = dense(
                filters, kernel_initializer=KERNEL_INITIALIZER, name="time_projection"
            )
        self.norm_2 = GroupNorm(groups, epsilon, activation="silu", name="norm_2")
        self.dropout = keras.layers.Dropout(dropout, name="dropout") if dropout else None
        self.conv_2 = conv_layer(conv, filters, zero=zero, name="conv_2")
        self.shortcut = None
        self._new_shortcut = lambda: conv_layer(conv, filters, size=1, name="shortcut")

    def build(self, input_shape, embedding_shape=None):
        if input_shape[-1] != self.filters:
            self.shortcut = self._new_shortcut()
            self.shortcut.build(input_shape)
        inner_shape = (*input_shape[:-1], self.filters)
        self.norm_1.build(input_shape)
        self.conv_1.build(input_shape)
        if self.time_projection is not None:
            self.time_projection.build(embedding_shape)
        self.norm_2.build(inner_shape)
        self.conv_2.build(inner_shape)
        self.built = True

    def call(self, x, embedding=None, training=False):
        hidden = self.conv_1(self.norm_1(x))
        if self.time_projection is not None:
            hidden = hidden + self.time_projection(embedding)[:, None, None]
        hidden = self.norm_2(hidden)
        if self.dropout is not None:
            hidden = self.dropout(hidden, training=training)
        hidden = self.conv_2(hidden)
        return hidden + (x if self.shortcut is None else self.shortcut(x))


class Downsample(keras.layers.Layer):
    """Halves height and width by a convolution of stride 2.

    Args:
        filters: Channels, in and out.
        conv: Class of the convolution.
        padding: Rows and columns of zeros `(before, after)`: (1, 1) in the U-Net, (0, 1) in the
            autoencoder.
    """

    def __init__(self, filters, conv, padding=(1, 1), **kwargs):
        super().__init__(**kwargs)
        self.padding = padding
        self.conv = conv_layer(conv, filters, strides=2, padding="valid", name="conv")

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.built = True

    def call(self, x):
        return self.conv(ops.pad(x, ((0, 0), self.padding, self.padding, (0, 0))))


class Upsample(keras.layers.Layer):
    """Doubles height and width by repetition, and a convolution after it.

    Args:
        filters: Channels, in and out.
        conv: Class of the convolution.
    """

    def __init__(self, filters, conv, **kwargs):
        super().__init__(**kwargs)
        self.conv = conv_layer(conv, filters, name="conv")

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.built = True

    def call(self, x):
        batch_size, height, width, channels = (*ops.shape(x)[:3], x.shape[-1])
        x = ops.broadcast_to(x[:, :, None, :, None], (batch_size, height, 2, width, 2, channels))
        return self.conv(ops.reshape(x, (batch_size, 2 * height, 2 * width, channels)))


def attention(query, key, value, training=False):
    """Scaled dot-product attention that never holds all scores at once.

    By `keras.ops.dot_product_attention`, some queries at a time; in training the scores are
    computed again for the gradient rather than kept.

    Args:
        query, key, value: Float tensors (batch_size, positions, heads, channels), positions
            known.
        training: Whether a gradient will be taken.

    Returns:
        Float tensor of the shape of `query`.
    """
    attend = ops.dot_product_attention
    if training:
        attend = keras.remat(attend)
    positions = query.shape[1]
    parts = math.ceil(positions * key.shape[1] / SCORES)
    size = math.ceil(positions / parts)
    outputs = [
        attend(query[:, begin : begin + size], key, value) for begin in range(0, positions, size)
    ]
    return outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=1)


def conv_layer(conv, filters, size=3, zero=False, padding="same", **kwargs):
    return conv(
        filters,
        size,
        padding=padding,
        kernel_initializer="zeros" if zero else KERNEL_INITIALIZER,
        **kwargs,
    )
