"""One run of the study: data, sparse model, training, samples, report."""

import csv
import platform
import shutil
import sys
import time
import zlib
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
from tensorflow_model_optimization.sparsity.keras import PolynomialDecay

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
    TrainingDiverged,
    check_folder,
    read_json,
    unusable_folder,
    write_json,
)
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.metrics import cost
from keras_sparse_dm.models import ChiroDiff
from keras_sparse_dm.sparsity import (
    DynamicSparsity,
    check_invariant,
    masked_kernels,
    sparsify,
    sparsity_report,
)
from keras_sparse_dm.sparsity.masking import innermost_optimizer, innermost_sparse_optimizer
from keras_sparse_dm.sparsity.schedules import serialize_schedule

CHECKPOINT = Path("checkpoints") / "last.keras"
STATE_FILE = "state.json"
METRICS_FILE = "metrics.csv"
EVAL_BATCH_SIZE = 256


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
    begin = time.perf_counter()
    settings.check()
    folder = settings.folder
    preset = settings.to_preset()
    check_folder(settings)
    train_data, validation_data = _load_data(settings)
    steps = _steps_per_epoch(train_data, settings)
    validation = eval_batches(validation_data, EVAL_BATCH_SIZE)
    verbose = settings.verbose
    if verbose == -1:
        verbose = 1 if sys.stdout.isatty() else 2

    sparsity = _dynamic_sparsity(preset.training, settings.seed, steps, folder)
    keras.utils.set_random_seed(settings.seed)
    checkpoint = folder / CHECKPOINT
    model = _new_model(preset, settings.seed, steps)
    if settings.resume and checkpoint.exists():
        model = _load_checkpoint(checkpoint, model, preset, steps)
        state = read_json(
            folder / STATE_FILE, {"untrained_validation_loss": float, "data_checksum": int}
        )
        if state is None:
            raise SettingsError(f"--resume: {folder / STATE_FILE} is missing.")
        if state["data_checksum"] != _checksum(train_data):
            raise SettingsError(
                f"--resume: the run in {folder} was begun with other training data: the files, or "
                "the version of the package kanjivg, have changed since."
            )
        epochs_done = _iterations(model) // steps
        print(f"Resuming {folder} after epoch {epochs_done} of {preset.training.epochs}.")
        _check_disk_space(folder, model)
    else:
        epochs_done = 0
        if sparsity is not None:
            print(sparsity_report(model))
        print(_data_summary(train_data, validation_data, preset.training.batch_size, steps))
        _check_disk_space(folder, model)
        _claim_folder(settings, folder)
        untrained = model.evaluate(validation, verbose=0, return_dict=True)["loss"]
        state = {
            "untrained_validation_loss": untrained,
            "data_checksum": _checksum(train_data),
        }
        write_json(folder / STATE_FILE, state)
    _trim_metrics(folder / METRICS_FILE, epochs_done)

    lengths = sample_lengths(train_data, settings.samples, settings.seed)
    pictures = _SamplePictures(folder, preset, lengths, settings.seed, settings.samples_every)
    callbacks = [_StopOnDivergence(checkpoint), _EpochFigures()]
    if sparsity is not None:
        callbacks.append(sparsity)
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
        validation_data=validation,
        callbacks=callbacks,
        shuffle=False,
        verbose=verbose,
    )

    trained = model.evaluate(validation, verbose=0, return_dict=True)["loss"]
    check_invariant(model)
    _save_model(model, folder / "model.keras")
    sketches = _generate(model, preset, lengths, settings.seed)
    _draw_beside_real(folder / "samples.png", sketches, train_data, preset, settings.seed)
    losses = {
        "validation_loss_untrained": state["untrained_validation_loss"],
        "validation_loss_trained": trained,
    }
    results = _results(model, settings, steps, train_data, validation_data, sparsity)
    write_report(folder, results | losses | {"session_seconds": time.perf_counter() - begin})
    return folder


def _claim_folder(settings, folder):
    """Makes the run's folder and writes its configuration."""
    packages = ("keras", "tensorflow", "tensorflow-model-optimization", "numpy", "kanjivg")
    versions = {
        "keras_sparse_dm": keras_sparse_dm.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable_folder(folder, error) from None
    write_json(folder / CONFIG_FILE, {"settings": settings.to_dict(), "versions": versions})
    (folder / CHECKPOINT).parent.mkdir(exist_ok=True)


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
            characters=d.characters,
        )
    except (ValueError, FileNotFoundError) as error:
        raise SettingsError(f"--data-dir: {error}") from None


def _steps_per_epoch(train_data, settings):
    try:
        return steps_per_epoch(train_data, settings.training.batch_size)
    except ValueError as error:
        raise SettingsError(f"--batch-size: {error}") from None


def _checksum(data):
    return zlib.crc32(data.points.tobytes())


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
        dense_start = t.method == "gmp"
        sparsify(model, t.sparsity, t.distribution, seed=seed, dense_start=dense_start)
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
    """Returns the `DynamicSparsity` callback, or None for a dense network."""
    if training.method == "dense":
        return None
    schedule = training.prune_schedule
    total = training.epochs * steps
    if training.method == "gmp":
        updates = int(0.75 * total) // training.update_every
        if not updates:
            raise SettingsError(
                f"--update-every must be at most three quarters of the {total} training steps for "
                f"--method gmp, which prunes at every update; received {training.update_every}."
            )
        schedule = PolynomialDecay(
            0.0,
            training.sparsity,
            begin_step=0,
            end_step=updates * training.update_every,
            frequency=training.update_every,
        )
    return DynamicSparsity(
        training.method,
        update_every=training.update_every,
        prune_rate=training.prune_rate,
        schedule=schedule,
        stop_step=total if schedule == "cosine" else -1,
        seed=seed,
        log_dir=folder / "tensorboard" / "sparsity",
    )


def _load_checkpoint(path, expected, preset, steps):
    """Loads a checkpoint, which must be of the configuration that `expected` is made of."""
    try:
        model = keras.saving.load_model(path)
    except Exception as error:  # a damaged file fails in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingsError(f"--resume: checkpoint {path} cannot be read: {reason}") from None
    here, there = _description(expected), _description(model)
    if preset.training.method != "dense" and there is not None:
        # What the callback will install in the model that is not trained yet.
        sparse = innermost_sparse_optimizer(model)
        callback = _dynamic_sparsity(preset.training, None, steps, path.parent)
        here["method"] = callback.method.name
        here["schedule"] = serialize_schedule(callback.schedule)
        there["method"] = sparse.method.name if sparse is not None else "dense"
        there["schedule"] = sparse.get_config()["schedule"] if sparse is not None else None
    if here != there:
        names = "a model of another kind"
        if there is not None:
            names = ", ".join(name for name, value in here.items() if there.get(name) != value)
        raise SettingsError(
            f"--resume: checkpoint {path} is of another configuration than {CONFIG_FILE} beside "
            f"it ({names})."
        )
    return model


def _description(model):
    """What tells configurations apart in a model; None for what is no DiffusionModel."""
    if not isinstance(model, DiffusionModel) or not isinstance(model.denoiser, ChiroDiff):
        return None
    optimizer = innermost_optimizer(model)
    optimizer_config = optimizer.get_config() if optimizer is not None else {}
    return {
        "denoiser": model.denoiser.get_config(),
        "noise schedule": model.noise_schedule.get_config(),
        "seed": model.seed,
        "optimizer": {k: v for k, v in optimizer_config.items() if k != "name"},
        "masks": [(k.target.density, k.target.structure) for k in masked_kernels(model)],
    }


def _save_model(model, path):
    with whole_file(path) as temporary:
        model.save(temporary)


def _iterations(model):
    return int(model.optimizer.iterations)


def _check_disk_space(folder, model):
    state = sum(int(np.prod(v.shape)) * 4 for v in (*model.variables, *model.optimizer.variables))
    # Two checkpoints at once while one replaces the other, and the final model.
    needed = 4 * max(state, 10_000_000)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
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
    with (
        whole_file(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows(kept if len(kept) > 1 else [])


def _generate(model, preset, lengths, seed):
    points = model.generate(
        lengths=lengths,
        steps=preset.sampling.steps,
        sampler=preset.sampling.sampler,
        eta=preset.sampling.eta,
        seed=seed,
    )
    broken = ~np.isfinite(points).all(axis=(1, 2))
    if broken.any():
        print(f"{broken.sum()} of {len(points)} samples are not finite and are drawn empty.")
        points[broken] = 0.0
    return [
        from_points(sketch[:length], preset.data.representation)
        for sketch, length in zip(points, lengths, strict=True)
    ]


def _draw_beside_real(path, sketches, train_data, preset, seed):
    chosen = np.random.default_rng(seed).permutation(len(train_data))[: len(sketches)]
    real = [from_points(train_data[i], preset.data.representation) for i in chosen]
    draw([sketches, real], path, titles=("generated", "real"))


def _results(model, settings, steps, train_data, validation_data, sparsity):
    preset = settings.to_preset()
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
        schedule=None if sparsity is None else sparsity.schedule,
    )
    report = sparsity_report(model)
    optimizer = innermost_sparse_optimizer(model)
    with open(settings.folder / METRICS_FILE, newline="", encoding="utf-8") as file:
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
        "training_seconds": seconds,
        "topology_updates": optimizer.topology_updates if optimizer is not None else 0,
        "last_update_exchanged": optimizer.exchanged() if optimizer is not None else {},
        "cost": costs.to_dict(),
        "sparsity": report.to_dict(),
        "sparsity_table": str(report),
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
