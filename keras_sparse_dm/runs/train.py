"""One run of the study: data, sparse model, training, samples, report."""

import csv
import platform
import shutil
import time
from importlib.metadata import version

import keras
import numpy as np

import keras_sparse_dm
from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.diffusion.registry import SAMPLERS
from keras_sparse_dm.metrics.costs.cost import cost
from keras_sparse_dm.runs.callbacks import (
    CHECKPOINT,
    Checkpoint,
    EpochFigures,
    StopOnDivergence,
    keras_verbosity,
    save_model,
    trim_metrics,
)
from keras_sparse_dm.runs.evaluate import distance_from_training_data, evaluate
from keras_sparse_dm.runs.folder import (
    CONFIG_FILE,
    check_folder,
    read_json,
    unusable_folder,
    write_json,
)
from keras_sparse_dm.runs.report import distance_rows, write_report
from keras_sparse_dm.runs.resume import load_checkpoint
from keras_sparse_dm.runs.samples import MODEL, Run
from keras_sparse_dm.runs.sparse_model import dynamic_sparsity, new_model
from keras_sparse_dm.sparsity import (
    check_invariant,
    sparsity_report,
)
from keras_sparse_dm.sparsity.install import innermost_sparse_optimizer

STATE_FILE = "state.json"
METRICS_FILE = "metrics.csv"
# Number of samples for a distance during training, if the run has no evaluation.
DISTANCE_SAMPLES = 500


def train(settings):
    """Train the model that the settings describe and write all results to the run's folder.

    The folder gets `config.json`, `metrics.csv`, TensorBoard scalars, a checkpoint after every
    epoch, and at the end `model.keras` (averaged weights), `samples.png`, `report.md` and
    `report.json`. A run that was stopped continues with `resume=True` and gives
    the same bits.

    Args:
        settings: `RunSettings`.

    Returns:
        The run's folder.

    Raises:
        SettingsError: for settings that cannot work, before training starts.
        TrainingDiverged: if the loss becomes NaN or infinite; the last checkpoint is kept.
        OSError: if a file cannot be written; files written before are kept.
    """
    return train_run(settings).folder


def train_run(settings):
    """Train like `train`, but return the trained `Run`."""
    begin = time.perf_counter()
    settings.check()
    folder = settings.folder
    t = settings.training
    check_folder(settings)
    keras.utils.set_random_seed(settings.seed)
    run = settings.kind.training_run(settings)
    sparsity = dynamic_sparsity(t, settings.seed, run.steps, folder)
    steps = run.steps * t.epochs
    if sparsity is not None and sparsity.method.dynamic and steps < t.update_every:
        print(
            f"The masks will not change: {steps} training steps are fewer than --update-every "
            f"{t.update_every}."
        )
    # Start from the same random state, whether or not data were prepared before.
    keras.utils.set_random_seed(settings.seed)
    checkpoint = folder / CHECKPOINT

    def run_of(model):
        return Run(folder, settings, model, folder / MODEL, run.train, run.validation)

    model = new_model(run, settings, sparsity)
    if settings.resume and checkpoint.exists():
        model = load_checkpoint(checkpoint, model, t, run.steps)
        state = read_json(
            folder / STATE_FILE, {"untrained_validation_loss": float, "data_checksum": int}
        )
        if state is None:
            raise SettingsError(f"--resume: {folder / STATE_FILE} is missing.")
        if state["data_checksum"] != run.checksum:
            raise SettingsError(
                f"--resume: the run in {folder} was started with other training data: the files, "
                "or the version of the package kanjivg, have changed since."
            )
        run.check_fits(model)
        as_trained = run_of(model)
        epochs_done = _iterations(model) // run.steps
        print(f"Resuming {folder} after epoch {epochs_done} of {t.epochs}.")
        _check_disk_space(folder, model)
        run.before_training(model)
    else:
        epochs_done = 0
        as_trained = run_of(model)
        if sparsity is not None:
            print(sparsity_report(model))
        print(run.summary())
        _check_disk_space(folder, model)
        _claim_folder(settings, folder)
        run.before_training(model)
        loss = model.evaluate(run.validation_batches(), verbose=0, return_dict=True)["loss"]
        state = {
            "untrained_validation_loss": loss,
            "data_checksum": run.checksum,
            **run.untrained_results(model),
        }
        if settings.sampling.evaluation:
            state["fd_kanji_untrained"] = distance_from_training_data(
                as_trained, settings.sampling.evaluation, settings.seed, settings.cache_dir
            )
        write_json(folder / STATE_FILE, state)
    trim_metrics(folder / METRICS_FILE, epochs_done)

    callbacks = [StopOnDivergence(checkpoint), EpochFigures()]
    if settings.distance_every:
        callbacks.append(_Distances(as_trained))
    if sparsity is not None:
        callbacks.append(sparsity)
    callbacks += [
        keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False),
        keras.callbacks.CSVLogger(folder / METRICS_FILE, append=True),
        _SamplePictures(run, folder, settings.samples_every),
        # Last, because an epoch counts as done once its checkpoint is written.
        Checkpoint(checkpoint),
    ]
    validation = run.validation_batches()
    model.fit(
        run.train_batches(epochs_done),
        epochs=t.epochs,
        initial_epoch=epochs_done,
        steps_per_epoch=run.steps,
        validation_data=validation,
        callbacks=callbacks,
        shuffle=False,
        verbose=keras_verbosity(settings.verbose),
    )

    trained = model.evaluate(validation, verbose=0, return_dict=True)["loss"]
    check_invariant(model)
    save_model(model, folder / MODEL)
    samples = run.generate(model)
    run.draw_beside_real(folder / "samples.png", samples)
    results = _results(as_trained, run, sparsity) | state | run.results(samples)
    results |= {
        "validation_loss_untrained": state["untrained_validation_loss"],
        "validation_loss_trained": trained,
        "session_seconds": time.perf_counter() - begin,
    }
    rows = run.report_rows(results)
    write_report(folder, results, rows)
    if settings.sampling.evaluation:
        evaluation = evaluate(
            as_trained,
            settings.sampling.evaluation,
            seed=settings.seed,
            cache_dir=settings.cache_dir,
            progress=settings.verbose != 0,
        )
        write_report(folder, results, rows + distance_rows(evaluation, results))
    return as_trained


def _claim_folder(settings, folder):
    """Create the run's folder and write its configuration."""
    backend = keras.backend.backend()
    packages = {"keras", "tensorflow", "tensorflow-model-optimization", "numpy", "kanjivg", backend}
    versions = {
        "backend": backend,
        "keras_sparse_dm": keras_sparse_dm.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in sorted(packages)},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable_folder(folder, error) from None
    write_json(folder / CONFIG_FILE, {"settings": settings.to_dict(), "versions": versions})
    (folder / CHECKPOINT).parent.mkdir(exist_ok=True)


def _iterations(model):
    return int(model.optimizer.iterations)


def _check_disk_space(folder, model):
    state = sum(int(np.prod(v.shape)) * 4 for v in (*model.variables, *model.optimizer.variables))
    # Two checkpoints exist while one replaces the other, and then the final model.
    needed = 4 * max(state, 10_000_000)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise SettingsError(
            f"--output-dir {folder} has {free / 1e6:.0f} MB of free space; "
            f"this run needs {needed / 1e6:.0f} MB."
        )


def _results(as_trained, run, sparsity):
    model, settings = as_trained.model, as_trained.settings
    t, sampling = settings.training, settings.sampling
    sampler, asked = SAMPLERS[sampling.sampler], (sampling.steps, settings.noise.timesteps)
    costs = cost(
        model.denoiser,
        settings.kind.example(as_trained),
        sampling_steps=sampler.evaluations(*asked),
        iterations=run.steps * t.epochs,
        method=t.method,
        update_every=t.update_every,
        schedule=None if sparsity is None else sparsity.schedule,
    )
    report = sparsity_report(model)
    optimizer = innermost_sparse_optimizer(model)
    with open(settings.folder / METRICS_FILE, newline="", encoding="utf-8") as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    return {
        "preset": settings.preset,
        "method": t.method,
        "seed": settings.seed,
        "epochs": t.epochs,
        "iterations": run.steps * t.epochs,
        "batch_size": run.batch_size,
        f"training_{settings.kind.unit}": len(run.train),
        f"validation_{settings.kind.unit}": len(run.validation),
        "unit": settings.kind.unit,
        "flops_example": run.example_name,
        "samples": settings.samples,
        "sampler": sampling.sampler,
        "sampling_steps": sampler.steps(*asked),
        "training_seconds": seconds,
        "topology_updates": optimizer.topology_updates if optimizer is not None else 0,
        "last_update_exchanged": optimizer.exchanged() if optimizer is not None else {},
        "cost": costs.to_dict(),
        "sparsity": report.to_dict(),
        "sparsity_table": str(report),
    }


class _Distances(keras.callbacks.Callback):
    """Callback that measures the distance of samples from the training data every few epochs."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def on_epoch_end(self, epoch, logs=None):
        settings = self.run.settings
        # `metrics.csv` has the same columns in every row.
        logs["fd_kanji"] = float("nan")
        if (epoch + 1) % settings.distance_every == 0:
            logs["fd_kanji"] = distance_from_training_data(
                self.run,
                settings.sampling.evaluation or DISTANCE_SAMPLES,
                settings.seed,
                settings.cache_dir,
            )


class _SamplePictures(keras.callbacks.Callback):
    """Callback that draws generated samples every few epochs."""

    def __init__(self, run, folder, every):
        super().__init__()
        self.run = run
        self.folder = folder
        self.every = every

    def on_epoch_end(self, epoch, logs=None):
        if self.every and (epoch + 1) % self.every == 0:
            samples = self.run.generate(self.model)
            (self.folder / "samples").mkdir(exist_ok=True)
            self.run.draw(self.folder / "samples" / f"epoch-{epoch + 1:04d}.png", samples)
