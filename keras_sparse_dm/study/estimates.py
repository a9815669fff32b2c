"""Estimates of how long a study takes at the paper's scale on this machine, from timed steps."""

import csv
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from keras_sparse_dm import diffusion, models
from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.presets import get_preset
from keras_sparse_dm.study.grid import LATENT_DIFFUSION
from keras_sparse_dm.study.paper import PAPER_SETTINGS
from keras_sparse_dm.study.wording import counted
from keras_sparse_dm.study.worker_process import WorkerProcess

keras = lazy_module("keras")
tf = lazy_module("tensorflow")

# Batch size of sampling sketches.
SAMPLED_SKETCHES = 256


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of the runs of one preset.

    Attributes:
        preset: Name of the preset.
        runs: Number of runs that are not finished.
        steps: Training steps that these runs still have to do.
        sample_steps: Evaluations of the network for all samples.
        seconds_a_step: Seconds of a training step with the preset's batch size.
        seconds_a_sample_step: Seconds of an evaluation of the network for one sample.
        note: Data and batch size of the timed steps.
    """

    preset: str
    runs: int
    steps: int
    sample_steps: int
    seconds_a_step: float
    seconds_a_sample_step: float
    note: str

    @property
    def hours(self):
        """Hours of training and sampling."""
        seconds = self.steps * self.seconds_a_step
        return (seconds + self.sample_steps * self.seconds_a_sample_step) / 3600


def steps_of_epoch(preset):
    """Return the training steps of an epoch on as many examples as the paper has."""
    setting = PAPER_SETTINGS[preset]
    iterations = setting.iterations or setting.stated_iterations
    return iterations // get_preset(preset).training.epochs


def estimate(tasks, worker, folder):
    """Return the estimated costs of unfinished tasks, one `Estimate` for each preset.

    Args:
        tasks: List of `Task`.
        worker: Command that starts a worker, which times the steps in a process of its own.
        folder: The study's folder; the worker writes its log there.

    Raises:
        SettingsError: if the timing fails.
    """
    groups = {}
    for task in tasks:
        groups.setdefault(task.cell.preset, []).append(task)
    costs = []
    for preset, members in groups.items():
        timed = _timed(preset, members[0].settings, worker, folder)
        steps = sum(
            (task.settings.training.epochs - epochs_done(task.settings.folder))
            * steps_of_epoch(preset)
            for task in members
        )
        sample_steps = sum(
            task.settings.sampling.evaluation * sum(task.sampling_steps) for task in members
        )
        costs.append(
            Estimate(
                preset,
                len(members),
                steps,
                sample_steps,
                timed["seconds_a_step"],
                timed["seconds_a_sample_step"],
                timed["note"],
            )
        )
    return costs


def epochs_done(folder):
    """Return the number of epochs in a run's `metrics.csv`; 0 if there is no such file."""
    try:
        with open(Path(folder) / "metrics.csv", newline="", encoding="utf-8") as file:
            return max(sum(1 for _ in csv.reader(file)) - 1, 0)
    except OSError:
        return 0


def _timed(preset, settings, worker, folder):
    """Return what `measure` returns, from a worker."""
    log = folder / "logs" / "measure.log"
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch, "answer.json")
        job = {"settings": settings.to_dict(), "answer": str(answer)}
        process = WorkerProcess((*worker, "measure"), job, log, environment)
        try:
            code = process.wait()
        finally:
            process.stop()
        if code:
            raise SettingsError(
                f"timing the steps of {preset} failed: {process.error()} (log: {log})"
            )
        return json.loads(answer.read_text(encoding="utf-8"))


def measure(settings):
    """Time training steps and sampling of a run's network on random data.

    Dense steps are timed, because sparse ones take the same time. On a CPU, the 274M U-Net is timed
    with one latent, and the time is multiplied by the batch size.

    Args:
        settings: `RunSettings`.

    Returns:
        Dictionary with `seconds_a_step`, `seconds_a_sample_step` and `note`.
    """
    preset, t = settings.to_preset(), settings.training
    of_images = settings.preset in LATENT_DIFFUSION
    paper = PAPER_SETTINGS[settings.preset]
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    batch_size = 1 if of_images and not on_gpu else t.batch_size
    denoiser = (models.UNet if of_images else models.ChiroDiff)(**preset.denoiser_arguments())
    model = diffusion.DiffusionModel(denoiser, preset.noise.to_schedule(), seed=0)
    model.compile(
        keras.optimizers.AdamW(
            t.learning_rate,
            weight_decay=t.weight_decay,
            global_clipnorm=t.global_clipnorm or None,
            use_ema=True,
            ema_momentum=t.ema_momentum,
        )
    )
    random = np.random.default_rng(0)
    if of_images:
        shape = (batch_size, paper.size, paper.size, settings.first_stage.code_channels)
        data = random.standard_normal(shape, "float32")
        what = f"latents of {paper.size} x {paper.size}"
        generate = {"shape": shape, "batch_size": batch_size}
        samples = batch_size
    else:
        points = round(paper.points)
        data = {
            "points": random.standard_normal((batch_size, points, 3), "float32"),
            "lengths": np.full(batch_size, points, "int32"),
        }
        what = f"sketches of {points} points"
        samples = SAMPLED_SKETCHES
        # The arguments with which a run generates its samples.
        generate = {
            "lengths": [points] * samples,
            "batch_size": samples,
            "jit_compile": denoiser.skips_padding,
        }
    rounds = 2 if of_images else 5
    step = _seconds(lambda: model.train_on_batch(data), rounds)
    sampling = _seconds(lambda: model.generate(steps=1, seed=0, **generate), rounds)
    factor = t.batch_size / batch_size
    note = f"{what}, batch {batch_size}" + (f" x {t.batch_size}" if factor > 1 else "")
    return {
        "seconds_a_step": step * factor,
        "seconds_a_sample_step": sampling / samples,
        "note": note + (", GPU" if on_gpu else ""),
    }


def _seconds(act, rounds):
    """Return the shortest time of several rounds, after one that traces and warms up."""
    act()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        act()
        times.append(time.perf_counter() - begin)
    return min(times)


def print_costs(costs, out):
    """Print the costs as a table, and their sum."""
    table = Table(box=None, pad_edge=False)
    table.add_column("preset")
    for column in ("runs", "steps", "s a step", "hours"):
        table.add_column(column, justify="right")
    table.add_column("timed with")
    for cost in costs:
        table.add_row(
            cost.preset,
            f"{cost.runs}",
            f"{cost.steps:,}",
            f"{cost.seconds_a_step:.3g}",
            f"{cost.hours:,.1f}",
            cost.note,
        )
    console = Console(file=out, width=None if out.isatty() else 100)
    console.print(table)
    runs, steps, hours = (sum(getattr(c, n) for c in costs) for n in ("runs", "steps", "hours"))
    print(
        f"{counted(runs, 'run')}, {counted(steps, 'training step')}, {hours:,.0f} hours on this "
        f"machine ({hours / 24:,.0f} days), sampling included.",
        file=out,
    )
    print(
        "The steps are counted for as many training examples as the paper has. The hours do not "
        "include preparing the data, the autoencoder, and the feature networks.",
        file=out,
    )
