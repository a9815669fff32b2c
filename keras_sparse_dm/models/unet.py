"""U-Net of latent diffusion (Rombach et al. 2022; Dhariwal and Nichol 2021), sparse."""

import math

import keras
from keras import ops

from keras_sparse_dm.checks import in_range, whole_number, whole_numbers
from keras_sparse_dm.diffusion.noise_schedule import check_timesteps
from keras_sparse_dm.layers import SparseConv2D, SparseDense
from keras_sparse_dm.models.blocks import (
    KERNEL_INITIALIZER,
    Downsample,
    GroupNorm,
    ResidualBlock,
    Upsample,
    attention,
    conv_layer,
)
from keras_sparse_dm.presets import get_preset


class AttentionBlock(keras.layers.Layer):
    """Residual self-attention of all positions of an image.

    One projection holds the queries, keys and values of all heads, head after head, as in the
    original.

    Args:
        channels: Channels, in and out; a multiple of `head_channels`.
        head_channels: Channels of each head.

    Call arguments:
        x: Float tensor (batch_size, height, width, channels).
    """

    def __init__(self, channels, head_channels, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.head_channels = head_channels
        self.norm = GroupNorm(name="norm")
        # The original's convolutions of width 1 are matrices, and the paper counts them as such.
        self.qkv = SparseDense(3 * channels, kernel_initializer=KERNEL_INITIALIZER, name="qkv")
        self.output_projection = SparseDense(
            channels, kernel_initializer="zeros", name="output_projection"
        )

    def build(self, input_shape):
        self.norm.build(input_shape)
        self.qkv.build((None, None, self.channels))
        self.output_projection.build((None, None, self.channels))
        self.built = True

    def call(self, x):
        batch_size, height, width = ops.shape(x)[:3]
        heads = self.channels // self.head_channels
        qkv = self.qkv(ops.reshape(self.norm(x), (batch_size, height * width, self.channels)))
        qkv = ops.reshape(qkv, (batch_size, height * width, heads, 3, self.head_channels))
        hidden = attention(*ops.unstack(qkv, axis=3))
        hidden = self.output_projection(
            ops.reshape(hidden, (batch_size, height * width, self.channels))
        )
        return x + ops.reshape(hidden, ops.shape(x))


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class UNet(keras.Model):
    """Denoiser of images or latents: predicts the noise in a noised one.

    Residual blocks conditioned on the timestep lead down to a coarse image and up again, with
    self-attention at some resolutions. Each block on the way up also reads the output of the block
    of the same size on the way down. All kernels of convolutions and matrices can be sparse (paper,
    figure 1a). The defaults give the paper's network of 123 kernels and 274,056,163 parameters.

    Args:
        model_channels: Channels at full resolution; a multiple of 32.
        channel_mult: Factor on the channels at each resolution, from full to coarse; each
            resolution has half the height and width of the one before.
        num_res_blocks: Residual blocks at each resolution on the way down; one more on the
            way up.
        attention_factors: Downsampling factors, powers of 2, at which self-attention follows each
            residual block; factors beyond the coarsest have no effect. The coarsest point always
            has one self-attention.
        head_channels: Channels of each attention head.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        dropout: Dropout rate in the residual blocks.
        timesteps: Number T of timesteps of the noise schedule.
        remat: Whether training keeps only the inputs of blocks and computes the rest again for
            the gradient: less memory for about a third more time.

    Call arguments:
        inputs: Tuple `(x, t)`: float tensor (batch_size, height, width, in_channels), height
            and width known and multiples of 2 to the number of resolutions less one; integer
            tensor (batch_size,) of timesteps from 0 to T - 1.

    Returns:
        Predicted noise: float tensor (batch_size, height, width, out_channels).

    Raises:
        ValueError: for arguments out of range; when called, for a height or width that the
            downsampling does not divide, another number of channels, or timesteps out of range.

    Example:

    >>> unet = UNet(model_channels=32, channel_mult=(1, 2), num_res_blocks=1)
    >>> latents, t = np.zeros((2, 8, 8, 3)), np.array([0, 999])
    >>> unet((latents, t)).shape
    TensorShape([2, 8, 8, 3])
    """

    def __init__(
        self,
        model_channels=224,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=2,
        attention_factors=(2, 4, 8),
        head_channels=32,
        in_channels=3,
        out_channels=3,
        dropout=0.0,
        timesteps=1000,
        remat=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        channel_mult, attention_factors = tuple(channel_mult), tuple(attention_factors)
        for name, value in (
            ("model_channels", model_channels),
            ("num_res_blocks", num_res_blocks),
            ("head_channels", head_channels),
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("timesteps", timesteps),
        ):
            whole_number(f"`{name}`", value, 1)
        whole_numbers("`channel_mult`", channel_mult, 1)
        if model_channels % 32:
            raise ValueError(
                f"`model_channels` must be a multiple of 32, the group norms' number of groups; "
                f"received {model_channels}."
            )
        factors = [2**level for level in range(len(channel_mult))]
        if any(factor < 1 or int(factor) & (int(factor) - 1) for factor in attention_factors):
            raise ValueError(
                "`attention_factors` must be powers of 2, as downsampling factors are; received "
                f"{attention_factors}."
            )
        for factor, multiple in zip(factors, channel_mult, strict=True):
            attends = factor in attention_factors or factor == factors[-1]
            if attends and model_channels * multiple % head_channels:
                raise ValueError(
                    f"`head_channels` must divide the {model_channels * multiple} channels at "
                    f"downsampling factor {factor}; received {head_channels}."
                )
        in_range("`dropout`", dropout, 0, 1, closed_high=False)
        self.model_channels = model_channels
        self.channel_mult = channel_mult
        self.num_res_blocks = num_res_blocks
        self.attention_factors = attention_factors
        self.head_channels = head_channels
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.dropout = dropout
        self.timesteps = timesteps
        self.remat = remat
        self._make_layers()
        self.build()

    def _make_layers(self):
        features = 4 * self.model_channels
        self.time_embedding = [
            SparseDense(
                features,
                activation="silu",
                kernel_initializer=KERNEL_INITIALIZER,
                name=f"time_embedding_{i}",
            )
            for i in range(2)
        ]

        def block(name, channels, factor):
            layers = [ResidualBlock(channels, SparseConv2D, SparseDense, self.dropout, name=name)]
            if factor in self.attention_factors:
                layers.append(
                    AttentionBlock(channels, self.head_channels, name=f"{name}_attention")
                )
            return layers

        # The numbers are those in the names of the original's checkpoints.
        input_blocks = [[conv_layer(SparseConv2D, self.model_channels, name="input_0")]]
        skips = [self.model_channels]
        for level, multiple in enumerate(self.channel_mult):
            channels = multiple * self.model_channels
            for _ in range(self.num_res_blocks):
                input_blocks.append(block(f"input_{len(input_blocks)}", channels, 2**level))
                skips.append(channels)
            if level + 1 < len(self.channel_mult):
                name = f"input_{len(input_blocks)}_downsample"
                input_blocks.append([Downsample(channels, SparseConv2D, name=name)])
                skips.append(channels)
        middle_block = [
            ResidualBlock(channels, SparseConv2D, SparseDense, self.dropout, name="middle_0"),
            AttentionBlock(channels, self.head_channels, name="middle_1_attention"),
            ResidualBlock(channels, SparseConv2D, SparseDense, self.dropout, name="middle_2"),
        ]
        output_blocks = []
        for level, multiple in reversed(list(enumerate(self.channel_mult))):
            channels = multiple * self.model_channels
            for i in range(self.num_res_blocks + 1):
                name = f"output_{len(output_blocks)}"
                layers = block(name, channels, 2**level)
                if level and i == self.num_res_blocks:
                    layers.append(Upsample(channels, SparseConv2D, name=f"{name}_upsample"))
                output_blocks.append(layers)
        self.input_blocks = input_blocks
        self.middle_block = middle_block
        self.output_blocks = output_blocks
        self.output_norm = GroupNorm(activation="silu", name="output_norm")
        self.output_conv = conv_layer(
            SparseConv2D, self.out_channels, zero=True, name="output_conv"
        )
        self._skips = tuple(skips)

    def build(self, input_shape=None):
        # All shapes follow from the arguments, so the constructor builds the model.
        if self.built:
            return
        features = 4 * self.model_channels
        self.time_embedding[0].build((None, self.model_channels))
        self.time_embedding[1].build((None, features))
        channels = self.in_channels

        def build(layers):
            nonlocal channels
            for layer in layers:
                shape = (None, None, None, channels)
                if isinstance(layer, ResidualBlock):
                    layer.build(shape, (None, features))
                    channels = layer.filters
                else:
                    layer.build(shape)

        skips = list(self._skips)
        build(self.input_blocks[0])
        channels = self.model_channels
        for layers in self.input_blocks[1:]:
            build(layers)
        build(self.middle_block)
        for layers in self.output_blocks:
            channels += skips.pop()
            build(layers)
        self.output_norm.build((None, None, None, channels))
        self.output_conv.build((None, None, None, channels))
        self.built = True

    @classmethod
    def from_preset(cls, name, **overrides):
        """Return the denoiser of a preset, with some arguments replaced.

        Args:
            name: Name of a latent diffusion preset.
            overrides: Arguments of the class that replace the preset's.

        Raises:
            ValueError: for a name that is not a latent diffusion preset.
        """
        preset = get_preset(name)
        if preset.model.kind != "unet":
            raise ValueError(f"`name` must be a latent diffusion preset; received {name!r}.")
        return cls(**(preset.denoiser_arguments() | overrides))

    @property
    def downsampling(self):
        """Factor from full to coarsest resolution; it divides height and width."""
        return 2 ** (len(self.channel_mult) - 1)

    def embed_time(self, t):
        """Return sinusoidal features of timesteps.

        Args:
            t: Integer tensor (batch_size,), counting from 0.

        Returns:
            Float tensor (batch_size, model_channels).
        """
        half = self.model_channels // 2
        # Half precision cannot tell a thousand timesteps apart.
        frequencies = ops.exp(-math.log(10000.0) * ops.arange(half, dtype="float32") / half)
        angle = ops.cast(t, "float32")[:, None] * frequencies[None]
        embedded = ops.concatenate([ops.cos(angle), ops.sin(angle)], axis=-1)
        return ops.cast(embedded, self.compute_dtype)

    def call(self, inputs, training=False):
        x, t = inputs
        self._check_inputs(x, t)
        x = ops.cast(x, self.compute_dtype)
        embedding = self.embed_time(t)
        for layer in self.time_embedding:
            # The second layer's activation is the one before each block's own projection.
            embedding = layer(embedding)

        def apply(layers, x):
            for layer in layers:
                x = self._run_layer(layer, x, embedding, training)
            return x

        skips = []
        for layers in self.input_blocks:
            x = apply(layers, x)
            skips.append(x)
        x = apply(self.middle_block, x)
        for layers in self.output_blocks:
            x = apply(layers, ops.concatenate([x, skips.pop()], axis=-1))
        return self.output_conv(self.output_norm(x))

    def _run_layer(self, layer, x, embedding, training):
        residual = isinstance(layer, ResidualBlock)
        inputs, options = ((x, embedding), {"training": training}) if residual else ((x,), {})

        def call(*tensors):
            return layer(*tensors, **options)

        if self.remat and training and (residual or isinstance(layer, AttentionBlock)):
            call = keras.remat(call)
        return call(*inputs)

    def _check_inputs(self, x, t):
        *_, height, width, channels = x.shape
        if None in (height, width) or height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"The height and width of `x` must be multiples of {self.downsampling}, by which "
                f"this U-Net downsamples; received shape {tuple(x.shape)}."
            )
        if channels != self.in_channels:
            raise ValueError(
                f"`x` must have {self.in_channels} channels; received shape {tuple(x.shape)}."
            )
        check_timesteps(t, self.timesteps)

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:-1], self.out_channels)

    def get_config(self):
        return {
            "name": self.name,
            "model_channels": self.model_channels,
            "channel_mult": list(self.channel_mult),
            "num_res_blocks": self.num_res_blocks,
            "attention_factors": list(self.attention_factors),
            "head_channels": self.head_channels,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "dropout": self.dropout,
            "timesteps": self.timesteps,
            "remat": self.remat,
        }
