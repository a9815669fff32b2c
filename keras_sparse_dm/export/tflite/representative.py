"""Representative inputs of a part, from which int8 files learn the ranges of activations."""

import numpy as np
from keras import ops

from keras_sparse_dm.diffusion.model import DiffusionModel
from keras_sparse_dm.diffusion.samplers import ddim_factors
from keras_sparse_dm.export.tflite.parts import part_of, whole_sizes
from keras_sparse_dm.models.latent_diffusion import LatentDiffusion
from keras_sparse_dm.renamed import old_argument


@old_argument("what", "part")
def representative_data(
    model, data, *, part=None, n=100, batch_size=1, length=None, steps=None, seed=0
):
    """Draw inputs of a part of a model, from which `to_tflite` learns the ranges of activations.

    Noises the data to random timesteps, as training does.

    Args:
        model: `DiffusionModel` or `LatentDiffusion`.
        data: `SketchArrays` or a sequence of arrays (length, 3); images (n, image_size,
            image_size, channels) in [-1, 1]; latents (n, height, width, channels) from the
            autoencoder, not scaled; or any other data that the model trains on.
        part, batch_size, length, steps: As in `to_tflite`; give both the same values.
        n: Number of tuples.
        seed: Integer; equal seeds give equal inputs.

    Returns:
        List of `n` tuples of NumPy arrays, the inputs in order.

    Raises:
        ValueError: for arguments that do not fit the model, or data of a wrong shape.
    """
    if not isinstance(model, DiffusionModel):
        raise ValueError(
            "`model` must be a DiffusionModel, which knows how to noise its data; received "
            f"{type(model).__name__}. Give your own inputs as `representative`."
        )
    batch_size, length, steps = whole_sizes(batch_size, length, steps)
    part = part_of(model, part, None, batch_size, length, None, steps)
    rng = np.random.default_rng(seed)
    schedule = model.noise_schedule
    if part.name in ("sampler", "model"):
        return [part.draw(rng) for _ in range(n)]
    size = part.inputs[next(iter(part.inputs))].shape[1:]
    result = []
    for _ in range(n):
        chosen = rng.integers(0, len(data), batch_size)
        if "lengths" in part.inputs:
            x, lengths = _padded([np.asarray(data[int(i)]) for i in chosen], size)
        else:
            x, lengths = _clean(model, np.stack([np.asarray(data[int(i)]) for i in chosen])), ()
        if part.name == "decoder":
            result.append((x,))
            continue
        if part.name == "denoiser":
            t = rng.integers(0, schedule.timesteps, batch_size).astype("int32")
        else:
            step = np.int32(rng.integers(0, steps))
            t = np.full(batch_size, ddim_factors(schedule, steps)[0][steps - 1 - step], "int32")
        noise = rng.standard_normal(x.shape).astype("float32")
        x = ops.convert_to_numpy(model.diffuse(x, t, noise)).astype("float32")
        time = (t,) if part.name == "denoiser" else (np.array(step),)
        result.append((x, *time, *lengths))
    return result


def _padded(sketches, size):
    """Return sketches as one array, cut and padded to a length, and a tuple of their lengths."""
    x = np.zeros((len(sketches), *size), "float32")
    for row, points in zip(x, sketches, strict=True):
        if points.ndim != 2 or points.shape[1] != size[1] or not len(points):
            raise ValueError(
                f"`data` must be sketches of shape (length, {size[1]}); received one of "
                f"{points.shape}."
            )
        row[: len(points)] = points[: len(row)]
    lengths = [min(len(points), size[0]) for points in sketches]
    return x, (np.array(lengths, "int32"),)


def _clean(model, x):
    """Return a batch of data, or of unscaled latents, as the x_0 that the model diffuses."""
    if isinstance(model, LatentDiffusion) and x.shape[1:] == model.latent_shape:
        x = {"latents": x}
    return ops.convert_to_numpy(model.clean_batch(x, training=False)[0]).astype("float32")


def checked_representative(representative, inputs):
    """Return representative data as a list of tuples of arrays.

    Args:
        representative: Iterable of tuples of arrays, or of arrays for a single input.
        inputs: `{name: tf.TensorSpec}` of the part.

    Raises:
        ValueError: if there are none, or one has other shapes than the inputs.
    """
    result = []
    for item in representative:
        arrays = item if isinstance(item, (tuple, list)) else (item,)
        shapes = [tuple(np.shape(array)) for array in arrays]
        wanted = [tuple(spec.shape) for spec in inputs.values()]
        if shapes != wanted:
            raise ValueError(
                f"`representative` must hold tuples of {', '.join(inputs)} of shapes {wanted}; "
                f"received one of {shapes}."
            )
        result.append(
            tuple(
                np.asarray(array, spec.dtype.as_numpy_dtype)
                for array, spec in zip(arrays, inputs.values(), strict=True)
            )
        )
    if not result:
        raise ValueError("`representative` must hold inputs to learn from; it is empty.")
    return result
