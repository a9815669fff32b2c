"""ChiroDiff's three GRU loops against Keras's own layers, on random inputs."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_sparse_dm.layers import SparseGRU
from keras_sparse_dm.models.chirodiff.gru_for_litert import litert_form
from keras_sparse_dm.models.chirodiff.gru_for_sampling import PART, can_sample, sampling_outputs
from keras_sparse_dm.models.chirodiff.gru_for_training import can_train, training_outputs

UNITS, FEATURES = (5, 3), 4


def make_layers(units=UNITS, features=FEATURES, **options):
    layers = []
    for number in units:
        gru = SparseGRU(number, return_sequences=True, **options)
        layers.append(keras.layers.Bidirectional(gru))
        layers[-1].build((None, None, features))
        features = 2 * number
    # Biases start at zero, which would hide where they are added.
    for layer in layers:
        for variable in layer.trainable_variables:
            variable.assign(keras.random.normal(variable.shape, stddev=0.5))
    return layers


@pytest.fixture(scope="module")
def layers():
    return make_layers()


def by_keras(layers, sequences, mask, training=False):
    """Output of the last layer; Keras leaves it zero at padding."""
    for layer in layers:
        sequences = layer(sequences, mask=mask, training=training)
    return sequences


def litert_outputs(layers, sequences, mask):
    return by_keras([litert_form(layer) for layer in layers], sequences, mask)


LOOPS = {"sampling": sampling_outputs, "training": training_outputs, "litert": litert_outputs}


def example(seed, batch_size, length, lengths=None, holes=False):
    """Random sequences, mask, and gradients of the outputs."""
    rng = np.random.default_rng(seed)
    if lengths is None:
        lengths = rng.integers(1, length + 1, batch_size)
    sequences = rng.normal(size=(batch_size, length, FEATURES)).astype("float32")
    mask = np.arange(length)[None] < np.asarray(lengths)[:, None]
    if holes:
        mask = rng.random((batch_size, length)) < 0.7
    upstream = rng.normal(size=(batch_size, length, 2 * UNITS[-1])).astype("float32")
    return tf.constant(sequences), tf.constant(mask), tf.constant(upstream)


def outputs_and_gradients(compute, layers, sequences, mask, upstream):
    """Outputs, and the gradients of the inputs and of all weights."""
    weights = [v.value for layer in layers for v in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(sequences)
        outputs = compute(layers, sequences, mask)
        total = tf.reduce_sum(tf.cast(outputs, "float32") * upstream)
    return outputs, tape.gradient(total, [sequences, *weights])


keras_gradients = functools.partial(
    outputs_and_gradients, functools.partial(by_keras, training=True)
)


def assert_same(got, wanted, tolerance=1e-5):
    np.testing.assert_allclose(got[0], wanted[0], atol=tolerance, rtol=0)
    for mine, theirs in zip(got[1], wanted[1], strict=True):
        mine, theirs = np.asarray(mine, "float64"), np.asarray(theirs, "float64")
        scale = max(np.abs(theirs).max(), 1.0)
        np.testing.assert_allclose(mine, theirs, atol=tolerance * scale, rtol=0)


# All three loops, and the gradient of the loop with a gradient of its own


@pytest.mark.cases(1)
@pytest.mark.parametrize("loop", LOOPS)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), length=st.integers(1, 20), batch_size=st.integers(1, 5))
def test_outputs_are_those_of_keras(layers, loop, seed, length, batch_size):
    sequences, mask, _ = example(seed, batch_size, length, holes=True)
    wanted = by_keras(layers, sequences, mask)
    np.testing.assert_allclose(LOOPS[loop](layers, sequences, mask), wanted, atol=1e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), length=st.integers(1, 20), batch_size=st.integers(1, 5))
def test_gradients_are_those_of_keras(layers, seed, length, batch_size):
    data = example(seed, batch_size, length, holes=True)
    got = outputs_and_gradients(training_outputs, layers, *data)
    assert_same(got, keras_gradients(layers, *data))


@pytest.mark.slow
@pytest.mark.cases(3)
@pytest.mark.parametrize("length", [1, 3 * PART - 1])
@pytest.mark.parametrize(
    "loop, xla",
    [
        ("sampling", False),
        ("sampling", True),
        ("training", False),
        ("training", True),
        ("litert", False),
    ],
)
def test_outputs_in_a_graph_are_those_of_keras(layers, loop, xla, length):
    sequences, mask, _ = example(length, 6, length)
    compute = tf.function(functools.partial(LOOPS[loop], layers), jit_compile=xla or None)
    wanted = by_keras(layers, sequences, mask)
    np.testing.assert_allclose(compute(sequences, mask), wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("xla", [False, True])
def test_gradients_in_a_graph_are_those_of_keras(layers, xla):
    data = example(1, 6, PART + 1)
    wanted = keras_gradients(layers, *data)
    assert np.abs(wanted[1][1]).max() > 0.1
    run = tf.function(outputs_and_gradients, jit_compile=xla or None)
    assert_same(run(training_outputs, layers, *data), wanted)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("loop", ["sampling", "training"])
def test_one_graph_serves_all_shapes(layers, loop):
    specs = [tf.TensorSpec((None, None, FEATURES)), tf.TensorSpec((None, None), "bool")]
    compute = tf.function(functools.partial(LOOPS[loop], layers), input_signature=specs)
    for shape, longest in (((2, 3), 3), ((4, 2 * PART + 5), 99), ((3, 3 * PART), 2), ((2, 9), 0)):
        sequences, mask, _ = example(0, *shape, lengths=[longest] * shape[0])
        wanted = by_keras(layers, sequences, mask)
        np.testing.assert_allclose(compute(sequences, mask), wanted, atol=1e-5)


# Sampling


def test_sampling_never_reads_padding(layers):
    sequences, mask, _ = example(0, 5, 14, holes=True)
    wanted = sampling_outputs(layers, sequences, mask)
    damaged = tf.where(mask[..., None], sequences, np.nan)
    np.testing.assert_array_equal(sampling_outputs(layers, damaged, mask), wanted)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("compiled", [None, False, True], ids=["eager", "graph", "xla"])
def test_sampling_with_a_head_at_every_point(layers, compiled):
    kernel = np.random.default_rng(1).normal(size=(2 * UNITS[-1], 5))

    def head(outputs):
        assert outputs.shape.rank == 3
        # It may compute in another precision than the layers.
        return tf.tensordot(tf.cast(outputs, "float64"), kernel, 1) + 1.0

    def compute(sequences, mask):
        return sampling_outputs(layers, sequences, mask, head)

    if compiled is not None:
        compute = tf.function(compute, jit_compile=compiled or None)
    for longest in (0, 2, PART + 1, 3 * PART):
        sequences, mask, _ = example(0, 2, 3 * PART, lengths=[longest, longest // 2])
        wanted = by_keras(layers, sequences, mask) @ kernel + 1.0
        got = compute(sequences, mask)
        assert got.dtype == "float64"
        np.testing.assert_allclose(got, np.where(mask[..., None], wanted, 0), atol=2e-5)


@pytest.mark.slow
def test_one_xla_program_samples_all_lengths(layers):
    traced = []

    @tf.function(jit_compile=True)
    def compute(sequences, mask):
        traced.append(sequences.shape)
        return sampling_outputs(layers, sequences, mask)

    for longest in (1, PART, PART + 2, 3 * PART):
        sequences, mask, _ = example(0, 4, 3 * PART, lengths=[longest, 1, 1, longest])
        wanted = by_keras(layers, sequences, mask)
        np.testing.assert_allclose(compute(sequences, mask), wanted, atol=1e-5)
    assert len(traced) == 1


@pytest.mark.slow
def test_sampling_with_other_activations_and_in_half_precision():
    layers = make_layers(activation="relu", recurrent_activation="hard_sigmoid")
    sequences, mask, _ = example(0, 3, 11, lengths=[11] * 3)
    assert can_sample(layers)
    got = sampling_outputs(layers, sequences, mask)
    np.testing.assert_allclose(got, by_keras(layers, sequences, mask), rtol=1e-5, atol=1e-5)
    half = sampling_outputs(layers, tf.cast(sequences, "bfloat16"), mask)
    assert half.dtype == "bfloat16"


@pytest.mark.parametrize(
    "options", [{"reset_after": False}, {"use_bias": False}, {"stateful": True}, {"unroll": True}]
)
def test_sampling_falls_back_to_keras_for_other_grus(options):
    gru = SparseGRU(3, return_sequences=True, **options)
    assert not can_sample([keras.layers.Bidirectional(gru)])


@pytest.mark.tensorflow
def test_sampling_falls_back_to_keras_for_other_layers_and_replaced_methods():
    lstm = keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True))
    summed = keras.layers.Bidirectional(SparseGRU(3, return_sequences=True), merge_mode="sum")
    assert not can_sample([lstm]) and not can_sample([summed])
    (layer,) = make_layers((3,))
    assert can_sample([layer])
    for part, name in (
        (layer, "call"),
        (layer.forward_layer, "inner_loop"),
        (layer.backward_layer.cell, "call"),
    ):
        vars(part)[name] = lambda *_, **__: None
        assert not can_sample([layer])
        del vars(part)[name]


@pytest.mark.tensorflow
def test_sampling_falls_back_to_keras_for_cells_of_the_users():
    class MyCell(keras.layers.GRUCell):
        def call(self, *args, **kwargs):
            return super().call(*args, **kwargs)

    layer = keras.layers.Bidirectional(SparseGRU(3, return_sequences=True))
    assert can_sample([layer])
    layer.backward_layer.cell = MyCell(3)
    assert not can_sample([layer])


# Training


@pytest.mark.slow
def test_one_graph_of_the_gradient_serves_all_shapes(layers):
    specs = [
        tf.TensorSpec((None, None, FEATURES)),
        tf.TensorSpec((None, None), "bool"),
        tf.TensorSpec((None, None, 2 * UNITS[-1])),
    ]
    run = tf.function(
        functools.partial(outputs_and_gradients, training_outputs, layers), input_signature=specs
    )
    for batch_size, length in ((2, 3), (4, 2 * PART + 5)):
        data = example(0, batch_size, length)
        assert_same(run(*data), keras_gradients(layers, *data))


@pytest.mark.slow
def test_the_gradient_of_a_function_that_is_called_inside_the_tape(layers):
    data = example(3, 4, PART + 3)
    got = outputs_and_gradients(tf.function(training_outputs), layers, *data)
    assert_same(got, keras_gradients(layers, *data))


@pytest.mark.tensorflow
def test_padding_gets_no_gradient_and_changes_nothing(layers):
    sequences, mask, upstream = example(1, 3, 2 * PART, lengths=[2, PART, 2 * PART - 1])
    other = tf.where(mask[..., None], sequences, 7.0)
    first, second = (
        outputs_and_gradients(training_outputs, layers, x, mask, upstream)
        for x in (sequences, other)
    )
    np.testing.assert_allclose(first[0], second[0], atol=1e-6)
    for a, b in zip(first[1], second[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert not np.any(first[1][0].numpy()[~mask.numpy()])


@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_training_in_half_precision(dtype):
    layers = make_layers()
    sequences, mask, upstream = example(5, 4, PART + 2)
    wanted = outputs_and_gradients(training_outputs, layers, sequences, mask, upstream)
    half = tf.cast(sequences, dtype)
    got = outputs_and_gradients(training_outputs, layers, half, mask, upstream)
    assert got[0].dtype == dtype and got[1][1].dtype == "float32"
    assert_same(got, wanted, tolerance=0.02 if dtype == "float16" else 0.1)


@pytest.mark.tensorflow
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
def test_training_falls_back_to_keras_for_other_grus(options):
    assert can_train(make_layers())
    assert not can_train(make_layers(**options))


# LiteRT

GRUS = {
    "plain": {},
    "no bias": {"use_bias": False},
    "reset before": {"reset_after": False},
    "reset before, no bias": {"reset_after": False, "use_bias": False},
    "backwards": {"go_backwards": True},
    "zeros": {"zero_output_for_mask": True},
    "backwards, zeros": {"go_backwards": True, "zero_output_for_mask": True},
    "last": {"return_sequences": False},
    "states": {"return_state": True},
    "hard": {"recurrent_activation": "hard_sigmoid", "activation": "relu"},
    "other gate": {"recurrent_activation": "tanh"},
}


@pytest.mark.tensorflow
@pytest.mark.cases(1)
@pytest.mark.parametrize("length", [1, 5, 40])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", GRUS.values(), ids=GRUS)
def test_litert_computes_any_gru(options, masked, length):
    gru = keras.layers.GRU(6, **{"return_sequences": True, **options})
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, length, 4)).astype("float32")
    mask = (rng.random((3, length)) < 0.7) if masked else None
    gru.build(x.shape)
    for weight in gru.weights:
        weight.assign(rng.standard_normal(weight.shape))
    if "recurrent_activation" in options:
        # Unbounded states must not grow without end.
        gru.cell.recurrent_kernel.assign(0.1 * gru.cell.recurrent_kernel)
    expected = keras.tree.flatten(gru(x, mask=mask))
    for_litert = litert_form(gru)
    function = tf.function(
        lambda x: for_litert(x, mask=None if mask is None else tf.constant(mask))
    )
    answers = keras.tree.flatten(function(tf.constant(x)))
    assert "inner_loop" not in vars(gru)
    for answer, right in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer, right, atol=2e-5)


@pytest.mark.tensorflow
def test_litert_starts_a_gru_from_a_given_state():
    gru = keras.layers.GRU(6, return_sequences=True)
    x, state = tf.random.normal((2, 7, 4)), tf.random.normal((2, 6))
    mask = tf.constant([[False] * 2 + [True] * 5] * 2)
    gru.build(x.shape)
    for valid in (None, mask):
        expected = gru(x, initial_state=state, mask=valid)
        answer = tf.function(litert_form(gru))(x, initial_state=state, mask=valid)
        np.testing.assert_allclose(answer, expected, atol=1e-5)
