"""Sparse dense layers: `SparseDense` and `SparseEinsumDense`."""

import math

import keras

from keras_sparse_dm._keras import kernel_variable
from keras_sparse_dm.layers.kernel_mask import KernelAxes
from keras_sparse_dm.layers.masked import MaskedKernels


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class SparseDense(MaskedKernels, keras.layers.Dense):
    """A `keras.layers.Dense` whose kernel can be sparse.

    Takes the arguments of `keras.layers.Dense` and computes the same. The layer is dense until
    `keras_sparse_dm.sparsify` draws its mask.

    Args:
        units: Positive integer, dimensionality of the output.
        *args, **kwargs: Arguments of `keras.layers.Dense`.

    Input shape:
        `(batch_size, ..., inputs)`.

    Output shape:
        `(batch_size, ..., units)`.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), SparseDense(4)])
    >>> report = keras_sparse_dm.sparsify(model, sparsity=0.5)
    >>> [(kernel, mask)] = model.layers[0].masks
    """

    def _kernels(self):
        return {"kernel": kernel_variable(self)}


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class SparseEinsumDense(MaskedKernels, keras.layers.EinsumDense):
    """A `keras.layers.EinsumDense` whose kernel can be sparse.

    Takes the arguments of `keras.layers.EinsumDense` and computes the same. The kernel counts as
    a matrix: the axes that the equation sums over are its inputs, the others its outputs.

    Args:
        equation: String, the einsum equation, such as `"...x,xy->...y"`.
        output_shape: Integer or tuple, the output shape without the batch axis.
        *args, **kwargs: Arguments of `keras.layers.EinsumDense`.

    Example:

    >>> layer = SparseEinsumDense("abc,cde->abde", output_shape=(None, 4, 16))
    >>> layer(keras.random.normal((2, 5, 8))).shape
    TensorShape([2, 5, 4, 16])
    """

    def _kernels(self):
        return {"kernel": kernel_variable(self)}

    def _kernel_axes(self, name):
        inputs, kernel, output = self.equation.replace("->", ",").replace(" ", "").split(",")
        axes = {label: i - len(kernel) for i, label in enumerate(kernel)}
        return KernelAxes(
            # An axis shared by input, kernel and output connects each feature only with itself.
            inputs=tuple(axes[label] for label in kernel if label in inputs),
            outputs=tuple(axes[label] for label in kernel if label in output),
        )

    def kernel_applications(self, input_shape):
        # Once for each position along the axes that the kernel does not have.
        axes = self._kernel_axes("kernel")
        inputs = math.prod(kernel_variable(self).shape[axis] for axis in axes.inputs)
        return [math.prod(input_shape[1:]) // inputs]
