"""Cost of sparse training relative to dense training.

- sparse step / dense step: a training step of a sparse model (RigL, without an update), relative
  to a step of the same Keras model with plain AdamW, for a stack of convolutions at the sizes of
  the latent diffusion U-Net and for a transformer block of width 512
- topology update / AdamW update: one RigL update (drop and grow) of all kernels by
  `SparseOptimizer`, relative to one AdamW update of the same weights
- peak memory: additional memory of a process that updates the topology, compared with AdamW only,
  in units of the largest kernel's float32 bytes

Functions are timed in turn in one process, so ratios hold even if the machine's speed drifts. Peak
memory is measured in separate processes.

    python benchmarks/sparse_overhead.py [--weights 100000000] [--kernels 10] [--rounds 7]
"""

import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
import tyro
from rich.console import Console
from rich.table import Table

import keras_sparse_dm as ksd
from keras_sparse_dm._keras import variable_key
from keras_sparse_dm.layers.guard import sparse_training

PRUNE_RATE = 0.3


def convolution_stack():
    """Return convolutions at the sizes of the U-Net's inner levels, 9.9M weights."""
    model = keras.Sequential([keras.Input((32, 32, 224))])
    for channels, strides in ((224, 1), (448, 2), (448, 1), (672, 2), (672, 1)):
        model.add(keras.layers.Conv2D(channels, 3, strides, "same", activation="silu"))
    return model


def transformer_block(tokens=128, width=512):
    """Return one transformer block, of 3.1M weights at the default width."""
    inputs = keras.Input((tokens, width))
    x = keras.layers.LayerNormalization()(inputs)
    x = inputs + keras.layers.MultiHeadAttention(8, width // 8)(x, x)
    y = keras.layers.LayerNormalization()(x)
    y = keras.layers.Dense(4 * width, activation="gelu")(y)
    return keras.Model(inputs, x + keras.layers.Dense(width)(y))


def training_step(make, batch_size, sparsity=None):
    """Return a compiled training step on one batch, dense with plain AdamW if sparsity is None."""
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(keras.optimizers.AdamW(1e-4, weight_decay=1e-2), "mse")
    x = keras.random.normal((batch_size, *model.input_shape[1:]), seed=0)
    y = keras.random.normal((batch_size, *model.output_shape[1:]), seed=1)
    if sparsity is not None:
        ksd.sparsify(model, sparsity, seed=0)
        # No timed step updates the topology; updates are timed separately.
        ksd.sparse_optimizer(model, method="rigl", update_every=10**6)
    return lambda: model.train_on_batch(x, y)


def measure_masked_step(make, batch_size, sparsity, rounds):
    """Return the seconds of a model's dense and sparse training steps, by round."""
    steps = [training_step(make, batch_size), training_step(make, batch_size, sparsity)]
    return seconds_in_turn(steps, rounds)


class Kernels(keras.Model):
    """Dense kernels of one size, in the middle of sparse training by AdamW and RigL."""

    def __init__(self, weights, kernels, sparsity):
        super().__init__()
        outputs = 1024
        self.parts = [keras.layers.Dense(outputs, use_bias=False) for _ in range(kernels)]
        for part in self.parts:
            part.build((None, weights // kernels // outputs))
        self.built = True
        ksd.sparsify(self, sparsity, "uniform", seed=0)
        self.adamw = keras.optimizers.AdamW(1e-3, weight_decay=1e-2)
        self.sparse = ksd.sparse_optimizer(
            self, self.adamw, "rigl", update_every=1, prune_rate=PRUNE_RATE
        )
        self.gradients = [
            tf.random.stateless_normal(v.shape, (i, 2), stddev=1e-3)
            for i, v in enumerate(self.trainable_variables)
        ]

    def functions(self, jit_compile=False):
        """Return functions for one AdamW update and one topology update of all kernels."""
        variables, sparse = self.trainable_variables, self.sparse
        kernels = {variable_key(sparse, k.kernel): k for k in sparse.kernels}
        gradients = {
            variable_key(sparse, v): g for v, g in zip(variables, self.gradients, strict=True)
        }

        def adamw():
            with sparse_training():
                self.adamw.apply(self.gradients, variables)

        def topology():
            sparse.updates(kernels).update(gradients, tf.constant(PRUNE_RATE), 0)

        return [tf.function(f, jit_compile=jit_compile) for f in (adamw, topology)]


def peak_memory(with_topology, *arguments):
    """Return the largest resident memory of this process in training, in bytes."""
    adamw, topology = Kernels(*arguments).functions()
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # Reset the peak.
    adamw()
    if with_topology:
        topology()
        adamw()
        topology()
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def measure_peak_memory(weights, kernels, sparsity):
    """Return the additional memory of topology updates, in units of the largest kernel."""
    peaks = []
    for with_topology in (False, True):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks.append(pool.apply(peak_memory, (with_topology, weights, kernels, sparsity)))
    return (peaks[1] - peaks[0]) / (4 * (weights // kernels))


def seconds_in_turn(functions, rounds):
    """Time functions in turn; return a list of seconds for each."""
    for function in functions:
        function()
        function()
    seconds = [[] for _ in functions]
    for _ in range(rounds):
        for function, into in zip(functions, seconds, strict=True):
            begin = time.perf_counter()
            function()
            into.append(time.perf_counter() - begin)
    return seconds


def main(
    weights: int = 100_000_000,
    kernels: int = 10,
    sparsity: float = 0.8,
    rounds: int = 7,
    jit_compile: bool = False,
    json_path: Path | None = None,
):
    """Measure the cost of sparse training relative to dense training.

    Args:
        weights: Number of weights in the topology update.
        kernels: Number of kernels with these weights.
        sparsity: Share of pruned weights, in [0, 1).
        rounds: Number of timed rounds.
        jit_compile: Whether to compile the topology update and AdamW with XLA.
        json_path: File for the ratios, as JSON.
    """
    table = Table("", "dense", "sparse", "ratio")
    ratios = {}

    def add(name, dense, sparse):
        # Within a round, the machine's speed hardly changes.
        ratios[name] = statistics.median(s / d for s, d in zip(sparse, dense, strict=True))
        times = (f"{statistics.median(seconds):.3f} s" for seconds in (dense, sparse))
        table.add_row(name, *times, f"{ratios[name]:.3f}")

    for make, batch_size in ((convolution_stack, 8), (transformer_block, 16)):
        name = f"training step, {make.__name__.replace('_', ' ')}"
        add(name, *measure_masked_step(make, batch_size, sparsity, rounds))
    functions = Kernels(weights, kernels, sparsity).functions(jit_compile)
    add("topology update / AdamW update", *seconds_in_turn(functions, rounds))
    if not jit_compile:
        ratios["peak memory"] = measure_peak_memory(weights, kernels, sparsity)
        table.add_row(
            "peak memory above AdamW's / largest kernel", "", "", f"{ratios['peak memory']:.2f}"
        )
    table.caption = f"topology: {weights:,} weights in {kernels} kernels, sparsity {sparsity}"
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(ratios, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
