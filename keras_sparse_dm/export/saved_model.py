"""SavedModels: denoiser and whole sampler for TensorFlow alone."""

import contextlib
import json
from importlib.metadata import version
from pathlib import Path

from keras_sparse_dm.diffusion import DiffusionModel
from keras_sparse_dm.export.needs_tensorflow import check_backend
from keras_sparse_dm.files import whole_directory
from keras_sparse_dm.layers.shared_copy import shared_copy
from keras_sparse_dm.lazy import lazy_module, load
from keras_sparse_dm.models import ChiroDiff, LatentDiffusion, UNet

tf = load(lazy_module("tensorflow"))

METADATA_FILE = Path("assets.extra") / "keras_sparse_dm.json"
FORMAT_VERSION = 1
# The default batch sizes of `DiffusionModel.generate` and `LatentDiffusion.generate`.
SKETCHES_A_BATCH, IMAGES_A_BATCH = 256, 16
# Keras reduces its seeds to this range of 32 bits.
_SEEDS = 2**31 - 2


def to_saved_model(model, path, metadata=None, latent_size=None):
    """Write a model as a SavedModel, a directory that TensorFlow can serve.

    `tf.saved_model.load` and TensorFlow Serving run it without Keras and this package. It holds the
    averaged (EMA) weights if there are any, but neither masks nor optimizer. It has two signatures,
    with float32 and int32 tensors, except `seed`, which is int64:

    - `denoise`: for sketches it takes `points` (batch_size, max_length, 3), `t` (batch_size,) and
      `lengths` (batch_size,); for images `latents` (batch_size, height, width, channels) and `t`.
      Returns `epsilon`, the predicted noise.
    - `generate`, the whole DDIM sampler: for sketches it takes `lengths` (n,), for images the
      scalar `n`, and for both the scalars `seed`, `steps` and `eta`. Returns `samples`: points (n,
      max(lengths), 3) with zeros past each length; or decoded images (n, image_size, image_size,
      channels) in [-1, 1]. TensorFlow Serving and `loaded.generate(seed, lengths)` in Python have
      defaults: 50 steps for sketches, 100 for images, and an `eta` of 0. `loaded.signatures` needs
      all inputs.

    Equal seeds give the samples of `model.generate` up to rounding: the noise and the batches of
    256 sketches or 16 images are the same. Timesteps, lengths, steps and eta out of range raise
    `tf.errors.InvalidArgumentError`.

    Args:
        model: A `LatentDiffusion`; a `DiffusionModel` of a `ChiroDiff`, or of a `UNet` by itself,
            which samples latents; or one of these two denoisers, for `denoise` alone.
        path: The directory; replaces an existing SavedModel once the new one is complete.
        metadata: Dictionary that JSON can hold, for `read_metadata`.
        latent_size: Height and width, for a `UNet` outside a `LatentDiffusion`.

    Returns:
        `pathlib.Path` of the directory.

    Raises:
        ValueError: for any other model; metadata that JSON cannot hold; a `latent_size` that is
            missing, superfluous or not a multiple of the U-Net's downsampling; or a `path` that
            holds something else than a SavedModel.
        OSError: if the directory cannot be written; nothing partial is left.

    Example:

    >>> model = DiffusionModel(ChiroDiff(units=8, num_layers=1), NoiseSchedule.linear(1000))
    >>> loaded = tf.saved_model.load(to_saved_model(model, "sketches"))
    >>> loaded.signatures["generate"](
    ...     seed=tf.constant(0, "int64"), lengths=tf.constant([6, 8]), steps=tf.constant(50),
    ...     eta=tf.constant(0.0),
    ... )["samples"].shape
    TensorShape([2, 8, 3])
    """
    check_backend("to_saved_model")
    path = Path(path)
    if path.exists() and not (path.is_dir() and _may_be_replaced(path)):
        raise ValueError(
            f"`path` must be a new directory or that of a SavedModel, which is replaced; {path} "
            "holds something else."
        )
    diffusion = model if isinstance(model, DiffusionModel) else None
    denoiser = model.denoiser if diffusion is not None else model
    facts = _facts(diffusion, denoiser, latent_size)
    try:
        written = json.dumps((metadata or {}) | facts, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`metadata` must be a dictionary of what JSON can hold: {error}."
        ) from None
    averaged = diffusion.averaged_weights() if diffusion is not None else contextlib.nullcontext()
    with averaged, whole_directory(path) as temporary:
        module = tf.Module()
        module.denoise = _denoise_function(_without_cudnn(denoiser), facts)
        functions = {"denoise": module.denoise}
        if diffusion is not None:
            sample = _sampler(module.denoise, diffusion.noise_schedule)
            if facts["kind"] == "sketches":
                module.generate = _sketch_generator(sample, facts)
            else:
                module.generate = _image_generator(sample, facts, diffusion)
            functions["generate"] = module.generate
        # Only the variables that the functions use: no masks, no encoder.
        used = [v for f in functions.values() for v in f.get_concrete_function().variables]
        module.weights = list({id(v): v for v in used}.values())
        tf.saved_model.save(module, str(temporary), signatures=functions)
        file = temporary / METADATA_FILE
        file.parent.mkdir(exist_ok=True)
        file.write_text(written + "\n", encoding="utf-8")
    return path


def read_metadata(path):
    """Read the metadata that `to_saved_model` wrote into a SavedModel.

    Args:
        path: The directory.

    Returns:
        Dictionary of the caller's metadata, and of `"kind"` (`"sketches"` or `"images"`),
        `"signatures"` (their names), `"timesteps"` and `"versions"`; for sketches also
        `"representation"` and `"point_features"`; for images `"latent_shape"`, and with a decoder
        `"image_size"` and `"image_channels"`; with a sampler `"noise_schedule"`, `"batch_size"` and
        `"default_steps"`.

    Raises:
        ValueError: if the directory has no metadata, or it cannot be read.
    """
    file = Path(path) / METADATA_FILE
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path} is no SavedModel of `keras_sparse_dm.export.to_saved_model`: it has no "
            f"{METADATA_FILE}."
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}. Export the model again.") from None
    if metadata.get("format_version", 0) > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written by a newer keras_sparse_dm: upgrade it (pip install --upgrade "
            "keras_sparse_dm)."
        )
    return metadata


def _facts(diffusion, denoiser, latent_size):
    """Return the metadata that users of the SavedModel need."""
    facts = {
        "format_version": FORMAT_VERSION,
        "signatures": ["denoise"],
        "timesteps": getattr(denoiser, "timesteps", None),
        "versions": {name: version(name) for name in ("keras_sparse_dm", "keras", "tensorflow")},
    }
    decodes = isinstance(diffusion, LatentDiffusion)
    if isinstance(denoiser, UNet) and not decodes:
        multiple = denoiser.downsampling
        if latent_size is None or latent_size < 1 or latent_size % multiple:
            raise ValueError(
                "`latent_size` must be the height and width of what this U-Net denoises, which a "
                f"SavedModel fixes: a multiple of {multiple}; received {latent_size}."
            )
    elif latent_size is not None:
        raise ValueError(
            "`latent_size` is for a UNet outside a LatentDiffusion; this model needs none."
        )
    if isinstance(denoiser, ChiroDiff):
        facts |= {
            "kind": "sketches",
            "representation": denoiser.representation,
            "point_features": denoiser.point_features,
        }
    elif isinstance(denoiser, UNet):
        shape = (latent_size, latent_size, denoiser.in_channels)
        facts |= {
            "kind": "images",
            "latent_shape": list(diffusion.latent_shape if decodes else shape),
        }
    else:
        raise ValueError(
            "`model` must be a DiffusionModel of a ChiroDiff or a UNet, or one of these; received "
            f"{type(denoiser).__name__}. Any other Keras model is exported by `model.export`."
        )
    if decodes:
        facts |= {
            "image_size": diffusion.image_size,
            "image_channels": diffusion.autoencoder.image_channels,
        }
    if diffusion is not None:
        sketches = facts["kind"] == "sketches"
        facts |= {
            "signatures": ["denoise", "generate"],
            "timesteps": diffusion.noise_schedule.timesteps,
            "noise_schedule": diffusion.noise_schedule.get_config(),
            "batch_size": SKETCHES_A_BATCH if sketches else IMAGES_A_BATCH,
            # The defaults of `generate`.
            "default_steps": min(50 if sketches else 100, diffusion.noise_schedule.timesteps),
        }
    return facts


def _denoise_function(denoiser, facts):
    def denoise(x, t, *context):
        in_range = (t >= 0) & (t < facts["timesteps"])
        with tf.control_dependencies(
            [tf.debugging.Assert(tf.reduce_all(in_range), ["`t` must be in range; received", t])]
        ):
            x = tf.identity(x)
        epsilon = denoiser((x, t, *context), training=False)
        return {"epsilon": tf.cast(epsilon, "float32")}

    batch = tf.TensorSpec([None], "int32", name="t")
    if facts["kind"] == "sketches":

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None, facts["point_features"]], "float32", name="points"),
                batch,
                tf.TensorSpec([None], "int32", name="lengths"),
            ]
        )
        def sketches(points, t, lengths):
            return denoise(points, t, lengths)

        return sketches

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *facts["latent_shape"]], "float32", name="latents"),
            batch,
        ]
    )
    def images(latents, t):
        return denoise(latents, t)

    return images


def _sampler(denoise, noise_schedule):
    """Return `sample(x_T, steps, eta, seed, context)`: DDIM with a tensor for the number of steps.

    Computes what `diffusion.ddim` does (Song et al. 2021, equation 12).
    """
    timesteps = noise_schedule.timesteps

    def sample(x_T, steps, eta, seed, context=()):
        alphas_cumprod = tf.constant(noise_schedule.alphas_cumprod, "float64")
        one = tf.cast(steps < timesteps, "int64")
        steps, eta = tf.cast(steps, "int64"), tf.cast(eta, "float64")
        t = tf.minimum(tf.range(steps) * timesteps // steps + one, timesteps - 1)
        alpha = tf.gather(alphas_cumprod, t)
        alpha_prev = tf.concat([alphas_cumprod[:1], alpha[:-1]], axis=0)
        sigma = eta * tf.sqrt((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev))
        of_x = tf.sqrt(alpha_prev / alpha)
        of_epsilon = tf.sqrt(1 - alpha_prev - sigma**2) - tf.sqrt(alpha_prev * (1 - alpha) / alpha)
        factors = tf.cast(tf.stack([of_x, of_epsilon, sigma]), "float32")
        t = tf.cast(t, "int32")

        def step(k, x):
            i = steps - 1 - k
            now = tf.fill([tf.shape(x)[0]], t[i])
            epsilon = denoise(x, now, *context)["epsilon"]
            noise = tf.random.stateless_normal(tf.shape(x), _seed(seed, k))
            next_x = factors[0, i] * x + factors[1, i] * epsilon + factors[2, i] * noise
            return k + 1, tf.ensure_shape(next_x, x.shape)

        zero = tf.zeros((), "int64")
        return tf.while_loop(lambda k, _: k < steps, step, (zero, x_T))[1]

    return sample


def _sketch_generator(sample, facts):
    features = facts["point_features"]
    # Only tensors also become defaults of the signature.
    default_steps, no_noise = tf.constant(facts["default_steps"]), tf.constant(0.0)

    @tf.function(
        input_signature=[
            tf.TensorSpec([], "int64", name="seed"),
            tf.TensorSpec([None], "int32", name="lengths"),
            tf.TensorSpec([], "int32", name="steps"),
            tf.TensorSpec([], "float32", name="eta"),
        ]
    )
    def generate(seed, lengths, steps=default_steps, eta=no_noise):
        checks = [
            *_checks(steps, eta, facts["timesteps"]),
            _check(tf.size(lengths) > 0, "`lengths` must not be empty", lengths),
            _check(tf.reduce_all(lengths > 0), "`lengths` must be 1 or more; received", lengths),
        ]
        with tf.control_dependencies(checks):
            n, longest = tf.size(lengths), tf.reduce_max(lengths)
        noise = tf.random.stateless_normal([n, longest, features], _seed(seed, 0))
        # Sketches of similar length share a batch, which is as long as its longest sketch.
        order = tf.argsort(lengths, stable=True)

        def batch(begin):
            chosen = order[begin : begin + SKETCHES_A_BATCH]
            part_lengths = tf.gather(lengths, chosen)
            length = tf.reduce_max(part_lengths)
            part = tf.ensure_shape(tf.gather(noise, chosen)[:, :length], [None, None, features])
            part = sample(part, steps, eta, _seed_of_batch(seed, begin), (part_lengths,))
            return tf.pad(part, [[0, 0], [0, longest - length], [0, 0]])

        samples = _in_batches(batch, n, SKETCHES_A_BATCH, [None, None, features])
        samples = tf.gather(samples, tf.argsort(order))
        return {"samples": samples * tf.sequence_mask(lengths, dtype="float32")[..., None]}

    return generate


def _image_generator(sample, facts, diffusion):
    latent_shape = facts["latent_shape"]
    default_steps, no_noise = tf.constant(facts["default_steps"]), tf.constant(0.0)
    decodes = "image_size" in facts
    size = facts.get("image_size")
    shape = [size, size, facts["image_channels"]] if decodes else latent_shape

    @tf.function(
        input_signature=[
            tf.TensorSpec([], "int64", name="seed"),
            tf.TensorSpec([], "int32", name="n"),
            tf.TensorSpec([], "int32", name="steps"),
            tf.TensorSpec([], "float32", name="eta"),
        ]
    )
    def generate(seed, n, steps=default_steps, eta=no_noise):
        checks = [
            *_checks(steps, eta, facts["timesteps"]),
            _check(n > 0, "`n` must be 1 or more; received", n),
        ]
        with tf.control_dependencies(checks):
            n = tf.identity(n)
        noise = tf.random.stateless_normal([n, *latent_shape], _seed(seed, 0))

        def batch(begin):
            part = tf.ensure_shape(noise[begin : begin + IMAGES_A_BATCH], [None, *latent_shape])
            part = sample(part, steps, eta, _seed_of_batch(seed, begin))
            return diffusion.decode(part) if decodes else part

        return {"samples": _in_batches(batch, n, IMAGES_A_BATCH, [None, *shape])}

    return generate


def _in_batches(batch, n, batch_size, shape):
    """Concatenate `batch(begin)` for begin = 0, batch_size, ... below n."""

    def body(begin, number, results):
        results = results.write(number, batch(begin))
        return begin + batch_size, number + 1, results

    results = tf.TensorArray(
        "float32", size=0, dynamic_size=True, infer_shape=False, element_shape=shape
    )
    results = tf.while_loop(
        lambda begin, *_: begin < n, body, (0, 0, results), parallel_iterations=1
    )[2]
    return tf.ensure_shape(results.concat(), shape)


def _checks(steps, eta, timesteps):
    text = f"`steps` must be from 1 to {timesteps}, the number of timesteps; received"
    return [
        _check((steps >= 1) & (steps <= timesteps), text, steps),
        _check((eta >= 0.0) & (eta <= 1.0), "`eta` must be in [0, 1]; received", eta),
    ]


def _check(condition, message, received):
    return tf.debugging.Assert(condition, [message, received])


def _seed(seed, number):
    """Return the seed of Keras's draw with this number from an integer seed."""
    seed = tf.math.floormod(tf.cast(seed, "int64"), _SEEDS)
    return tf.cast(tf.stack([seed, tf.cast(number, "int64")]), "int32")


def _seed_of_batch(seed, begin):
    return seed + 1 + tf.cast(begin, "int64")


def _without_cudnn(model):
    """Return a copy of a model whose recurrent layers use operations that all devices have."""
    model, layers = shared_copy(model)
    for layer in layers.values():
        if hasattr(layer, "use_cudnn"):
            layer.use_cudnn = False
    return model


def _may_be_replaced(path):
    """Tell whether a directory is empty or a SavedModel."""
    return (path / "saved_model.pb").exists() or not any(path.iterdir())
