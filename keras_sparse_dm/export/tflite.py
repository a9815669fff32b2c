"""`to_tflite`: a model as one small `.tflite` file, checked by running it before it is kept."""

import contextlib
import functools
import random
import re
import types
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import keras_sparse_dm
from keras_sparse_dm._keras import (
    flatten_layers,
    frozen,
    scale_whole_tensors,
    write_loops_in_place,
)
from keras_sparse_dm.diffusion.model import DiffusionModel
from keras_sparse_dm.diffusion.samplers import ddim, ddim_factors
from keras_sparse_dm.export import flatbuffer
from keras_sparse_dm.export.litert import load_interpreter
from keras_sparse_dm.export.recurrent import Integers, Observed, litert_form
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.models.autoencoder import VQAutoencoder
from keras_sparse_dm.models.latent_diffusion import LatentDiffusion
from keras_sparse_dm.models.unet import UNet

QUANTIZATIONS = ("none", "float16", "int8_dynamic", "int8")
PARTS = ("denoiser", "sampler_step", "sampler", "decoder", "model")
# How far from Keras's outputs a file may be: of the largest of them, or of 1 if that is less.
TOLERANCES = {"none": 1e-4, "float16": 1e-2}
# Of integers, root mean square in standard deviations of the outputs. What lies beyond is not
# rounding but a conversion that went wrong.
INT8_TOLERANCE = 0.5
# The same of a model in half precision, from the one that was rebuilt in float32.
HALF_TOLERANCE = 0.5
# Inputs on which a file is compared with Keras.
CHECKS = 3
# What names half precision in a type or a policy, such as "int8_from_mixed_bfloat16".
HALF = re.compile(r"(mixed_)?b?float16")


@dataclass(frozen=True)
class TFLiteExport:
    """The result of `to_tflite`.

    Attributes:
        path: The file.
        bytes: Its size.
        compressed_bytes: Its size after zlib, as the toolkit's guides measure it.
        largest_difference: Between outputs of the file and of Keras, absolute; None where they
            were not compared.
        metadata: What `read_tflite_metadata` returns for it.
    """

    path: Path
    bytes: int
    compressed_bytes: int
    largest_difference: float | None
    metadata: dict


@dataclass(frozen=True)
class _Part:
    """The part of a model that is exported.

    Attributes:
        function: Takes the model below and the inputs in order, returns the output.
        inputs: `{name: tf.TensorSpec}`, in order.
        output: Name of the output.
        draw: Makes inputs to compare with: `draw(rng) -> tuple of arrays`.
        model: The Keras model that computes all of it.
        facts: What the metadata say of it.
        defaults: Context to trace it in, which sets Keras's default types.
    """

    function: Callable
    inputs: dict
    output: str
    draw: Callable
    model: keras.Model
    facts: dict = field(default_factory=dict)
    defaults: Callable = contextlib.nullcontext


def to_tflite(
    model,
    path,
    *,
    what=None,
    quantize="none",
    sparse=True,
    representative=None,
    batch_size=1,
    length=None,
    shape=None,
    steps=None,
    metadata=None,
    verify=True,
):
    """Write a model, or a part of it, as a `.tflite` file that LiteRT runs anywhere.

    Weights are frozen, the averaged (EMA) ones where there are any, as `generate` uses them.
    Sparse kernels are stored sparse: single zeros cost nothing in the file and are unpacked when
    it is loaded; kernels of `Blocks(4)` at float32 are also computed sparse. All shapes are fixed;
    sketches that are shorter than `length` are padded by the caller, whatever with.

    A file computes in float32. A model with layers in half precision is rebuilt in float32 from
    its configuration, with the same weights; the model itself is not changed.

    The file is run by LiteRT before it is put in place, and compared with Keras.

    Args:
        model: `DiffusionModel`, `LatentDiffusion`, `ChiroDiff`, `UNet`, `VQAutoencoder`, or any
            built functional or Sequential model.
        path: The file to write.
        what: One of

            - `"denoiser"`: `denoise(points, t, lengths) -> epsilon`, or `(latents, t)`;
            - `"sampler_step"`: one step of `ddim` with eta 0, `(points, step, lengths) ->
              points`, where `step` is an int32 scalar from 0, the first and noisiest, to
              `steps - 1`;
            - `"sampler"`: all steps in one call, `(noise, lengths) -> points`;
            - `"decoder"`: of a `LatentDiffusion` or `VQAutoencoder`, `(latents) -> images` in
              [-1, 1]; latents as they are diffused, for a `LatentDiffusion`;
            - `"model"`: a model as it is.

            By default the denoiser, the decoder of a `VQAutoencoder`, or the model.
        quantize: `"none"`; `"float16"` weights; `"int8_dynamic"`: int8 weights; `"int8"`: int8
            weights and activations. Inputs and output are floats all the same, and so is what
            has no integer form; of models with loops, all but the products of GRUs and dense
            layers.
        sparse: Whether sparse kernels are stored sparse. `"int8_dynamic"` multiplies with int8
            weights in integers, but with sparse ones in floats.
        representative: For `"int8"`: an iterable of tuples of inputs, as `representative_data`
            makes them, from which the ranges of activations are learnt. The first of them are
            also what the file is compared on; otherwise inputs are drawn at random.
        batch_size: Examples in a call.
        length: Points of the longest sketch, for models of sketches; also the second size of a
            model's inputs where it is not known.
        shape: Shape of one example, without the batch, for a `UNet` or decoder alone:
            (height, width, channels) of its latents.
        steps: Number of DDIM steps, for the samplers.
        metadata: Dictionary that JSON can write, kept in the file under `"user"`.
        verify: Whether to compare with Keras, and a model that was rebuilt in float32 with the
            one in half precision. Without it the file is run all the same.

    Returns:
        A `TFLiteExport`.

    Raises:
        ValueError: for arguments that do not fit; for sizes that are not known, naming those to
            give; for a model with layers in half precision that cannot be rebuilt from its
            configuration; where TensorFlow Lite cannot express the model; or if the file's
            outputs are not Keras's: off by more than 1e-4 (float16: 1e-2) of the largest output
            or of 1, or for integers by half of their standard deviation. Nothing is left of the
            file then, and what `path` held before stays.
        ImportError: without LiteRT.

    Example:

    >>> to_tflite(model, "kanji.tflite", length=90, quantize="float16").bytes
    213328
    >>> generate_from_tflite("kanji.tflite", lengths=[60, 80], steps=50, seed=0).shape
    (2, 80, 3)
    """
    _check_choice("quantize", quantize, QUANTIZATIONS)
    flatbuffer.schema()
    part, what = _part(model, what, quantize, batch_size, length, shape, steps)
    if representative is not None:
        representative = _checked_representative(representative, part.inputs)
    elif quantize == "int8":
        raise ValueError(
            "`quantize='int8'` learns the ranges of activations from data: give "
            "`representative`, for example `representative_data(model, data)`. "
            "`'int8_dynamic'` needs none."
        )
    facts = {
        "package": keras_sparse_dm.__version__,
        "what": what,
        "quantize": quantize,
        "sparse": bool(sparse),
        "batch_size": batch_size,
        "inputs": {name: list(spec.shape) for name, spec in part.inputs.items()},
        "output": part.output,
        **part.facts,
        "user": {} if metadata is None else metadata,
    }
    flatbuffer.check_json(facts)
    path = Path(path)
    # Whoever asks for a file in a folder that is not there should not wait for it.
    if not path.parent.is_dir():
        raise ValueError(f"`path` must lie in a folder that exists; received {str(path)!r}.")
    averaged = isinstance(model, DiffusionModel)
    with model.averaged_weights() if averaged else contextlib.nullcontext():
        half = part if any(map(_is_half, flatten_layers(part.model))) else None
        if half is not None:
            rebuilt = _rebuilt_in_float32(half)
            part = replace(half, model=rebuilt, defaults=_float32_defaults)
        facts["sparsity"] = _sparsity(part.model)
        content = _convert(part, what, quantize, sparse, representative)
        content = _finish(content, part, what, quantize, sparse, facts)
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
            difference = _check(temporary, part, what, quantize, verify, representative, half)
    return TFLiteExport(path, len(content), len(zlib.compress(content, 9)), difference, facts)


def representative_data(
    model, data, *, what=None, n=100, batch_size=1, length=None, steps=None, seed=0
):
    """Draw inputs of a part of a model as sampling gives them, to learn its activations' ranges.

    Data are noised to timesteps that are drawn at random, as in training.

    Args:
        model: `DiffusionModel` or `LatentDiffusion`.
        data: `SketchArrays` or a sequence of arrays (length, 3); images (n, image_size,
            image_size, channels) in [-1, 1]; latents (n, height, width, channels) that the
            autoencoder has encoded, not scaled; or what else the model is trained on.
        what: As of `to_tflite`, and with the same `batch_size`, `length` and `steps`.
        n: Number of tuples.
        seed: Integer; equal seeds give equal data.

    Returns:
        List of `n` tuples of NumPy arrays, the inputs in order.

    Raises:
        ValueError: for arguments that do not fit, or data that are not the model's.
    """
    if not isinstance(model, DiffusionModel):
        raise ValueError(
            "`model` must be a DiffusionModel, which knows how its data are noised; received "
            f"{type(model).__name__}. Give your own inputs as `representative`."
        )
    part, what = _part(model, what, None, batch_size, length, None, steps)
    rng = np.random.default_rng(seed)
    schedule = model.noise_schedule
    if what in ("sampler", "model"):
        return [part.draw(rng) for _ in range(n)]
    size = part.inputs[next(iter(part.inputs))].shape[1:]
    result = []
    for _ in range(n):
        chosen = rng.integers(0, len(data), batch_size)
        if "lengths" in part.inputs:
            x, lengths = _padded([np.asarray(data[int(i)]) for i in chosen], size)
        else:
            x, lengths = _prepared(model, np.stack([np.asarray(data[int(i)]) for i in chosen])), ()
        if what == "decoder":
            result.append((x,))
            continue
        if what == "denoiser":
            t = rng.integers(0, schedule.timesteps, batch_size).astype("int32")
        else:
            step = np.int32(rng.integers(0, steps))
            t = np.full(batch_size, ddim_factors(schedule, steps)[0][steps - 1 - step], "int32")
        noise = rng.standard_normal(x.shape).astype("float32")
        x = ops.convert_to_numpy(model.diffuse(x, t, noise)).astype("float32")
        time = (t,) if what == "denoiser" else (np.array(step),)
        result.append((x, *time, *lengths))
    return result


def _padded(sketches, size):
    """Sketches as one array, cut and padded to a length, and their lengths in a tuple."""
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


def _prepared(model, x):
    """Latents as they are diffused, or other data as they are."""
    if isinstance(model, LatentDiffusion) and x.shape[1:] == model.latent_shape:
        x = {"latents": x}
    return ops.convert_to_numpy(model.prepare(x, training=False)[0]).astype("float32")


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}; received {value!r}.")


def _check_whole(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"`{name}` must be a whole number, 1 or more; received {value!r}.")


def _part(model, what, quantize, batch_size, length, shape, steps):
    """Check what is asked for, and return it as a `_Part` with its name."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model; received {type(model).__name__}.")
    if not model.built:
        raise ValueError(
            f"`model` {model.name!r} has no weights yet: build it, or call it once, before it is "
            "exported."
        )
    denoiser = getattr(model, "denoiser", model)
    is_denoiser = isinstance(model, DiffusionModel) or hasattr(denoiser, "point_features")
    if what is None:
        what = "decoder" if isinstance(model, VQAutoencoder) else "model"
        what = "denoiser" if is_denoiser or isinstance(model, UNet) else what
    _check_choice("what", what, PARTS)
    _check_whole("batch_size", batch_size)
    for name, value in (("length", length), ("steps", steps)):
        if value is not None:
            _check_whole(name, value)
    if what.startswith("sampler"):
        if not isinstance(model, DiffusionModel):
            raise ValueError(
                f"`what={what!r}` needs a DiffusionModel, which knows its noise schedule; received "
                f"{type(model).__name__}."
            )
        if steps is None:
            raise ValueError(f"`what={what!r}` needs `steps`, the number of DDIM steps.")
        ddim_factors(model.noise_schedule, steps)
    elif steps is not None:
        raise ValueError(f"`steps` is for the samplers; received it with `what={what!r}`.")
    if quantize == "int8" and what == "sampler":
        raise ValueError(
            "`quantize='int8'` is for what is called once a step: the denoiser or a sampler step; "
            "received `what='sampler'`."
        )
    if what == "decoder":
        return _decoder(model, batch_size, shape), what
    if what == "model":
        return _whole_model(model, batch_size, length), what
    return _denoising(model, denoiser, what, batch_size, length, shape, steps), what


def _denoising(model, denoiser, what, batch_size, length, shape, steps):
    """The denoiser, or a sampler around it."""
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

    if what == "denoiser":

        def draw(rng):
            t = rng.integers(0, timesteps or 1000, batch_size).astype("int32")
            return draw_x(rng), t, *draw_context(rng)

        inputs = {x_name: x, "t": whole, **lengths}
        return _Part(denoise, inputs, "epsilon", draw, denoiser, facts)

    facts["steps"] = steps
    if what == "sampler":

        def sample(network, x, *context):
            return ddim(functools.partial(denoise, network), schedule, x, steps, context=context)

        def draw(rng):
            return draw_x(rng), *draw_context(rng)

        return _Part(sample, {"noise": x, **lengths}, x_name, draw, denoiser, facts)

    t, factors = ddim_factors(schedule, steps)
    # In the order of sampling.
    t, factors = t[::-1].astype("int32"), factors[:2, ::-1].astype("float32")

    def sampler_step(network, x, step, *context):
        now = tf.broadcast_to(tf.gather(t, step), (batch_size,))
        epsilon = denoise(network, x, now, *context)
        return tf.gather(factors[0], step) * x + tf.gather(factors[1], step) * epsilon

    def draw(rng):
        return draw_x(rng), np.array(rng.integers(0, steps), "int32"), *draw_context(rng)

    step = tf.TensorSpec((), tf.int32)
    inputs = {x_name: x, "step": step, **lengths}
    return _Part(sampler_step, inputs, f"next_{x_name}", draw, denoiser, facts)


def _decoder(model, batch_size, shape):
    autoencoder = getattr(model, "autoencoder", model)
    if not isinstance(autoencoder, VQAutoencoder):
        raise ValueError(
            "`what='decoder'` needs a LatentDiffusion or a VQAutoencoder; received "
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
        # Away from the borders between codes, where rounding decides which one is nearest.
        chosen = rng.integers(0, len(codes), (batch_size, *shape[:2]))
        return ((codes[chosen] * scale).astype("float32"),)

    size = [n * autoencoder.downsampling for n in shape[:2]]
    facts = {"kind": "images", "shape": list(shape), "image_size": size, "scale_factor": scale}
    inputs = {"latents": tf.TensorSpec((batch_size, *shape), tf.float32)}
    return _Part(decode, inputs, "images", draw, autoencoder, facts)


def _whole_model(model, batch_size, length):
    if isinstance(model, DiffusionModel) or not getattr(model, "inputs", None):
        raise ValueError(
            "`what='model'` takes functional and Sequential models, whose inputs are known; "
            f"received {type(model).__name__}."
        )
    if len(model.outputs) != 1:
        raise ValueError(f"`model` must have one output; {model.name!r} has {len(model.outputs)}.")
    inputs = {}
    for tensor in model.inputs:
        # As TensorFlow would change it.
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

    return _Part(call, inputs, "output", draw, model, {"kind": "model"})


def _checked_representative(representative, inputs):
    """The representative data as a list of tuples, whose shapes fit."""
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


def _traced(part):
    """The part as a concrete function with named inputs."""
    specs = [tf.TensorSpec(s.shape, s.dtype, name=n) for n, s in part.inputs.items()]
    # A new function each time, which is traced anew.
    function = tf.function(lambda *inputs: part.function(part.model, *inputs), specs)
    with part.defaults():
        return function.get_concrete_function()


def _convert(part, what, quantize, sparse, representative):
    def frozen_graph(products=None):
        traced = _traced(replace(part, model=litert_form(part.model, products)))
        # With variables, or with loops lowered to their primitive operations, the file would be
        # written, and fail when it runs.
        return frozen(traced)

    graph = frozen_graph()
    # The toolkit's calibrator crashes, and the process with it, where there are loops.
    with_loops = any("While" in node.op for node in graph.graph.as_graph_def().node)
    if quantize == "int8" and with_loops:
        graph = frozen_graph(Integers(_extremes(part, representative)))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph])
    # A step of a loop writes its output into place, rather than copy those of all steps.
    write_loops_in_place(converter)
    if sparse and quantize == "none":
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    elif quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "int8_dynamic" and sparse:
        # A scale for each output would take as much as several of its few weights.
        scale_whole_tensors(converter)
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8" and not with_loops:
        converter.representative_dataset = lambda: (list(inputs) for inputs in representative)
        # What has no integer form, such as the embedding of timesteps, stays in floats.
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
            tf.lite.OpsSet.TFLITE_BUILTINS,
        ]
    try:
        return converter.convert()
    except Exception as error:  # the converter raises what its parts raise
        reason = next(
            (line for line in str(error).splitlines() if "error:" in line), str(error)[:500]
        )
        raise ValueError(
            f"TensorFlow Lite cannot express `what={what!r}` of {part.model.name!r}"
            f" with `quantize={quantize!r}`: {reason.strip()}"
        ) from error


def _extremes(part, representative):
    """Return the extremes of the inputs and outputs of products, for representative inputs."""
    observed = Observed()
    model = litert_form(part.model, observed)

    def observe(*inputs):
        part.function(model, *inputs)
        return observed.extremes

    with part.defaults():
        run = tf.function(observe, list(part.inputs.values())).get_concrete_function()
    result = {}
    for inputs in representative:
        found = run(*[tf.constant(array) for array in inputs])
        for site, ends in found.items():
            new, old = [float(end) for end in ends], result.get(site)
            pick = (min, max, min, max, max)
            result[site] = [f(a, b) for f, a, b in zip(pick, new, old or new, strict=True)]
    return result


def _finish(content, part, what, quantize, sparse, facts):
    parsed = flatbuffer.parse(content)
    flatbuffer.name_signature(parsed, list(part.inputs), [part.output], what)
    flatbuffer.strip_names(parsed)
    if sparse and quantize != "none":
        flatbuffer.encode_sparse(parsed)
    return flatbuffer.serialize(parsed, facts)


def _sparsity(model):
    """Share of zeros in the kernels that can be sparse."""
    kernels = [
        ops.convert_to_numpy(w) for w in model.weights if len(w.shape) > 1 and "kernel" in w.path
    ]
    total = sum(kernel.size for kernel in kernels)
    return sum(int((kernel == 0).sum()) for kernel in kernels) / total if total else 0.0


def _check(path, part, what, quantize, verify, representative, half):
    """Run a file; return its largest difference from Keras, or None if not asked for.

    Args:
        half: The `_Part` in half precision that this one was rebuilt from, or None.

    Raises:
        ValueError: if it does not run, or gives other outputs.
    """
    rng = np.random.default_rng(0)
    examples = representative[:CHECKS] if representative else []
    # A whole sampler is many steps already.
    count = 1 if what == "sampler" else CHECKS
    examples = (examples or [part.draw(rng) for _ in range(CHECKS)])[:count]
    try:
        interpreter = load_interpreter(path, 1)
        run = interpreter.get_signature_runner(what)
        outputs = [
            run(**dict(zip(part.inputs, inputs, strict=True)))[part.output] for inputs in examples
        ]
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"LiteRT cannot run `what={what!r}` of {part.model.name!r} with "
            f"`quantize={quantize!r}`: {error}"
        ) from error
    if not all(np.isfinite(output).all() for output in outputs):
        raise ValueError(f"The outputs of the file for `quantize={quantize!r}` are not finite.")
    if not verify:
        return None
    expected = _answers(part, examples)
    difference = np.stack(outputs) - expected
    largest = float(np.abs(difference).max())
    if quantize in TOLERANCES:
        bound = TOLERANCES[quantize] * max(1.0, float(np.abs(expected).max()))
        measured, kind = largest, "largest difference"
    else:
        # Outputs of 8 bits may be nearly constant, too.
        bound = INT8_TOLERANCE * float(np.std(expected)) + float(np.abs(expected).max()) / 50
        measured, kind = float(np.sqrt(np.mean(difference**2))), "root mean square difference"
    if not measured <= bound:
        raise ValueError(
            f"The outputs of the file for `what={what!r}`, `quantize={quantize!r}` are not "
            f"Keras's: the {kind} is {measured:.3g}, more than {bound:.3g}. No file is left."
        )
    if half is not None:
        _check_rebuilt(half, examples, expected)
    return largest


def _check_rebuilt(half, examples, expected):
    """Raise a ValueError if a model in half precision answers quite otherwise than in float32.

    Args:
        half: The `_Part` in half precision.
        examples: List of tuples of its inputs.
        expected: Array of the outputs for them in float32.
    """
    try:
        outputs = _answers(half, examples)
    except tf.errors.OpError:
        # Not all devices have all operations in half precision.
        return
    # Numbers overflow sooner in half precision.
    finite = np.isfinite(outputs)
    difference = (outputs - expected)[finite]
    measured = float(np.sqrt(np.mean(difference**2))) if finite.any() else 0.0
    bound = HALF_TOLERANCE * float(np.std(expected)) + float(np.abs(expected).max()) / 10
    if not measured <= bound:
        raise ValueError(
            f"`model` {half.model.name!r} has layers in half precision, and its configuration "
            "(`get_config`) rebuilds another model in float32: the root mean square difference of "
            f"their outputs is {measured:.3g}, more than {bound:.3g}. No file is left."
        )


def _answers(part, examples):
    """Compute the outputs of Keras for several inputs, as one array."""
    run = _traced(part)
    return np.stack([np.asarray(run(*map(tf.constant, inputs))) for inputs in examples])


def _is_half(layer):
    """Tell whether a layer has weights, inputs or computations in half precision."""
    return any(HALF.search(str(dtype)) for dtype in (layer.compute_dtype, layer.dtype))


def _rebuilt_in_float32(part):
    """Return a float32 model with the weights and masks of a part's model.

    Raises:
        ValueError: if the model cannot be rebuilt from its configuration.
    """
    model = part.model
    try:
        # Keras's warnings of lambdas, which are the model's own, and of layers not built yet.
        with _float32_defaults(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rebuilt = _from_float32_config(model)
            if not all(layer.built for layer in flatten_layers(rebuilt)):
                # The first call builds them.
                part.function(rebuilt, *part.draw(np.random.default_rng(0)))
        for layer in flatten_layers(rebuilt):
            # A layer's own code may ask for half precision, whatever the configuration.
            if _is_half(layer):
                policy = layer.dtype_policy.name.removeprefix("map_")
                layer.dtype_policy = HALF.sub("float32", policy)
        _copy_state(model, rebuilt)
    except Exception as error:  # the model's own code may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"`model` {model.name!r} has layers in half precision, and cannot be rebuilt in "
            f"float32, as a TFLite file computes, from its configuration (`get_config`): {reason}"
        ) from error
    return rebuilt


def _copy_state(model, rebuilt):
    """Copy weights and masks from a model or layer to the one that was rebuilt from it."""
    if isinstance(model, keras.Model):
        # One level at a time: a layer that nested models share has become several.
        for layer, new in zip(model.layers, rebuilt.layers, strict=True):
            _copy_state(layer, new)
        pairs = [(model, rebuilt)]
    else:
        pairs = zip(flatten_layers(model), flatten_layers(rebuilt), strict=True)
    for layer, new in pairs:
        # A layer that the first call has not built takes no part in the file.
        if new.built:
            state = {}
            layer.save_own_variables(state)
            new.load_own_variables(state)


def _from_float32_config(model):
    """Make a model from the configuration of another, with float32 for half-precision types."""
    layers = flatten_layers(model)
    # Classes and functions that Keras does not find by the name in the configuration.
    custom = {
        keras.saving.get_registered_name(cls): cls
        for layer in layers
        for cls in type(layer).__mro__
        if issubclass(cls, keras.layers.Layer) and cls.__module__.split(".")[0] != "keras"
    }

    def own_function(node, key):
        """Return the function that a layer has where its configuration has a description."""
        name, written = node["config"].get("name"), node["config"][key]
        if not isinstance(written, dict):
            return None
        found = {
            layer: getattr(layer, key, None)
            for layer in layers
            if layer.name == name and type(layer).__name__ == node.get("class_name")
        }
        found = {k: value for k, value in found.items() if isinstance(value, types.FunctionType)}
        if len(set(found.values())) > 1:
            # Layers in different models may have the same name.
            serialize = keras.saving.serialize_keras_object
            found = {
                k: v for k, v in found.items() if serialize(k.get_config().get(key)) == written
            }
        return next(iter(found.values()), None)

    def changed(node, is_dtype=False):
        if isinstance(node, (list, tuple)):
            items = [changed(item, is_dtype) for item in node]
            return tuple(items) if isinstance(node, tuple) else items
        if not isinstance(node, dict):
            return HALF.sub("float32", node) if is_dtype and isinstance(node, str) else node
        result = {
            key: changed(value, is_dtype or str(key).endswith("dtype"))
            for key, value in node.items()
            # The copy is not trained.
            if key != "compile_config"
        }
        for key in node["config"] if isinstance(node.get("config"), dict) else ():
            # Keras restores a lambda without the names that it refers to.
            function = own_function(node, key)
            if function is not None:
                name = f"function {len(custom)}"
                custom[name] = function
                result["config"][key] = {
                    "module": "builtins",
                    "class_name": "function",
                    "config": name,
                    "registered_name": name,
                }
        return result

    config = changed(keras.saving.serialize_keras_object(model))
    return keras.saving.deserialize_keras_object(config, custom, safe_mode=False)


@contextlib.contextmanager
def _float32_defaults():
    """Context in which Keras's default types are float32, and which draws no random numbers."""
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    # Initializers without a seed draw one from these.
    seeds = random.getstate()
    try:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
        random.setstate(seeds)
