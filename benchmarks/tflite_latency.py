"""Latency of the ChiroDiff denoiser in LiteRT: dense, unstructured and blocks of 4, one thread.

    python benchmarks/tflite_latency.py

All files are exported first and then run in turn, in one process. The benchmark measures wall time
and processor time; with one thread, the processor time equals the latency on an idle machine, even
if other programs run. "Keras's loop" denotes files that TensorFlow Lite's converter makes from
Keras's own recurrent loop, for comparison with `to_tflite`.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import keras
import numpy as np

import keras_sparse_dm as ksd
from keras_sparse_dm.export import TFLiteDenoiser, to_tflite
from keras_sparse_dm.export.tflite import conversion, write

KINDS = ("dense", "unstructured", "blocks of 4")
# Calls in a round; the first one loads the weights into the processor's caches.
CALLS = 4


def network(units, layers, kind, sparsity):
    keras.utils.set_random_seed(0)
    model = ksd.models.ChiroDiff(units=units, num_layers=layers, seed=0)
    if kind != "dense":
        structure = ksd.sparsity.Blocks(4) if kind == "blocks of 4" else None
        with warnings.catch_warnings():
            # The 13 features of a point are not a multiple of 4, so their kernel has no blocks.
            warnings.simplefilter("ignore", UserWarning)
            ksd.sparsify(model, sparsity, seed=0, **({"structure": structure} if structure else {}))
    return model


@contextlib.contextmanager
def keras_loops():
    """Context in which `to_tflite` exports Keras's own loop of GRUs."""
    with mock.patch.object(conversion, "litert_form", lambda model, products=None: model):
        yield


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, nargs="+", default=[96, 128, 256])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--points", type=int, default=80)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--quantize", default="none", choices=write.QUANTIZATIONS[:3])
    parser.add_argument("--rounds", type=int, default=25, help="counted rounds (default 25)")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    inputs = (
        rng.standard_normal((1, arguments.points, 3)).astype("float32"),
        np.array([500], "int32"),
        np.array([arguments.points], "int32"),
    )
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for units in arguments.units:
            runs, sizes = {}, {}
            for kind in KINDS:
                model = network(units, arguments.layers, kind, arguments.sparsity)
                forms = {kind: contextlib.nullcontext, f"{kind}, Keras's loop": keras_loops}
                for name, form in forms.items():
                    path = Path(folder) / f"{units} {name}.tflite"
                    with form():
                        exported = to_tflite(
                            model, path, length=arguments.points, quantize=arguments.quantize
                        )
                    runs[name], sizes[name] = TFLiteDenoiser(path), exported.bytes
            seconds = {name: [] for name in runs}
            wall = {name: [] for name in runs}
            for _ in range(arguments.rounds):
                for name, run in runs.items():
                    run(*inputs)
                    begin, begin_wall = time.process_time(), time.perf_counter()
                    for _ in range(CALLS):
                        run(*inputs)
                    seconds[name].append((time.process_time() - begin) / CALLS)
                    wall[name].append((time.perf_counter() - begin_wall) / CALLS)
            print(f"\n{units} units, {arguments.layers} layers, {arguments.points} points\n")
            print("| file | CPU ms | wall ms | dense / it | dense, Keras's loop / it | bytes |")
            print("|---|---:|---:|---:|---:|---:|")
            for name in runs:
                cpu = statistics.median(seconds[name])
                # Within a round, the machine's speed hardly changes.
                speedups = [
                    statistics.median(b / it for b, it in zip(base, seconds[name], strict=True))
                    for base in (seconds["dense"], seconds["dense, Keras's loop"])
                ]
                figures[f"{units}, {name}"] = {
                    "cpu_ms": cpu * 1e3,
                    "wall_ms": statistics.median(wall[name]) * 1e3,
                    "speed-up over dense": speedups[0],
                    "speed-up over dense, Keras's loop": speedups[1],
                    "bytes": sizes[name],
                }
                print(
                    f"| {name} | {cpu * 1e3:.2f} | {statistics.median(wall[name]) * 1e3:.2f} | "
                    f"{speedups[0]:.2f} | {speedups[1]:.2f} | {sizes[name]:,} |"
                )
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
