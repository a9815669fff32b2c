"""SavedModels, for TensorFlow alone."""

from keras_sparse_dm.export import file_sizes, read_metadata, to_saved_model
from keras_sparse_dm.lazy import lazy_module, load
from keras_sparse_dm.runs.exported import make_exported
from keras_sparse_dm.runs.formats.measures import (
    ExportedFile,
    difference_of,
    inputs_of,
    seconds_of,
)

tf = load(lazy_module("tensorflow"))


def write(run, folder, name, *, metadata, rounds, **others):
    """Write a SavedModel; see `formats`."""
    path = folder / "saved_model"
    to_saved_model(run.model, path, metadata=metadata)
    inputs = inputs_of(run)
    with run.model.averaged_weights():
        expected = run.model.denoiser(inputs, training=False)
    inputs = zip(run.kind.input_names, inputs, strict=True)
    inputs = {name: tf.constant(value) for name, value in inputs}
    denoise = tf.saved_model.load(str(path)).signatures["denoise"]
    difference = difference_of(expected, denoise(**inputs)["epsilon"])
    seconds = seconds_of({"it": lambda: denoise(**inputs)["epsilon"].numpy()}, rounds)
    size, compressed = file_sizes(path)
    # It stores and computes zeros as all other weights.
    yield ExportedFile(
        path.name,
        "saved_model",
        "none",
        size,
        size,
        compressed,
        difference,
        seconds.get("it"),
        seconds.get("it"),
    )


def load(path):
    """Return the `Exported` model of a SavedModel."""
    metadata = read_metadata(path)
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

    return make_exported(path, metadata, metadata["kind"], metadata["timesteps"], draw)


def snippet(folder, run, file):
    """Return lines of Python that load the file and call it."""
    return [
        "import tensorflow as tf",
        "",
        f'model = tf.saved_model.load("{file.name}")',
        "seed, steps, eta = tf.constant(0, tf.int64), tf.constant(50), tf.constant(0.0)",
        f'samples = model.generate(seed, {run.kind.example_number}, steps, eta)["samples"]',
        "print(samples.shape)",
    ]
