"""Fast stack of GRUs and its gradient, compared with Keras's layers."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from gru_stacks import make_layers, one_after_the_other
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_sparse_dm.models.chirodiff.recurrent_gradient import trainable_outputs, trains_as_stack
from keras_sparse_dm.models.chirodiff.recurrent_stack import PART

by_keras = functools.partial(one_after_the_other, training=True)


def outputs_and_gradients(compute, layers, sequences, mask, upstream):
    """Return outputs, and gradients of the inputs and of all weights."""
    weights = [v.value for layer in layers for v in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(sequences)
        outputs = compute(layers, sequences, mask)
        total = tf.reduce_sum(tf.cast(outputs, "float32") * upstream)
    return outputs, tape.gradient(total, [sequences, *weights])


def assert_same(got, wanted, tolerance=1e-5):
    np.testing.assert_allclose(got[0], wanted[0], atol=tolerance, rtol=0)
    for mine, theirs in zip(got[1], wanted[1], strict=True):
        mine, theirs = np.asarray(mine, "float64"), np.asarray(theirs, "float64")
        scale = max(np.abs(theirs).max(), 1.0)
        np.testing.assert_allclose(mine, theirs, atol=tolerance * scale, rtol=0)


def example(seed, batch_size, length, lengths=None, features=4, units=3):
    rng = np.random.default_rng(seed)
    if lengths is None:
        lengths = rng.integers(1, length + 1, batch_size)
    sequences = rng.normal(size=(batch_size, length, features)).astype("float32")
    mask = np.arange(length)[None] < np.asarray(lengths)[:, None]
    upstream = rng.normal(size=(batch_size, length, 2 * units)).astype("float32")
    return tf.constant(sequences), tf.constant(mask), tf.constant(upstream)


@pytest.fixture(scope="module")
def layers():
    return make_layers()


@pytest.mark.parametrize(
    "how, length",
    [
        *(("eager", length) for length in (1, PART - 1, PART, PART + 1, 3 * PART - 1)),
        ("graph", 1),
        ("graph", 3 * PART - 1),
        ("xla", PART + 1),
    ],
)
def test_computes_what_the_layers_do_and_its_gradient(layers, how, length):
    data = example(length, 6, length)
    wanted = outputs_and_gradients(by_keras, layers, *data)
    assert np.abs(wanted[1][1]).max() > 0.1
    run = outputs_and_gradients
    if how != "eager":
        run = tf.function(run, jit_compile=how == "xla")
    assert_same(run(trainable_outputs, layers, *data), wanted)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), length=st.integers(1, 20), batch_size=st.integers(1, 5))
def test_serves_any_mask(layers, seed, length, batch_size):
    sequences, _, upstream = example(seed, batch_size, length)
    mask = tf.constant(np.random.default_rng(seed).random((batch_size, length)) < 0.7)
    got, wanted = (
        outputs_and_gradients(compute, layers, sequences, mask, upstream)
        for compute in (trainable_outputs, by_keras)
    )
    assert_same(got, wanted)


def test_one_graph_serves_all_shapes(layers):
    specs = [
        tf.TensorSpec((None, None, 4)),
        tf.TensorSpec((None, None), "bool"),
        tf.TensorSpec((None, None, 6)),
    ]
    traced = []

    @tf.function(input_signature=specs)
    def run(*data):
        traced.append(data)
        return outputs_and_gradients(trainable_outputs, layers, *data)

    for batch_size, length in ((2, 3), (4, 2 * PART + 5)):
        data = example(0, batch_size, length)
        assert_same(run(*data), outputs_and_gradients(by_keras, layers, *data))
    assert len(traced) == 1


def test_the_gradient_of_a_function_that_was_called_inside_the_tape(layers):
    data = example(3, 4, PART + 3)
    inside = tf.function(trainable_outputs)
    wanted = outputs_and_gradients(by_keras, layers, *data)
    assert_same(outputs_and_gradients(inside, layers, *data), wanted)


def test_padding_gets_no_gradient_and_changes_nothing(layers):
    sequences, mask, upstream = example(1, 3, 2 * PART, lengths=[2, PART, 2 * PART - 1])
    other = tf.where(mask[..., None], sequences, 7.0)
    first, second = (
        outputs_and_gradients(trainable_outputs, layers, x, mask, upstream)
        for x in (sequences, other)
    )
    np.testing.assert_allclose(first[0], second[0], atol=1e-6)
    for a, b in zip(first[1], second[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert not np.any(first[1][0].numpy()[~mask.numpy()])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    layers = make_layers()
    data = example(5, 4, PART + 2)
    wanted = outputs_and_gradients(trainable_outputs, layers, *data)
    sequences, mask, upstream = data
    got = outputs_and_gradients(
        trainable_outputs, layers, tf.cast(sequences, dtype), mask, upstream
    )
    assert got[0].dtype == dtype and got[1][1].dtype == "float32"
    assert_same(got, wanted, tolerance=0.02 if dtype == "float16" else 0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu"},
        {"recurrent_activation": "hard_sigmoid"},
        {"dropout": 0.1},
        {"recurrent_dropout": 0.1},
        {"reset_after": False},
    ],
)
def test_leaves_to_keras_what_it_does_not_compute(options):
    assert trains_as_stack(make_layers())
    assert not trains_as_stack(make_layers(**options))
