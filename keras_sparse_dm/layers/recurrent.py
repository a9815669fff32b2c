"""Sparse recurrent layers and cells, with masks on their two kernels.

A kernel with several gates counts as one matrix: `(inputs, gates * units)` or
`(units, gates * units)`.
"""

import keras

from keras_sparse_dm.layers.masked import MaskedKernels

_registered = keras.saving.register_keras_serializable(package="keras_sparse_dm")


class _Cell(MaskedKernels):
    def _kernels(self):
        return {"kernel": self.kernel, "recurrent_kernel": self.recurrent_kernel}

    def kernel_applications(self, input_shape):
        # Applications in one time step.
        return [1, 1]


class _Recurrent(MaskedKernels):
    """Base of recurrent layers, whose kernels and masks belong to the cell."""

    def _parts(self):
        return [self.cell]


@_registered
class SparseGRUCell(_Cell, keras.layers.GRUCell):
    """A `keras.layers.GRUCell` whose kernels can be sparse; same arguments and results."""


@_registered
class SparseLSTMCell(_Cell, keras.layers.LSTMCell):
    """A `keras.layers.LSTMCell` whose kernels can be sparse; same arguments and results."""


@_registered
class SparseSimpleRNNCell(_Cell, keras.layers.SimpleRNNCell):
    """A `keras.layers.SimpleRNNCell` whose kernels can be sparse; same arguments and results."""


@_registered
class SparseGRU(_Recurrent, keras.layers.GRU):
    """A `keras.layers.GRU` whose kernels can be sparse, alone or in `Bidirectional`.

    Takes the arguments of `keras.layers.GRU` and computes the same, with cuDNN too. The kernels
    count as matrices of shapes `(inputs, 3 * units)` and `(units, 3 * units)`.

    Args:
        units: Positive integer, dimensionality of the output.
        *args, **kwargs: Arguments of `keras.layers.GRU`.

    Call arguments:
        sequences: Tensor of shape `(batch_size, timesteps, features)`.
        mask: Optional boolean tensor `(batch_size, timesteps)`, False at padding.
        training: Whether dropout applies.
        initial_state: Optional list with one tensor `(batch_size, units)`.

    Output shape:
        `(batch_size, units)`, or `(batch_size, timesteps, units)` with `return_sequences`.

    Example:

    >>> layer = keras.layers.Bidirectional(SparseGRU(8, return_sequences=True))
    >>> layer(keras.random.normal((2, 5, 3))).shape
    TensorShape([2, 5, 16])
    """


@_registered
class SparseLSTM(_Recurrent, keras.layers.LSTM):
    """A `keras.layers.LSTM` whose kernels can be sparse; same arguments and results."""


@_registered
class SparseSimpleRNN(_Recurrent, keras.layers.SimpleRNN):
    """A `keras.layers.SimpleRNN` whose kernels can be sparse; same arguments and results."""
