"""`DynamicSparsity`, the callback for sparse training in `fit`."""

import warnings

import keras
import numpy as np

from keras_sparse_dm.lazy import lazy_module, load
from keras_sparse_dm.sparsity.install import install
from keras_sparse_dm.sparsity.options import SparsityOptions, takes_options
from keras_sparse_dm.sparsity.report import sparsity_report
from keras_sparse_dm.sparsity.schedules import next_update
from keras_sparse_dm.sparsity.topology_update import masked

tensorboard = lazy_module("tensorboard")
tf = lazy_module("tensorflow")


class DynamicSparsity(keras.callbacks.Callback):
    """Callback that trains a sparse model sparsely in every step of `fit`.

    Pruned weights stay exactly zero. With a dynamic method, every kernel drops its weakest weights
    and grows as many others every `update_every` steps (paper, Algorithm 2). The callback adds
    `sparsity` to the logs, and so to the progress bar and other loggers.

    Args:
        *args, **options: Arguments of `SparsityOptions`: `method`, `update_every`, `prune_rate`,
            `start_step`, `stop_step`, `schedule`, `seed`, `competition`, `grow_init`,
            `gradient_steps`, `grow_warmup`.
        log_dir: Optional folder for TensorBoard, which must be installed. Logs each kernel's
            density, the share of its active weights exchanged by each update, the share of its
            weights that have ever been active, and an image of each mask after every epoch.

    Put callbacks that read `sparsity` from the logs after this one. Callbacks that restore earlier
    weights (EarlyStopping) may come before or after it; the masks adapt to the restored weights.
    Weights that grew just before the restored epoch are still zero there, so the adapted mask may
    have other weights in their place.

    Raises:
        ValueError: as `SparsityOptions`; and from `fit`, before the first step, if the model has
            no sparse kernel, nothing is pruned, or the optimizer or distribution strategy is not
            supported.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model.compile("adam", "mse")
    >>> report = sparsify(model, sparsity=0.9)
    >>> callback = DynamicSparsity("rigl", update_every=100, prune_rate=0.3)
    >>> history = model.fit(np.ones((8, 8)), np.ones((8, 4)), callbacks=[callback])
    """

    @takes_options
    def __init__(self, *args, log_dir=None, **options):
        super().__init__()
        if log_dir is not None:
            # TensorFlow writes scalars only if it finds TensorBoard.
            load(tensorboard)
        self.options = SparsityOptions(*args, **options)
        # Options are attributes of the callback too.
        vars(self).update(vars(self.options))
        self.log_dir = log_dir
        self._writer = None
        self._seen_updates = 0
        self._sparsity = None
        self._verified = False
        self._warned = False

    def set_model(self, model):
        super().set_model(model)
        # Keras calls this before it makes the train function, which then includes sparse training.
        self._optimizer = install(model, self.options)

    def on_train_begin(self, logs=None):
        if self.log_dir is not None and self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))
        self._seen_updates = self._optimizer.topology_updates
        self._sparsity = sparsity_report(self.model).sparsity
        self._warned = False

    def on_epoch_begin(self, epoch, logs=None):
        # A callback may have restored the weights of an earlier epoch.
        self._optimizer.sync_masks_with_weights()
        if not self._warned:
            self._warned = True
            self._warn_of_no_update(epoch)

    def on_train_batch_end(self, batch, logs=None):
        if logs is not None:
            logs["sparsity"] = self._sparsity
        if not self._verified:
            self._sync()
            self._verify()
        if self._writer is None or not self.method.dynamic:
            return
        self._sync()
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
            with self._writer.as_default(step=self._optimizer.steps):
                for k in report.kernels:
                    tf.summary.scalar(f"density/{k.name}", k.density)
                    if k.ever_active is not None:
                        tf.summary.scalar(f"ever_active/{k.name}", k.ever_active)
                for k in self._optimizer.kernels:
                    tf.summary.image(f"mask/{k.name}", _picture(k)[None, :, :, None])
            self._writer.flush()

    def on_train_end(self, logs=None):
        # A callback before this one may have restored the weights of an earlier epoch.
        self._optimizer.sync_masks_with_weights()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _sync(self):
        """Write the values of the last step to the variables; on JAX `fit` holds them apart."""
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()

    def _verify(self):
        """Raise a ValueError if a step has changed pruned weights."""
        for k in self._optimizer.kernels:
            if bool(keras.ops.any(masked(keras.ops.logical_not(k.mask), k.kernel) != 0)):
                raise ValueError(
                    f"Pruned weights of {k.name} have changed although their gradients are zero. "
                    f"Either optimizer {type(self._optimizer.inner_optimizer).__name__} does not "
                    "update each weight from its own gradient and state, or the kernel's own "
                    "constraint moves zeros, or something else has written to the kernel."
                )
        self._verified = True

    def _warn_of_no_update(self, epoch):
        """Warn if the next topology update would come after the end of `fit`."""
        batches = (self.params or {}).get("steps")
        if not (self.method.dynamic and batches):
            return
        done = self._optimizer.steps_since_start
        steps = (self.params["epochs"] - epoch) * batches // self._optimizer.accumulation_steps
        due = next_update(self.schedule, done)
        if due is not None and due > done + steps:
            warnings.warn(
                f"No topology update takes place in this `fit`: the next is due at step {due}, and "
                f"`fit` ends at step {done + steps}. Choose a smaller `update_every` (or "
                "`start_step`) or train for longer.",
                stacklevel=2,
            )

    def _log_update(self):
        ones = self._optimizer.mask_ones()
        with self._writer.as_default(step=self._optimizer.steps):
            for name, count in self._optimizer.exchanged().items():
                tf.summary.scalar(f"exchanged/{name}", count / max(1, ones[name]))


def _picture(k, side=256):
    """Return a mask as an image `(rows, columns)` of densities, at most `side` wide and high."""
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
