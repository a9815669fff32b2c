"""Keras layers whose kernels carry a mask, drop-in for the Keras layer of the same name."""

from keras_sparse_dm.layers.dense import SparseDense
from keras_sparse_dm.layers.gru import SparseGRU
from keras_sparse_dm.layers.masked import MaskedKernels

__all__ = ["MaskedKernels", "SparseDense", "SparseGRU"]
