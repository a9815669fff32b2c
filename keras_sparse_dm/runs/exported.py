"""Exported models that samples are generated with, as with the run that they come from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from keras_sparse_dm import diffusion, export
from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.presets import SamplingSettings, from_plain
from keras_sparse_dm.runs.kinds import Kind, kind_named

tf = lazy_module("tensorflow")

SAVED_MODEL = "saved_model.pb"
DECODER = "decoder"


def run_metadata(run):
    """What an exported file tells of the run that it is from, enough to sample from it.

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
    """An exported model, to generate samples with; see `samples.generate`.

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
        """Of sketches: `"absolute"` or `"delta"`."""
        return self.metadata["representation"]

    def lengths(self, n, seed):
        """Lengths of `n` sketches, drawn from those trained on: int32 (n,)."""
        lengths, counts = np.array(self.metadata["lengths"], "int32").T
        return np.random.default_rng(seed).choice(np.repeat(lengths, counts), size=n)

    def draw_samples(self, n, lengths, **options):
        """Return samples; see `Kind.draw_samples`."""
        return np.array(self.draw(n, lengths, **options))


def is_exported(path):
    """Whether a path is an exported model's rather than the folder of a run."""
    path = Path(path)
    return path.is_file() or (path / SAVED_MODEL).exists()


def load_exported(path):
    """Loads what `sparse-dm export` wrote.

    Args:
        path: A `.tflite` file, the directory of a SavedModel, or a sparse checkpoint.

    Returns:
        An `Exported`.

    Raises:
        SettingsError: if it is none of these, damaged, or not from a run.
    """
    path = Path(path)
    try:
        if path.is_dir():
            exported = _saved_model(path)
        elif path.suffix.lower() == ".tflite":
            exported = _tflite(path)
        else:
            exported = _container(path)
    except (ValueError, ImportError) as error:
        raise SettingsError(str(error)) from None
    return exported


def _exported(path, metadata, kind, timesteps, draw, **how):
    kind = kind_named(kind)
    missing = {"sampling", *kind.metadata_keys} - set(metadata)
    if missing:
        raise ValueError(
            f"{path} does not tell how the run sampled ({', '.join(sorted(missing))}): export the "
            "run by `sparse-dm export`, or sample from it in Python."
        )
    sampling = from_plain(SamplingSettings, metadata["sampling"])
    return Exported(kind, metadata, sampling, timesteps, draw, **how)


def _saved_model(path):
    metadata = export.read_metadata(path)
    if "generate" not in metadata["signatures"]:
        raise ValueError(f"{path} holds a denoiser alone, and no sampler: export the whole model.")
    try:
        model = tf.saved_model.load(str(path))
    except Exception as error:  # a damaged one fails in any way
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None

    def draw(n, lengths, steps, sampler, eta, seed):
        number = tf.constant(n, "int32") if lengths is None else tf.constant(lengths, "int32")
        return model.generate(
            tf.constant(seed, "int64"), number, tf.constant(steps, "int32"), tf.constant(eta)
        )["samples"]

    return _exported(path, metadata, metadata["kind"], metadata["timesteps"], draw)


def _tflite(path):
    metadata = export.read_tflite_metadata(path)
    if metadata["what"] == DECODER:
        raise ValueError(f"{path} is the decoder; give the denoiser's file beside it.")
    decoder = None
    if metadata["kind"] == "images":
        decoder = path.with_name(path.name.replace("model", DECODER, 1))
        if decoder == path or not decoder.exists():
            raise ValueError(f"{path} gives latents, and there is no {decoder.name} beside it.")

    def draw(n, lengths, steps, sampler, eta, seed):
        return export.generate_from_tflite(
            path, None if lengths is not None else n, lengths, steps, seed, decoder
        )

    return _exported(
        path,
        metadata["user"],
        metadata["kind"],
        metadata["timesteps"],
        draw,
        steps=metadata.get("steps"),
        deterministic=True,
    )


def _container(path):
    metadata = export.read_header(path)["metadata"]
    model = export.load_sparse(path)
    if not isinstance(model, diffusion.DiffusionModel):
        raise ValueError(f"{path} holds a {type(model).__name__}, no diffusion model.")

    kind = "images" if hasattr(model, "autoencoder") else "sketches"
    timesteps = model.noise_schedule.timesteps
    draw = partial(kind_named(kind).draw_samples, model)
    return _exported(path, metadata, kind, timesteps, draw, only_ddim=False)
