"""Keras layers with masked kernels, drop-in replacements for the Keras layers."""

from keras_sparse_dm.layers.attention import SparseGroupedQueryAttention, SparseMultiHeadAttention
from keras_sparse_dm.layers.convolution import (
    SparseConv1D,
    SparseConv1DTranspose,
    SparseConv2D,
    SparseConv2DTranspose,
    SparseConv3D,
    SparseConv3DTranspose,
    SparseDepthwiseConv1D,
    SparseDepthwiseConv2D,
    SparseSeparableConv1D,
    SparseSeparableConv2D,
)
from keras_sparse_dm.layers.dense import SparseDense, SparseEinsumDense
from keras_sparse_dm.layers.kernel_mask import KernelAxes
from keras_sparse_dm.layers.masked import MaskedKernels
from keras_sparse_dm.layers.recurrent import (
    SparseGRU,
    SparseGRUCell,
    SparseLSTM,
    SparseLSTMCell,
    SparseSimpleRNN,
    SparseSimpleRNNCell,
)

__all__ = [
    "KernelAxes",
    "MaskedKernels",
    "SparseConv1D",
    "SparseConv1DTranspose",
    "SparseConv2D",
    "SparseConv2DTranspose",
    "SparseConv3D",
    "SparseConv3DTranspose",
    "SparseDense",
    "SparseDepthwiseConv1D",
    "SparseDepthwiseConv2D",
    "SparseEinsumDense",
    "SparseGRU",
    "SparseGRUCell",
    "SparseGroupedQueryAttention",
    "SparseLSTM",
    "SparseLSTMCell",
    "SparseMultiHeadAttention",
    "SparseSeparableConv1D",
    "SparseSeparableConv2D",
    "SparseSimpleRNN",
    "SparseSimpleRNNCell",
]
