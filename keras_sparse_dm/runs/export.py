"""A trained run as files for elsewhere: how small they are, how exact, how fast."""

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.export import (
    file_sizes,
    load_sparse,
    read_tflite_metadata,
    remove_dead_units,
    representative_data,
    save_sparse,
    to_saved_model,
    to_tflite,
)
from keras_sparse_dm.export.tflite.inference import load_interpreter
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.metrics.costs.memory import file_bytes
from keras_sparse_dm.runs.exported import run_metadata
from keras_sparse_dm.runs.folder import read_json, write_json
from keras_sparse_dm.runs.markdown import markdown_table
from keras_sparse_dm.sparsity import masked_kernels

# In the folder of the exported files.
RECORDS = "export.json"
README = "README.md"
# Tuples of inputs from which integers learn their ranges.
REPRESENTATIVE = 100


@dataclass(frozen=True)
class ExportedFile:
    """What was written, and what it is like.

    Attributes:
        name: Name of the file or directory.
        format: `"sparse"`, `"tflite"` or `"saved_model"`.
        quantize: As of `export_run`.
        dense_bytes: What it would take if zeros were stored as all other weights are.
        bytes: What it takes.
        compressed_bytes: What it takes after zlib.
        difference: Largest absolute difference of the denoiser's outputs from Keras's; None
            where they were not compared.
        dense_seconds, seconds: Median time of one call with the dense and with this file, batch
            size as exported, one thread; None where there is nothing to run or nobody asked.
    """

    name: str
    format: str
    quantize: str
    dense_bytes: int
    bytes: int
    compressed_bytes: int
    difference: float | None
    dense_seconds: float | None = None
    seconds: float | None = None

    @property
    def ratio(self):
        """Its size over the dense one's."""
        return self.bytes / self.dense_bytes


def export_run(
    run,
    folder,
    formats,
    quantize="none",
    what="denoiser",
    length=None,
    batch_size=1,
    optimizer=False,
    dead_units=True,
    rounds=20,
):
    """Writes a run's model in other formats, and what is to be known of the files.

    Args:
        run: The `Run`.
        folder: Where to write; made if it is not there.
        formats: Which: `"sparse"`, `"tflite"`, `"saved_model"`.
        quantize: Type of the weights: `"none"` (float32), `"float16"` (sparse, tflite),
            `"bfloat16"` (sparse), `"int8_dynamic"` or `"int8"` (tflite).
        what: What a `.tflite` file computes: `"denoiser"`, `"sampler_step"` or `"sampler"`.
        length: Points of the longest sketch that a `.tflite` file takes; by default that of the
            longest one trained on.
        batch_size: Examples in a call of a `.tflite` file.
        optimizer: Whether a sparse checkpoint holds the optimizer too.
        dead_units: Whether units that pruning left without use stay; see `remove_dead_units`.
        rounds: How often calls are timed; 0 for not at all.

    Returns:
        `(files, removed)`: a list of `ExportedFile`, of those written now; and the `DeadUnits`
        that were removed, or None.

    Raises:
        SettingsError: for what cannot be exported so.
        OSError: if something cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    length = run.kind.tflite_length(run, length)
    metadata = run_metadata(run)
    suffix = "" if quantize == "none" else f"-{quantize}"
    written, removed = [], None
    try:
        if not dead_units:
            smaller, removed = remove_dead_units(run.model, _inputs(run))
            run = replace(run, model=smaller)
            metadata["units_removed"] = {
                layer: before - after for layer, before, after, *_ in removed.layers
            }
        for name in formats:
            if name == "sparse":
                file = folder / f"model{suffix}.sparse"
                written.append(_sparse(run, file, quantize, optimizer, metadata))
            elif name == "saved_model":
                written.append(_saved_model(run, folder / "saved_model", metadata, rounds))
            else:
                options = {"quantize": quantize, "batch_size": batch_size, "metadata": metadata}
                for stem, part in {"model": what, **run.kind.tflite_parts}.items():
                    of_part = options | {"what": part, "length": length}
                    if part in ("sampler_step", "sampler"):
                        of_part["steps"] = run.sampling.steps
                    file = folder / f"{stem}{suffix}.tflite"
                    written.append(_tflite(run, file, rounds, **of_part))
    except (ValueError, ImportError) as error:
        raise SettingsError(str(error)) from None
    finally:
        if written:
            _record(folder, run, metadata, written)
    return written, removed


def _sparse(run, path, quantize, optimizer, metadata):
    dtype = "float32" if quantize == "none" else quantize
    save_sparse(run.model, path, dtype=dtype, optimizer=optimizer, metadata=metadata)
    inputs = _inputs(run)
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
    return ExportedFile(
        path.name, "sparse", quantize, dense, *file_sizes(path), _difference(expected, found)
    )


def _saved_model(run, path, metadata, rounds):
    to_saved_model(run.model, path, metadata=metadata)
    inputs = _inputs(run)
    with run.model.averaged_weights():
        expected = run.model.denoiser(inputs, training=False)
    inputs = zip(run.kind.input_names, inputs, strict=True)
    inputs = {name: tf.constant(value) for name, value in inputs}
    denoise = tf.saved_model.load(str(path)).signatures["denoise"]
    difference = _difference(expected, denoise(**inputs)["epsilon"])
    seconds = _seconds({"it": lambda: denoise(**inputs)["epsilon"].numpy()}, rounds)
    size, compressed = file_sizes(path)
    # It stores and computes zeros as all other weights.
    return ExportedFile(
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


def _tflite(run, path, rounds, what, length, quantize, **options):
    options |= {"what": what, "quantize": quantize, "length": length}
    if quantize == "int8":
        sizes = {name: options[name] for name in ("what", "batch_size", "length")}
        options["representative"] = representative_data(
            run.model, run.train, n=REPRESENTATIVE, steps=options.get("steps"), **sizes
        )
    exported = to_tflite(run.model, path, **options)
    with tempfile.TemporaryDirectory() as temporary:
        dense = to_tflite(
            run.model, Path(temporary) / "dense.tflite", sparse=False, verify=False, **options
        )
        calls = {}
        if rounds:
            for name, file in (("dense", dense.path), ("sparse", exported.path)):
                calls[name] = load_interpreter(file, num_threads=1).invoke
        seconds = _seconds(calls, rounds)
    return ExportedFile(
        path.name,
        "tflite",
        quantize,
        dense.bytes,
        exported.bytes,
        exported.compressed_bytes,
        exported.largest_difference,
        seconds.get("dense"),
        seconds.get("sparse"),
    )


def _inputs(run):
    """Inputs of the denoiser, drawn at random, of batch size 1."""
    rng = np.random.default_rng(0)
    x, _, *lengths = run.example
    t = np.array([run.settings.noise.timesteps // 2], "int32")
    return (rng.normal(size=x.shape).astype("float32"), t, *(n.astype("int32") for n in lengths))


def _difference(expected, found):
    difference = ops.cast(expected, "float32") - ops.cast(found, "float32")
    return float(ops.max(ops.abs(difference)))


def _seconds(calls, rounds):
    """Medians of the seconds that calls take, in turn: `{name: seconds}`."""
    if not rounds:
        return {}
    seconds = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


# What is told of the files -------------------------------------------------------------------


def _record(folder, run, metadata, written):
    """Writes `export.json` and `README.md`, of these files and of those written before."""
    try:
        records = read_json(folder / RECORDS, {"files": list}) or {"files": []}
        before = [ExportedFile(**file) for file in records["files"]]
    except (SettingsError, TypeError):  # of another version, or changed by hand
        before = []
    names = {file.name for file in written}
    files = [f for f in before if f.name not in names and (folder / f.name).exists()] + written
    told = {name: value for name, value in metadata.items() if name != "lengths"}
    write_json(folder / RECORDS, {"run": told, "files": [asdict(file) for file in files]})
    with whole_file(folder / README) as temporary:
        temporary.write_text(_readme(folder, run, told, files), encoding="utf-8")


def table_rows(files):
    """`(header, cells)` of the table of exported files, for the terminal and the README."""

    def milliseconds(seconds):
        return "" if seconds is None else f"{seconds * 1e3:.2f}"

    columns = (
        ("file", lambda f: f.name),
        ("bytes, dense", lambda f: f"{f.dense_bytes:,}"),
        ("bytes", lambda f: f"{f.bytes:,}"),
        ("ratio", lambda f: f"{f.ratio:.3f}"),
        ("bytes, zlib", lambda f: f"{f.compressed_bytes:,}"),
        ("largest difference", lambda f: "" if f.difference is None else f"{f.difference:.1e}"),
        ("ms, dense", lambda f: milliseconds(f.dense_seconds)),
        ("ms", lambda f: milliseconds(f.seconds)),
    )
    return [(header, [cell(file) for file in files]) for header, cell in columns]


def _readme(folder, run, told, files):
    headings, columns = zip(*table_rows(files), strict=True)
    lines = [
        f"# {told['preset']}, {told['method']}, sparsity {told['sparsity']:g}",
        "",
        f"Exported from `{told['model']}` of the run `{run.folder.name}` after "
        f"{told['steps_trained']:,} training steps.",
        "",
        *markdown_table(headings, zip(*columns, strict=True)),
        "",
        "Dense: the same file with zeros stored as all other weights. Largest difference: of the "
        "predicted noise, from Keras's. ms: median time of one call, in the run that wrote the "
        'file, one thread for `.tflite`; "dense" is the dense file in the same run.',
        "",
    ]
    for file in files:
        lines += [f"## {file.name}", "", "```python", *_snippet(folder, run, file), "```", ""]
    lines += [
        f"`sparse-dm sample {files[0].name} -n 64 --output look.png` draws what a file generates.",
        "",
    ]
    return "\n".join(lines)


def _snippet(folder, run, file):
    """Lines of Python that load the file and call it."""
    if file.format == "sparse":
        return [
            "import keras_sparse_dm as ksd",
            "",
            f'model = ksd.export.load_sparse("{file.name}")',
            f"samples = model.generate({run.kind.example_call}, seed=0)",
            "print(samples.shape)",
        ]
    if file.format == "saved_model":
        return [
            "import tensorflow as tf",
            "",
            f'model = tf.saved_model.load("{file.name}")',
            "seed, steps, eta = tf.constant(0, tf.int64), tf.constant(50), tf.constant(0.0)",
            f'samples = model.generate(seed, {run.kind.example_number}, steps, eta)["samples"]',
            "print(samples.shape)",
        ]
    facts = read_tflite_metadata(folder / file.name)
    values = {
        "t": f"np.full({{shape}}, {facts.get('timesteps', 1) - 1}, 'int32')",
        "step": "np.array(0, 'int32')",
        "lengths": f"np.full({{shape}}, {facts.get('length')}, 'int32')",
    }
    noise = "np.random.default_rng(0).normal(size={shape}).astype('float32')"
    lines = [
        "import numpy as np",
        "from ai_edge_litert.interpreter import Interpreter",
        "",
        "inputs = {",
    ]
    for name, shape in facts["inputs"].items():
        value = values.get(name, noise).format(shape=tuple(shape)).replace("'", '"')
        lines.append(f'    "{name}": {value},')
    return [
        *lines,
        "}",
        f'call = Interpreter("{file.name}").get_signature_runner()',
        f'print(call(**inputs)["{facts["output"]}"].shape)',
    ]
