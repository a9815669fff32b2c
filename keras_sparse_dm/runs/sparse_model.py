"""The sparse model of a run before training, and the callback that trains it."""

import keras

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.masks import structures
from keras_sparse_dm.masks.structure_text import parse_structure
from keras_sparse_dm.runs.callbacks import averaging_momentum, cosine_with_warmup
from keras_sparse_dm.sparsity import DynamicSparsity, masked_kernels, sparsify
from keras_sparse_dm.sparsity.registry import facts_of
from keras_sparse_dm.sparsity.schedules import PolynomialDecay


def new_model(run, settings, sparsity):
    """Return the new, compiled model of a run, sparse unless `sparsity` is None."""
    t, seed = settings.training, settings.seed
    model = run.new_model()
    if sparsity is not None:
        try:
            sparsify(
                model,
                t.sparsity,
                t.distribution,
                seed=seed,
                structure=_structure(t.structure),
                dense_start=facts_of(t.method).prunes,
            )
            sparsity.options.check_kernels(masked_kernels(model))
        except ValueError as error:
            raise SettingsError(f"--structure, --sparsity or --method: {error}") from None
    steps = t.epochs * run.steps
    learning_rate = t.learning_rate
    if t.learning_rate_schedule == "cosine":
        learning_rate = cosine_with_warmup(t.learning_rate, steps)
    model.compile(
        keras.optimizers.AdamW(
            learning_rate,
            weight_decay=t.weight_decay,
            global_clipnorm=t.global_clipnorm or None,
            use_ema=t.ema_momentum > 0,
            ema_momentum=averaging_momentum(t.ema_momentum, steps),
        )
    )
    return model


def _structure(text):
    """Return the structure that `--structure` names, or None for single weights."""
    parsed = parse_structure(text)
    if parsed is None:
        return None
    name, arguments = parsed
    return getattr(structures, name)(**arguments)


def dynamic_sparsity(training, seed, steps, folder):
    """Return the `DynamicSparsity` callback, or None for a dense network."""
    if training.method == "dense":
        return None
    schedule = training.prune_schedule
    total = training.epochs * steps
    if facts_of(training.method).prunes:
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
    stop_step = training.stop_step
    if schedule == "cosine" and stop_step == -1:
        stop_step = total
    try:
        return DynamicSparsity(
            training.method,
            update_every=training.update_every,
            prune_rate=training.prune_rate,
            start_step=training.start_step,
            stop_step=stop_step,
            schedule=schedule,
            seed=seed,
            competition=training.competition,
            grow_init=training.grow_init,
            gradient_steps=training.gradient_steps,
            grow_warmup=training.grow_warmup,
            log_dir=folder / "tensorboard" / "sparsity",
        )
    except ValueError as error:
        raise SettingsError(f"--method, --competition or --stop-step: {error}") from None
