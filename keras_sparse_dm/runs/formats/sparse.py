"""Sparse checkpoints, which hold the weights that are not pruned."""

from functools import partial

import keras
import numpy as np

from keras_sparse_dm.diffusion import DiffusionModel
from keras_sparse_dm.export import file_sizes, load_sparse, read_header, save_sparse
from keras_sparse_dm.metrics.costs.memory import file_bytes
from keras_sparse_dm.runs.exported import make_exported
from keras_sparse_dm.runs.formats.measures import ExportedFile, difference_of, inputs_of
from keras_sparse_dm.runs.kinds import kind_named
from keras_sparse_dm.sparsity import masked_kernels


def write(run, folder, name, *, quantize, optimizer, metadata, **others):
    """Write a sparse checkpoint; see `formats`."""
    path = folder / f"{name}.sparse"
    dtype = "float32" if quantize == "none" else quantize
    save_sparse(run.model, path, dtype=dtype, optimizer=optimizer, metadata=metadata)
    inputs = inputs_of(run)
    with run.model.averaged_weights():
        expected = run.model.denoiser(inputs, training=False)
    loaded = load_sparse(path)
    with loaded.averaged_weights():
        found = loaded.denoiser(inputs, training=False)
    active = [(k.kernel, int(k.mask.numpy().sum())) for k in masked_kernels(run.model)]
    dense = file_bytes(run.model, active).dense
    if optimizer:
        state = run.model.optimizer.variables
        floats = [v for v in state if keras.backend.is_float_dtype(v.dtype)]
        dense += sum(4 * int(np.prod(v.shape)) for v in floats)
    yield ExportedFile(
        path.name, "sparse", quantize, dense, *file_sizes(path), difference_of(expected, found)
    )


def load(path):
    """Return the `Exported` model of a sparse checkpoint."""
    metadata = read_header(path)["metadata"]
    model = load_sparse(path)
    if not isinstance(model, DiffusionModel):
        raise ValueError(f"{path} holds a {type(model).__name__}, no diffusion model.")

    kind = "images" if hasattr(model, "autoencoder") else "sketches"
    timesteps = model.noise_schedule.timesteps
    draw = partial(kind_named(kind).draw_samples, model)
    return make_exported(path, metadata, kind, timesteps, draw, only_ddim=False)


def snippet(folder, run, file):
    """Return lines of Python that load the file and call it."""
    return [
        "import keras_sparse_dm as ksd",
        "",
        f'model = ksd.export.load_sparse("{file.name}")',
        f"samples = model.generate({run.kind.example_call}, seed=0)",
        "print(samples.shape)",
    ]
