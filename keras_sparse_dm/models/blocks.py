"""Blocks of the U-Net and the autoencoder (Rombach et al. 2022), channels last."""

import functools
import math

import keras
from keras import ops

# PyTorch's initialization of convolutions and linear layers.
KERNEL_INITIALIZER = {
    "class_name": "VarianceScaling",
    "config": {"scale": 1 / 3, "mode": "fan_in", "distribution": "uniform"},
}
# Attention scores of one head of one example to hold at a time.
SCORES = 2**18


class GroupNorm(keras.layers.GroupNormalization):
    """`keras.layers.GroupNormalization` of images in fewer passes, with an optional SiLU.

    Computes the moments of groups from those of channels, and combines them with the layer's own
    scale and shift before it applies both to the image. Computes in float32 for inputs of any type.

    Args:
        activation: `"silu"` or None.
        groups, epsilon, kwargs: As in the Keras layer.

    Input and output shape: (batch_size, height, width, channels).
    """

    def __init__(self, groups=32, epsilon=1e-5, activation=None, **kwargs):
        super().__init__(groups=groups, epsilon=epsilon, **kwargs)
        self.activation = activation

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"A group norm of {self.groups} groups needs a multiple of {self.groups} channels; "
                f"received {channels}."
            )
        super().build(input_shape)

    def call(self, inputs):
        # Without a cast before it, so that the gradient does not keep the input in float32 too.
        normalize = _group_norm(self.groups, self.epsilon, self.activation == "silu")
        x = normalize(inputs, ops.cast(self.gamma, "float32"), ops.cast(self.beta, "float32"))
        return ops.cast(x, self.compute_dtype)

    def get_config(self):
        return super().get_config() | {"activation": self.activation}


@functools.cache
def _group_norm(groups, epsilon, silu):
    """Return the float32 function behind `GroupNorm`.

    Its own gradient keeps only the input; automatic differentiation would keep three more tensors
    of that size.
    """

    @ops.custom_gradient
    def group_norm(inputs, gamma, beta):
        batch_size, height, width, channels = (*ops.shape(inputs)[:3], inputs.shape[-1])
        grouped = (batch_size, groups, channels // groups)
        flat = (batch_size, height * width, channels)
        size = ops.cast(height * width * (channels // groups), "float32")

        def per_channel(values):
            return ops.reshape(ops.broadcast_to(values, grouped), (batch_size, 1, channels))

        def of_group(values):
            return ops.mean(ops.reshape(values, grouped), axis=-1, keepdims=True)

        x = ops.reshape(ops.cast(inputs, "float32"), flat)
        gamma, beta = (ops.reshape(v, grouped[1:]) for v in (gamma, beta))
        # Squares of deviations from the mean avoid the difference of large numbers.
        channel_mean = ops.mean(x, axis=1, keepdims=True)
        channel_variance = ops.mean(ops.square(x - channel_mean), axis=1)
        mean = of_group(channel_mean)
        between = ops.square(ops.reshape(channel_mean, grouped) - mean)
        inverse = ops.rsqrt(of_group(channel_variance) + of_group(between) + epsilon)
        scale = per_channel(gamma * inverse)
        shift = per_channel(beta - mean * gamma * inverse)
        output = x * scale + shift
        if silu:
            output = ops.silu(output)

        def gradient(*arguments, upstream=None):
            if upstream is None:
                (upstream,) = arguments
            x = ops.reshape(ops.cast(inputs, "float32"), flat)
            d = ops.reshape(ops.cast(upstream, "float32"), flat)
            if silu:
                normalized = x * scale + shift
                sigmoid = ops.sigmoid(normalized)
                d = d * sigmoid * (1.0 + (normalized - ops.reshape(output, flat)))
            d_shift = ops.reshape(ops.sum(d, axis=1), grouped)
            d_scale = ops.reshape(ops.sum(d * x, axis=1), grouped)
            d_scale = inverse * (d_scale - mean * d_shift)
            # Gradients through the mean and the variance, spread over the group.
            from_mean = inverse * ops.sum(gamma * d_shift, axis=-1, keepdims=True) / size
            slope = inverse * inverse * ops.sum(gamma * d_scale, axis=-1, keepdims=True) / size
            dx = d * scale - (x * per_channel(slope) + per_channel(from_mean - mean * slope))
            dx = ops.cast(ops.reshape(dx, ops.shape(inputs)), inputs.dtype)
            d_gamma, d_beta = (ops.reshape(ops.sum(v, axis=0), (-1,)) for v in (d_scale, d_shift))
            return dx, d_gamma, d_beta

        return ops.reshape(output, ops.shape(inputs)), gradient

    return group_norm


class ResidualBlock(keras.layers.Layer):
    """Residual block of two normalized convolutions.

    The shortcut is the identity, or a 1x1 convolution if the number of channels changes.

    Args:
        filters: Output channels.
        conv: Class of the convolutions.
        dense: Class of the projection of the timestep embedding; None for a block without one.
        dropout: Dropout rate before the second convolution.
        groups, epsilon: Arguments of the group norms.
        zero: Whether the second convolution starts at zero, so that the block starts as its
            shortcut.

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
    """Convolution of stride 2 that halves height and width.

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
    """Repetition of pixels that doubles height and width, followed by a convolution.

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
        x = ops.reshape(x, (batch_size, height, 1, width, 1, channels))
        x = ops.broadcast_to(x, (batch_size, height, 2, width, 2, channels))
        return self.conv(ops.reshape(x, (batch_size, 2 * height, 2 * width, channels)))


def attention(query, key, value):
    """Scaled dot-product attention that never holds all scores of a large image at once.

    Processes the queries in parts, so that each head of each example holds at most `SCORES` scores,
    but at least one row. With several parts, the gradient computes the scores again, part by part;
    with one part it keeps them.

    Args:
        query, key, value: Float tensors (batch_size, positions, heads, channels), positions
            known.

    Returns:
        Float tensor of the shape of `query`.
    """
    query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
    query = query * (1.0 / math.sqrt(query.shape[-1]))
    parts = math.ceil(query.shape[2] * key.shape[2] / SCORES)
    if parts == 1:
        output = ops.matmul(_attention_shares(query, key), value)
    else:
        output = _attention_in_parts(query, key, value)
    return ops.transpose(output, (0, 2, 1, 3))


def _attention_shares(query, key):
    """Return the softmax of scores (batch_size, heads, queries, keys), from scaled queries."""
    scores = ops.matmul(query, ops.swapaxes(key, 2, 3))
    # Half precision is too coarse for exponents.
    return ops.cast(ops.softmax(ops.cast(scores, "float32")), query.dtype)


@ops.custom_gradient
def _attention_in_parts(query, key, value):
    positions = query.shape[2]
    size = max(1, SCORES // key.shape[2])
    parts = [(begin, min(begin + size, positions)) for begin in range(0, positions, size)]

    outputs = []
    for begin, end in parts:
        part = query[:, :, begin:end]
        if outputs:
            part = _after(outputs[-1], part)
        outputs.append(ops.matmul(_attention_shares(part, key), value))
    output = ops.concatenate(outputs, axis=2)

    def gradient(*arguments, upstream=None):
        if upstream is None:
            (upstream,) = arguments
        transposed_value = ops.swapaxes(value, 2, 3)
        d_queries, d_key, d_value = [], 0.0, 0.0
        for begin, end in parts:
            d = upstream[:, :, begin:end]
            part = _after(d_queries[-1] if d_queries else d, query[:, :, begin:end])
            shares = _attention_shares(part, key)
            d_value = d_value + ops.matmul(ops.swapaxes(shares, 2, 3), d)
            mean = ops.sum(d * output[:, :, begin:end], axis=-1, keepdims=True)
            d_scores = shares * (ops.matmul(d, transposed_value) - mean)
            d_queries.append(ops.matmul(d_scores, key))
            d_key = d_key + ops.matmul(ops.swapaxes(d_scores, 2, 3), part)
        return ops.concatenate(d_queries, axis=2), d_key, d_value

    return output, gradient


def _after(first, then):
    """Return `then` with a data dependency on `first`.

    Keeps compilers from computing parts side by side, and from replacing a repeated computation
    by the first result.
    """
    known = ops.cast(ops.reshape(first, (-1,))[0], "bool")
    return then + ops.cast(ops.where(ops.equal(known, known), 0.0, float("nan")), then.dtype)


def conv_layer(conv, filters, size=3, zero=False, padding="same", **kwargs):
    """Return a convolution with PyTorch's initialization, or one that starts at zero.

    Args:
        conv: Class of the convolution.
        filters: Output channels.
        size: Height and width of the kernel.
        zero: Whether the kernel starts at zero.
        padding, kwargs: Arguments of the class.
    """
    return conv(
        filters,
        size,
        padding=padding,
        kernel_initializer="zeros" if zero else KERNEL_INITIALIZER,
        **kwargs,
    )
