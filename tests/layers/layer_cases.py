"""Cases for every layer with a sparse twin, and functions to compare both layers."""

from dataclasses import dataclass, field

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.ops import convert_to_numpy as numpy

import keras_sparse_dm as ksd

BATCH = 3
STEPS = 6
PADDING = np.arange(STEPS) < np.array([6, 2, 4])[:, None]

# Keras's name -> sparse layer.
SPARSE = {
    "GroupQueryAttention": ksd.layers.SparseGroupedQueryAttention,
    **{
        name.removeprefix("Sparse"): getattr(ksd.layers, name)
        for name in ksd.layers.__all__
        if name.startswith("Sparse") and name != "SparseGroupedQueryAttention"
    },
}


class Sparse:
    """Replacement of `keras.layers` with the sparse layers under Keras's names."""

    def __getattr__(self, name):
        return SPARSE.get(name) or getattr(layers, name)


PLAIN, TWIN = layers, Sparse()


@dataclass
class Case:
    make: object
    shapes: tuple
    call: dict = field(default_factory=dict)

    def inputs(self, dtype="float32"):
        random = np.random.default_rng(0)
        return [tf.constant(random.normal(size=(BATCH, *s)), dtype) for s in self.shapes]

    def symbolic_inputs(self):
        return [keras.Input(shape, batch_size=BATCH) for shape in self.shapes]


def case(make, *shapes, **call):
    return Case(make, shapes, call)


X = (STEPS, 4)
CASES = {
    "dense": case(lambda L: L.Dense(3, activation="gelu"), (7,)),
    "dense_3d": case(lambda L: L.Dense(3, use_bias=False, kernel_regularizer="l2"), X),
    "einsum": case(lambda L: L.EinsumDense("ab,bc->ac", 6, bias_axes="c"), (7,)),
    "einsum_heads": case(lambda L: L.EinsumDense("abc,cde->abde", (None, 3, 2), bias_axes="de"), X),
    "einsum_merge": case(lambda L: L.EinsumDense("abde,dec->abc", (None, 4)), (5, 3, 2)),
    "einsum_ellipsis": case(
        lambda L: L.EinsumDense("...x,xy->...y", 3, activation="relu", bias_axes="y"), (2, 3, 4)
    ),
    "einsum_shared": case(lambda L: L.EinsumDense("abc,bcd->abd", (STEPS, 3)), X),
    "einsum_diagonal": case(lambda L: L.EinsumDense("abc,cd->abcd", (None, 4, 3)), X),
    "conv1d": case(lambda L: L.Conv1D(6, 3, strides=2, activation="relu"), (8, 4)),
    "conv1d_causal": case(
        lambda L: L.Conv1D(4, 3, padding="causal", dilation_rate=2, groups=2), (8, 4)
    ),
    "conv2d": case(lambda L: L.Conv2D(5, (3, 2), strides=2, padding="same"), (6, 5, 4)),
    "conv2d_dilated": case(lambda L: L.Conv2D(5, 2, dilation_rate=2), (6, 5, 4)),
    "conv2d_groups": case(lambda L: L.Conv2D(6, 2, groups=2, use_bias=False), (4, 4, 4)),
    "conv2d_first": case(lambda L: L.Conv2D(5, 2, data_format="channels_first"), (4, 5, 6)),
    "conv3d": case(lambda L: L.Conv3D(3, 2, strides=(1, 2, 1)), (3, 4, 3, 2)),
    "conv1d_transpose": case(lambda L: L.Conv1DTranspose(5, 3, strides=2), (6, 4)),
    "conv2d_transpose": case(
        lambda L: L.Conv2DTranspose(5, 3, strides=2, padding="same", output_padding=1),
        (4, 3, 2),
    ),
    "conv2d_transpose_dilated": case(
        lambda L: L.Conv2DTranspose(3, 2, dilation_rate=2, use_bias=False), (4, 3, 2)
    ),
    "conv3d_transpose": case(lambda L: L.Conv3DTranspose(3, 2, strides=2), (2, 3, 2, 2)),
    "depthwise1d": case(lambda L: L.DepthwiseConv1D(3, depth_multiplier=2), (8, 4)),
    "depthwise2d": case(
        lambda L: L.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False), (6, 5, 4)
    ),
    "separable1d": case(lambda L: L.SeparableConv1D(5, 3, depth_multiplier=2), (8, 4)),
    "separable2d": case(
        lambda L: L.SeparableConv2D(5, 3, padding="same", use_bias=False), (6, 5, 4)
    ),
    "gru": case(lambda L: L.GRU(4, return_sequences=True, return_state=True), X),
    "gru_padded": case(lambda L: L.GRU(4), X, mask=tf.constant(PADDING)),
    "gru_reset_before": case(lambda L: L.GRU(4, reset_after=False, unroll=True), X),
    "gru_backwards": case(
        lambda L: L.GRU(4, go_backwards=True, return_sequences=True, use_bias=False), X
    ),
    "lstm": case(lambda L: L.LSTM(4, return_state=True), X),
    "lstm_padded": case(
        lambda L: L.LSTM(4, return_sequences=True, unit_forget_bias=False),
        X,
        mask=tf.constant(PADDING),
    ),
    "simple_rnn": case(lambda L: L.SimpleRNN(4, return_sequences=True), X),
    "gru_cell": case(lambda L: L.RNN(L.GRUCell(4)), X),
    "lstm_cell": case(lambda L: L.RNN(L.LSTMCell(4), return_sequences=True), X),
    "stacked_cells": case(
        lambda L: L.RNN(
            L.StackedRNNCells([L.LSTMCell(3), L.GRUCell(4), L.SimpleRNNCell(2)]),
            return_sequences=True,
        ),
        X,
    ),
    "bidirectional": case(
        lambda L: L.Bidirectional(L.LSTM(3, return_sequences=True), merge_mode="sum"),
        X,
        mask=tf.constant(PADDING),
    ),
    "bidirectional_two": case(
        lambda L: L.Bidirectional(
            L.GRU(3, name="f"), backward_layer=L.GRU(3, name="b", go_backwards=True)
        ),
        X,
    ),
    "time_distributed": case(lambda L: L.TimeDistributed(L.Conv1D(3, 2)), (4, 5, 3)),
    "attention": case(
        lambda L: L.MultiHeadAttention(2, 3, value_dim=4, output_shape=5),
        X,
        (5, 3),
        attention_mask=tf.constant(np.tri(STEPS, 5, dtype="bool")[None].repeat(BATCH, 0)),
    ),
    "attention_key": case(
        lambda L: L.MultiHeadAttention(2, 3, use_bias=False), X, X, X, use_causal_mask=True
    ),
    "attention_2d": case(
        lambda L: L.MultiHeadAttention(2, 3, attention_axes=(1, 2)), (2, 3, 4), (3, 2, 4)
    ),
    "grouped_attention": case(lambda L: L.GroupQueryAttention(3, 4, 2, use_gate=True), X, X),
    "multi_query_attention": case(
        lambda L: L.GroupQueryAttention(3, 2, 1, use_bias=False),
        X,
        (5, 4),
        attention_mask=tf.constant(np.tri(STEPS, 5, dtype="bool")[None].repeat(BATCH, 0)),
    ),
}

# One case for each class.
ONE_EACH = (
    *("dense", "einsum_heads", "conv1d", "conv2d", "conv3d", "conv1d_transpose"),
    *("conv2d_transpose", "conv3d_transpose", "depthwise1d", "depthwise2d", "separable1d"),
    *("separable2d", "gru", "lstm", "simple_rnn", "stacked_cells", "attention"),
    "grouped_attention",
)


def randomize(layer, seed=0):
    """Set every trained weight, including biases, to random values."""
    random = np.random.default_rng(seed)
    for v in layer.trainable_variables:
        v.assign(random.normal(size=v.shape) * 0.5)


def copy_trainable(source, target):
    """Copy the trained weights to the twin, matched by position, path and shape."""
    assert [v.shape for v in source.trainable_variables] == [
        v.shape for v in target.trainable_variables
    ]
    for a, b in zip(source.trainable_variables, target.trainable_variables, strict=True):
        assert a.name == b.name
        b.assign(a)


def twins(case, dtype=None):
    """Return the built Keras layer and the built sparse layer with equal random weights."""
    policy = keras.config.dtype_policy()
    if dtype is not None:
        keras.config.set_dtype_policy(dtype)
    try:
        theirs, ours = case.make(PLAIN), case.make(TWIN)
        for layer in (theirs, ours):
            layer(*case.inputs(), **case.call)
    finally:
        keras.config.set_dtype_policy(policy)
    randomize(theirs)
    copy_trainable(theirs, ours)
    return theirs, ours


def outputs_and_gradients(layer, case, xs):
    """Return outputs, and gradients of a loss with a different weight for every output entry."""
    with tf.GradientTape() as tape:
        tape.watch(xs)
        outputs = tf.nest.flatten(layer(*xs, **case.call))
        loss = sum(
            tf.reduce_sum(
                tf.cast(tf.sin(tf.range(1.0, tf.size(y) + 1)), y.dtype) * tf.reshape(y, [-1]) ** 2
            )
            for y in outputs
        )
    return outputs, tape.gradient(loss, [*xs, *layer.trainable_variables])


def assert_same_bits(ours, theirs):
    ours, theirs = tf.nest.flatten(ours), tf.nest.flatten(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        a, b = numpy(a), numpy(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()
