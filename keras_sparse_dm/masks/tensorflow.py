"""Fast selection of the k largest scores on TensorFlow."""

import functools

import tensorflow as tf
from keras import ops

from keras_sparse_dm._keras import shared_function
from keras_sparse_dm.masks.select import BLOCK, find_by_counts, first_to_reach, select


@functools.cache
def shared_select():
    """Return `select` as one function that all kernels of a graph share.

    Tracing it again for every kernel would make large models slow to start.
    """
    return shared_function(
        lambda values, k: select(
            values, k, find_by_histogram if has_fast_bincount() else find_by_counts
        ),
        input_signature=[tf.TensorSpec((None, BLOCK), "int32"), tf.TensorSpec((), "int32")],
    )


def has_fast_bincount():
    """Tell if `Bincount` is fast here, as it is on a CPU, with and without XLA.

    On a GPU it fails under `tf.config.experimental.enable_op_determinism`.
    """
    return not tf.config.list_physical_devices("GPU")


def find_by_histogram(values, k):
    """Return the result of `find_by_counts`, from two passes of `Bincount`."""
    threshold, above = ops.zeros((), "int32"), ops.zeros((), "int32")
    for shift, size in ((16, 1 << 15), (0, 1 << 16)):
        # Values whose higher bits differ from those found are too large for any bin, and Bincount
        # ignores them. The array is flat because XLA's Bincount counts each row of a matrix apart.
        digits = ops.reshape(ops.right_shift(ops.bitwise_xor(values, threshold), shift), (-1,))
        bins = tf.raw_ops.Bincount(arr=digits, size=size, weights=tf.zeros((0,), "int32"))
        # Search rows of bins first, then the bins of one row: XLA's running sum over all bins
        # takes quadratic time.
        rows = ops.reshape(bins, (-1, 256))
        row, above, _ = first_to_reach(k, ops.sum(rows, axis=1), above)
        column, above, reached = first_to_reach(k, ops.take(rows, row, axis=0), above)
        threshold = threshold + ops.left_shift(256 * row + column, shift)
    # If all ties belong to the k largest, the next lower threshold includes them.
    all_ties = reached == k
    return ops.where(all_ties, threshold - 1, threshold), ops.where(all_ties, reached, above)
