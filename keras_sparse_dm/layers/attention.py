"""Sparse attention layers, with masks on the kernels of their projections."""

import keras

from keras_sparse_dm._keras import attention_projections
from keras_sparse_dm.layers.masked import MaskedKernels


class _Attention(MaskedKernels):
    """Base of attention layers, whose kernels and masks belong to the projections."""

    def _parts(self):
        return attention_projections(self)


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class SparseMultiHeadAttention(_Attention, keras.layers.MultiHeadAttention):
    """A `keras.layers.MultiHeadAttention` whose projections can be sparse.

    Takes the arguments of `keras.layers.MultiHeadAttention` and computes the same. The kernels of
    the query, key, value and output projections count as matrices, of shapes
    `(features, heads * key_dim)` or `(heads * value_dim, features)`.

    Args:
        num_heads: Number of attention heads.
        key_dim: Size of each head for query and key.
        *args, **kwargs: Arguments of `keras.layers.MultiHeadAttention`.

    Call arguments:
        query: Tensor `(batch_size, target_length, features)`.
        value: Tensor `(batch_size, source_length, features)`.
        key: Optional tensor like `value`; `value` by default.

    Output shape:
        `(batch_size, target_length, features)`.

    Example:

    >>> layer = SparseMultiHeadAttention(num_heads=2, key_dim=4)
    >>> x = keras.random.normal((2, 5, 8))
    >>> len(layer(x, x) is not None and layer.masks)
    4
    """


@keras.saving.register_keras_serializable(package="keras_sparse_dm")
class SparseGroupedQueryAttention(_Attention, keras.layers.GroupQueryAttention):
    """A `keras.layers.GroupQueryAttention` whose projections can be sparse; same arguments."""
