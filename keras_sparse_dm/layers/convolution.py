"""Sparse convolutions: regular, transposed, depthwise and separable."""

import math

import keras

from keras_sparse_dm._keras import kernel_variable
from keras_sparse_dm.layers.kernel_mask import KernelAxes
from keras_sparse_dm.layers.masked import MaskedKernels

_registered = keras.saving.register_keras_serializable(package="keras_sparse_dm")


class _Convolution(MaskedKernels):
    """Base of convolutions with kernels of shape `(*window, inputs / groups, filters)`."""

    def _kernels(self):
        return {"kernel": kernel_variable(self)}

    def _kernel_axes(self, name):
        return KernelAxes(groups=self.groups)


class _Transposed(MaskedKernels):
    """Base of convolutions with kernels of shape `(*window, filters, inputs)`."""

    def _kernels(self):
        return {"kernel": self.kernel}

    def _kernel_axes(self, name):
        return KernelAxes(inputs=(-1,), outputs=(-2,))

    def kernel_applications(self, input_shape):
        # The kernel is applied once for each input position.
        return [math.prod(input_shape[1:]) // self.kernel.shape[-1]]


class _Depthwise(MaskedKernels):
    """Base of convolutions with kernels of shape `(*window, inputs, multiplier)`."""

    def _kernels(self):
        return {"kernel": self.kernel}

    def _kernel_axes(self, name):
        return KernelAxes(inputs=(-2,), outputs=(-2, -1))


class _Separable(MaskedKernels):
    """Base of convolutions with a depthwise kernel followed by a pointwise kernel."""

    def _kernels(self):
        return {
            "depthwise_kernel": self.depthwise_kernel,
            "pointwise_kernel": self.pointwise_kernel,
        }

    def _kernel_axes(self, name):
        return KernelAxes((-2,), (-2, -1)) if name == "depthwise_kernel" else KernelAxes()

    def kernel_applications(self, input_shape):
        positions = math.prod(self.compute_output_shape(input_shape)[1:]) // self.filters
        return [positions, positions]


@_registered
class SparseConv1D(_Convolution, keras.layers.Conv1D):
    """A `keras.layers.Conv1D` whose kernel can be sparse; same arguments and results."""


@_registered
class SparseConv2D(_Convolution, keras.layers.Conv2D):
    """A `keras.layers.Conv2D` whose kernel can be sparse; same arguments and results."""


@_registered
class SparseConv3D(_Convolution, keras.layers.Conv3D):
    """A `keras.layers.Conv3D` whose kernel can be sparse; same arguments and results."""


@_registered
class SparseConv1DTranspose(_Transposed, keras.layers.Conv1DTranspose):
    """A `keras.layers.Conv1DTranspose` whose kernel can be sparse; same arguments and results."""


@_registered
class SparseConv2DTranspose(_Transposed, keras.layers.Conv2DTranspose):
    """A `keras.layers.Conv2DTranspose` whose kernel can be sparse; same arguments and results."""


@_registered
class SparseConv3DTranspose(_Transposed, keras.layers.Conv3DTranspose):
    """A `keras.layers.Conv3DTranspose` whose kernel can be sparse; same arguments and results."""


@_registered
class SparseDepthwiseConv1D(_Depthwise, keras.layers.DepthwiseConv1D):
    """A `keras.layers.DepthwiseConv1D` whose kernel can be sparse; same arguments and results."""


@_registered
class SparseDepthwiseConv2D(_Depthwise, keras.layers.DepthwiseConv2D):
    """A `keras.layers.DepthwiseConv2D` whose kernel can be sparse; same arguments and results."""


@_registered
class SparseSeparableConv1D(_Separable, keras.layers.SeparableConv1D):
    """A `keras.layers.SeparableConv1D` whose kernels can be sparse; same arguments and results."""


@_registered
class SparseSeparableConv2D(_Separable, keras.layers.SeparableConv2D):
    """A `keras.layers.SeparableConv2D` whose kernels can be sparse; same arguments and results."""
