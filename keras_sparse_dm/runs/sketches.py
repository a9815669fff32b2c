"""Runs on sketches: data sets, ChiroDiff, drawings."""

import zlib

import keras
import numpy as np

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.data import (
    SketchArrays,
    animate,
    eval_batches,
    from_points,
    padding_waste,
    sample_lengths,
    steps_per_epoch,
    train_batches,
    write_sketch_json,
)
from keras_sparse_dm.data.pictures import draw
from keras_sparse_dm.diffusion import DiffusionModel
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.metrics import render_sketches
from keras_sparse_dm.models import ChiroDiff
from keras_sparse_dm.presets import get_preset
from keras_sparse_dm.runs.kinds import Kind
from keras_sparse_dm.runs.sketch_data import load_sketch_data

EVAL_BATCH_SIZE = 256
# Height and width of the pictures for feature networks.
PICTURE_SIZE = 128


class Sketches(Kind):
    """Sketches, which `ChiroDiff` generates."""

    unit = "sketches"
    part_size = 500
    endings = (".png", ".svg", ".pdf", ".gif", ".npz", ".json")
    input_names = ("points", "t", "lengths")
    metadata_keys = frozenset(("lengths", "representation"))
    example_call = "lengths=[60, 80], steps=50"
    example_number = "tf.constant([60, 80])"

    def training_run(self, settings):
        return SketchRun(settings)

    def load(self, settings, progress=True):
        return load_sketch_data(settings.data, settings.data_dir, settings.cache_dir, progress)

    def put_in_cache(self, settings):
        train, _ = self.load(settings)
        return train.summary

    def example(self, run):
        length = round(float(run.train.lengths.mean()))
        return np.zeros((1, length, 3), "float32"), np.zeros(1, "int32"), np.array([length])

    def lengths(self, run, n, seed):
        return run.lengths(n, seed)

    def draw_samples(self, model, n, lengths, **options):
        return model.generate(lengths=lengths, **options)

    def finished(self, samples, broken):
        samples[broken] = 0.0
        return samples

    def joined(self, run, parts, lengths):
        begins = range(0, len(lengths), self.part_size)
        points = [
            part[np.arange(part.shape[1])[None] < lengths[begin : begin + len(part), None]]
            for begin, part in zip(begins, parts, strict=True)
        ]
        names = [f"sample {i}" for i in range(len(lengths))]
        return SketchArrays(np.concatenate(points), lengths, names, run.representation)

    def first(self, samples, n):
        return samples.take(n)

    def write(self, samples, path):
        ending = path.suffix.lower()
        if ending == ".npz":
            arrays = {"points": samples.points, "lengths": samples.lengths}
            arrays["representation"] = np.array(samples.representation)
            with whole_file(path) as temporary, open(temporary, "wb") as stream:
                np.savez_compressed(stream, **arrays)
        elif ending == ".json":
            write_sketch_json(path, sketches_of(samples))
        elif ending == ".gif":
            animate(sketches_of(samples), path)
        else:
            draw(sketches_of(samples), path)

    def chosen(self, data, numbers):
        data = data.subset(numbers)
        return [data], [PICTURE_SIZE, zlib.crc32(data.points.tobytes()), data.lengths.tolist()]

    def pictures(self, examples, progress):
        return render_sketches(examples, PICTURE_SIZE, progress=progress)

    def metadata(self, run):
        lengths, counts = np.unique(run.train.lengths, return_counts=True)
        pairs = [[int(n), int(count)] for n, count in zip(lengths, counts, strict=True)]
        return {"representation": run.representation, "lengths": pairs}

    def tflite_length(self, run, length):
        return int(run.train.lengths.max()) if length is None else length


def sketches_of(arrays):
    """Return `SketchArrays` as a list of `Sketch`."""
    return [
        from_points(points, arrays.representation, name=name)
        for points, name in zip(arrays, arrays.names, strict=True)
    ]


class SketchRun:
    """Data, model and pictures of a run that trains on sketches.

    Args:
        settings: `SketchRunSettings`, checked.

    Raises:
        SettingsError: for data or sizes that cannot work.
    """

    def __init__(self, settings):
        self.settings = settings
        self.preset = settings.to_preset()
        self.train, self.validation = load_sketch_data(
            settings.data, settings.data_dir, settings.cache_dir
        )
        self.batch_size = settings.training.batch_size
        if self.batch_size > len(self.train) and self.batch_size == self._preset_batch_size():
            # A preset's batch size is for its complete data set.
            self.batch_size = len(self.train)
        try:
            self.steps = steps_per_epoch(self.train, self.batch_size)
        except ValueError as error:
            raise SettingsError(f"--batch-size: {error}") from None
        self.lengths = sample_lengths(self.train, settings.samples, settings.seed)

    def _preset_batch_size(self):
        return get_preset(self.settings.preset).training.batch_size

    def new_model(self):
        """Return the untrained, dense `DiffusionModel`, not compiled."""
        seed = self.settings.seed
        denoiser = ChiroDiff(**self.preset.denoiser_arguments(), seed=seed)
        return DiffusionModel(denoiser, self.preset.noise.to_schedule(), seed=seed)

    def check_fits(self, model):
        """Do nothing, because the configuration describes all of a checkpoint."""

    def before_training(self, model):
        """Do nothing, because sketches need no preparation."""

    @property
    def checksum(self):
        """Checksum of the training data."""
        return zlib.crc32(self.train.points.tobytes())

    def summary(self):
        """Return a description of the data, for the terminal."""
        fewer = ""
        if self.batch_size < self.settings.training.batch_size:
            fewer = f" (all; the preset's batch size is {self.settings.training.batch_size})"
        return (
            f"{self.train.summary}\n"
            f"{len(self.train):,} for training in {self.steps} batches of {self.batch_size}{fewer} "
            f"an epoch, {len(self.validation):,} for validation; {self.train.lengths.mean():.1f} "
            f"points a sketch, {padding_waste(self.train, self.batch_size):.1%} of the points in "
            "batches are padding"
        )

    def train_batches(self, epochs_done):
        """Endless batches from the epoch after those done."""
        return train_batches(
            self.train,
            self.batch_size,
            self.settings.seed,
            initial_epoch=epochs_done,
            jitter=self.settings.data.jitter,
            length_multiple=_length_multiple(),
        )

    def validation_batches(self):
        return eval_batches(self.validation, EVAL_BATCH_SIZE, _length_multiple())

    def generate(self, model):
        """Return the run's samples as a list of `Sketch`."""
        s = self.preset.sampling
        points = model.generate(
            lengths=self.lengths,
            steps=s.steps,
            sampler=s.sampler,
            eta=s.eta,
            seed=self.settings.seed,
        )
        broken = ~np.isfinite(points).all(axis=(1, 2))
        if broken.any():
            print(f"{broken.sum()} of {len(points)} samples are not finite and are drawn empty.")
            points[broken] = 0.0
        return [
            from_points(sketch[:length], self.settings.data.representation)
            for sketch, length in zip(points, self.lengths, strict=True)
        ]

    def draw(self, path, samples):
        draw([samples], path)

    def draw_beside_real(self, path, samples):
        chosen = np.random.default_rng(self.settings.seed).permutation(len(self.train))
        representation = self.settings.data.representation
        real = [from_points(self.train[i], representation) for i in chosen[: len(samples)]]
        draw([samples, real], path, titles=("generated", "real"))

    @property
    def example_name(self):
        return f"{self._mean_length} points"

    @property
    def _mean_length(self):
        return round(float(self.train.lengths.mean()))

    def untrained_results(self, model):
        """Return no values of the untrained network besides its loss."""
        return {}

    def results(self, samples):
        """Return values for `report.json` that only runs on sketches have."""
        return {
            "points_per_sketch": float(self.train.lengths.mean()),
            "flops_points": self._mean_length,
            "padding_waste": padding_waste(self.train, self.batch_size),
        }

    def report_rows(self, results):
        """Return `(name, value)` lines for `report.md`, from the values of `results`."""
        return [("Padding in training batches", f"{results['padding_waste']:.1%}")]


def _length_multiple():
    """Return 32 on JAX, which compiles a program for each length of a batch, and 1 elsewhere."""
    return 32 if keras.backend.backend() == "jax" else 1
