"""Files for LiteRT."""

import tempfile
from pathlib import Path

from keras_sparse_dm.export import (
    generate_from_tflite,
    read_tflite_metadata,
    representative_data,
    to_tflite,
)
from keras_sparse_dm.export.tflite.inference import load_interpreter
from keras_sparse_dm.runs.exported import make_exported
from keras_sparse_dm.runs.formats.measures import ExportedFile, seconds_of

DECODER = "decoder"
# Tuples of inputs from which integers learn their ranges.
REPRESENTATIVE = 100


def write(run, folder, name, *, quantize, part, length, batch_size, metadata, rounds, **others):
    """Write a `.tflite` file of the denoiser, and of the other parts of its kind; see `formats`."""
    options = {"quantize": quantize, "batch_size": batch_size, "metadata": metadata}
    for stem, name_of_part in {"model": part, **run.kind.tflite_parts}.items():
        of_part = options | {"part": name_of_part, "length": length}
        if name_of_part in ("sampler_step", "sampler"):
            of_part["steps"] = run.sampling.steps
        yield _write(run, folder / f"{name.replace('model', stem, 1)}.tflite", rounds, **of_part)


def _write(run, path, rounds, part, length, quantize, **options):
    options |= {"part": part, "quantize": quantize, "length": length}
    if quantize == "int8":
        sizes = {name: options[name] for name in ("part", "batch_size", "length")}
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
        seconds = seconds_of(calls, rounds)
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


def load(path):
    """Return the `Exported` model of a `.tflite` file."""
    metadata = read_tflite_metadata(path)
    if metadata["part"] == DECODER:
        raise ValueError(f"{path} is the decoder; give the denoiser's file beside it.")
    decoder = None
    if metadata["kind"] == "images":
        decoder = path.with_name(path.name.replace("model", DECODER, 1))
        if decoder == path or not decoder.exists():
            raise ValueError(f"{path} gives latents, and there is no {decoder.name} beside it.")

    def draw(n, lengths, steps, sampler, eta, seed):
        return generate_from_tflite(
            path, None if lengths is not None else n, lengths, steps, seed, decoder
        )

    return make_exported(
        path,
        metadata["user"],
        metadata["kind"],
        metadata["timesteps"],
        draw,
        steps=metadata.get("steps"),
        deterministic=True,
    )


def snippet(folder, run, file):
    """Return lines of Python that load the file and call it."""
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
