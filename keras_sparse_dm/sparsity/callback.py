"""`DynamicSparsity`: sparse training in `fit`, by one callback."""

import contextlib

import keras
import numpy as np

from keras_sparse_dm.sparsity.masking import (
    build_optimizer,
    innermost_sparse_optimizer,
    masked_kernels,
)
from keras_sparse_dm.sparsity.methods import get_method
from keras_sparse_dm.sparsity.optimizer import SparseOptimizer, check_options
from keras_sparse_dm.sparsity.report import sparsity_report


class DynamicSparsity(keras.callbacks.Callback):
    """Trains a sparse model sparsely from the first step of `fit` to the last.

    Pruned weights stay exactly zero; with a dynamic method, every `update_every` steps each
    kernel drops its weakest weights and grows as many elsewhere (paper, Algorithm 2). The
    logs, and so the progress bar and every other logger, gain `sparsity`.

    Args:
        method: `"rigl"`, `"magran"`, `"set"`, `"snfs"`, `"gmp"`, `"static"` or a
            `SparsityMethod`.
        update_every: Training steps between topology updates (the paper's exploration
            frequency), 1 or more. Updates come at its multiples. Steps are the optimizer's
            updates: with gradient accumulation, one for several batches.
        prune_rate: Share of each kernel's active weights that an update exchanges, in (0, 1].
        start_step: First training step at which an update may come, counted, as all steps here,
            from where the masks were drawn.
        stop_step: Last such step; -1 for the whole run, as in the paper.
        schedule: `"constant"`, `"cosine"` (falls to zero at `stop_step`) or a
            `PruningSchedule` of tensorflow_model_optimization, which then alone says when
            and how much. `"gmp"` needs its `PolynomialDecay`, of the sparsity.
        seed: Integer seed of the methods that draw. A model that was trained sparsely before
            goes on with the draws that it has begun.
        competition: `"kernel"`: every kernel grows as many weights as it dropped. `"global"`:
            all kernels compete for what all have dropped.
        grow_init: What grown weights start from: `"zeros"`, as in RigL, or `"normal"`, drawn
            with the standard deviation of the kernel's active weights.
        gradient_steps: Over how many optimizer steps, up to the update's, the dense gradient is
            averaged; 1, as in the paper, or more, up to those between two updates.
        log_dir: Optional folder for TensorBoard: scalars of each kernel's density, the share
            of its active weights exchanged at each update and the share of its weights ever
            active; and a picture of each mask after every epoch.

    Callbacks that read `sparsity` in the logs or restore earlier weights (EarlyStopping) go
    before or after it as lists go: loggers after, restorers before.

    Raises:
        ValueError: for an unknown method or schedule or a value outside its range; and from
            `fit`, before the first step, where the callback could not do its work: the model
            has nothing sparse, nothing is pruned, or the optimizer or the distribution
            strategy is not supported.

    Example:

    >>> sparsify(model, sparsity=0.9)
    >>> model.fit(data, callbacks=[DynamicSparsity("rigl", update_every=100, prune_rate=0.3)])
    """

    def __init__(
        self,
        method="rigl",
        update_every=1100,
        prune_rate=0.05,
        start_step=0,
        stop_step=-1,
        schedule="constant",
        seed=None,
        competition="kernel",
        grow_init="zeros",
        gradient_steps=1,
        log_dir=None,
    ):
        super().__init__()
        self.method = get_method(method)
        self.schedule = _schedule(
            self.method, schedule, prune_rate, update_every, start_step, stop_step
        )
        check_options(self.method, self.schedule, competition, grow_init, gradient_steps)
        self.seed = seed
        self.competition = competition
        self.grow_init = grow_init
        self.gradient_steps = gradient_steps
        self.log_dir = log_dir
        self._writer = None
        self._seen_updates = 0
        self._sparsity = None
        self._verified = False

    def set_model(self, model):
        super().set_model(model)
        # Keras calls this before it makes the train function, which then contains the
        # masked step.
        self._optimizer = _install(
            model,
            self.method,
            self.schedule,
            self.seed,
            competition=self.competition,
            grow_init=self.grow_init,
            gradient_steps=self.gradient_steps,
        )

    def on_train_begin(self, logs=None):
        if self.log_dir is not None and self._writer is None:
            import tensorflow as tf

            self._writer = tf.summary.create_file_writer(str(self.log_dir))
        self._seen_updates = self._optimizer.topology_updates
        self._sparsity = sparsity_report(self.model).sparsity

    def on_train_batch_end(self, batch, logs=None):
        if logs is not None:
            logs["sparsity"] = self._sparsity
        if not self._verified:
            self._verify()
        if self._writer is None or not self.method.dynamic:
            return
        updates = self._optimizer.topology_updates
        if updates != self._seen_updates:
            self._seen_updates = updates
            self._log_update()

    def on_epoch_end(self, epoch, logs=None):
        self._verify()
        report = sparsity_report(self.model)
        self._sparsity = report.sparsity
        if logs is not None:
            logs["sparsity"] = self._sparsity
        if self._writer is not None:
            import tensorflow as tf

            with self._writer.as_default(step=self._optimizer.steps):
                for k in report.kernels:
                    tf.summary.scalar(f"density/{k.name}", k.density)
                    if k.ever_active is not None:
                        tf.summary.scalar(f"ever_active/{k.name}", k.ever_active)
                for k in self._optimizer.kernels:
                    tf.summary.image(f"mask/{k.name}", _picture(k)[None, :, :, None])
            self._writer.flush()

    def on_train_end(self, logs=None):
        # A callback before this one may have put back the weights and masks of an epoch before.
        self._optimizer.weights_were_put_back()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _verify(self):
        """Stops training by an optimizer that moves pruned weights although it is given none."""
        for k in self._optimizer.kernels:
            pruned = keras.ops.where(k.mask, keras.ops.zeros_like(k.kernel), k.kernel)
            if bool(keras.ops.any(pruned != 0)):
                raise ValueError(
                    f"Pruned weights of {k.name} have changed although their gradients are zero. "
                    f"Either optimizer {type(self._optimizer.inner_optimizer).__name__} does not "
                    "update each weight from its own gradient and state, or the kernel's own "
                    "constraint moves zeros, or something else has written to the kernel."
                )
        self._verified = True

    def _log_update(self):
        import tensorflow as tf

        ones = self._optimizer.mask_ones()
        with self._writer.as_default(step=self._optimizer.steps):
            for name, count in self._optimizer.exchanged().items():
                tf.summary.scalar(f"exchanged/{name}", count / max(1, ones[name]))


def sparse_optimizer(
    model,
    optimizer=None,
    method="rigl",
    update_every=1100,
    prune_rate=0.05,
    start_step=0,
    stop_step=-1,
    schedule="constant",
    seed=None,
    **options,
):
    """Sparse training without `fit`: a custom training loop, or `train_on_batch`.

    ```python
    sparsify(model, sparsity=0.9)
    optimizer = sparse_optimizer(model, keras.optimizers.AdamW(1e-3), "rigl", update_every=800)
    for batch in data:
        with tf.GradientTape() as tape:
            loss = loss_of(model, batch)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
    ```

    The gradients must be the dense ones, as automatic differentiation returns them. With
    `optimizer=None` the optimizer of the compiled model is replaced, after which
    `train_on_batch`, `fit` and a loop of your own train sparsely, callback or not. At the end
    of a loop of your own with averaged weights (`use_ema`) call
    `optimizer.finalize_variable_values(model.trainable_variables)`, as `fit` does; and wherever
    you put back earlier weights (`set_weights`), call `optimizer.weights_were_put_back()`.
    Several optimizers may train one model, or parts of it, each wrapped by itself.

    Args:
        model: A built `keras.Model` that was made sparse.
        optimizer: The `keras.optimizers.Optimizer` to train with; under `mixed_float16` a
            `LossScaleOptimizer`. None for that of the compiled model.
        method, update_every, prune_rate, start_step, stop_step, schedule, seed, **options: As
            in `DynamicSparsity`.

    Returns:
        The optimizer to call: a `SparseOptimizer`, within a `LossScaleOptimizer` if given one.

    Raises:
        ValueError: as `DynamicSparsity` does.
    """
    method = get_method(method)
    schedule = _schedule(method, schedule, prune_rate, update_every, start_step, stop_step)
    if optimizer is None:
        _install(model, method, schedule, seed, **options)
        return model.optimizer
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(
            f"`optimizer` must be a keras.optimizers.Optimizer or None; received {optimizer!r}."
        )
    _check_sparse(model)
    _check_strategy(getattr(model, "distribute_strategy", None), optimizer)
    return _wrapped(optimizer, model, method, schedule, seed, **options)[0]


def _install(model, method, schedule, seed, **options):
    """Makes a compiled model's optimizer a `SparseOptimizer`, once, and returns it.

    A model that has one already (it was loaded, or `fit` is called again) keeps it with all
    its state; its method, schedule and options become those given.
    """
    if getattr(model, "optimizer", None) is None:
        raise ValueError(f"Compile model {model.name!r} with an optimizer before training it.")
    _check_sparse(model)
    strategy = getattr(model, "distribute_strategy", None)
    _check_strategy(strategy, model.optimizer)
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        optimizer = innermost_sparse_optimizer(model)
        if optimizer is None:
            model.optimizer, optimizer = _wrapped(
                model.optimizer, model, method, schedule, seed, **options
            )
            # What `compile` recorded for saving, and the functions that hold the old optimizer.
            model._compile_config.config["optimizer"] = model.optimizer
            model.train_function = None
        else:
            changed = optimizer.configure(method, schedule, **options)
            optimizer.attach(model)
            if changed:
                model.train_function = None
    build_optimizer(model)
    return optimizer


def _wrapped(optimizer, model, *arguments, **options):
    """Returns the optimizer to call, and the `SparseOptimizer` that it is or holds."""
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    inner = optimizer.inner_optimizer if scales else optimizer
    if scales and not optimizer.built and not isinstance(inner, SparseOptimizer):
        # Keras tracks other variables of Adafactor when that is built by itself, and a file
        # holds those that are tracked: the loaded optimizer is built by loss scaling.
        optimizer.build(model.trainable_variables)
    sparse = SparseOptimizer(inner, *arguments, **options)
    sparse.attach(model)
    if not scales:
        return sparse, sparse
    # Below loss scaling, so that gradients come unscaled and only when they are finite.
    optimizer.inner_optimizer = sparse
    return optimizer, sparse


def _schedule(method, schedule, prune_rate, update_every, start_step, stop_step):
    from keras_sparse_dm.sparsity.schedules import make_schedule

    if method.dense_to_sparse and isinstance(schedule, str):
        raise ValueError(
            f"`schedule` must give the sparsity at each step for method {method.name!r}: a "
            "PolynomialDecay of tensorflow_model_optimization.sparsity.keras; received "
            f"{schedule!r}."
        )
    return make_schedule(schedule, prune_rate, update_every, start_step, stop_step)


def _check_sparse(model):
    if not model.built or not masked_kernels(model):
        raise ValueError(
            f"Model {model.name!r} was never made sparse: call "
            "`keras_sparse_dm.sparsify(model, sparsity)` first."
        )


def _check_strategy(strategy, optimizer):
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    import tensorflow as tf

    if not isinstance(strategy, tf.distribute.MirroredStrategy):
        raise ValueError(
            "Sparse training on several replicas needs tf.distribute.MirroredStrategy; the model "
            f"was compiled under {type(strategy).__name__}."
        )
    while optimizer is not None:
        if optimizer.gradient_accumulation_steps:
            raise ValueError(
                "Keras accumulates no gradients on several replicas: "
                f"{type(optimizer).__name__} has gradient_accumulation_steps="
                f"{optimizer.gradient_accumulation_steps}. Use larger batches."
            )
        optimizer = getattr(optimizer, "inner_optimizer", None)


def _picture(k, side=256):
    """Returns a mask as a picture `(rows, columns)` of densities in [0, 1], at most `side` wide."""
    mask = keras.ops.convert_to_numpy(k.mask).astype("float32")
    outputs = [axis % mask.ndim for axis in k.axes.outputs]
    inputs = [axis for axis in range(mask.ndim) if axis not in outputs]
    rows = int(np.prod([mask.shape[axis] for axis in inputs], dtype=int))
    matrix = mask.transpose(inputs + outputs).reshape(rows, -1)
    for axis in (0, 1):
        if matrix.shape[axis] > side:
            starts = np.linspace(0, matrix.shape[axis], side, endpoint=False).astype(int)
            sizes = np.diff([*starts, matrix.shape[axis]])
            sums = np.add.reduceat(matrix, starts, axis=axis)
            matrix = sums / np.expand_dims(sizes, 1 - axis)
    return matrix
