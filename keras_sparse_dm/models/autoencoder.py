"""The vector-quantized autoencoder of latent diffusion (Esser et al. 2021; Rombach et al. 2022)."""

import functools
import hashlib
import json

import keras
import tensorflow as tf
from keras import ops

from keras_sparse_dm.models.blocks import (
    Downsample,
    GroupNorm,
    ResidualBlock,
    Upsample,
    attention,
    conv_layer,
)
from keras_sparse_dm.presets import get_preset
from keras_sparse_dm.seeds import seed_generator
from keras_sparse_dm.sparsity.install import build_optimizer

# Distances between latents and codes that are held at a time.
DISTANCES = 2**22
RECONSTRUCTION_LOSSES = ("l1", "l2")


class _AttentionBlock(keras.layers.Layer):
    """Self-attention of all positions in one head, beside the identity."""

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

    def call(self, x, training=False):
        batch_size, height, width, channels = (*ops.shape(x)[:3], x.shape[-1])
        normalized = self.norm(x)
        query, key, value = (
            ops.reshape(layer(normalized), (batch_size, height * width, 1, channels))
            for layer in (self.query, self.key, self.value)
        )
        hidden = attention(query, key, value, training=training)
        return x + self.output_projection(ops.reshape(hidden, ops.shape(x)))


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class VQAutoencoder(keras.Model):
    """Images to small latents of quantized codes, and back.

    The defaults are the published `vq-f4` autoencoder: 256x256 images become 64x64 latents of
    3 channels, each position one of 8192 codes. Its own kernels are never sparse. It trains by
    `fit` on images alone, after `compile` with an optimizer alone.

    Args:
        channels: Channels at full resolution; a multiple of `norm_groups`.
        channel_mult: Factor on the channels at each resolution, from full to that of the
            latents; each resolution has half the height and width of the one before.
        num_res_blocks: Residual blocks at each resolution of the encoder; the decoder has one
            more.
        attention_factors: Downsampling factors at which residual blocks are followed by
            self-attention; the coarsest point always has one.
        codes: Number of codes in the code book.
        code_channels: Channels of a code and of a latent.
        latent_channels: Channels that the encoder gives before they become those of a code.
        image_channels: Channels of an image.
        norm_groups: Groups of the group norms.
        reconstruction: Loss of the reconstruction: `"l1"`, as the original, or `"l2"`.
        commitment: Weight of the commitment loss (beta of van den Oord et al. 2017).
        restart_after: Training steps after which a code that no latent chose is put where a
            latent of the batch lies; 0 for never.
        seed: Integer seed of these restarts; None for a random one.

    Call arguments:
        images: Float tensor (batch_size, height, width, image_channels) in [-1, 1], height and
            width known and multiples of `downsampling`.

    Returns:
        Reconstructed images, of the same shape.

    Raises:
        ValueError: for arguments out of range, and from calls for images or latents of a wrong
            shape.

    Example:

    >>> autoencoder = VQAutoencoder(channels=32, codes=256)
    >>> autoencoder.compile(keras.optimizers.Adam(1e-3))
    >>> autoencoder.fit(images, epochs=10)
    >>> latents = autoencoder.encode(images)
    >>> quantized, indices = autoencoder.quantize(latents)
    >>> images = autoencoder.decode(latents)
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
        super().__init__(**kwargs)
        channel_mult, attention_factors = tuple(channel_mult), tuple(attention_factors)
        for name, values in (
            ("channels", [channels]),
            ("channel_mult", channel_mult),
            ("num_res_blocks", [num_res_blocks]),
            ("codes", [codes]),
            ("code_channels", [code_channels]),
            ("latent_channels", [latent_channels]),
            ("image_channels", [image_channels]),
            ("norm_groups", [norm_groups]),
        ):
            if not values or any(int(v) != v or v < 1 for v in values):
                raise ValueError(f"`{name}` must be 1 or more; received {locals()[name]!r}.")
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
        if reconstruction not in RECONSTRUCTION_LOSSES:
            raise ValueError(
                f"`reconstruction` must be one of {', '.join(RECONSTRUCTION_LOSSES)}; received "
                f"{reconstruction!r}."
            )
        if commitment < 0 or restart_after < 0:
            raise ValueError(
                "`commitment` and `restart_after` must be 0 or more; received "
                f"{commitment} and {restart_after}."
            )
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
        self.seed = seed
        self._seed_generator = seed_generator(seed, "code restarts")
        self._make_layers()
        self.build()

    def __new__(cls, *args, **kwargs):
        autoencoder = super().__new__(cls, *args, **kwargs)
        # Keras's wrapper, for a `quantize` that takes the name of an integer type.
        vars(autoencoder).pop("quantize", None)
        return autoencoder

    def _make_layers(self):
        conv = keras.layers.Conv2D
        groups = self.norm_groups
        coarsest = self.channel_mult[-1] * self.channels

        def residual(name, channels, factor=None):
            layers = [
                ResidualBlock(channels, conv, groups=groups, epsilon=1e-6, zero=False, name=name)
            ]
            if factor in self.attention_factors:
                layers.append(_AttentionBlock(channels, groups, name=f"{name}_attention"))
            return layers

        def middle(part):
            return [
                *residual(f"{part}_middle_0", coarsest),
                _AttentionBlock(coarsest, groups, name=f"{part}_middle_1_attention"),
                *residual(f"{part}_middle_2", coarsest),
            ]

        # One list per resolution: residual blocks, each with its attention, then resampling.
        encoder_levels = []
        for level, multiple in enumerate(self.channel_mult):
            channels, layers = multiple * self.channels, []
            for i in range(self.num_res_blocks):
                layers += residual(f"encoder_{level}_{i}", channels, 2**level)
            if level + 1 < len(self.channel_mult):
                name = f"encoder_{level}_downsample"
                layers.append(Downsample(channels, conv, padding=(0, 1), name=name))
            encoder_levels.append(layers)
        decoder_levels = []
        for level, multiple in enumerate(self.channel_mult):
            channels, layers = multiple * self.channels, []
            for i in range(self.num_res_blocks + 1):
                layers += residual(f"decoder_{level}_{i}", channels, 2**level)
            if level:
                layers.append(Upsample(channels, conv, name=f"decoder_{level}_upsample"))
            decoder_levels.append(layers)
        self.encoder_input = conv_layer(conv, self.channels, name="encoder_input")
        self.encoder_levels = encoder_levels
        self.encoder_middle = middle("encoder")
        self.encoder_norm = GroupNorm(groups, 1e-6, activation="silu", name="encoder_norm")
        self.encoder_output = conv_layer(conv, self.latent_channels, name="encoder_output")
        self.to_code = conv_layer(conv, self.code_channels, 1, name="to_code")
        self.from_code = conv_layer(conv, self.latent_channels, 1, name="from_code")
        self.decoder_input = conv_layer(conv, coarsest, name="decoder_input")
        self.decoder_middle = middle("decoder")
        # As in the original from full to coarse, although the decoder goes the other way.
        self.decoder_levels = decoder_levels
        self.decoder_norm = GroupNorm(groups, 1e-6, activation="silu", name="decoder_norm")
        self.decoder_output = conv_layer(conv, self.image_channels, name="decoder_output")
        self._trackers = {
            name: keras.metrics.Mean(name=name)
            for name in ("loss", "reconstruction", "quantization", "codes_used")
        }

    def build(self, input_shape=None):
        # All shapes follow from the arguments, so the model is built from the start.
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
        # A code book that was never trained is put where the first latents lie.
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
        """Makes the autoencoder of a preset, untrained, with some arguments replaced.

        Raises:
            ValueError: for a name that is not a latent diffusion preset.
        """
        preset = get_preset(name)
        if preset.model.kind != "unet":
            raise ValueError(f"`name` must be a latent diffusion preset; received {name!r}.")
        return cls(**(preset.autoencoder.arguments() | overrides))

    @property
    def downsampling(self):
        """Factor f from images to latents; height and width of images are multiples of it."""
        return 2 ** (len(self.channel_mult) - 1)

    def encode(self, images, training=False):
        """Encodes images to latents, which are not quantized yet.

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
            x = _apply(layers, x, training)
        return self.to_code(self.encoder_output(self.encoder_norm(x)))

    def quantize(self, latents):
        """Replaces every position of latents by the nearest code.

        Args:
            latents: Float tensor (batch_size, height, width, code_channels).

        Returns:
            `(quantized, indices)`: a tensor of the shape of `latents`, and the codes' numbers,
            int32 (batch_size, height, width).
        """
        latents = ops.convert_to_tensor(latents)
        _checked(latents, "latents", self.code_channels)
        flat = ops.reshape(ops.cast(latents, "float32"), (-1, self.code_channels))
        codebook = ops.cast(self.codebook, "float32")
        squared = ops.sum(ops.square(codebook), axis=-1)

        def nearest(part):
            # The latent's own square is the same for all codes.
            distances = squared - 2 * ops.matmul(part, ops.transpose(codebook))
            # Keras's own takes bits apart, which TensorFlow Lite cannot.
            return tf.argmin(distances, axis=-1, output_type="int32")

        size = max(1, DISTANCES // self.codes)
        if flat.shape[0] is not None and flat.shape[0] <= size:
            indices = nearest(flat)
        else:
            positions = ops.shape(flat)[0]
            missing = -positions % size
            parts = ops.pad(flat, ((0, missing), (0, 0)))
            parts = ops.reshape(parts, (-1, size, self.code_channels))
            indices = ops.reshape(ops.map(nearest, parts), (-1,))[:positions]
        indices = ops.reshape(indices, ops.shape(latents)[:-1])
        return ops.cast(ops.take(codebook, indices, axis=0), latents.dtype), indices

    def decode(self, latents, quantize=True, training=False):
        """Decodes latents to images, after quantizing them.

        Args:
            latents: Float tensor (batch_size, height, width, code_channels).
            quantize: Whether to quantize first; False for latents that are quantized already.
            training: Whether a gradient will be taken.

        Returns:
            Float tensor (batch_size, height f, width f, image_channels), about [-1, 1].
        """
        latents = ops.convert_to_tensor(latents)
        _checked(latents, "latents", self.code_channels)
        if quantize:
            latents, _ = self.quantize(latents)
        x = self.decoder_input(self.from_code(ops.cast(latents, self.compute_dtype)))
        for layers in (self.decoder_middle, *reversed(self.decoder_levels)):
            x = _apply(layers, x, training)
        return self.decoder_output(self.decoder_norm(x))

    def call(self, images, training=False):
        return self.decode(self.encode(images, training=training), training=training)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def fingerprint(self):
        """Returns a short text that tells autoencoders with other weights apart."""
        digest = hashlib.sha256()
        config = {k: v for k, v in self.get_config().items() if k in _STRUCTURE}
        digest.update(json.dumps(config, sort_keys=True).encode())
        for variable in self.weights:
            if variable is not self.unused_steps:
                digest.update(ops.convert_to_numpy(variable).tobytes())
        return digest.hexdigest()[:20]

    # Training ---------------------------------------------------------------------------

    @property
    def metrics(self):
        return list(self._trackers.values())

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        build_optimizer(self)
        return super().fit(*args, **kwargs)

    def train_step(self, data):
        images = _images(data)
        with tf.GradientTape() as tape:
            loss, losses, latents, indices = self._batch_losses(images, training=True)
            scaled_loss = self.optimizer.scale_loss(sum(self.losses, loss))
        gradients = tape.gradient(scaled_loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        used = self._restart_unused(latents, indices)
        return self._track(images, losses | {"codes_used": used})

    def test_step(self, data):
        images = _images(data)
        _, losses, _, indices = self._batch_losses(images, training=False)
        return self._track(images, losses | {"codes_used": self._chosen(indices)})

    def _batch_losses(self, images, training):
        """`(loss, {name: loss}, latents, indices)` of a batch (van den Oord et al. 2017, eq. 3)."""
        images = ops.cast(images, "float32")
        latents = ops.cast(self.encode(images, training=training), "float32")
        _, indices = self.quantize(latents)
        quantized = ops.take(ops.cast(self.codebook, "float32"), indices, axis=0)
        to_codes = ops.mean(ops.square(quantized - ops.stop_gradient(latents)))
        to_latents = ops.mean(ops.square(ops.stop_gradient(quantized) - latents))
        # Straight through: the gradient passes as if nothing had been quantized.
        passed = latents + ops.stop_gradient(quantized - latents)
        decoded = self.decode(passed, quantize=False, training=training)
        error = ops.cast(decoded, "float32") - images
        distance = ops.abs if self.reconstruction == "l1" else ops.square
        reconstruction = ops.mean(distance(error))
        quantization = to_codes + self.commitment * to_latents
        loss = reconstruction + quantization
        losses = {"loss": loss, "reconstruction": reconstruction, "quantization": quantization}
        return loss, losses, latents, indices

    def _chosen(self, indices):
        """Share of the codes that a batch uses."""
        return ops.mean(ops.cast(self._counts(indices) > 0, "float32"))

    def _counts(self, indices):
        return ops.bincount(ops.reshape(indices, (-1,)), minlength=self.codes)

    def _restart_unused(self, latents, indices):
        """Moves codes that are unused for long to latents of the batch; the share used."""
        counts = self._counts(indices)
        if self.restart_after:
            unused = ops.where(counts > 0, 0, self.unused_steps + 1)
            restarted = unused >= self.restart_after
            flat = ops.reshape(latents, (-1, self.code_channels))
            chosen = keras.random.randint(
                (self.codes,), 0, ops.shape(flat)[0], seed=self._seed_generator
            )
            codebook = ops.where(restarted[:, None], ops.take(flat, chosen, axis=0), self.codebook)
            self.codebook.assign(codebook)
            self.unused_steps.assign(ops.where(restarted, 0, unused))
        return ops.mean(ops.cast(counts > 0, "float32"))

    def _track(self, images, values):
        for name, value in values.items():
            self._trackers[name].update_state(value, sample_weight=ops.shape(images)[0])
        return self.get_metrics_result()

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


def _apply(layers, x, training):
    for layer in layers:
        resampling = isinstance(layer, (Downsample, Upsample))
        x = layer(x) if resampling else layer(x, training=training)
    return x


def _checked(tensor, name, channels):
    """The shape of a batch of images or latents, which must have so many channels."""
    if len(tensor.shape) != 4 or tensor.shape[-1] != channels:
        raise ValueError(
            f"`{name}` must be of shape (batch_size, height, width, {channels}); received "
            f"{tuple(tensor.shape)}."
        )
    return tensor.shape


def _images(data):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if y is not None or sample_weight is not None:
        raise ValueError(
            "A VQAutoencoder is trained on images alone; received targets or sample weights too."
        )
    return x
