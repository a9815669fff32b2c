"""Loading of a trained run's model and data, and generation of samples."""

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.data import sample_lengths
from keras_sparse_dm.data.cache import fingerprint_of
from keras_sparse_dm.diffusion import DiffusionModel
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.runs.callbacks import CHECKPOINT
from keras_sparse_dm.runs.folder import read_config
from keras_sparse_dm.runs.settings import RunSettings
from keras_sparse_dm.sparsity.registry import facts_of, load_method

MODEL = "model.keras"


@dataclass(frozen=True, eq=False)
class Run:
    """A run that was trained completely or in part.

    Attributes:
        folder: Folder of the run.
        settings: `RunSettings`.
        model: `DiffusionModel`.
        file: The file that the model was loaded from.
        train, validation: The data: `SketchArrays`, or images.
    """

    folder: Path
    settings: RunSettings
    model: DiffusionModel
    file: Path
    train: object
    validation: object

    @property
    def kind(self):
        """`Kind` of data of the run."""
        return self.settings.kind

    @property
    def sampling(self):
        """Default `SamplingSettings` of samples."""
        return self.settings.sampling

    @property
    def representation(self):
        """Representation of sketches: `"absolute"` or `"delta"`."""
        return self.settings.data.representation

    def lengths(self, n, seed):
        """Return `n` random lengths of the training sketches, int32 (n,)."""
        return sample_lengths(self.train, n, seed)

    def draw_samples(self, n, lengths, **options):
        """Return samples of the model; see `Kind.draw_samples`."""
        return self.kind.draw_samples(self.model, n, lengths, **options)

    @property
    def example(self):
        """Inputs of the denoiser of batch size 1, for which FLOPs are counted."""
        return self.kind.example(self)

    @property
    def checksum(self):
        """Checksum of the model's file."""
        return zlib.crc32(self.file.read_bytes())


def load_run(folder, data_dir=None, cache_dir=None, verbose=1):
    """Load a run's model and data.

    Args:
        folder: The run's folder.
        data_dir: Folder of the data set's files, if they have moved since the run read them.
        cache_dir: Folder for prepared data.
        verbose: Whether to show progress.

    Returns:
        A `Run`. The model of an unfinished run comes from its last checkpoint.

    Raises:
        SettingsError: if the folder holds no run or no model, or the data are missing.
    """
    folder = Path(folder)
    stored = read_config(folder)
    if stored is None:
        raise SettingsError(f"{folder} holds no run: there is no config.json.")
    file = next((folder / f for f in (MODEL, CHECKPOINT) if (folder / f).exists()), None)
    if file is None:
        raise SettingsError(f"{folder} holds no model yet: neither {MODEL} nor {CHECKPOINT}.")
    preset = stored["settings"].get("preset")
    settings = RunSettings.from_preset(preset)
    settings = replace(settings, output_dir=folder).with_stored(stored["settings"])
    settings = replace(settings, output_dir=folder, cache_dir=cache_dir)
    if data_dir is not None:
        settings = replace(settings, data_dir=Path(data_dir))
    if facts_of(settings.training.method).place:
        # Keras finds a user's method in a file only if its module is imported.
        load_method(settings.training.method)
    try:
        model = keras.saving.load_model(file)
    except Exception as error:  # a damaged file can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingsError(f"{file} cannot be read: {reason}") from None
    if not isinstance(model, DiffusionModel):
        raise SettingsError(f"{file} holds a {type(model).__name__}, not a diffusion model.")
    return Run(folder, settings, model, file, *settings.kind.load(settings, bool(verbose)))


def generate(run, n, steps=None, sampler=None, eta=None, seed=0, keep=None, progress=True):
    """Generate samples of a run, part by part.

    Args:
        run: The `Run`, or an `Exported` one.
        n: Number of samples, 1 or more.
        steps, sampler, eta: Arguments of `DiffusionModel.generate`; the run's by default.
        seed: Integer; equal seeds give equal samples, even after an interrupt.
        keep: Folder to keep finished parts in, which the next call reads; None to keep none.
        progress: Whether to show a progress bar.

    Returns:
        `(samples, broken)`: `SketchArrays`, or images as a uint8 array (n, height, width, 3); and
        the number of samples that are not finite. Such sketches are replaced by empty strokes, such
        pixels by grey, black or white.

    Raises:
        ValueError: for steps or eta out of range.
    """
    s = run.sampling
    options = {
        "steps": s.steps if steps is None else steps,
        "sampler": s.sampler if sampler is None else sampler,
        "eta": s.eta if eta is None else eta,
    }
    kind = run.kind
    size = kind.part_size
    lengths = kind.lengths(run, n, seed)
    checksum = None if keep is None else run.checksum
    parts, broken = [], 0
    with tqdm(total=n, desc="Sampling", unit=" samples", disable=not progress) as bar:
        for begin in range(0, n, size):
            count = min(size, n - begin)
            # A part depends on these values only.
            place = [checksum, options, seed, begin, count]
            file = None if keep is None else Path(keep) / f"part-{fingerprint_of(place)}.npz"
            stored = _read_part(file, count)
            if stored is None:
                part_seed = int(np.random.default_rng([seed, begin]).integers(2**31))
                stored = _generate_part(
                    run,
                    count,
                    None if lengths is None else lengths[begin : begin + count],
                    part_seed,
                    options,
                )
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with whole_file(file) as temporary, open(temporary, "wb") as stream:
                        np.savez(stream, samples=stored[0], broken=stored[1])
            parts.append(stored[0])
            broken += stored[1]
            bar.update(count)
    return kind.joined(run, parts, lengths), broken


def _read_part(file, count):
    if file is None or not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            samples, broken = stored["samples"], int(stored["broken"])
    except Exception:  # a damaged file can raise anything; the part is generated again
        return None
    return (samples, broken) if len(samples) == count else None


def _generate_part(run, count, lengths, seed, options):
    samples = run.draw_samples(count, lengths, seed=seed, **options)
    broken = ~np.isfinite(samples).all(axis=tuple(range(1, samples.ndim)))
    return run.kind.finished(samples, broken), int(broken.sum())
