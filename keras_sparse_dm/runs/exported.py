"""Exported models, which generate samples like the runs that they come from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.presets import SamplingSettings, from_plain
from keras_sparse_dm.runs.formats import FORMATS, format_of
from keras_sparse_dm.runs.kinds import Kind, kind_named


def run_metadata(run):
    """Return the facts about a run that an exported file stores, enough to sample from it.

    Args:
        run: The `Run`.

    Returns:
        Dictionary that JSON can hold; of sketches with the lengths of those that were trained on,
        as `[length, number of sketches]`.
    """
    t = run.settings.training
    facts = {
        "preset": run.settings.preset,
        "dataset": run.settings.data.dataset,
        "method": t.method,
        "sparsity": 0.0 if t.method == "dense" else t.sparsity,
        "steps_trained": int(run.model.optimizer.iterations),
        "model": run.file.name,
        "sampling": {
            "sampler": run.sampling.sampler,
            "steps": run.sampling.steps,
            "eta": run.sampling.eta,
        },
    }
    return facts | run.kind.metadata(run)


@dataclass(frozen=True, eq=False)
class Exported:
    """Exported model that can generate samples; see `samples.generate`.

    Attributes:
        kind: The `Kind` of what it generates.
        metadata: What `run_metadata` gave when it was exported.
        sampling: The `SamplingSettings` of the run.
        timesteps: T.
        draw: `draw(n, lengths, steps, sampler, eta, seed)` gives samples.
        only_ddim: Whether there is no other sampler in it.
        steps: Number of steps of a sampler in it, or None where any can be had.
        deterministic: Whether eta can only be 0.
    """

    kind: Kind
    metadata: dict
    sampling: SamplingSettings
    timesteps: int
    draw: Callable
    only_ddim: bool = True
    steps: int | None = None
    deterministic: bool = False

    @property
    def representation(self):
        """Representation of sketches: `"absolute"` or `"delta"`."""
        return self.metadata["representation"]

    def lengths(self, n, seed):
        """Return `n` random lengths of the training sketches, int32 (n,)."""
        lengths, counts = np.array(self.metadata["lengths"], "int32").T
        return np.random.default_rng(seed).choice(np.repeat(lengths, counts), size=n)

    def draw_samples(self, n, lengths, **options):
        """Return samples; see `Kind.draw_samples`."""
        return np.array(self.draw(n, lengths, **options))


def is_exported(path):
    """Return True for the path of an exported model, False for the folder of a run."""
    return format_of(path) is not None


def load_exported(path):
    """Load a model that `sparse-dm export` wrote.

    Args:
        path: A file or folder of a format in `FORMATS`.

    Returns:
        An `Exported`.

    Raises:
        SettingsError: if it is none of these, damaged, or not from a run.
    """
    if not is_exported(path):
        raise SettingsError(f"{path} must be of a format of `sparse-dm export`.")
    try:
        return FORMATS[format_of(path)].function("load")(Path(path))
    except (ValueError, ImportError) as error:
        raise SettingsError(str(error)) from None


def make_exported(path, metadata, kind, timesteps, draw, **how):
    """Return an `Exported` of what a file tells of its run.

    Args:
        path: The file or folder.
        metadata: What `run_metadata` gave.
        kind: Name of the kind of data.
        timesteps, draw, how: Attributes of `Exported`.

    Raises:
        ValueError: if the file does not tell enough of its run.
    """
    kind = kind_named(kind)
    missing = {"sampling", *kind.metadata_keys} - set(metadata)
    if missing:
        raise ValueError(
            f"{path} does not tell how the run sampled ({', '.join(sorted(missing))}): export the "
            "run by `sparse-dm export`, or sample from it in Python."
        )
    sampling = from_plain(SamplingSettings, metadata["sampling"])
    return Exported(kind, metadata, sampling, timesteps, draw, **how)
