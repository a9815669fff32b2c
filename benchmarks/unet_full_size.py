"""The paper's U-Net of 274M parameters: memory and time of sparse training steps at batch size 1.

RigL at sparsity 0.5 (ERK), AdamW with averaged weights, 64 x 64 x 3 latents. All figures
come from one process: its peak memory after creating the model, after training steps and after a
step with a topology update, and the time of these steps. The invariant is checked after the update.

    python benchmarks/unet_full_size.py [--remat] [--sparsity 0.5] [--json-path figures.json]
"""

import json
import os
import resource
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import keras_sparse_dm as ksd


def peak():
    """Return the peak memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(
    remat: bool = False,
    sparsity: float = 0.5,
    batch_size: int = 1,
    json_path: Path | None = None,
):
    """Measure training steps and print a table.

    Args:
        remat: Whether to recompute activations in the backward pass.
        sparsity: Share of the weights that is pruned.
        batch_size: Latents per step.
        json_path: File for the figures, as JSON.
    """
    keras.utils.set_random_seed(0)
    unet = ksd.models.UNet.from_preset("ldm_celebahq", remat=remat)
    model = ksd.diffusion.DiffusionModel(
        unet, ksd.diffusion.NoiseSchedule.scaled_linear(1000, 0.0015, 0.0195), seed=0
    )
    ksd.sparsify(model, sparsity, seed=0)
    model.compile(
        keras.optimizers.AdamW(2e-6, weight_decay=1e-2, use_ema=True, ema_momentum=0.9999)
    )
    figures = {"peak, model, GB": peak() / 1e9}
    seconds = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.begin = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            seconds.append(time.perf_counter() - self.begin)
            if batch == 2:
                figures["peak, training step, GB"] = peak() / 1e9

    latents = np.random.default_rng(0).standard_normal((4 * batch_size, 64, 64, 3), "float32")
    # The fourth step updates the topology.
    model.fit(
        latents,
        batch_size=batch_size,
        verbose=0,
        callbacks=[ksd.DynamicSparsity("rigl", update_every=4, prune_rate=0.3), Clock()],
    )
    figures["peak, with topology update, GB"] = peak() / 1e9
    update = figures["peak, with topology update, GB"] - figures["peak, training step, GB"]
    figures["update's own peak, GB"] = update
    figures["seconds, training step"] = min(seconds[1:3])
    figures["seconds, step with update"] = seconds[3]
    ksd.sparsity.check_invariant(model)
    report = ksd.sparsity_report(model)
    figures["parameters"] = report.parameters
    figures["kernels"] = len(report.kernels)
    figures["active weights"] = report.active
    figures["exchanged"] = report.exchanged
    table = Table("", "value", title=f"batch size {batch_size}, remat {remat}")
    for name, value in figures.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.3f}")
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
