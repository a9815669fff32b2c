"""What every sparse layer shares: one boolean mask beside each kernel."""

import keras
import numpy as np


class MaskedKernels:
    """Mixin that gives a Keras layer one boolean mask per kernel.

    The mask says where the kernel may differ from zero. It never enters the forward pass:
    pruned weights are zero in the kernel itself, so `call` is the parent's, unchanged, and a
    layer whose masks are full computes bit for bit what the Keras layer computes.

    A subclass lists the mixin before the Keras layer, names its kernels in `_kernels` and
    calls `_add_masks` at the end of `build`; `kernel_applications` is what FLOPs are counted
    from:

    ```python
    @keras.saving.register_keras_serializable(package="keras_sparse_dm")
    class SparseDense(MaskedKernels, keras.layers.Dense):
        def build(self, input_shape):
            super().build(input_shape)
            self._add_masks()

        def _kernels(self):
            return {"kernel": self._kernel}

        def kernel_applications(self, input_shape):
            return [math.prod(input_shape[1:-1])]
    ```
    """

    _mask_variables = ()

    def _kernels(self):
        """Returns `{name: kernel variable}` of a built layer."""
        raise TypeError(f"{type(self).__name__} must name its kernels in `_kernels()`.")

    def kernel_applications(self, input_shape):
        """How often each kernel is applied to one example, in the order of `masks`.

        Args:
            input_shape: Shape of the layer's input, the batch axis first.
        """
        raise TypeError(f"{type(self).__name__} must say how often its kernels are applied.")

    def _add_masks(self):
        # Only the masks are kept: a kernel held here too would be tracked twice where it
        # belongs to a cell.
        self._mask_variables = [
            self.add_weight(
                name=f"{name}_mask",
                shape=kernel.shape,
                dtype="bool",
                initializer="ones",
                trainable=False,
            )
            for name, kernel in self._kernels().items()
        ]
        for kernel, mask in self.masks:
            kernel.constraint = SparseTrainingOnly(mask, kernel.constraint)

    @property
    def masks(self):
        """List of `(kernel variable, mask variable)`; empty before the layer is built.

        A mask is boolean, has its kernel's shape, and is True where a weight is active.
        """
        if not self._mask_variables:
            return []
        return list(zip(self._kernels().values(), self._mask_variables, strict=True))

    def _mask_keys(self):
        # Keras stores a layer's variables under their position among all of them.
        own = [id(v) for v in self._trainable_variables + self._non_trainable_variables]
        return {str(own.index(id(mask))): mask for mask in self._mask_variables}

    def save_own_variables(self, store):
        super().save_own_variables(store)
        # Some Keras layers (Dense among them) list what they save, and leave the masks out.
        saved = set(store.keys())
        for key, mask in self._mask_keys().items():
            if key not in saved:
                store[key] = mask

    def load_own_variables(self, store):
        masks = self._mask_keys()
        stored = {key: store[key] for key in store.keys()}
        own = len(self._trainable_variables + self._non_trainable_variables)
        if len(stored) + len(masks) == own:
            # Weights of the plain Keras layer: nothing in them is pruned.
            stored |= {key: np.ones(mask.shape, "bool") for key, mask in masks.items()}
        super().load_own_variables(stored)
        for key, mask in masks.items():
            mask.assign(stored[key])


class SparseTrainingOnly(keras.constraints.Constraint):
    """Stands on every sparse kernel, so that no optimizer trains its pruned weights.

    Keras applies a variable's constraint after an optimizer's update. `SparseOptimizer` puts
    the kernel's own constraint in its place while it works. Any other optimizer meets this
    one: where the mask prunes, it raises, before the first step wherever steps are compiled.
    A step that was compiled while the mask was still full keeps the pruned weights at zero.

    Args:
        mask: The kernel's mask variable.
        constraint: The kernel's own constraint, or None.
    """

    def __init__(self, mask, constraint=None):
        self.mask = mask
        self.constraint = constraint

    def __call__(self, w):
        if _prunes(self.mask):
            raise ValueError(
                "This model is sparse, and this optimizer would train its pruned weights too: "
                "pass the callback `keras_sparse_dm.DynamicSparsity` to `fit` (method 'static' "
                "keeps the masks as they are), or use `keras_sparse_dm.sparsity.SparseOptimizer` "
                "in a loop of your own."
            )
        if self.constraint is not None:
            w = self.constraint(w)
        return keras.ops.where(self.mask, w, keras.ops.zeros_like(w))


def _prunes(mask):
    """Whether a mask prunes anything now, also while a TensorFlow function is traced."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():
            return not np.all(keras.ops.convert_to_numpy(mask))
    return not np.all(keras.ops.convert_to_numpy(mask))
