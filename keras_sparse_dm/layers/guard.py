"""Guard of sparse kernels, which stops plain optimizers from training pruned weights."""

import contextlib
import threading

import keras
import numpy as np

from keras_sparse_dm.lazy import lazy_module

tf = lazy_module("tensorflow")

_work = threading.local()


class SparseTrainingOnly(keras.constraints.Constraint):
    """Constraint of a kernel that refuses updates of pruned weights outside sparse training.

    Keras applies a variable's constraint after each optimizer update. `SparseOptimizer` makes its
    updates within `sparse_training`; the guard then only applies the kernel's own constraint.
    With any other optimizer the guard raises an error if the mask prunes anything; for compiled
    steps, before the first step. A step that was compiled while the mask was still full keeps
    pruned weights at zero.

    Args:
        record: The kernel's `KernelMask`.
        constraint: The kernel's own constraint, or None.
    """

    def __init__(self, record, constraint=None):
        self.record = record
        self.constraint = constraint

    def __call__(self, w):
        own = self.constraint or (lambda w: w)
        if getattr(_work, "sparse", False):
            return own(w)
        if _prunes(self.record, w):
            raise ValueError(
                "This model is sparse, and this optimizer would train its pruned weights too: "
                "pass the callback `keras_sparse_dm.DynamicSparsity` to `fit` (method 'static' "
                "keeps the masks as they are). In your own training loop, or for optimizers other "
                "than `model.optimizer`, wrap each optimizer with "
                "`keras_sparse_dm.sparse_optimizer`."
            )
        mask = keras.ops.convert_to_tensor(self.record.mask)
        w = keras.ops.convert_to_tensor(own(w))
        return keras.ops.where(mask, w, keras.ops.zeros((), w.dtype))

    def get_config(self):
        return {"constraint": keras.saving.serialize_keras_object(self.constraint)}


@contextlib.contextmanager
def sparse_training():
    """Context in which guards accept updates, in this thread only.

    Replicas of `tf.distribute` are threads, and other models may train at the same time.
    """
    before = getattr(_work, "sparse", False)
    _work.sparse = True
    try:
        yield
    finally:
        _work.sparse = before


def guard(kernel, record):
    """Put a guard on a kernel, around the kernel's own constraint.

    Args:
        kernel: The `keras.Variable`.
        record: Its `KernelMask`.
    """
    if not isinstance(kernel.constraint, SparseTrainingOnly):
        kernel.constraint = SparseTrainingOnly(record, kernel.constraint)


def unguard(kernel):
    """Restore a kernel's own constraint."""
    if isinstance(kernel.constraint, SparseTrainingOnly):
        kernel.constraint = kernel.constraint.constraint


def guarded(variable):
    """Return the `KernelMask` of a guarded kernel, or None for any other variable."""
    return getattr(getattr(variable, "constraint", None), "record", None)


def _prunes(record, kernel):
    """Tell if a mask prunes anything now, also while a step is traced."""
    backend = keras.backend.backend()
    with tf.init_scope() if backend == "tensorflow" else contextlib.nullcontext():
        # A step that JAX traces cannot read the weights.
        if isinstance(kernel, keras.Variable) and backend != "jax":
            record.follow(kernel)
        return not np.all(keras.ops.convert_to_numpy(record.mask))
