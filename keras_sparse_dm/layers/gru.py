"""`SparseGRU`: `keras.layers.GRU` with masks on its two kernels."""

import keras

from keras_sparse_dm.layers.masked import MaskedKernels


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class SparseGRU(MaskedKernels, keras.layers.GRU):
    """A `keras.layers.GRU` whose kernels can be sparse, alone or in `Bidirectional`.

    Takes the arguments of `keras.layers.GRU` and computes the same, cuDNN included. The
    two kernels are counted as the matrices that they are: `(inputs, 3 * units)` and
    `(units, 3 * units)`.

    Args:
        units: Positive integer, dimensionality of the output.
        *args, **kwargs: As in `keras.layers.GRU`.

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

    def build(self, sequences_shape, initial_state_shape=None):
        super().build(sequences_shape, initial_state_shape)
        self._add_masks()

    def _kernels(self):
        return {"kernel": self.cell.kernel, "recurrent_kernel": self.cell.recurrent_kernel}

    def kernel_applications(self, input_shape):
        return [input_shape[1], input_shape[1]]
