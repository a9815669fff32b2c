"""Fast stack of GRUs, compared with Keras's layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gru_stacks import make_layers, one_after_the_other
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_sparse_dm.layers import SparseGRU
from keras_sparse_dm.models.chirodiff.recurrent_stack import PART, runs_as_stack, stacked_outputs


@pytest.fixture(scope="module")
def layers():
    return make_layers()


@pytest.mark.parametrize("length", [1, 3, PART, PART + 1, 3 * PART - 1])
def test_computes_what_the_layers_do(layers, length):
    rng = np.random.default_rng(length)
    sequences = rng.normal(size=(6, length, 4)).astype("float32")
    mask = np.arange(length)[None] < rng.integers(1, length + 1, 6)[:, None]
    wanted = one_after_the_other(layers, sequences, mask)
    np.testing.assert_allclose(
        stacked_outputs(layers, tf.constant(sequences), tf.constant(mask)), wanted, atol=2e-6
    )


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), length=st.integers(1, 20), batch_size=st.integers(1, 5))
def test_serves_any_mask_and_never_reads_padding(layers, seed, length, batch_size):
    rng = np.random.default_rng(seed)
    sequences = rng.normal(size=(batch_size, length, 4)).astype("float32")
    mask = rng.random((batch_size, length)) < 0.7
    clean = np.where(mask[..., None], sequences, 0)
    wanted = one_after_the_other(layers, clean, mask)
    sequences[~mask] = np.nan
    got = stacked_outputs(layers, tf.constant(sequences), tf.constant(mask))
    np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_padding_of_a_whole_part_and_more(layers):
    sequences = np.random.default_rng(0).normal(size=(2, 3 * PART, 4)).astype("float32")
    for longest in (0, 2, PART + 1):
        mask = np.arange(3 * PART)[None] < np.array([longest, longest // 2])[:, None]
        wanted = one_after_the_other(layers, sequences, mask)
        for compute in (stacked_outputs, tf.function(stacked_outputs)):
            got = compute(layers, tf.constant(sequences), tf.constant(mask))
            np.testing.assert_allclose(got, wanted, atol=2e-6)


@pytest.mark.parametrize("compiled", [None, False, True], ids=["eager", "graph", "xla"])
def test_a_head_is_computed_at_every_point(layers, compiled):
    kernel = np.random.default_rng(1).normal(size=(2 * layers[-1].forward_layer.units, 5))

    def head(outputs):
        assert outputs.shape.rank == 3
        # The stack may use another precision than the layers.
        return tf.tensordot(tf.cast(outputs, "float64"), kernel, 1) + 1.0

    def compute(sequences, mask):
        return stacked_outputs(layers, sequences, mask, head)

    if compiled is not None:
        compute = tf.function(compute, jit_compile=compiled or None)
    sequences = np.random.default_rng(0).normal(size=(2, 3 * PART, 4)).astype("float32")
    for longest in (0, 2, PART + 1, 3 * PART):
        mask = np.arange(3 * PART)[None] < np.array([longest, longest // 2])[:, None]
        wanted = one_after_the_other(layers, sequences, mask) @ kernel + 1.0
        got = compute(tf.constant(sequences), tf.constant(mask))
        assert got.dtype == "float64"
        np.testing.assert_allclose(got, np.where(mask[..., None], wanted, 0), atol=2e-5)


def test_one_graph_serves_all_shapes(layers):
    @tf.function(
        input_signature=[tf.TensorSpec((None, None, 4)), tf.TensorSpec((None, None), "bool")]
    )
    def compute(sequences, mask):
        return stacked_outputs(layers, sequences, mask, head=lambda outputs: outputs)

    for shape, longest in (((2, 3), 3), ((4, 2 * PART + 5), 99), ((3, 3 * PART), 2), ((2, 9), 0)):
        sequences = np.random.default_rng(0).normal(size=(*shape, 4)).astype("float32")
        mask = np.tile(np.arange(shape[1]) < longest, (shape[0], 1))
        wanted = one_after_the_other(layers, sequences, mask)
        np.testing.assert_allclose(compute(sequences, mask), wanted, atol=2e-6)


def test_one_xla_program_serves_all_lengths_and_skips_what_is_past_them(layers):
    traced = []

    @tf.function(jit_compile=True)
    def compute(sequences, mask):
        traced.append(sequences.shape)
        return stacked_outputs(layers, sequences, mask)

    sequences = np.random.default_rng(0).normal(size=(4, 3 * PART, 4)).astype("float32")
    for longest in (1, PART, PART + 2, 3 * PART):
        mask = np.arange(3 * PART)[None] < np.array([longest, 1, 1, longest])[:, None]
        wanted = one_after_the_other(layers, sequences, mask)
        np.testing.assert_allclose(compute(sequences, mask), wanted, atol=2e-6)
    assert len(traced) == 1


def test_other_activations_and_half_precision():
    layers = make_layers(activation="relu", recurrent_activation="hard_sigmoid")
    sequences = np.random.default_rng(0).normal(size=(3, 11, 4)).astype("float32")
    mask = np.ones((3, 11), bool)
    wanted = one_after_the_other(layers, sequences, mask)
    assert runs_as_stack(layers)
    got = stacked_outputs(layers, tf.constant(sequences), tf.constant(mask))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    half = stacked_outputs(layers, tf.constant(sequences, "bfloat16"), tf.constant(mask))
    assert half.dtype == "bfloat16"


@pytest.mark.parametrize(
    "options", [{"reset_after": False}, {"use_bias": False}, {"stateful": True}, {"unroll": True}]
)
def test_leaves_to_keras_what_it_does_not_compute(options):
    gru = SparseGRU(3, return_sequences=True, **options)
    assert not runs_as_stack([keras.layers.Bidirectional(gru)])


def test_leaves_to_keras_other_cells_and_layers_that_somebody_listens_to(layers):
    lstm = keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True))
    summed = keras.layers.Bidirectional(SparseGRU(3, return_sequences=True), merge_mode="sum")
    assert not runs_as_stack([lstm]) and not runs_as_stack([summed])
    (layer,) = make_layers((3,))
    assert runs_as_stack([layer])
    for part, name in (
        (layer, "call"),
        (layer.forward_layer, "inner_loop"),
        (layer.backward_layer.cell, "call"),
    ):
        vars(part)[name] = lambda *_, **__: None
        assert not runs_as_stack([layer])
        del vars(part)[name]


def test_a_cell_of_ones_own_is_left_to_keras():
    class MyCell(keras.layers.GRUCell):
        def call(self, *args, **kwargs):
            return super().call(*args, **kwargs)

    layer = keras.layers.Bidirectional(SparseGRU(3, return_sequences=True))
    assert runs_as_stack([layer])
    layer.backward_layer.cell = MyCell(3)
    assert not runs_as_stack([layer])
