"""Vector-quantized autoencoder of latent diffusion (Esser et al. 2021; Rombach et al. 2022)."""

import hashlib
import json

import keras
from keras import ops

from keras_sparse_dm.checks import at_least, one_of, whole_number, whole_numbers
from keras_sparse_dm.models.autoencoder_layers import apply, coarsest_point, resolutions
from keras_sparse_dm.models.autoencoder_training import AutoencoderTraining
from keras_sparse_dm.models.blocks import GroupNorm, conv_layer
from keras_sparse_dm.models.codebook import nearest_codes
from keras_sparse_dm.presets import get_preset

RECONSTRUCTION_LOSSES = ("l1", "l2")


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class VQAutoencoder(AutoencoderTraining):
    """Autoencoder from images to small latents of quantized codes, and back.

    The defaults are the published `vq-f4` autoencoder: 256x256 images become 64x64 latents of
    3 channels, each position one of 8192 codes. Its own kernels are never sparse. `fit` trains it
    on images alone, after `compile` with an optimizer alone.

    Args:
        channels: Channels at full resolution; a multiple of `norm_groups`.
        channel_mult: Factor on the channels at each resolution, from full resolution to that of
            the latents; each resolution has half the height and width of the one before.
        num_res_blocks: Residual blocks at each resolution of the encoder; the decoder has one
            more.
        attention_factors: Downsampling factors at which self-attention follows each residual
            block; the coarsest point always has one.
        codes: Number of codes in the codebook.
        code_channels: Channels of a code and of a latent.
        latent_channels: Channels of the encoder's output before a convolution to `code_channels`.
        image_channels: Channels of an image.
        norm_groups: Groups of the group norms.
        reconstruction: Reconstruction loss: `"l1"`, as in the original, or `"l2"`.
        commitment: Weight of the commitment loss (beta of van den Oord et al. 2017).
        restart_after: Number of training steps after which a code that no latent chose moves to a
            random latent of the batch; 0 for never.
        seed: Integer seed of these restarts; None for a random one.

    Call arguments:
        images: Float tensor (batch_size, height, width, image_channels) in [-1, 1], height and
            width known and multiples of `downsampling`.

    Returns:
        Reconstructed images, of the same shape.

    Raises:
        ValueError: for arguments out of range; when called, for images or latents of a wrong
            shape.

    Example:

    >>> autoencoder = VQAutoencoder(channels=32, channel_mult=(1, 2), num_res_blocks=1, codes=256)
    >>> autoencoder.compile(keras.optimizers.Adam(1e-3))
    >>> images = np.zeros((2, 8, 8, 3), "float32")
    >>> history = autoencoder.fit(images)
    >>> latents = autoencoder.encode(images)
    >>> quantized, indices = autoencoder.quantize(latents)
    >>> autoencoder.decode(latents).shape
    TensorShape([2, 8, 8, 3])
    """

    def __init__(
        self,
        channels=128,
        channel_mult=(1, 2, 4),
        num_res_blocks=2,
        attention_factors=(),
        codes=8192,
        code_channels=3,
        latent_channels=3,
        image_channels=3,
        norm_groups=32,
        reconstruction="l1",
        commitment=0.25,
        restart_after=100,
        seed=None,
        **kwargs,
    ):
        super().__init__(seed=seed, **kwargs)
        channel_mult, attention_factors = tuple(channel_mult), tuple(attention_factors)
        for name, value in (
            ("channels", channels),
            ("num_res_blocks", num_res_blocks),
            ("codes", codes),
            ("code_channels", code_channels),
            ("latent_channels", latent_channels),
            ("image_channels", image_channels),
            ("norm_groups", norm_groups),
        ):
            whole_number(f"`{name}`", value, 1)
        whole_numbers("`channel_mult`", channel_mult, 1)
        if channels % norm_groups:
            raise ValueError(
                f"`channels` must be a multiple of the {norm_groups} `norm_groups`; received "
                f"{channels}."
            )
        factors = [2**level for level in range(len(channel_mult))]
        if set(attention_factors) - set(factors):
            raise ValueError(
                f"`attention_factors` must be among {factors}, the downsampling factors of "
                f"{len(channel_mult)} resolutions; received {attention_factors}."
            )
        one_of("`reconstruction`", reconstruction, RECONSTRUCTION_LOSSES)
        at_least(("`commitment`", commitment, 0), ("`restart_after`", restart_after, 0))
        self.channels = channels
        self.channel_mult = channel_mult
        self.num_res_blocks = num_res_blocks
        self.attention_factors = attention_factors
        self.codes = codes
        self.code_channels = code_channels
        self.latent_channels = latent_channels
        self.image_channels = image_channels
        self.norm_groups = norm_groups
        self.reconstruction = reconstruction
        self.commitment = commitment
        self.restart_after = restart_after
        self._make_layers()
        self.build()

    def __new__(cls, *args, **kwargs):
        autoencoder = super().__new__(cls, *args, **kwargs)
        # Keras wraps every model's `quantize`, expecting one that takes a quantization mode.
        vars(autoencoder).pop("quantize", None)
        return autoencoder

    def _make_layers(self):
        conv = keras.layers.Conv2D
        groups = self.norm_groups
        coarsest = self.channel_mult[-1] * self.channels
        encoder_levels, decoder_levels = (
            resolutions(
                side,
                self.channels,
                self.channel_mult,
                self.num_res_blocks,
                self.attention_factors,
                groups,
            )
            for side in ("encoder", "decoder")
        )
        self.encoder_input = conv_layer(conv, self.channels, name="encoder_input")
        self.encoder_levels = encoder_levels
        self.encoder_middle = coarsest_point("encoder", coarsest, groups)
        self.encoder_norm = GroupNorm(groups, 1e-6, activation="silu", name="encoder_norm")
        self.encoder_output = conv_layer(conv, self.latent_channels, name="encoder_output")
        self.to_code = conv_layer(conv, self.code_channels, 1, name="to_code")
        self.from_code = conv_layer(conv, self.latent_channels, 1, name="from_code")
        self.decoder_input = conv_layer(conv, coarsest, name="decoder_input")
        self.decoder_middle = coarsest_point("decoder", coarsest, groups)
        # As in the original, from full resolution to coarse, against the decoder's direction.
        self.decoder_levels = decoder_levels
        self.decoder_norm = GroupNorm(groups, 1e-6, activation="silu", name="decoder_norm")
        self.decoder_output = conv_layer(conv, self.image_channels, name="decoder_output")

    def build(self, input_shape=None):
        # All shapes follow from the arguments, so the constructor builds the model.
        if self.built:
            return

        def build(layers, channels):
            for layer in layers:
                layer.build((None, None, None, channels))
                channels = getattr(layer, "filters", channels)
            return channels

        channels = build([self.encoder_input], self.image_channels)
        for layers in (*self.encoder_levels, self.encoder_middle):
            channels = build(layers, channels)
        build([self.encoder_norm, self.encoder_output, self.to_code], channels)
        channels = build([self.from_code, self.decoder_input], self.code_channels)
        for layers in (self.decoder_middle, *reversed(self.decoder_levels)):
            channels = build(layers, channels)
        build([self.decoder_norm, self.decoder_output], channels)
        self.codebook = self.add_weight(
            name="codebook",
            shape=(self.codes, self.code_channels),
            initializer=keras.initializers.RandomUniform(-1 / self.codes, 1 / self.codes),
        )
        # The first training step moves all codes that it does not use to latents.
        self.unused_steps = self.add_weight(
            name="unused_steps",
            shape=(self.codes,),
            dtype="int32",
            initializer=keras.initializers.Constant(self.restart_after),
            trainable=False,
        )
        self.built = True

    @classmethod
    def from_preset(cls, name, **overrides):
        """Return the untrained autoencoder of a preset, with some arguments replaced.

        Args:
            name: Name of a latent diffusion preset.
            overrides: Arguments of the class that replace the preset's.

        Raises:
            ValueError: for a name that is not a latent diffusion preset.
        """
        preset = get_preset(name)
        if preset.model.kind != "unet":
            raise ValueError(f"`name` must be a latent diffusion preset; received {name!r}.")
        return cls(**(preset.autoencoder.arguments() | overrides))

    @property
    def downsampling(self):
        """Factor f by which latents are smaller than images; it divides height and width."""
        return 2 ** (len(self.channel_mult) - 1)

    def encode(self, images, training=False):
        """Encode images to latents, without quantizing them.

        Args:
            images: Float tensor (batch_size, height, width, image_channels) in [-1, 1].
            training: Whether a gradient will be taken.

        Returns:
            Float tensor (batch_size, height / f, width / f, code_channels).
        """
        images = ops.convert_to_tensor(images)
        _, height, width, channels = _checked(images, "images", self.image_channels)
        if None in (height, width) or height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"The height and width of `images` must be multiples of {self.downsampling}, by "
                f"which this autoencoder downsamples; received shape {tuple(images.shape)}."
            )
        x = self.encoder_input(ops.cast(images, self.compute_dtype))
        for layers in (*self.encoder_levels, self.encoder_middle):
            x = apply(layers, x, training)
        return self.to_code(self.encoder_output(self.encoder_norm(x)))

    def quantize(self, latents):
        """Replace the vector at every position of latents by the nearest code.

        Args:
            latents: Float tensor (batch_size, height, width, code_channels).

        Returns:
            `(quantized, indices)`: a tensor of the shape of `latents`, and the indices of the
            codes, int32 (batch_size, height, width).
        """
        latents = ops.convert_to_tensor(latents)
        _checked(latents, "latents", self.code_channels)
        codebook = ops.cast(self.codebook, "float32")
        indices = nearest_codes(latents, codebook)
        return ops.cast(ops.take(codebook, indices, axis=0), latents.dtype), indices

    def decode(self, latents, quantize=True, training=False):
        """Quantize latents, and decode them to images.

        Args:
            latents: Float tensor (batch_size, height, width, code_channels).
            quantize: Whether to quantize; False for latents that are quantized already.
            training: Whether a gradient will be taken.

        Returns:
            Float tensor (batch_size, f * height, f * width, image_channels), roughly in [-1, 1].
        """
        latents = ops.convert_to_tensor(latents)
        _checked(latents, "latents", self.code_channels)
        if quantize:
            latents, _ = self.quantize(latents)
        x = self.decoder_input(self.from_code(ops.cast(latents, self.compute_dtype)))
        for layers in (self.decoder_middle, *reversed(self.decoder_levels)):
            x = apply(layers, x, training)
        return self.decoder_output(self.decoder_norm(x))

    def call(self, images, training=False):
        return self.decode(self.encode(images, training=training), training=training)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def fingerprint(self):
        """Return a short text that differs between autoencoders with different weights."""
        digest = hashlib.sha256()
        config = {k: v for k, v in self.get_config().items() if k in _STRUCTURE}
        digest.update(json.dumps(config, sort_keys=True).encode())
        for variable in self.weights:
            if variable is not self.unused_steps:
                digest.update(ops.convert_to_numpy(variable).tobytes())
        return digest.hexdigest()[:20]

    def get_config(self):
        return {
            "name": self.name,
            "channels": self.channels,
            "channel_mult": list(self.channel_mult),
            "num_res_blocks": self.num_res_blocks,
            "attention_factors": list(self.attention_factors),
            "codes": self.codes,
            "code_channels": self.code_channels,
            "latent_channels": self.latent_channels,
            "image_channels": self.image_channels,
            "norm_groups": self.norm_groups,
            "reconstruction": self.reconstruction,
            "commitment": self.commitment,
            "restart_after": self.restart_after,
            "seed": self.seed,
        }


_STRUCTURE = (
    "channels",
    "channel_mult",
    "num_res_blocks",
    "attention_factors",
    "codes",
    "code_channels",
    "latent_channels",
    "image_channels",
    "norm_groups",
)


def _checked(tensor, name, channels):
    """Return the shape of a batch of images or latents.

    Raises:
        ValueError: for a shape other than (batch_size, height, width, channels).
    """
    if len(tensor.shape) != 4 or tensor.shape[-1] != channels:
        raise ValueError(
            f"`{name}` must be of shape (batch_size, height, width, {channels}); received "
            f"{tuple(tensor.shape)}."
        )
    return tensor.shape
