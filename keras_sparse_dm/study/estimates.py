"""What a study takes at the paper's scale on this machine, from a few timed steps."""

import csv
import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.presets import get_preset
from keras_sparse_dm.runs.folder import write_json
from keras_sparse_dm.study.grid import LATENT_DIFFUSION
from keras_sparse_dm.study.paper import PAPER_SETTINGS

# Half of QuickDraw's figure in the paper is unexplained (see `metrics.paper`): 70,000 training
# sketches of a category in batches of 128.
QUICKDRAW_STEPS = 547
# Sketches that are sampled at a time.
SAMPLED_SKETCHES = 256


@dataclass(frozen=True)
class Cost:
    """What the runs of one preset take.

    Attributes:
        preset: The preset's name.
        runs: Runs that are not finished.
        steps: Training steps of them all, less those that half runs have done.
        sample_steps: Evaluations of the network for all samples.
        seconds_a_step: Of a training step of the preset's batch size.
        seconds_a_sample_step: Of an evaluation of the network for one sample.
        note: How it was measured.
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
        seconds = self.steps * self.seconds_a_step
        return (seconds + self.sample_steps * self.seconds_a_sample_step) / 3600


def steps_of_epoch(preset):
    """Training steps of an epoch with as many examples as the paper has."""
    iterations = PAPER_SETTINGS[preset].iterations
    if iterations is None:
        return QUICKDRAW_STEPS
    return iterations // get_preset(preset).training.epochs


def estimate(tasks, worker, folder):
    """Costs of tasks that are not finished, a list of `Cost`, one for each preset.

    Args:
        tasks: `Task`s.
        worker: Command of the worker, which times the steps in a process of its own.
        folder: The study's folder, for the worker's files.

    Raises:
        SettingsError: if the steps cannot be timed.
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
            Cost(
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
    """Epochs that a run's `metrics.csv` tells of; 0 where there is none."""
    try:
        with open(Path(folder) / "metrics.csv", newline="", encoding="utf-8") as file:
            return max(sum(1 for _ in csv.reader(file)) - 1, 0)
    except OSError:
        return 0


def _timed(preset, settings, worker, folder):
    job = folder / "jobs" / f"measure-{preset}-{os.getpid()}.json"
    answer = job.with_suffix(".answer.json")
    log = folder / "logs" / "measure.log"
    write_json(job, {"settings": settings.to_dict(), "answer": str(answer.absolute())})
    try:
        with open(log, "ab") as output:
            # Its input is left open and silent: the worker ends when it ends.
            process = subprocess.Popen(
                (*worker, "--measure", str(job)),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            )
            with process:
                code = process.wait()
        if code:
            raise SettingsError(f"the steps of {preset} cannot be timed (log: {log}).")
        return json.loads(answer.read_text(encoding="utf-8"))
    finally:
        job.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)


def measure(settings):
    """Times training steps and sampling of a run's network on random data.

    A sparse step takes as long as a dense one, which is timed. On a processor the 274M U-Net is
    timed with one latent, and the time multiplied by the batch size.

    Args:
        settings: `RunSettings`.

    Returns:
        Dictionary of `seconds_a_step`, `seconds_a_sample_step` and `note`.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from keras_sparse_dm.diffusion import DiffusionModel
    from keras_sparse_dm.models import ChiroDiff, UNet

    preset, t = settings.to_preset(), settings.training
    of_images = settings.preset in LATENT_DIFFUSION
    paper = PAPER_SETTINGS[settings.preset]
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    batch_size = 1 if of_images and not on_gpu else t.batch_size
    denoiser = (UNet if of_images else ChiroDiff)(**preset.denoiser_arguments())
    model = DiffusionModel(denoiser, preset.noise.to_schedule(), seed=0)
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
        # As for all the samples of a run.
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
    """The shortest time of several rounds, after one that traces and warms up."""
    act()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        act()
        times.append(time.perf_counter() - begin)
    return min(times)


def print_costs(costs, out):
    """Prints what the costs add up to, as a table."""
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
        f"{runs} runs, {steps:,} training steps, {hours:,.0f} hours on this machine "
        f"({hours / 24:,.0f} days), sampling included.",
        file=out,
    )
    print(
        "Steps are those of as many training examples as the paper has. Not timed: preparing "
        "data, the autoencoder, and the feature networks.",
        file=out,
    )
