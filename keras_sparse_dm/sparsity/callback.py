"""`DynamicSparsity`: sparse training in `fit`, by one callback."""

import keras

from keras_sparse_dm.sparsity.masking import innermost_sparse_optimizer, masked_kernels
from keras_sparse_dm.sparsity.methods import get_method
from keras_sparse_dm.sparsity.optimizer import SparseOptimizer
from keras_sparse_dm.sparsity.report import sparsity_report


class DynamicSparsity(keras.callbacks.Callback):
    """Trains a sparse model sparsely from the first step of `fit` to the last.

    Pruned weights stay exactly zero; with a dynamic method, every `update_every` steps each
    kernel drops its weakest weights and grows as many elsewhere (paper, Algorithm 2). The
    logs, and so the progress bar and every other logger, gain `sparsity`.

    Args:
        method: `"rigl"`, `"magran"`, `"static"` or a `SparsityMethod`.
        update_every: Training steps between topology updates (the paper's exploration
            frequency), 1 or more. Updates come at its multiples.
        prune_rate: Share of each kernel's active weights that an update exchanges, in (0, 1].
        start_step: First training step at which an update may come.
        stop_step: Last such step; -1 for the whole run, as in the paper.
        schedule: `"constant"`, `"cosine"` (falls to zero at `stop_step`) or a
            `PruningSchedule` of tensorflow_model_optimization, which then alone says when
            and how much.
        seed: Integer seed of the methods that draw.
        log_dir: Optional folder for TensorBoard scalars: each kernel's density, and the share
            of its active weights exchanged at each update.

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
        log_dir=None,
    ):
        super().__init__()
        self.method = get_method(method)
        from keras_sparse_dm.sparsity.schedules import make_schedule

        self.schedule = make_schedule(schedule, prune_rate, update_every, start_step, stop_step)
        self.seed = seed
        self.log_dir = log_dir
        self._writer = None
        self._seen_updates = 0
        self._sparsity = None
        self._verified = False

    def set_model(self, model):
        super().set_model(model)
        # Keras calls this before it makes the train function, which then contains the
        # masked step.
        self._optimizer = install(model, self.method, self.schedule, self.seed)

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
        if self._writer is None or self.method.name == "static":
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

            with self._writer.as_default(step=int(self._optimizer.iterations)):
                for k in report.kernels:
                    tf.summary.scalar(f"density/{k.name}", k.density)
            self._writer.flush()

    def on_train_end(self, logs=None):
        # A callback before this one may have put back the weights and masks of an epoch before.
        self._optimizer.clear_pruned()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _verify(self):
        """Stops training by an optimizer that moves pruned weights although it is given none."""
        for k in self._optimizer.kernels:
            pruned = keras.ops.where(k.mask, keras.ops.zeros_like(k.kernel), k.kernel)
            if bool(keras.ops.any(pruned != 0)):
                raise ValueError(
                    f"Optimizer {type(self._optimizer.inner_optimizer).__name__} changes pruned "
                    f"weights ({k.name}) although their gradients are zero; sparse training "
                    "needs one that updates each weight from its own gradient and state."
                )
        self._verified = True

    def _log_update(self):
        import tensorflow as tf

        ones = self._optimizer.mask_ones()
        with self._writer.as_default(step=int(self._optimizer.iterations)):
            for name, count in self._optimizer.exchanged().items():
                tf.summary.scalar(f"exchanged/{name}", count / max(1, ones[name]))


def install(model, method, schedule=None, seed=None):
    """Makes a compiled model's optimizer a `SparseOptimizer`, once.

    A model that has one already (it was loaded, or `fit` is called again) keeps it with all
    its state; its method and schedule become those given.

    Args:
        model: A built and compiled `keras.Model` that was made sparse.
        method, schedule, seed: As in `SparseOptimizer`.

    Returns:
        The `SparseOptimizer`.

    Raises:
        ValueError: if the model is not compiled, has nothing sparse, or is compiled under a
            distribution strategy of several replicas.
    """
    if getattr(model, "optimizer", None) is None:
        raise ValueError(f"Compile model {model.name!r} with an optimizer before training it.")
    if not model.built or not masked_kernels(model):
        raise ValueError(
            f"Model {model.name!r} was never made sparse: build it from "
            "`keras_sparse_dm.layers` and call `keras_sparse_dm.sparsify(model, sparsity)`."
        )
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is not None and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "Sparse training runs on one replica only for now; the model was compiled under "
            f"{type(strategy).__name__} with {strategy.num_replicas_in_sync}."
        )
    optimizer = innermost_sparse_optimizer(model)
    if optimizer is None:
        # Below loss scaling, so that gradients come unscaled and only when they are finite.
        outer = model.optimizer
        if isinstance(outer, keras.optimizers.LossScaleOptimizer):
            optimizer = SparseOptimizer(outer.inner_optimizer, method, schedule, seed)
            outer.inner_optimizer = optimizer
        else:
            optimizer = SparseOptimizer(outer, method, schedule, seed)
            model.optimizer = optimizer
        optimizer.attach(model)
        # What `compile` recorded for saving, and the functions that hold the old optimizer.
        model._compile_config.config["optimizer"] = model.optimizer
        model.train_function = None
    else:
        changed = optimizer.configure(method, schedule)
        optimizer.attach(model)
        if changed:
            model.train_function = None
    return optimizer
