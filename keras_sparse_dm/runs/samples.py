"""What a finished run generates: its model and data again, and samples by the thousand."""

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
    """A run that was trained, whole or in part.

    Attributes:
        folder: Its folder.
        settings: Its `RunSettings`.
        model: Its `DiffusionModel`.
        file: The file that the model was loaded from.
        train, validation: Its data: `SketchArrays`, or images.
    """

    folder: Path
    settings: RunSettings
    model: DiffusionModel
    file: Path
    train: object
    validation: object

    @property
    def kind(self):
        """The `Kind` of data that the run is on."""
        return self.settings.kind

    @property
    def sampling(self):
        """The `SamplingSettings` that samples are generated with by default."""
        return self.settings.sampling

    @property
    def representation(self):
        """Of sketches: `"absolute"` or `"delta"`."""
        return self.settings.data.representation

    def lengths(self, n, seed):
        """Lengths of `n` sketches to generate, drawn from those trained on: int32 (n,)."""
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
        """Number that changes with the model."""
        return zlib.crc32(self.file.read_bytes())


def load_run(folder, data_dir=None, cache_dir=None, verbose=1):
    """Loads a run's model and data.

    Args:
        folder: The run's folder.
        data_dir: Folder of the data set's files, where they lie elsewhere now.
        cache_dir: Folder for prepared data.
        verbose: Whether to show progress.

    Returns:
        A `Run`. Of one that is not finished, the model is that of its last checkpoint.

    Raises:
        SettingsError: if the folder holds no run, no model, or its data are gone.
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
    except Exception as error:  # a damaged file fails in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingsError(f"{file} cannot be read: {reason}") from None
    if not isinstance(model, DiffusionModel):
        raise SettingsError(f"{file} holds a {type(model).__name__}, no diffusion model.")
    return Run(folder, settings, model, file, *settings.kind.load(settings, bool(verbose)))


def generate(run, n, steps=None, sampler=None, eta=None, seed=0, keep=None, progress=True):
    """Generates samples of a run, part by part.

    Args:
        run: The `Run`, or an `Exported` one.
        n: Number of samples, 1 or more.
        steps, sampler, eta: As `DiffusionModel.generate`; the run's own by default.
        seed: Equal seeds give equal samples, whether interrupted or not.
        keep: Folder in which parts are kept as they are made, and found when called again;
            None to keep nothing.
        progress: Whether to show a progress bar.

    Returns:
        `(samples, broken)`: `SketchArrays`, or images, a uint8 array (n, height, width, 3); and how
        many came out not finite. Such sketches are replaced by empty strokes, such pixels by grey,
        black or white.

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
            # What a part holds depends on nothing but this.
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
    except Exception:  # a damaged file fails in any way, and is made again
        return None
    return (samples, broken) if len(samples) == count else None


def _generate_part(run, count, lengths, seed, options):
    samples = run.draw_samples(count, lengths, seed=seed, **options)
    broken = ~np.isfinite(samples).all(axis=tuple(range(1, samples.ndim)))
    return run.kind.finished(samples, broken), int(broken.sum())
