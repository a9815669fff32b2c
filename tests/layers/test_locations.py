import keras
import pytest
from keras import layers

import keras_sparse_dm as ksd
from keras_sparse_dm.diffusion import DiffusionModel, NoiseSchedule
from keras_sparse_dm.layers.locations import locations, name_by_keras, split_numbers
from keras_sparse_dm.models import ChiroDiff, UNet, VQAutoencoder


class Holder(keras.layers.Layer):
    """Layer that holds others in every way that Keras tracks."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._zeta = layers.Dense(1)
        self._many = [layers.Dense(1)]
        self.pair = (layers.Dense(1), [layers.Dense(1), {"deep": layers.Dense(1)}])
        self.heads = {"key": layers.Dense(1), 3: layers.Dense(1)}
        self.loose = {layers.Dense(1, name=f"loose_{i}") for i in range(9, 12)}
        self.encoder = layers.Dense(1, name="anything")
        self.again = [self.encoder, self._zeta]

    @property
    def first(self):
        raise RuntimeError("read")


def numbered_anew(make):
    """Return the locations of two equal models, with other unnamed layers made in between."""
    first = locations(make())
    [cls(1) for cls in (layers.Dense, layers.GRU) for _ in range(11)]
    return first, locations(make())


def check_complete(root):
    found = locations(root)
    assert next(iter(found.items())) == ("", root)
    assert len(found) == len(root._flatten_layers())
    assert {id(layer) for layer in found.values()} == {id(la) for la in root._flatten_layers()}
    return found


def test_attributes_lists_and_dictionaries():
    found = check_complete(Holder())
    assert list(found) == [
        "",
        "again/0",
        "again/1",
        "heads/key",
        "heads/3",
        "loose/0",
        "loose/1",
        "loose/2",
        "pair/0",
        "pair/1/0",
        "pair/1/1/deep",
        "_many/0",
    ]
    # A set has no order; names decide.
    assert [found[f"loose/{i}"].name for i in range(3)] == ["loose_9", "loose_10", "loose_11"]
    assert found["again/0"] is found[""].encoder and found["again/1"] is found[""]._zeta


def test_names_of_graphs_are_counted_within_each():
    def make():
        x = keras.Input((8,))
        shared = layers.Dense(8)
        y = layers.Dense(8, name="named")(shared(shared(x)))
        inner = keras.Sequential([layers.Dense(8), layers.Dense(8, name="last")], name="inner")
        return keras.Model(x, layers.Dense(8)(inner(y)))

    first, second = numbered_anew(make)
    assert list(first) == list(second)
    assert set(first) == {
        "",
        "input_layer",
        "dense",
        "named",
        "inner",
        "dense_1",
        "inner/dense",
        "inner/last",
        "inner/_layers/0",
    }
    assert [type(layer) for layer in first.values()] == [type(la) for la in second.values()]
    assert first["dense"].name != second["dense"].name
    # In the order of the graph, not of creation.
    x = keras.Input((8,))
    last, start = layers.Dense(8), layers.Dense(8)
    found = locations(keras.Model(x, last(start(x))))
    assert found["dense"] is start and found["dense_1"] is last


def test_attributes_of_a_functional_model_beside_its_graph():
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(8, name="inside")(x))
    model.beside = layers.Dense(8, name="inside")
    model.inside = layers.Dense(8)
    found = check_complete(model)
    assert found["beside"] is model.beside
    assert found["inside"] is model.layers[1] and found["inside_1"] is model.inside


def test_references_to_others_are_no_way_to_them():
    root = keras.layers.Layer()
    root.a, root.b = keras.layers.Layer(), keras.layers.Layer()
    # Untracked, as in a class that hides its parent from Keras.
    for name in ("_parent", "_sibling"):
        object.__setattr__(root.a, name, root if name == "_parent" else root.b)
    object.__setattr__(root, "other", layers.Dense(1))
    assert list(check_complete(root)) == ["", "a", "b"]


@pytest.mark.slow
@pytest.mark.cases(7)
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Bidirectional(layers.GRU(3)),
        lambda: layers.RNN([layers.GRUCell(3), layers.LSTMCell(3)]),
        lambda: layers.TimeDistributed(layers.Dense(3)),
        lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(3)]),
        lambda: ChiroDiff(units=4, num_layers=2),
        lambda: DiffusionModel(ChiroDiff(units=4, num_layers=1), NoiseSchedule.linear(1000)),
        lambda: UNet(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, timesteps=20),
        lambda: VQAutoencoder(channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4),
        lambda: keras.applications.MobileNetV3Small((32, 32, 3), weights=None),
    ],
    ids=["bidirectional", "cells", "wrapper", "sequential"]
    + ["chirodiff", "diffusion", "unet", "autoencoder", "application"],
)
def test_every_layer_has_one_location_the_same_in_every_process(make):
    first, second = numbered_anew(make)
    assert list(first) == list(second)
    assert [type(layer) for layer in first.values()] == [type(la) for la in second.values()]
    check_complete(first[""])


def test_attention_has_its_projections_once_it_is_built():
    attention = layers.MultiHeadAttention(2, 3)
    attention(keras.ops.ones((1, 4, 5)), keras.ops.ones((1, 4, 5)))
    assert {"_query_dense", "_key_dense", "_output_dense"} <= set(check_complete(attention))


def test_sparse_layers_are_where_the_plain_ones_were():
    model = keras.Sequential([keras.Input((9,)), layers.Dense(7), layers.Dense(7, name="own")])
    before = locations(model)
    ksd.sparsify(model, 0.5, seed=0)
    assert locations(model) == before
    assert name_by_keras(before["dense"]) == "dense" and name_by_keras(before["own"]) is None


def test_numbers_are_split_from_names():
    assert split_numbers("dense") == ("dense", ())
    assert split_numbers("block_12_conv2d_3") == ("block_conv2d", (12, 3))
    assert split_numbers("1x1_2") == ("1x1", (2,))
