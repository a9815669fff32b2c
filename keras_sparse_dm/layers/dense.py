"""`SparseDense`: `keras.layers.Dense` with a mask on its kernel."""

import math

import keras

from keras_sparse_dm.layers.masked import MaskedKernels


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class SparseDense(MaskedKernels, keras.layers.Dense):
    """A `keras.layers.Dense` whose kernel can be sparse.

    Takes the arguments of `keras.layers.Dense` and computes the same; until
    `keras_sparse_dm.sparsify` draws its mask, it is dense.

    Args:
        units: Positive integer, dimensionality of the output.
        *args, **kwargs: As in `keras.layers.Dense`.

    Input shape:
        `(batch_size, ..., inputs)`.

    Output shape:
        `(batch_size, ..., units)`.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), SparseDense(4)])
    >>> report = keras_sparse_dm.sparsify(model, sparsity=0.5)
    >>> [(kernel, mask)] = model.layers[0].masks
    """

    def build(self, input_shape):
        super().build(input_shape)
        self._add_masks()

    def _kernels(self):
        return {"kernel": self._kernel}

    def kernel_applications(self, input_shape):
        return [math.prod(input_shape[1:-1])]
