"""Inference from `.tflite` files of this package: a denoiser for the samplers, and sampling.

Needs LiteRT, but not the model.
"""

from pathlib import Path

import keras
import numpy as np

from keras_sparse_dm.checks import whole_number
from keras_sparse_dm.diffusion.noise_schedule import NoiseSchedule
from keras_sparse_dm.diffusion.samplers import ddim
from keras_sparse_dm.export.tflite import flatbuffer
from keras_sparse_dm.lazy import lazy_module

litert = lazy_module("ai_edge_litert.interpreter")
tf = lazy_module("tensorflow")


def load_interpreter(path, num_threads):
    """Return a LiteRT interpreter of a file, ready to run.

    Raises:
        ImportError: without LiteRT; the message tells how to install it.
    """
    interpreter = litert.Interpreter(model_path=str(path), num_threads=num_threads)
    interpreter.allocate_tensors()
    return interpreter


def read_tflite_metadata(path):
    """Read the metadata that `to_tflite` wrote into a file.

    Args:
        path: The `.tflite` file.

    Returns:
        Dictionary of `"kind"` (sketches, images or model), `"part"` (denoiser, ...), `"quantize"`,
        `"sparse"`, `"sparsity"` (share of zeros in the kernels), `"inputs"` (shapes by name),
        `"output"`, `"batch_size"`, facts for samplers (`"timesteps"`, `"noise_schedule"`,
        `"steps"`, `"representation"`, `"length"` or `"shape"`, `"scale_factor"`), `"package"` (the
        version) and `"user"` (the caller's metadata).

    Raises:
        ValueError: for a damaged file, or one that `to_tflite` did not write.
        OSError: if the file cannot be read.
    """
    facts = flatbuffer.read_metadata(Path(path).read_bytes(), str(path))
    # Version 0.1.0 wrote the part under "what" only.
    return facts if "part" in facts else facts | {"part": facts["what"]}


class TFLiteDenoiser:
    """The denoiser in a `.tflite` file, as a function for the samplers.

    Pads sketches that are shorter than the file's length, and splits or pads batches of another
    size than the file's.

    Args:
        path: A file of `to_tflite` with `part="denoiser"`.
        num_threads: Number of LiteRT's threads.

    Call arguments:
        x: Float array or tensor of points (batch_size, length, 3), up to the file's length; or
            of latents (batch_size, height, width, channels).
        t: Integers (batch_size,), timesteps from 0.
        lengths: Integers (batch_size,), numbers of points; for sketches only.

    Returns:
        Predicted noise of the shape of `x`: a NumPy array, or a tensor in a graph.

    Attributes:
        metadata: Dictionary, as `read_tflite_metadata` returns it.

    Raises:
        ValueError: for a damaged file or one that holds no denoiser; when called, for shapes that
            do not fit the file.

    Example:

    >>> model = ChiroDiff(units=8, num_layers=1)
    >>> file = to_tflite(model, "kanji.tflite", length=8)
    >>> denoise = TFLiteDenoiser(file.path)
    >>> noise, lengths = keras.random.normal((2, 8, 3)), [6, 8]
    >>> ddim(denoise, NoiseSchedule.linear(1000), noise, 50, context=(lengths,)).shape
    TensorShape([2, 8, 3])
    """

    def __init__(self, path, num_threads=1):
        self.metadata = read_tflite_metadata(path)
        if self.metadata["part"] != "denoiser":
            raise ValueError(
                f"{path} must hold a denoiser; it holds part={self.metadata['part']!r}."
            )
        self._run = _Runner(path, self.metadata, num_threads)

    def __call__(self, x, t, lengths=None):
        context = () if lengths is None else (lengths,)
        inputs = (x, t, *context)
        if not any(_is_symbolic(tensor) for tensor in inputs):
            return self._run(*(np.asarray(tensor) for tensor in inputs))
        epsilon = tf.numpy_function(self._run, inputs, tf.float32, stateful=False)
        epsilon.set_shape(x.shape)
        return epsilon


def generate_from_tflite(
    path, n=None, lengths=None, steps=None, seed=None, decoder=None, num_threads=1
):
    """Sample from noise with a `.tflite` file, as the model's `generate` does.

    Equal seeds give the samples of `model.generate` with eta 0, up to rounding and quantization.

    Args:
        path: A file of `to_tflite`: a denoiser, a sampler step or a sampler.
        n: Number of images, for latents.
        lengths: Numbers of points of the sketches to draw, integers (n,) up to the file's length.
        steps: Number of DDIM steps; by default that of the file, and 50 for a denoiser.
        seed: Integer; None for a random one.
        decoder: File of the decoder, for images; without it latents are returned.
        num_threads: Number of LiteRT's threads.

    Returns:
        Float32 array of points (n, max(lengths), 3), zero past each length; of images (n,
        image_size, image_size, channels) in [-1, 1]; or of scaled latents (n, height, width,
        channels).

    Raises:
        ValueError: for a file that is damaged or cannot sample, or arguments that do not fit it.
    """
    facts = read_tflite_metadata(path)
    if facts["part"] not in ("denoiser", "sampler_step", "sampler"):
        raise ValueError(f"{path} cannot sample: it holds part={facts['part']!r}.")
    if "noise_schedule" not in facts:
        raise ValueError(
            f"{path} holds a denoiser without its noise schedule: export the DiffusionModel, or "
            "use TFLiteDenoiser with a sampler."
        )
    own_steps = facts.get("steps")
    if own_steps is not None and steps not in (None, own_steps):
        raise ValueError(f"`steps` is {own_steps} in {path}; received {steps}.")
    steps = own_steps or steps or 50
    sketches = facts["kind"] == "sketches"
    if (lengths is None) == sketches or (n is None) != sketches:
        raise ValueError(
            f"{path} draws {facts['kind']}: give {'`lengths`' if sketches else '`n`'} and not "
            f"{'`n`' if sketches else '`lengths`'}."
        )
    context = ()
    if sketches:
        lengths = np.asarray(lengths)
        if lengths.ndim != 1 or not lengths.size or lengths.min() < 1:
            raise ValueError(f"`lengths` must be numbers of points, 1 or more; received {lengths}.")
        if lengths.max() > facts["length"]:
            raise ValueError(
                f"`lengths` must be at most {facts['length']}, for which {path} was made; "
                f"received {lengths.max()}. Export it with a larger `length`."
            )
        lengths = lengths.astype("int32")
        shape = (len(lengths), int(lengths.max()), facts["point_features"])
        context = (lengths,)
    else:
        shape = (whole_number("`n`", n, 1), *facts["shape"])
    if seed is None:
        seed = int(keras.random.randint((), 0, 2**31 - 1))
    x = keras.ops.convert_to_numpy(keras.random.normal(shape, seed=seed))
    if facts["part"] == "denoiser":
        schedule = NoiseSchedule.from_config(facts["noise_schedule"])
        denoise = TFLiteDenoiser(path, num_threads)
        x = keras.ops.convert_to_numpy(ddim(denoise, schedule, x, steps, context=context))
    else:
        run = _Runner(path, facts, num_threads)
        if facts["part"] == "sampler":
            x = run(x, *context)
        else:
            for step in range(steps):
                x = run(x, np.array(step, "int32"), *context)
    if sketches:
        return np.where(np.arange(shape[1])[None, :, None] < lengths[:, None, None], x, 0.0)
    if decoder is None:
        return x
    decoder_facts = read_tflite_metadata(decoder)
    if decoder_facts["part"] != "decoder":
        raise ValueError(f"{decoder} must hold a decoder; it holds part={decoder_facts['part']!r}.")
    return _Runner(decoder, decoder_facts, num_threads)(x)


class _Runner:
    """Runner of a file on any number of examples, padded to the file's shapes.

    The first input has one row per example, and so has every other input that is not a scalar.
    """

    def __init__(self, path, facts, num_threads):
        self._path, self._facts = path, facts
        self._interpreter = load_interpreter(path, num_threads)
        self._call = self._interpreter.get_signature_runner(facts["part"])

    def __call__(self, *inputs):
        shapes, batch_size = self._facts["inputs"], self._facts["batch_size"]
        if len(inputs) != len(shapes):
            raise ValueError(
                f"{self._path} takes {', '.join(shapes)}; received {len(inputs)} inputs."
            )
        x = np.asarray(inputs[0], "float32")
        first, *sizes = next(iter(shapes.values()))
        # Only sketches, which have lengths, may be shorter than the file's shape.
        shorter = "lengths" in shapes and x.ndim == len(sizes) + 1 and x.shape[1] <= sizes[0]
        wanted = [x.shape[1], *sizes[1:]] if shorter else sizes
        if x.ndim != len(sizes) + 1 or list(x.shape[1:]) != wanted:
            raise ValueError(
                f"{self._path} takes {next(iter(shapes))} of shape (batch_size, "
                f"{', '.join(map(str, sizes))}); received {x.shape}."
            )
        padded = np.zeros((-(-len(x) // first) * first, *sizes), "float32")
        padded[: len(x), : x.shape[1]] = x
        others = []
        for name, array in zip(list(shapes)[1:], inputs[1:], strict=True):
            array = np.asarray(array).astype("int32")
            if shapes[name]:
                # The rows of padding need lengths too.
                array = np.pad(array, (0, len(padded) - len(x)), mode="edge")
            others.append(array)
        parts = []
        for begin in range(0, len(padded), batch_size):
            rows = slice(begin, begin + batch_size)
            arrays = [padded[rows], *(a[rows] if a.ndim else a for a in others)]
            outputs = self._call(**dict(zip(shapes, arrays, strict=True)))
            parts.append(outputs[self._facts["output"]])
        result = np.concatenate(parts)[: len(x)]
        return result[:, : x.shape[1]] if shorter else result


def _is_symbolic(tensor):
    """Tell whether a tensor has no values yet, as while a graph is traced."""
    return not isinstance(tensor, np.ndarray) and hasattr(tensor, "graph")
