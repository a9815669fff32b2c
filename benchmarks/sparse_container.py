"""Sparse checkpoints of the paper's U-Net of 274M parameters: seconds, peak memory and bytes.

Saves the U-Net at sparsity 0.5 (ERK) with `save_sparse` and loads it with `load_sparse`, each in a
separate process, whose memory includes the model and TensorFlow. A digest of weights and masks
checks that the loaded model equals the saved one. Linux only.

    python benchmarks/sparse_container.py [--sparsity 0.5] [--dtypes float32 float16]
"""

import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tyro
from rich.console import Console
from rich.table import Table


def peak():
    """Return the peak memory of this process since `forget_peak`, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def forget_peak():
    """Reset `peak` to the present memory of the process; works on Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def digest(model):
    """Return a digest of all weights and masks."""
    import keras

    value = hashlib.blake2b(digest_size=16)
    for variable in model.variables:
        value.update(keras.ops.convert_to_numpy(variable).reshape(-1).view("uint8"))
    return value.hexdigest()


def save(folder, preset, sparsity, dtypes):
    """Make the model, save it, and return the figures."""
    import keras
    import tensorflow  # noqa: F401

    import keras_sparse_dm as ksd

    forget_peak()
    started = peak()
    keras.utils.set_random_seed(0)
    model = ksd.models.UNet.from_preset(preset)
    report = ksd.sparsify(model, sparsity, seed=0)
    figures = {
        "weights in kernels": sum(k.size for k in report.kernels),
        "bytes, dense": 4 * report.parameters,
        "memory before the model, bytes": started,
        "digest": digest(model),
    }
    forget_peak()
    figures["memory with the model, bytes"] = peak()
    for dtype in dtypes:
        begin = time.perf_counter()
        path = ksd.export.save_sparse(model, folder / dtype, dtype)
        figures[f"save, seconds, {dtype}"] = time.perf_counter() - begin
        figures[f"bytes, {dtype}"] = path.stat().st_size
    return figures | {"peak while saving, bytes": peak()}


def load(folder, dtype):
    """Load a file and return the figures."""
    # Imported before the measurement.
    import tensorflow  # noqa: F401

    import keras_sparse_dm as ksd

    forget_peak()
    started = peak()
    begin = time.perf_counter()
    model = ksd.export.load_sparse(folder / dtype)
    return {
        f"load, seconds, {dtype}": time.perf_counter() - begin,
        f"memory before loading, bytes, {dtype}": started,
        f"peak while loading, bytes, {dtype}": peak(),
        f"digest, {dtype}": digest(model),
    }


def in_a_process(function, *arguments):
    """Call a function in a new process and return its result."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main(
    preset: str = "ldm_celebahq",
    sparsity: float = 0.5,
    dtypes: tuple[str, ...] = ("float32", "float16"),
    json_path: Path | None = None,
):
    """Measure saving and loading, and print a table.

    Args:
        preset: A latent diffusion preset.
        sparsity: Share of the weights that is pruned.
        dtypes: Types of the kernels' values in the files.
        json_path: File for the figures, as JSON.
    """
    with tempfile.TemporaryDirectory() as folder:
        figures = in_a_process(save, Path(folder), preset, sparsity, dtypes)
        for dtype in dtypes:
            figures |= in_a_process(load, Path(folder), dtype)
    if "float32" in dtypes and figures["digest, float32"] != figures["digest"]:
        raise SystemExit("The loaded model differs from the saved one.")
    table = Table("", "value", title=f"{preset}, sparsity {sparsity}")
    for name, value in figures.items():
        if "digest" not in name:
            table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.2f}")
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
