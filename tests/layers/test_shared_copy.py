"""Copies that share variables: the same answers from other layers."""

import collections

import keras
import numpy as np
import pytest

import keras_sparse_dm as ksd
from keras_sparse_dm._keras import flatten_layers
from keras_sparse_dm.layers.shared_copy import shared_copy

Pair = collections.namedtuple("Pair", "first second")


class Nested(keras.Model):
    """Layers wherever an attribute may hold them."""

    def __init__(self):
        super().__init__()
        shared = keras.layers.Dense(4, activation="tanh")
        self.blocks = [shared, Pair(keras.layers.Dense(4), [shared])]
        self.named = {"last": keras.layers.Dense(4)}
        self.step = self._step
        self.norm = keras.layers.BatchNormalization()

    def _step(self, x):
        return self.named["last"](x)

    def call(self, x, training=False):
        (third,) = self.blocks[1].second
        x = third(self.blocks[1].first(self.blocks[0](x)))
        return self.norm(self.step(x), training=training)


def functional():
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.layers.Dense(4, activation="relu"), keras.layers.Dense(4)])
    return keras.Model(inputs, inner(inner(inputs)) + keras.layers.Dense(4)(inputs))


def recurrent():
    inputs = keras.Input((5, 4))
    x = keras.layers.Bidirectional(keras.layers.GRU(3, return_sequences=True))(inputs)
    cells = [keras.layers.GRUCell(3), keras.layers.LSTMCell(2)]
    return keras.Model(inputs, keras.layers.RNN(keras.layers.StackedRNNCells(cells))(x))


def attention():
    inputs = keras.Input((5, 4))
    return keras.Model(inputs, keras.layers.MultiHeadAttention(2, 3)(inputs, inputs))


CASES = {
    "attributes": (Nested, (2, 4)),
    "functional": (functional, (2, 4)),
    "recurrent": (recurrent, (2, 5, 4)),
    "attention": (attention, (2, 5, 4)),
}


@pytest.mark.cases(1)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_it_computes_the_same_by_other_layers(case, sparse):
    make, shape = CASES[case]
    model, x = make(), np.random.default_rng(0).standard_normal(shape).astype("float32")
    wanted = np.asarray(model(x))
    if sparse:
        ksd.sparsify(model, 0.5, seed=0)
        wanted = np.asarray(model(x))
    new, copies = shared_copy(model)
    assert new is copies[model] and type(new) is type(model)
    np.testing.assert_array_equal(new(x), wanted)
    assert all(a is b for a, b in zip(new.variables, model.variables, strict=True))
    originals = flatten_layers(model)
    assert [copies[layer] for layer in originals] == flatten_layers(new)
    # No layer of the model is called by the copy, nor the other way round.
    for layer in originals:
        copy = copies[layer]
        calls = "call" if not isinstance(copy, keras.layers.RNN) else "inner_loop"
        vars(copy)[calls] = fails
    np.testing.assert_array_equal(model(x), wanted)
    for layer in originals:
        vars(copies[layer]).pop("call", None)
        vars(layer)["call"] = fails
    for layer in (copy for copy in copies.values() if isinstance(copy, keras.layers.RNN)):
        vars(layer).pop("inner_loop")
    np.testing.assert_array_equal(new(x), wanted)


@pytest.mark.slow
def test_what_is_set_on_the_copy_stays_there():
    model, x = Nested(), np.ones((4, 4))
    wanted = np.asarray(model(x))
    new, copies = shared_copy(model)
    copies[model.named["last"]].activation = keras.activations.relu
    new.blocks.append("more")
    np.testing.assert_array_equal(model(x), wanted)
    np.testing.assert_array_equal(model.named["last"].activation(-1.0), -1.0)
    assert len(model.blocks) == 2
    # Training the one trains the other.
    new.compile("sgd", "mse")
    new.fit(x, x, verbose=0)
    copies[model.named["last"]].activation = model.named["last"].activation
    assert np.abs(model(x) - wanted).max() > 0
    np.testing.assert_array_equal(model(x), new(x))


def fails(*args, **kwargs):
    raise AssertionError("called")
