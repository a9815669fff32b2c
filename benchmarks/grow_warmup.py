"""Adam's bias correction from each weight's growth, compared with the usual one of the paper.

Trains the default run (`train.py`) with and without `grow_warmup`, at a small and a large prune
rate, one run after another, and prints the validation losses of each epoch side by side.

    python benchmarks/grow_warmup.py [--epochs 14] [--prune-rates 0.05 0.5] [--json-path f.json]
"""

import csv
import functools
import json
import os
import tempfile
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tyro
from rich.console import Console
from rich.table import Table

from keras_sparse_dm.commands.train import train_command
from keras_sparse_dm.runs import train as training
from keras_sparse_dm.sparsity import DynamicSparsity


def validation_losses(folder, prune_rate, grow_warmup, epochs, seed):
    """Train the default run, and return its validation loss after each epoch."""
    arguments = ["--prune-rate", str(prune_rate), "--epochs", str(epochs), "--seed", str(seed)]
    # Only losses are compared, so a few samples are enough.
    arguments += ["--samples", "8", "--sampling.steps", "5", "--sampling.evaluation", "50"]
    # `train.py` has no option for it yet.
    callback = functools.partial(DynamicSparsity, grow_warmup=grow_warmup)
    with mock.patch.object(training, "DynamicSparsity", callback):
        if train_command([*arguments, "--output-dir", str(folder)], prog="train.py"):
            raise SystemExit(1)
    with open(folder / "metrics.csv") as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file)]


def main(
    epochs: int = 14,
    prune_rates: tuple[float, ...] = (0.05, 0.5),
    seed: int = 0,
    json_path: Path | None = None,
):
    """Train with and without `grow_warmup` and print a table.

    Args:
        epochs: Epochs of each run.
        prune_rates: Shares of the active weights that an update exchanges.
        seed: Of the runs.
        json_path: File for the losses, as JSON.
    """
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for prune_rate in prune_rates:
            for grow_warmup in (False, True):
                run = Path(folder) / f"{prune_rate}-{grow_warmup}"
                name = f"p = {prune_rate}, grow_warmup={grow_warmup}"
                figures[name] = validation_losses(run, prune_rate, grow_warmup, epochs, seed)
    table = Table("epoch", *figures, title="validation loss")
    for epoch, losses in enumerate(zip(*figures.values(), strict=True), 1):
        table.add_row(str(epoch), *(f"{loss:.4f}" for loss in losses))
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
