"""Runs on images: data sets, a frozen autoencoder, latent diffusion, pictures."""

import warnings

import keras
import numpy as np
from keras import ops

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.compiled import compiled
from keras_sparse_dm.convert import load_pytorch
from keras_sparse_dm.data.images import (
    cache_latents,
    eval_image_batches,
    image_steps_per_epoch,
    train_image_batches,
)
from keras_sparse_dm.data.pictures import draw_images
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.metrics import FewSamplesWarning, frechet_distance
from keras_sparse_dm.models import LatentDiffusion, UNet, VQAutoencoder
from keras_sparse_dm.runs.autoencoder import (
    cache_errors,
    eval_batch_size,
    load_image_data,
    new_autoencoder,
    trained_autoencoder,
)
from keras_sparse_dm.runs.kinds import Kind

SAMPLING_BATCH_SIZE = 16
# Number of real images in memory at a time, to compute features of.
IMAGES_AT_ONCE = 512
# Height and width of the coarse images of FD-pixels, which needs no feature network.
PIXELS = 8
FEWEST_SAMPLES = 8


def load_autoencoder(path, preset):
    """Load a trained `VQAutoencoder` from a `.keras` or a PyTorch file.

    Args:
        path: The file, or a folder of the diffusers library.
        preset: `Preset` with the structure of the autoencoder in a PyTorch file.

    Raises:
        SettingsError: for a file that cannot be read or holds another model.
    """
    try:
        if path.suffix == ".keras":
            autoencoder = keras.saving.load_model(path, compile=False)
            if isinstance(autoencoder, LatentDiffusion):
                autoencoder = autoencoder.autoencoder
            if not isinstance(autoencoder, VQAutoencoder):
                raise ValueError(f"it holds a {type(autoencoder).__name__}, not a VQAutoencoder.")
            return autoencoder
        autoencoder = VQAutoencoder(**preset.autoencoder.arguments(), name="autoencoder")
        load_pytorch(autoencoder, path)
        return autoencoder
    except Exception as error:  # a damaged file can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingsError(f"--autoencoder {path} cannot be used: {reason}") from None


class Images(Kind):
    """Images, which `LatentDiffusion` generates."""

    unit = "images"
    part_size = 16
    endings = (".png", ".pdf", ".npz")
    input_names = ("latents", "t")
    tflite_parts = {"decoder": "decoder"}
    example_call = "2, steps=100"
    example_number = "tf.constant(2)"

    def training_run(self, settings):
        return ImageRun(settings)

    def load(self, settings, progress=True):
        return load_image_data(settings)

    def put_in_cache(self, settings):
        run = ImageRun(settings)
        run.before_training(run.new_model())
        return run.summary()

    def example(self, run):
        autoencoder = run.model.autoencoder
        size = run.settings.data.image_size // autoencoder.downsampling
        latent = np.zeros((1, size, size, autoencoder.code_channels), "float32")
        return latent, np.zeros(1, "int32")

    def draw_samples(self, model, n, lengths, **options):
        # The caller shows one progress bar for all samples.
        return model.generate(n, batch_size=self.part_size, progress=False, **options)

    def finished(self, samples, broken):
        samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
        return np.clip(np.round((samples + 1) * 127.5), 0, 255).astype("uint8")

    def joined(self, run, parts, lengths):
        return np.concatenate(parts)

    def first(self, samples, n):
        return samples[:n]

    def write(self, samples, path):
        if path.suffix.lower() == ".npz":
            with whole_file(path) as temporary, open(temporary, "wb") as stream:
                np.savez_compressed(stream, images=samples)
        else:
            draw_images(samples.astype("float32") / 127.5 - 1, path)

    def chosen(self, data, numbers):
        # A large data set does not fit into memory at once.
        parts = np.array_split(numbers, -(-len(numbers) // IMAGES_AT_ONCE))
        pictures = (np.stack([data[i] for i in part]) for part in parts)
        return pictures, [data.fingerprint, numbers.tolist()]

    def pictures(self, examples, progress):
        return examples


class ImageRun:
    """Data, model and pictures of a run that trains on images.

    Args:
        settings: `ImageRunSettings`, checked.

    Raises:
        SettingsError: for data, sizes or an autoencoder that cannot work.
    """

    def __init__(self, settings):
        self.settings = settings
        self.preset = settings.to_preset()
        self._encoded = self._real_features = None
        try:
            # Quick checks come first, before any long work.
            self._denoiser = UNet(**self.preset.denoiser_arguments(), name="unet")
            autoencoder = None
            if settings.autoencoder is not None:
                autoencoder = load_autoencoder(settings.autoencoder, self.preset)
            else:
                new_autoencoder(settings.first_stage, settings.data.image_size, settings.seed)
            self._check_size(autoencoder)
        except SettingsError:
            raise
        except ValueError as error:
            raise SettingsError(str(error)) from None
        self.train, self.validation = load_image_data(settings)
        self.autoencoder = autoencoder or trained_autoencoder(settings, self.train, self.validation)
        self.batch_size = settings.training.batch_size
        self.steps = image_steps_per_epoch(self.train, self.batch_size)

    def _check_size(self, autoencoder):
        down = 2 ** (len(self.settings.first_stage.channel_mult) - 1)
        if autoencoder is not None:
            down = autoencoder.downsampling
        multiple, size = down * self._denoiser.downsampling, self.settings.data.image_size
        if size % multiple:
            raise SettingsError(
                f"--image-size must be a multiple of {multiple}, the product of the "
                f"downsampling factors of autoencoder ({down}) and U-Net "
                f"({self._denoiser.downsampling}); received {size}."
            )

    def new_model(self):
        """Return the untrained, dense `LatentDiffusion`, not compiled."""
        try:
            return LatentDiffusion(
                self._denoiser,
                self.autoencoder,
                self.preset.noise.to_schedule(),
                image_size=self.settings.data.image_size,
                scale_latents=self.settings.model.scale_latents,
                seed=self.settings.seed,
            )
        except ValueError as error:
            raise SettingsError(f"--autoencoder: {error}") from None

    def check_fits(self, model):
        """Check that a checkpoint has the autoencoder of this run.

        Raises:
            SettingsError: if it has another one.
        """
        if model.autoencoder.fingerprint() != self.autoencoder.fingerprint():
            raise SettingsError(
                "--resume: the run was started with an autoencoder of other weights. Give the same "
                "--autoencoder, or start another run."
            )

    def before_training(self, model):
        """Encode the images if the settings cache latents, and set the scale of the latents."""
        if self.settings.data.cache_latents:
            encode = compiled(model.encode, lambda: model.autoencoder.variables)
            fingerprint = model.autoencoder.fingerprint()
            with cache_errors():
                self._encoded = tuple(
                    cache_latents(
                        encode,
                        images,
                        cache_dir=self.settings.cache_dir,
                        fingerprint=fingerprint,
                        batch_size=eval_batch_size(images),
                    )
                    for images in (self.train, self.validation)
                )
        if model.scale_latents and not float(model.scale_known):
            # The untrained network, which is evaluated first, needs the scale.
            (batch,) = self.train_batches(0).take(1)
            batch = keras.tree.map_structure(ops.convert_to_tensor, batch)
            model.clean_batch(batch, training=True)

    @property
    def checksum(self):
        """Checksum of the training data."""
        return int(self.train.fingerprint[:12], 16)

    def summary(self):
        """Return a description of the data, for the terminal."""
        batch_size = self.settings.training.batch_size
        return (
            f"{self.train.summary}\n"
            f"{len(self.train):,} for training in {self.steps} batches of {batch_size} an epoch, "
            f"{len(self.validation):,} for validation, {self.settings.data.image_size} pixels"
            + (", mirrored at random" if self.train.flip else "")
        )

    def train_batches(self, epochs_done):
        """Return endless training batches that start after `epochs_done` epochs."""
        return train_image_batches(
            self._encoded[0] if self._encoded else self.train,
            self.settings.training.batch_size,
            self.settings.seed,
            initial_epoch=epochs_done,
        )

    def validation_batches(self):
        return eval_image_batches(
            self._encoded[1] if self._encoded else self.validation, eval_batch_size(self.validation)
        )

    def generate(self, model):
        """Return the run's samples: float array (n, size, size, 3) in [-1, 1]."""
        s = self.preset.sampling
        images = model.generate(
            self.settings.samples,
            steps=s.steps,
            sampler=s.sampler,
            eta=s.eta,
            seed=self.settings.seed,
            batch_size=SAMPLING_BATCH_SIZE,
            progress=self.settings.verbose != 0,
        )
        broken = ~np.isfinite(images).all(axis=(1, 2, 3))
        if broken.any():
            print(f"{broken.sum()} of {len(images)} samples are not finite and are drawn grey.")
            images[broken] = 0.0
        return images

    def draw(self, path, samples):
        draw_images([samples], path)

    def draw_beside_real(self, path, samples):
        draw_images(
            [samples, self._some(self.train, len(samples))], path, titles=("generated", "real")
        )

    def _some(self, images, n):
        chosen = np.random.default_rng(self.settings.seed).permutation(len(images))[:n]
        return _to_float([images[i] for i in chosen])

    @property
    def example_name(self):
        return f"a {' x '.join(map(str, self._latent_shape))} latent"

    @property
    def _latent_shape(self):
        size = self.settings.data.image_size // self.autoencoder.downsampling
        return (size, size, self.autoencoder.code_channels)

    def untrained_results(self, model):
        """Return values of the untrained network for `report.json`."""
        if min(self.settings.samples, len(self.train)) < FEWEST_SAMPLES:
            return {}
        return {"fd_pixels_untrained": self._distance(self.generate(model))}

    def results(self, samples):
        """Return values for `report.json` that only runs on images have."""
        distances = {}
        if min(len(samples), len(self.train)) >= FEWEST_SAMPLES:
            distances["fd_pixels_generated"] = self._distance(samples)
            if len(self.validation) >= FEWEST_SAMPLES:
                held_out = self._some(self.validation, len(samples))
                distances["fd_pixels_held_out"] = self._distance(held_out)
        return {"latent_shape": list(self._latent_shape), **distances}

    def _distance(self, images):
        """Return the Fréchet distance of images from the training images, by coarse grey pixels."""
        if self._real_features is None:
            n, size = len(self.train), eval_batch_size(self.train)
            self._real_features = np.concatenate(
                [
                    _pixel_features(
                        _to_float([self.train[i] for i in range(at, min(n, at + size))])
                    )
                    for at in range(0, n, size)
                ]
            )
        with warnings.catch_warnings():
            # It is only compared with distances of equally many images.
            warnings.simplefilter("ignore", FewSamplesWarning)
            return frechet_distance(_pixel_features(images), self._real_features)

    def report_rows(self, results):
        """Return `(name, value)` lines for `report.md`, from the values of `results`."""
        distances = {
            name: results.get(f"fd_pixels_{name.replace(' ', '_')}")
            for name in ("untrained", "generated", "held out")
        }
        text = ", ".join(f"{name} {value:.2f}" for name, value in distances.items() if value)
        if not text:
            return []
        return [(f"FD-pixels{PIXELS} to the training images, {results['samples']} images", text)]


def _to_float(images):
    return np.stack(images).astype("float32") / 127.5 - 1


def _pixel_features(images):
    """Return grey images averaged to 8 x 8 pixels, float array (n, 64)."""
    grey = images.mean(axis=-1)
    n, height, width = grey.shape
    rows = np.linspace(0, height, PIXELS + 1).astype(int)[:-1]
    columns = np.linspace(0, width, PIXELS + 1).astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(grey, rows, axis=1), columns, axis=2)
    return sums.reshape(n, -1) / (height * width / PIXELS**2)
