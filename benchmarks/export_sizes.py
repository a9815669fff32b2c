"""Sizes of exported files of the KanjiVG network, uncompressed and compressed with zlib.

    python benchmarks/export_sizes.py

The network is that of the preset `chirodiff_kanjivg`, untrained, with masks from `sparsify`. Sizes
depend on the number of weights and not on their values; untrained weights compress as little as
trained ones.
"""

import argparse
import json
import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_sparse_dm as ksd
from keras_sparse_dm.export import (
    file_sizes,
    representative_data,
    save_sparse,
    to_saved_model,
    to_tflite,
)

POINTS = 90


def as_tflite(**options):
    """Return a function that writes a `.tflite` file, for a row of the table."""

    def write(model, path):
        if options.get("quantize") == "int8":
            rng = np.random.default_rng(0)
            sketches = [rng.standard_normal((POINTS, 3)) for _ in range(8)]
            data = representative_data(model, sketches, length=POINTS, n=8)
            to_tflite(model, path, length=POINTS, representative=data, **options)
        else:
            to_tflite(model, path, length=POINTS, **options)

    return write


def as_checkpoint(dtype):
    """Return a function that writes a sparse checkpoint, for a row of the table."""
    return lambda model, path: save_sparse(model, path, dtype=dtype)


# `write(model, path)` by title.
ROWS = {
    ".keras": lambda model, path: model.save(path),
    "SavedModel": to_saved_model,
    "sparse checkpoint": as_checkpoint("float32"),
    "sparse checkpoint, float16": as_checkpoint("float16"),
    "sparse checkpoint, bfloat16": as_checkpoint("bfloat16"),
    "TFLite, dense": as_tflite(sparse=False),
    "TFLite, sparse": as_tflite(),
    "TFLite, dense, float16": as_tflite(sparse=False, quantize="float16"),
    "TFLite, sparse, float16": as_tflite(quantize="float16"),
    "TFLite, dense, dynamic int8": as_tflite(sparse=False, quantize="int8_dynamic"),
    "TFLite, sparse, dynamic int8": as_tflite(quantize="int8_dynamic"),
    "TFLite, dense, full int8": as_tflite(sparse=False, quantize="int8"),
    "TFLite, sparse, full int8": as_tflite(quantize="int8"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.5, 0.9])
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()

    sizes = {}
    for sparsity in arguments.sparsity:
        keras.utils.set_random_seed(0)
        denoiser = ksd.models.ChiroDiff.from_preset("chirodiff_kanjivg", seed=0)
        rng = np.random.default_rng(0)
        for weight in denoiser.trainable_variables:
            # The biases of a trained network are not zero.
            if "bias" in weight.path:
                weight.assign(0.1 * rng.standard_normal(weight.shape))
        if sparsity:
            ksd.sparsify(denoiser, sparsity, seed=0)
        model = ksd.diffusion.DiffusionModel(denoiser, ksd.diffusion.NoiseSchedule.linear(1000))
        for title, write in ROWS.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.keras"
                write(model, path)
                sizes[title, sparsity] = file_sizes(path, 9)

    dense = sizes["TFLite, dense", arguments.sparsity[0]][0]
    head = [f"S = {s:g} | zlib | of dense" for s in arguments.sparsity]
    print("| bytes | " + " | ".join(head) + " |")
    print("|---|" + "---:|---:|---:|" * len(head))
    for title in ROWS:
        cells = []
        for sparsity in arguments.sparsity:
            plain, compressed = sizes[title, sparsity]
            cells.append(f"{plain:,} | {compressed:,} | {plain / dense:.3f}")
        print(f"| {title} | " + " | ".join(cells) + " |")
    if arguments.json:
        figures = {f"{title}, S = {s:g}": list(v) for (title, s), v in sizes.items()}
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
