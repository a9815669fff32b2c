"""Latent diffusion: a U-Net that denoises the latents of a frozen autoencoder."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from tqdm import tqdm

from keras_sparse_dm.diffusion.model import DiffusionModel
from keras_sparse_dm.models.autoencoder import VQAutoencoder
from keras_sparse_dm.models.unet import UNet
from keras_sparse_dm.presets import get_preset


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class LatentDiffusion(DiffusionModel):
    """Trains a U-Net on the latents of images (Rombach et al. 2022; paper, figure 1a).

    The autoencoder is frozen by this constructor: it gets no gradient, no optimizer state and
    no masks. All else is as in `DiffusionModel`.

    Args:
        denoiser: A `UNet` whose channels, in and out, are those of a latent.
        autoencoder: A `VQAutoencoder`, trained before.
        noise_schedule: `NoiseSchedule`.
        image_size: Height and width of the images, a multiple of what autoencoder and U-Net
            together downsample by.
        scale_latents: Whether latents are divided by the standard deviation of the first batch
            that is trained on (Rombach et al. 2022, appendix G); `scale_factor` keeps it.
        seed: Integer seed of the draws of timesteps and noise; None for a random one.

    Data for `fit` and `evaluate`: float tensors of images (batch_size, image_size, image_size,
    channels) in [-1, 1]; or dictionaries of `"latents"` (batch_size, image_size / f,
    image_size / f, code_channels) that the same autoencoder has encoded before, not scaled.

    Raises:
        ValueError: if sizes and channels do not fit together, or as `DiffusionModel`.

    Example:

    >>> model = LatentDiffusion.from_preset("ldm_celebahq")
    >>> load_pytorch(model.autoencoder, "vq-f4.ckpt")
    >>> sparsify(model, 0.5)
    >>> model.compile(keras.optimizers.AdamW(2e-6, weight_decay=1e-2, use_ema=True))
    >>> model.fit(batches, epochs=150, callbacks=[DynamicSparsity("rigl", update_every=1100)])
    >>> images = model.generate(16)
    """

    def __init__(
        self,
        denoiser,
        autoencoder,
        noise_schedule,
        image_size=256,
        scale_latents=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(denoiser, noise_schedule, seed=seed, **kwargs)
        channels = (denoiser.in_channels, denoiser.out_channels)
        if channels != (autoencoder.code_channels,) * 2:
            raise ValueError(
                f"`denoiser` must have the {autoencoder.code_channels} channels of the "
                f"autoencoder's latents, in and out; it has {channels[0]} and {channels[1]}."
            )
        multiple = autoencoder.downsampling * denoiser.downsampling
        if int(image_size) != image_size or image_size < 1 or image_size % multiple:
            raise ValueError(
                f"`image_size` must be a multiple of {multiple}, by which autoencoder "
                f"({autoencoder.downsampling}) and U-Net ({denoiser.downsampling}) together "
                f"downsample; received {image_size}."
            )
        autoencoder.trainable = False
        self.autoencoder = autoencoder
        self.image_size = int(image_size)
        self.scale_latents = scale_latents
        # Of a variable that replicas update each for itself, all keep the mean.
        self.scale_factor = self.add_weight(
            name="scale_factor",
            shape=(),
            initializer="ones",
            trainable=False,
            dtype="float32",
            aggregation="mean",
        )
        self.scale_known = self.add_weight(
            name="scale_known",
            shape=(),
            initializer="zeros",
            trainable=False,
            dtype="float32",
            aggregation="mean",
        )

    @classmethod
    def from_preset(cls, name, autoencoder=None, seed=None, **overrides):
        """Makes the model of a preset, untrained and dense.

        Args:
            name: A latent diffusion preset.
            autoencoder: A `VQAutoencoder` of the preset's latents; an untrained one by default.
            seed: As of the class.
            overrides: Arguments of the `UNet` to replace.

        Raises:
            ValueError: for a name that is not a latent diffusion preset.
        """
        preset = get_preset(name)
        denoiser = UNet.from_preset(name, **overrides)
        if autoencoder is None:
            autoencoder = VQAutoencoder.from_preset(name)
        return cls(
            denoiser,
            autoencoder,
            preset.noise.to_schedule(),
            image_size=preset.data.image_size,
            scale_latents=preset.model.scale_latents,
            seed=seed,
        )

    @property
    def trainable(self):
        """Whether the U-Net is trained; the autoencoder never is."""
        return super().trainable

    @trainable.setter
    def trainable(self, value):
        # Keras hands it on to all layers.
        keras.Model.trainable.fset(self, value)
        if hasattr(self, "autoencoder"):
            self.autoencoder.trainable = False

    @property
    def latent_shape(self):
        """Shape of one latent: (height, width, channels)."""
        size = self.image_size // self.autoencoder.downsampling
        return (size, size, self.autoencoder.code_channels)

    def prepare(self, data, training):
        if isinstance(data, (tuple, list)) and len(data) == 1:
            data = data[0]
        if isinstance(data, dict):
            if set(data) != {"latents"}:
                raise ValueError(
                    "A LatentDiffusion is trained on images, or on a dictionary of 'latents'; "
                    f"received a dictionary of {sorted(data)}."
                )
            latents = ops.cast(data["latents"], "float32")
        else:
            images, _ = super().prepare(data, training)
            latents = ops.stop_gradient(self.encode(images))
        if tuple(latents.shape[1:]) != self.latent_shape:
            raise ValueError(
                f"Latents must be of shape (batch_size, {str(self.latent_shape)[1:]}, as those "
                f"of images of {self.image_size} pixels are; received {tuple(latents.shape)}."
            )
        if training and self.scale_latents:
            self.learn_scale(latents)
        return latents * self.scale_factor, None

    def learn_scale(self, latents):
        """Sets `scale_factor` to one over the standard deviation of latents, the first time.

        Args:
            latents: Float tensor (batch_size, height, width, channels), not scaled.
        """
        scale = 1 / ops.maximum(ops.std(latents), 1e-12)
        known = self.scale_known > 0
        self.scale_factor.assign(ops.where(known, self.scale_factor, scale))
        self.scale_known.assign(1.0)

    def encode(self, images):
        """Encodes images to latents, not scaled: (batch_size, height, width, channels) float32."""
        return ops.cast(self.autoencoder.encode(images), "float32")

    def decode(self, latents):
        """Decodes latents as they are diffused, scaled, to images in [-1, 1]."""
        images = self.autoencoder.decode(ops.cast(latents, "float32") / self.scale_factor)
        return ops.clip(ops.cast(images, "float32"), -1.0, 1.0)

    def generate(
        self,
        n,
        steps=100,
        eta=0.0,
        sampler="ddim",
        seed=None,
        batch_size=16,
        progress=True,
    ):
        """Samples images from noise, with averaged (EMA) weights where there are any.

        Args:
            n: Number of images.
            steps: Number of DDIM steps, from 1 to T.
            eta: Noise of DDIM, from 0 to 1.
            sampler: `"ddim"` or `"ddpm"` (all timesteps).
            seed: Integer; the same seed gives the same images.
            batch_size: Images that are sampled and decoded at a time.
            progress: Whether to show progress bars.

        Returns:
            NumPy array (n, image_size, image_size, channels), float32 in [-1, 1].

        Raises:
            ValueError: for `n` or `batch_size` below 1, an unknown sampler, or steps or eta out
                of range.
        """
        for name, value in (("n", n), ("batch_size", batch_size)):
            if int(value) != value or value < 1:
                raise ValueError(f"`{name}` must be a whole number, 1 or more; received {value}.")
        latents = super().generate(
            shape=(n, *self.latent_shape),
            steps=steps,
            sampler=sampler,
            eta=eta,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )
        decode = vars(self).setdefault("_compiled_decode", tf.function(self.decode))
        shape = (n, self.image_size, self.image_size, self.autoencoder.image_channels)
        images = np.zeros(shape, "float32")
        bar = tqdm(total=n, desc="Decoding", unit=" images", disable=not progress)
        with bar:
            for begin in range(0, n, batch_size):
                part = slice(begin, begin + batch_size)
                images[part] = ops.convert_to_numpy(decode(latents[part]))
                bar.update(len(images[part]))
        return images

    def get_config(self):
        return super().get_config() | {
            "autoencoder": keras.saving.serialize_keras_object(self.autoencoder),
            "image_size": self.image_size,
            "scale_latents": self.scale_latents,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["autoencoder"] = keras.saving.deserialize_keras_object(
            config["autoencoder"], custom_objects=custom_objects
        )
        return super().from_config(config, custom_objects)
