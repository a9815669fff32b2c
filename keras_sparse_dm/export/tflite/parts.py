"""The parts of a model that `to_tflite` exports, each as one function of fixed-size inputs."""

import contextlib
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import keras
import numpy as np
from keras import ops

from keras_sparse_dm.checks import one_of, whole_number
from keras_sparse_dm.diffusion.model import DiffusionModel
from keras_sparse_dm.diffusion.samplers import ddim, ddim_factors
from keras_sparse_dm.export.tflite.float32_copy import HALF
from keras_sparse_dm.lazy import lazy_module, load
from keras_sparse_dm.models.autoencoder import VQAutoencoder
from keras_sparse_dm.models.latent_diffusion import LatentDiffusion
from keras_sparse_dm.models.unet import UNet

tf = load(lazy_module("tensorflow"))

PARTS = ("denoiser", "sampler_step", "sampler", "decoder", "model")


@dataclass(frozen=True)
class Part:
    """A part of a model to export.

    Attributes:
        name: One of `PARTS`.
        function: Function of the model below and the inputs, in order, that returns the output.
        inputs: `{name: tf.TensorSpec}`, in order.
        output: Name of the output.
        draw: `draw(rng) -> tuple of arrays`, random inputs to compare file and model on.
        model: The Keras model that computes the part.
        facts: Entries of the file's metadata.
        defaults: Context to trace the part in; sets Keras's default types.
    """

    name: str
    function: Callable
    inputs: dict
    output: str
    draw: Callable
    model: keras.Model
    facts: dict = field(default_factory=dict)
    defaults: Callable = contextlib.nullcontext


def whole_sizes(batch_size, length, steps):
    """Return these arguments of `to_tflite` as ints; `length` and `steps` may be None.

    Raises:
        ValueError: for anything but whole numbers of 1 or more.
    """
    length, steps = (
        None if value is None else whole_number(name, value, 1)
        for name, value in (("`length`", length), ("`steps`", steps))
    )
    return whole_number("`batch_size`", batch_size, 1), length, steps


def part_of(model, name, quantize, batch_size, length, shape, steps):
    """Return the requested part of a model.

    Args:
        name: Argument `part` of `to_tflite`.
        model, quantize, batch_size, length, shape, steps: As in `to_tflite`.

    Raises:
        ValueError: for arguments that do not fit the model or each other.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model; received {type(model).__name__}.")
    if not model.built:
        raise ValueError(
            f"`model` {model.name!r} has no weights yet: build it, or call it once, before you "
            "export it."
        )
    denoiser = getattr(model, "denoiser", model)
    is_denoiser = isinstance(model, DiffusionModel) or hasattr(denoiser, "point_features")
    if name is None:
        name = "decoder" if isinstance(model, VQAutoencoder) else "model"
        name = "denoiser" if is_denoiser or isinstance(model, UNet) else name
    one_of("`part`", name, PARTS)
    if name.startswith("sampler"):
        if not isinstance(model, DiffusionModel):
            raise ValueError(
                f"`part={name!r}` needs a DiffusionModel, which knows its noise schedule; received "
                f"{type(model).__name__}."
            )
        if steps is None:
            raise ValueError(f"`part={name!r}` needs `steps`, the number of DDIM steps.")
        ddim_factors(model.noise_schedule, steps)
    elif steps is not None:
        raise ValueError(f"`steps` is for the samplers; received it with `part={name!r}`.")
    if quantize == "int8" and name == "sampler":
        raise ValueError(
            "`quantize='int8'` needs a part that runs once a step, the denoiser or a sampler step; "
            "received `part='sampler'`."
        )
    if name == "decoder":
        return _decoder(model, batch_size, shape)
    if name == "model":
        return _whole_model(model, batch_size, length)
    return _denoising(model, denoiser, name, batch_size, length, shape, steps)


def _denoising(model, denoiser, name, batch_size, length, shape, steps):
    """Return the part that holds the denoiser, one sampler step or the whole sampler."""
    sequences = hasattr(denoiser, "point_features")
    if sequences:
        if length is None:
            raise ValueError(
                "A TFLite file has fixed shapes: give `length`, the number of points of the "
                "longest sketch; shorter ones are padded."
            )
        if shape is not None:
            raise ValueError("`shape` is for latents; a model of sketches takes `length`.")
        shape, kind, x_name = (length, denoiser.point_features), "sketches", "points"
    else:
        if length is not None:
            raise ValueError("`length` is for models of sketches; this one takes `shape`.")
        if isinstance(model, LatentDiffusion):
            if shape is not None and tuple(shape) != model.latent_shape:
                raise ValueError(
                    f"`shape` must be that of the model's latents, {model.latent_shape}; "
                    f"received {shape}."
                )
            shape = model.latent_shape
        if shape is None:
            raise ValueError(
                "A TFLite file has fixed shapes: give `shape`, that of one example, such as "
                "(64, 64, 3) for latents."
            )
        kind, x_name = "images", "latents"
    shape = tuple(int(n) for n in shape)
    schedule = getattr(model, "noise_schedule", None)
    timesteps = getattr(denoiser, "timesteps", None) if schedule is None else schedule.timesteps
    facts = {"kind": kind, "timesteps": timesteps}
    if schedule is not None:
        facts["noise_schedule"] = schedule.get_config()
    if sequences:
        facts["representation"] = getattr(denoiser, "representation", None)
        facts |= {"length": length, "point_features": denoiser.point_features}
    else:
        facts["shape"] = list(shape)
    if isinstance(model, LatentDiffusion):
        facts |= {"image_size": model.image_size, "scale_factor": float(model.scale_factor)}
    x = tf.TensorSpec((batch_size, *shape), tf.float32)
    whole = tf.TensorSpec((batch_size,), tf.int32)
    lengths = {"lengths": whole} if sequences else {}

    def denoise(network, x, t, *context):
        return tf.cast(network((x, t, *context), training=False), tf.float32)

    def draw_x(rng):
        return rng.standard_normal((batch_size, *shape)).astype("float32")

    def draw_context(rng):
        if not sequences:
            return ()
        drawn = rng.integers(1, length + 1, batch_size).astype("int32")
        drawn[0] = length if rng.random() < 0.5 else drawn[0]
        return (drawn,)

    if name == "denoiser":

        def draw(rng):
            t = rng.integers(0, timesteps or 1000, batch_size).astype("int32")
            return draw_x(rng), t, *draw_context(rng)

        inputs = {x_name: x, "t": whole, **lengths}
        return Part(name, denoise, inputs, "epsilon", draw, denoiser, facts)

    facts["steps"] = steps
    if name == "sampler":

        def sample(network, x, *context):
            return ddim(functools.partial(denoise, network), schedule, x, steps, context=context)

        def draw(rng):
            return draw_x(rng), *draw_context(rng)

        inputs = {"noise": x, **lengths}
        return Part(name, sample, inputs, x_name, draw, denoiser, facts)

    t, factors = ddim_factors(schedule, steps)
    # Sampling starts at the last timestep.
    t, factors = t[::-1].astype("int32"), factors[:2, ::-1].astype("float32")

    def sampler_step(network, x, step, *context):
        now = tf.broadcast_to(tf.gather(t, step), (batch_size,))
        epsilon = denoise(network, x, now, *context)
        return tf.gather(factors[0], step) * x + tf.gather(factors[1], step) * epsilon

    def draw(rng):
        return draw_x(rng), np.array(rng.integers(0, steps), "int32"), *draw_context(rng)

    step = tf.TensorSpec((), tf.int32)
    inputs = {x_name: x, "step": step, **lengths}
    return Part(name, sampler_step, inputs, f"next_{x_name}", draw, denoiser, facts)


def _decoder(model, batch_size, shape):
    autoencoder = getattr(model, "autoencoder", model)
    if not isinstance(autoencoder, VQAutoencoder):
        raise ValueError(
            "`part='decoder'` needs a LatentDiffusion or a VQAutoencoder; received "
            f"{type(model).__name__}."
        )
    shape = getattr(model, "latent_shape", shape)
    if shape is None:
        raise ValueError(
            "A TFLite file has fixed shapes: give `shape`, (height, width, channels) of the "
            "latents."
        )
    shape = tuple(int(n) for n in shape)
    if len(shape) != 3 or shape[2] != autoencoder.code_channels:
        raise ValueError(
            f"`shape` must be (height, width, {autoencoder.code_channels}) of the latents; "
            f"received {shape}."
        )
    codes = ops.convert_to_numpy(autoencoder.codebook).astype("float32")
    scale = float(getattr(model, "scale_factor", 1.0))

    def decode(network, latents):
        images = network.decode(latents if scale == 1.0 else latents / scale)
        return tf.clip_by_value(tf.cast(images, tf.float32), -1.0, 1.0)

    def draw(rng):
        # Latents near the border between two codes would let rounding choose the code.
        chosen = rng.integers(0, len(codes), (batch_size, *shape[:2]))
        return ((codes[chosen] * scale).astype("float32"),)

    size = [n * autoencoder.downsampling for n in shape[:2]]
    facts = {"kind": "images", "shape": list(shape), "image_size": size, "scale_factor": scale}
    inputs = {"latents": tf.TensorSpec((batch_size, *shape), tf.float32)}
    return Part("decoder", decode, inputs, "images", draw, autoencoder, facts)


def _whole_model(model, batch_size, length):
    if isinstance(model, DiffusionModel) or not getattr(model, "inputs", None):
        raise ValueError(
            "`part='model'` takes functional and Sequential models, whose inputs are known; "
            f"received {type(model).__name__}."
        )
    if len(model.outputs) != 1:
        raise ValueError(f"`model` must have one output; {model.name!r} has {len(model.outputs)}.")
    inputs = {}
    for tensor in model.inputs:
        # TensorFlow makes the same replacements in names of inputs.
        name = re.sub(r"\W", "_", tensor.name)
        sizes = [batch_size, *tensor.shape[1:]]
        if length is not None and len(sizes) > 1 and sizes[1] is None:
            sizes[1] = length
        unknown = [axis for axis, n in enumerate(sizes) if n is None]
        if unknown:
            raise ValueError(
                f"A TFLite file has fixed shapes: of the input {name!r} of shape "
                f"{tuple(tensor.shape)}, the sizes of axes {unknown} are not known. Make the "
                "model with them" + (", or give `length` for axis 1." if unknown == [1] else ".")
            )
        inputs[name] = tf.TensorSpec(sizes, HALF.sub("float32", tensor.dtype))

    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input

    def call(network, *tensors):
        return tf.cast(
            network(keras.tree.pack_sequence_as(structure, tensors), training=False), tf.float32
        )

    def draw(rng):
        return tuple(
            rng.standard_normal(spec.shape).astype(spec.dtype.as_numpy_dtype)
            if spec.dtype.is_floating
            else rng.integers(0, 2, spec.shape).astype(spec.dtype.as_numpy_dtype)
            for spec in inputs.values()
        )

    return Part("model", call, inputs, "output", draw, model, {"kind": "model"})
