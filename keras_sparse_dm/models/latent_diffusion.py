"""Latent diffusion: a U-Net that denoises the latents of a frozen autoencoder."""

import keras
import numpy as np
from keras import ops
from tqdm import tqdm

from keras_sparse_dm.checks import whole_number
from keras_sparse_dm.compiled import compiled
from keras_sparse_dm.diffusion.model import DiffusionModel
from keras_sparse_dm.models.autoencoder import VQAutoencoder
from keras_sparse_dm.models.unet import UNet
from keras_sparse_dm.presets import get_preset


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class LatentDiffusion(DiffusionModel):
    """A U-Net trained on the latents of images (Rombach et al. 2022; paper, figure 1a).

    The constructor freezes the autoencoder: it gets no gradient, no optimizer state and no masks.
    Everything else is as in `DiffusionModel`.

    Args:
        denoiser: A `UNet` with as many channels, in and out, as a latent.
        autoencoder: A trained `VQAutoencoder`.
        noise_schedule: `NoiseSchedule`.
        image_size: Height and width of the images, a multiple of the downsampling factors of
            autoencoder and U-Net together.
        scale_latents: Whether to divide latents by the standard deviation of the first training
            batch (Rombach et al. 2022, appendix G); `scale_factor` keeps its inverse.
        seed: Integer seed of the draws of timesteps and noise; None for a random one.

    Data for `fit` and `evaluate`: float tensors of images (batch_size, image_size, image_size,
    channels) in [-1, 1]; or dictionaries of `"latents"` (batch_size, image_size / f,
    image_size / f, code_channels) from the same autoencoder, not scaled.

    Raises:
        ValueError: if sizes or channels do not fit together, and for the reasons of
            `DiffusionModel`.

    Example, of a tiny model; `LatentDiffusion.from_preset("ldm_celebahq")` makes the paper's, and
    `load_pytorch(model.autoencoder, "vq-f4.ckpt")` loads its published autoencoder:

    >>> unet = UNet(model_channels=32, channel_mult=(1,), num_res_blocks=1)
    >>> autoencoder = VQAutoencoder(channels=32, channel_mult=(1, 2), num_res_blocks=1, codes=16)
    >>> model = LatentDiffusion(unet, autoencoder, NoiseSchedule.scaled_linear(1000), image_size=8)
    >>> report = sparsify(model, 0.5)
    >>> model.compile(keras.optimizers.AdamW(1e-3, weight_decay=1e-2, use_ema=True))
    >>> images = np.zeros((2, 8, 8, 3), "float32")
    >>> history = model.fit(images, callbacks=[DynamicSparsity("rigl", update_every=1100)])
    >>> model.generate(1, steps=2).shape
    (1, 8, 8, 3)
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
        # Each replica assigns its own value; with this aggregation all keep the mean.
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
        """Return the model of a preset, untrained and dense.

        Args:
            name: Name of a latent diffusion preset.
            autoencoder: A `VQAutoencoder` for the preset's latents; by default an untrained one.
            seed: As in the class.
            overrides: Arguments of the `UNet` that replace the preset's.

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
        """True if the U-Net trains; the autoencoder never does."""
        return super().trainable

    @trainable.setter
    def trainable(self, value):
        # Keras sets it on all layers, the autoencoder among them.
        keras.Model.trainable.fset(self, value)
        if hasattr(self, "autoencoder"):
            self.autoencoder.trainable = False

    @property
    def latent_shape(self):
        """Shape of one latent: (height, width, channels)."""
        size = self.image_size // self.autoencoder.downsampling
        return (size, size, self.autoencoder.code_channels)

    def clean_batch(self, data, training):
        """Return the scaled latents of a batch.

        Args:
            data: A batch of images, or a dictionary of their `"latents"`, as in `fit`.
            training: Whether the model trains on the batch. With `scale_latents` the first
                training batch sets `scale_factor`.

        Returns:
            `(latents, None)`, with a float32 tensor (batch_size, height, width, channels).

        Raises:
            ValueError: for other dictionaries, shapes, targets or sample weights.
        """
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
            images, _ = super().clean_batch(data, training)
            latents = ops.stop_gradient(self.encode(images))
        if tuple(latents.shape[1:]) != self.latent_shape:
            raise ValueError(
                f"Latents must be of shape (batch_size, {str(self.latent_shape)[1:]} for images of "
                f"{self.image_size} pixels; received {tuple(latents.shape)}."
            )
        if training and self.scale_latents:
            self.learn_scale(latents)
        return latents * self.scale_factor, None

    def learn_scale(self, latents):
        """Set `scale_factor` to one over the standard deviation of latents, unless it is known.

        Args:
            latents: Float tensor (batch_size, height, width, channels), not scaled.
        """
        scale = 1 / ops.maximum(ops.std(latents), 1e-12)
        known = ops.convert_to_tensor(self.scale_known) > 0
        before = ops.convert_to_tensor(self.scale_factor)
        self.scale_factor.assign(ops.where(known, before, scale))
        self.scale_known.assign(1.0)

    def encode(self, images):
        """Encode images to latents, without scaling them.

        Args:
            images: Float tensor (batch_size, image_size, image_size, channels) in [-1, 1].

        Returns:
            Float32 tensor (batch_size, height, width, channels).
        """
        return ops.cast(self.autoencoder.encode(images), "float32")

    def decode(self, latents):
        """Decode scaled latents to images.

        Args:
            latents: Float tensor (batch_size, height, width, channels).

        Returns:
            Float32 tensor (batch_size, image_size, image_size, channels) in [-1, 1].
        """
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
        """Sample images from noise, with the averaged (EMA) weights if there are any.

        Args:
            n: Number of images.
            steps: Number of DDIM steps, from 1 to T.
            eta: Noise of DDIM, from 0 to 1.
            sampler: `"ddim"` or `"ddpm"` (all timesteps).
            seed: Integer; equal seeds give equal images. None for a random one.
            batch_size: Number of images to sample and decode at a time.
            progress: Whether to show progress bars.

        Returns:
            Float32 NumPy array (n, image_size, image_size, channels) in [-1, 1].

        Raises:
            ValueError: for `n` or `batch_size` below 1, an unknown sampler, or steps or eta out
                of range.
        """
        n, batch_size = whole_number("`n`", n, 1), whole_number("`batch_size`", batch_size, 1)
        latents = super().generate(
            shape=(n, *self.latent_shape),
            steps=steps,
            sampler=sampler,
            eta=eta,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )
        decode = vars(self).setdefault(
            "_compiled_decode",
            compiled(self.decode, lambda: [*self.autoencoder.variables, self.scale_factor]),
        )
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
