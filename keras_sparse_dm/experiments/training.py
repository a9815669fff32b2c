"""One run of the study: data, sparse model, training, samples, report."""

import csv
import json
import os
import platform
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

import keras_sparse_dm
from keras_sparse_dm.data import (
    eval_batches,
    from_points,
    load_kanjivg,
    padding_waste,
    sample_lengths,
    steps_per_epoch,
    train_batches,
)
from keras_sparse_dm.data.drawing import draw
from keras_sparse_dm.diffusion import DiffusionModel, NoiseSchedule
from keras_sparse_dm.experiments.report import write_report
from keras_sparse_dm.experiments.settings import (
    CONFIG_FILE,
    SettingsError,
    read_config,
    write_json,
)
from keras_sparse_dm.metrics import cost
from keras_sparse_dm.models import ChiroDiff
from keras_sparse_dm.sparsity import (
    DynamicSparsity,
    check_invariant,
    masked_kernels,
    sparsify,
    sparsity_report,
)
from keras_sparse_dm.sparsity.masking import innermost_sparse_optimizer

CHECKPOINT = Path("checkpoints") / "last.keras"
STATE_FILE = "state.json"
METRICS_FILE = "metrics.csv"
EVAL_BATCH_SIZE = 256


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number; the message says what is kept."""


def train(settings):
    """Trains what the settings describe and leaves everything in the run's folder.

    The folder gets `config.json`, `metrics.csv`, TensorBoard scalars, a checkpoint after every
    epoch, and at the end `model.keras` (averaged weights), `samples.png`, `report.md` and
    `report.json`. A run that was stopped continues with `resume=True`, to the same bits.

    Args:
        settings: `RunSettings`.

    Returns:
        The run's folder.

    Raises:
        SettingsError: for settings that cannot work, before training starts.
        TrainingDiverged: if the loss becomes NaN or infinite; the last checkpoint is kept.
        OSError: if something cannot be written; what was written before is kept.
    """
    settings.check()
    folder = settings.folder
    _claim_folder(settings, folder)
    train_data, validation_data = _load_data(settings)
    steps = _steps_per_epoch(train_data, settings)
    preset = settings.to_preset()
    verbose = settings.verbose
    if verbose == -1:
        verbose = 1 if sys.stdout.isatty() else 2

    keras.utils.set_random_seed(settings.seed)
    checkpoint = folder / CHECKPOINT
    if settings.resume and checkpoint.exists():
        model = _load_checkpoint(checkpoint)
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        epochs_done = _iterations(model) // steps
        print(f"Resuming {folder} after epoch {epochs_done} of {preset.training.epochs}.")
    else:
        model = _new_model(preset, settings.seed, steps)
        epochs_done = 0
        print(_data_summary(train_data, validation_data, preset.training.batch_size, steps))
        validation = eval_batches(validation_data, EVAL_BATCH_SIZE)
        untrained = model.evaluate(validation, verbose=0, return_dict=True)["loss"]
        state = {"untrained_validation_loss": untrained}
        write_json(folder / STATE_FILE, state)
    _check_disk_space(folder, model)
    _trim_metrics(folder / METRICS_FILE, epochs_done)

    lengths = sample_lengths(train_data, settings.samples, settings.seed)
    pictures = _SamplePictures(folder, preset, lengths, settings.seed, settings.samples_every)
    callbacks = [_StopOnDivergence(checkpoint), _EpochFigures()]
    if preset.training.method != "dense":
        callbacks.append(_dynamic_sparsity(preset.training, settings.seed, steps, folder))
    if preset.training.ema_momentum:
        # Validation loss is that of the averaged weights, which sampling uses.
        callbacks.append(keras.callbacks.SwapEMAWeights())
    callbacks += [
        keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False),
        keras.callbacks.CSVLogger(folder / METRICS_FILE, append=True),
        pictures,
        # Last, so that an epoch counts as done only when all else is written.
        _Checkpoint(checkpoint),
    ]
    model.fit(
        train_batches(
            train_data, preset.training.batch_size, settings.seed, initial_epoch=epochs_done
        ),
        epochs=preset.training.epochs,
        initial_epoch=epochs_done,
        steps_per_epoch=steps,
        validation_data=eval_batches(validation_data, EVAL_BATCH_SIZE),
        callbacks=callbacks,
        shuffle=False,
        verbose=verbose,
    )

    validation = eval_batches(validation_data, EVAL_BATCH_SIZE)
    trained = model.evaluate(validation, verbose=0, return_dict=True)["loss"]
    check_invariant(model)
    _save_model(model, folder / "model.keras")
    sketches = _generate(model, preset, lengths, settings.seed)
    _draw_beside_real(folder / "samples.png", sketches, train_data, preset, settings.seed)
    write_report(
        folder,
        _results(
            model, preset, settings, steps, state, trained, train_data, validation_data, folder
        ),
    )
    return folder


def _claim_folder(settings, folder):
    """Makes the run's folder, or checks that it holds the run that is to be resumed."""
    stored = read_config(folder)
    mine = settings.to_dict()
    if stored is not None:
        if not settings.resume:
            raise SettingsError(
                f"--output-dir {folder} already holds a run; continue it with --resume, or name "
                "another folder."
            )
        different = [
            f"{name} is {here!r} but was {there!r}"
            for name, here, there in _differences(mine, stored["settings"])
        ]
        if different:
            raise SettingsError(
                f"--resume: the run in {folder} has another configuration: {'; '.join(different)}."
            )
        return
    if settings.resume:
        raise SettingsError(f"--resume: {folder} holds no run; leave out --resume to start one.")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise SettingsError(
                f"--output-dir {folder} is not empty and holds no run; name another folder."
            )
        (folder / CHECKPOINT).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"--output-dir {folder} cannot be used: {error.strerror}; name a folder that can "
            "be written."
        ) from None
    packages = ("keras", "tensorflow", "tensorflow-model-optimization", "numpy", "kanjivg")
    write_json(
        folder / CONFIG_FILE,
        {
            "settings": mine,
            "versions": {
                "keras_sparse_dm": keras_sparse_dm.__version__,
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
            },
        },
    )


def _differences(mine, theirs, prefix=""):
    for name, value in mine.items():
        other = theirs.get(name) if isinstance(theirs, dict) else None
        if isinstance(value, dict):
            yield from _differences(value, other, f"{prefix}{name}.")
        elif value != other:
            yield f"{prefix}{name}", value, other


def _load_data(settings):
    d = settings.data
    try:
        return load_kanjivg(
            folder=settings.data_dir,
            cache_dir=settings.cache_dir,
            representation=d.representation,
            spacing=d.spacing,
            scale=d.scale,
            max_points=d.max_points,
        )
    except (ValueError, FileNotFoundError) as error:
        raise SettingsError(f"--data-dir: {error}") from None


def _steps_per_epoch(train_data, settings):
    try:
        return steps_per_epoch(train_data, settings.training.batch_size)
    except ValueError as error:
        raise SettingsError(f"--batch-size: {error}") from None


def _data_summary(train_data, validation_data, batch_size, steps):
    waste = padding_waste(train_data, batch_size)
    return (
        f"{train_data.summary}\n"
        f"{len(train_data):,} for training in {steps} batches of {batch_size} an epoch, "
        f"{len(validation_data):,} for validation; {train_data.lengths.mean():.1f} points a "
        f"sketch, {waste:.1%} of the points in batches are padding"
    )


def _new_model(preset, seed, steps):
    n, t = preset.noise, preset.training
    noise_schedule = NoiseSchedule(
        n.schedule,
        n.timesteps,
        *((None, None) if n.schedule == "cosine" else (n.beta_start, n.beta_end)),
    )
    denoiser = ChiroDiff(**preset.denoiser_arguments(), seed=seed)
    model = DiffusionModel(denoiser, noise_schedule, seed=seed)
    if t.method != "dense":
        print(sparsify(model, t.sparsity, t.distribution, seed=seed))
    learning_rate = t.learning_rate
    if t.learning_rate_schedule == "cosine":
        total = t.epochs * steps
        # A twentieth of the run to warm up, at most the usual thousand steps.
        learning_rate = keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=total - min(1000, total // 20),
            warmup_target=t.learning_rate,
            warmup_steps=min(1000, total // 20),
        )
    model.compile(
        keras.optimizers.AdamW(
            learning_rate,
            weight_decay=t.weight_decay,
            global_clipnorm=t.global_clipnorm or None,
            use_ema=t.ema_momentum > 0,
            ema_momentum=t.ema_momentum,
        )
    )
    return model


def _dynamic_sparsity(training, seed, steps, folder):
    return DynamicSparsity(
        training.method,
        update_every=training.update_every,
        prune_rate=training.prune_rate,
        schedule=training.prune_schedule,
        stop_step=training.epochs * steps if training.prune_schedule == "cosine" else -1,
        seed=seed,
        log_dir=folder / "tensorboard" / "sparsity",
    )


def _load_checkpoint(path):
    try:
        return keras.saving.load_model(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingsError(f"--resume: checkpoint {path} cannot be read: {reason}") from None


def _save_model(model, path):
    """Saves under a temporary name, syncs and renames: never half a file under `path`."""
    temporary = path.with_name(f".partial-{path.name}")
    try:
        model.save(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _iterations(model):
    return int(model.optimizer.iterations)


def _check_disk_space(folder, model):
    state = sum(int(np.prod(v.shape)) * 4 for v in (*model.variables, *model.optimizer.variables))
    # Two checkpoints at once while one replaces the other, and the final model.
    needed = 4 * max(state, 10_000_000)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SettingsError(
            f"--output-dir {folder} has {free / 1e6:.0f} MB of free space; "
            f"this run needs {needed / 1e6:.0f} MB."
        )


def _trim_metrics(path, epochs_done):
    """Drops rows of epochs that the checkpoint does not hold; they will be trained again."""
    if not path.exists():
        return
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    kept = rows[:1] + [row for row in rows[1:] if row and int(row[0]) < epochs_done]
    temporary = path.with_name(f".partial-{path.name}")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(kept if len(kept) > 1 else [])
    temporary.replace(path)


def _generate(model, preset, lengths, seed):
    points = model.generate(
        lengths=lengths,
        steps=preset.sampling.steps,
        sampler=preset.sampling.sampler,
        eta=preset.sampling.eta,
        seed=seed,
    )
    representation = preset.data.representation
    return [
        from_points(np.nan_to_num(p[:n]), representation)
        for p, n in zip(points, lengths, strict=True)
    ]


def _draw_beside_real(path, sketches, train_data, preset, seed):
    chosen = np.random.default_rng(seed).permutation(len(train_data))[: len(sketches)]
    real = [from_points(train_data[i], preset.data.representation) for i in chosen]
    draw([sketches, real], path, titles=("generated", "real"))


def _results(model, preset, settings, steps, state, trained, train_data, validation_data, folder):
    t = preset.training
    mean_length = round(float(train_data.lengths.mean()))
    example = (
        np.zeros((1, mean_length, 3), "float32"),
        np.zeros(1, "int32"),
        np.array([mean_length]),
    )
    sampler_steps = (
        preset.sampling.steps if preset.sampling.sampler == "ddim" else preset.noise.timesteps
    )
    costs = cost(
        model.denoiser,
        example,
        sampling_steps=sampler_steps,
        iterations=steps * t.epochs,
        method=t.method,
        update_every=t.update_every,
    )
    report = sparsity_report(model)
    optimizer = innermost_sparse_optimizer(model)
    with open(folder / METRICS_FILE, newline="", encoding="utf-8") as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    return {
        "preset": preset.name,
        "method": t.method,
        "seed": settings.seed,
        "epochs": t.epochs,
        "iterations": steps * t.epochs,
        "batch_size": t.batch_size,
        "training_sketches": len(train_data),
        "validation_sketches": len(validation_data),
        "points_per_sketch": float(train_data.lengths.mean()),
        "flops_points": mean_length,
        "padding_waste": padding_waste(train_data, t.batch_size),
        "sampler": preset.sampling.sampler,
        "sampling_steps": sampler_steps,
        "validation_loss_untrained": state["untrained_validation_loss"],
        "validation_loss_trained": trained,
        "training_seconds": seconds,
        "topology_updates": optimizer.topology_updates if optimizer is not None else 0,
        "last_update_exchanged": optimizer.exchanged() if optimizer is not None else {},
        "cost": costs.to_dict(),
        "sparsity": report.to_dict(),
        "sparsity_table": str(report),
        "kernels": len(masked_kernels(model)),
    }


class _StopOnDivergence(keras.callbacks.Callback):
    """Ends the run as soon as the loss is not finite, before anything is overwritten."""

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
                f"Training stopped at step {_iterations(self.model)}: {name} is {value}. {kept} "
                "A lower --learning-rate may help."
            )


class _EpochFigures(keras.callbacks.Callback):
    """Adds the learning rate and the epoch's seconds to the logs."""

    def on_epoch_begin(self, epoch, logs=None):
        self._begin = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)
        logs["seconds"] = time.perf_counter() - self._begin


class _SamplePictures(keras.callbacks.Callback):
    """Draws generated sketches every few epochs."""

    def __init__(self, folder, preset, lengths, seed, every):
        super().__init__()
        self.folder = folder
        self.preset = preset
        self.lengths = lengths
        self.seed = seed
        self.every = every

    def on_epoch_end(self, epoch, logs=None):
        if self.every and (epoch + 1) % self.every == 0:
            sketches = _generate(self.model, self.preset, self.lengths, self.seed)
            (self.folder / "samples").mkdir(exist_ok=True)
            draw([sketches], self.folder / "samples" / f"epoch-{epoch + 1:04d}.png")


class _Checkpoint(keras.callbacks.Callback):
    """Saves model, optimizer, masks and random state after every epoch."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        _save_model(self.model, self.path)
