"""Callbacks of any training: metrics, checkpoints, and an end if the loss diverges."""

import csv
import sys
import time
from pathlib import Path

import keras
import numpy as np

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.runs.settings import TrainingDiverged

# In a run's folder.
CHECKPOINT = Path("checkpoints") / "last.keras"


def keras_verbosity(verbose):
    """Return Keras's `verbose` for the setting, where -1 depends on the terminal."""
    return (1 if sys.stdout.isatty() else 2) if verbose == -1 else verbose


def cosine_with_warmup(learning_rate, steps):
    """Return a schedule that rises to `learning_rate` and falls to zero over a run of `steps`."""
    # Warm up for a twentieth of the run, at most for the usual thousand steps.
    warmup = min(1000, steps // 20)
    return keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=steps - warmup, warmup_target=learning_rate, warmup_steps=warmup
    )


def averaging_momentum(momentum, steps):
    """Return the momentum of averaged weights for a run of `steps`.

    A momentum averages over about `1 / (1 - momentum)` steps: ten thousand for the usual 0.9999.
    In a shorter run, the averages would consist mostly of untrained weights, so such a run averages
    over a tenth of its steps.
    """
    if momentum and steps * (1.0 - momentum) < 1.0:
        return min(momentum, max(0.0, 1.0 - 10.0 / steps))
    return momentum


def save_model(model, path):
    """Save a model in one step: the file is complete or does not change."""
    with whole_file(path) as temporary:
        model.save(temporary)


def read_checkpoint(path):
    """Load a checkpoint.

    Raises:
        SettingsError: if the checkpoint cannot be read.
    """
    try:
        return keras.saving.load_model(path)
    except Exception as error:  # a damaged file can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingsError(f"--resume: checkpoint {path} cannot be read: {reason}") from None


def trim_metrics(path, epochs_done):
    """Remove the rows of epochs after the checkpoint, which will be trained again."""
    if not path.exists():
        return
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    kept = rows[:1] + [row for row in rows[1:] if row and int(row[0]) < epochs_done]
    with (
        whole_file(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows(kept if len(kept) > 1 else [])


class StopOnDivergence(keras.callbacks.Callback):
    """Callback that ends the run once the loss is not finite, before any file is overwritten.

    Args:
        checkpoint: Path of the last checkpoint, for the message.
    """

    def __init__(self, checkpoint):
        super().__init__()
        self.checkpoint = checkpoint

    def on_train_batch_end(self, batch, logs=None):
        self._check(logs, "loss")

    def on_epoch_end(self, epoch, logs=None):
        self._check(logs, "val_loss")

    def _check(self, logs, name):
        value = (logs or {}).get(name)
        if value is not None and not np.isfinite(value):
            kept = (
                f"The checkpoint of the last good epoch is kept: {self.checkpoint}."
                if self.checkpoint.exists()
                else "No epoch was finished, so there is no checkpoint."
            )
            raise TrainingDiverged(
                f"Training stopped at step {int(self.model.optimizer.iterations)}: {name} is "
                f"{value}. {kept} A lower --learning-rate may help."
            )


class EpochFigures(keras.callbacks.Callback):
    """Callback that adds the learning rate and the epoch's seconds to the logs."""

    def on_epoch_begin(self, epoch, logs=None):
        self._begin = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)
        logs["seconds"] = time.perf_counter() - self._begin


class Checkpoint(keras.callbacks.Callback):
    """Callback that saves model, optimizer, masks and random state after every epoch.

    Args:
        path: The file, which each epoch replaces.
    """

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        save_model(self.model, self.path)
