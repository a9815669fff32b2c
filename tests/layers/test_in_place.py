"""Saving and loading of layers that hold other layers, with `Sparsified`."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from keras.ops import convert_to_numpy as numpy

import keras_sparse_dm as ksd
from keras_sparse_dm.layers import SparseDense
from keras_sparse_dm.layers.in_place import Sparsified
from keras_sparse_dm.sparsity import masked_kernels

registered = keras.saving.register_keras_serializable("restoring")


def assert_same_sparse_model(one, other, x):
    np.testing.assert_array_equal(numpy(other(x)), numpy(one(x)))
    assert len(masked_kernels(other)) == len(masked_kernels(one)) > 0
    for a, b in zip(masked_kernels(one), masked_kernels(other), strict=True):
        np.testing.assert_array_equal(numpy(a.mask), numpy(b.mask))
        assert a.target == b.target and a.target.density is not None


@registered
class Inner(layers.Layer):
    """Layer that makes two or three sublayers in `build`."""

    def __init__(self, deep=False, **kwargs):
        super().__init__(**kwargs)
        self.deep = deep

    def build(self, input_shape):
        self.first = layers.Dense(4)
        self.first.build(input_shape)
        self.more = [layers.Dense(4) for _ in range(1 + self.deep)]
        for layer in self.more:
            layer.build((*input_shape[:-1], 4))
        self.built = True

    def call(self, x):
        x = self.first(x)
        for layer in self.more:
            x = layer(x)
        return x

    def get_config(self):
        return {**super().get_config(), "deep": self.deep}


@registered
class Outer(layers.Layer):
    """Layer without `build`, whose sublayers are built in the first call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = Inner(deep=True, name="inner")
        self.own = layers.Dense(3)
        self.plain = layers.Dense(3)

    def call(self, x):
        return self.plain(self.own(self.inner(x)))


@registered
class Doubled(layers.Dense):
    def call(self, x):
        return 2 * super().call(x)


def outer_model():
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2)(Outer(name="block")(inputs)))


def test_only_what_was_turned_is_turned_again(tmp_path):
    model = outer_model()
    block = model.get_layer("block")
    block.plain.trainable = False
    ksd.sparsify(model, 0.5, seed=0)
    assert type(block.plain) is layers.Dense and type(block.own) is SparseDense
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    again = loaded.get_layer("block")
    assert isinstance(again, Outer) and isinstance(again, Sparsified)
    assert type(again.plain) is layers.Dense and type(again.own) is SparseDense
    assert all(type(layer) is SparseDense for layer in [again.inner.first, *again.inner.more])
    assert_same_sparse_model(model, loaded, np.ones((2, 4), "float32"))


def test_configuration_leaves_the_layer_as_it_is():
    model = outer_model()
    ksd.sparsify(model, 0.5, seed=0)
    block = model.get_layer("block")
    kind = type(block)
    config = block.get_config()
    assert type(block) is kind and kind.__name__ == "Outer" and kind.__module__ == __name__
    assert config["layer"]["class_name"] == "Outer"
    assert json.loads(json.dumps(model.get_config()))


def test_block_without_build_is_restored_when_it_is_called():
    model = outer_model()
    ksd.sparsify(model, 0.5, seed=0)
    block = model.get_layer("block")
    config = json.loads(json.dumps(block.get_config()))
    restored = type(block).from_config(config)
    assert type(restored).__name__ == "Outer"
    # A layer that is saved before its first call keeps its configuration.
    assert restored.get_config()["sparse_layers"] == config["sparse_layers"]
    x = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    restored(x)
    assert len(masked_kernels(restored)) == len(masked_kernels(block)) == 5
    restored.set_weights(block.get_weights())
    np.testing.assert_array_equal(numpy(restored(x)), numpy(block(x)))
    assert restored.get_config()["sparse_layers"] == config["sparse_layers"]


def test_derived_layer_is_its_own_class_and_a_sparse_one(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Doubled(6, name="d"), layers.Dense(2)])
    ksd.sparsify(model, 0.5, seed=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    layer = loaded.layers[0]
    assert isinstance(layer, Doubled) and isinstance(layer, SparseDense)
    assert type(layer) is type(model.layers[0]) is not Doubled
    assert_same_sparse_model(model, loaded, np.ones((2, 4), "float32"))
    config = layer.get_config()
    config["layer"]["build_config"] = None
    with pytest.raises(ValueError, match="Doubled 'd' cannot be restored"):
        type(layer).from_config(config)


def test_configuration_of_another_structure_is_refused():
    model = keras.Sequential([keras.Input((4,)), Inner(deep=True, name="inner")])
    ksd.sparsify(model, 0.5, seed=0)
    config = model.layers[0].get_config()
    config["layer"]["config"]["deep"] = False
    restored = Sparsified.from_config(config)
    with pytest.raises(ValueError, match="Inner 'inner' cannot be restored .*`load_weights`"):
        restored(np.ones((1, 4), "float32"))


class Unregistered(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.inside = layers.Dense(units)

    def call(self, x):
        return self.inside(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_custom_objects_are_passed_on(tmp_path):
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(3)(Unregistered(6)(inputs)))
    ksd.sparsify(model, 0.5, seed=0)
    model.save(tmp_path / "model.keras")
    x = np.ones((2, 8), "float32")
    custom_objects = {"Unregistered": Unregistered}
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects=custom_objects)
    assert_same_sparse_model(model, loaded, x)
    with keras.saving.custom_object_scope(custom_objects):
        assert_same_sparse_model(model, keras.saving.load_model(tmp_path / "model.keras"), x)


class TakesAnArray(keras.Model):
    """Layer without a configuration, whose argument cannot be serialized."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.inside = layers.Dense(3)

    def call(self, x):
        return self.scale * self.inside(x)


class Oracle:
    def __mul__(self, x):
        return 2 * x


def test_model_that_keras_cannot_save_says_so_as_before(tmp_path):
    """Keras's error reaches the caller, and the model stays sparse."""
    x = np.ones((2, 4), "float32")
    model, plain = TakesAnArray(Oracle()), TakesAnArray(Oracle())
    model(x), plain(x)
    ksd.sparsify(model, 0.5)
    kind = type(model)
    for each in (plain, model):
        with pytest.raises(NotImplementedError, match="TakesAnArray"):
            each.save(tmp_path / "model.keras")
    assert type(model) is kind
    model.save_weights(tmp_path / "model.weights.h5")
    other = TakesAnArray(Oracle())
    other(x)
    ksd.sparsify(other, 0.1)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other(x), model(x))


@registered
class Growing(layers.Layer):
    """Layer with sublayers that are not in its configuration."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inside = []

    def call(self, x):
        for layer in self.inside:
            x = layer(x)
        return x


def test_block_that_a_file_cannot_restore_says_what_to_do(tmp_path):
    def grown():
        block = Growing()
        block.inside.append(layers.Dense(4))
        return keras.Sequential([keras.Input((4,)), block, layers.Dense(2)])

    model = grown()
    ksd.sparsify(model, 0.5)
    model.save(tmp_path / "model.keras")
    with pytest.raises((ValueError, TypeError), match="cannot be restored .*`load_weights`"):
        keras.saving.load_model(tmp_path / "model.keras")
    # The advice in the message works.
    other = grown()
    ksd.sparsify(other, 0.5)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same_sparse_model(model, other, np.ones((2, 4), "float32"))


ORDER = ["a", "b"]


@registered
class AnyOrder(keras.Model):
    """Layer with two sublayers of equal shape, whose order may change between versions."""

    def __init__(self, named=False, **kwargs):
        super().__init__(**kwargs)
        self.named = named
        for name in ORDER:
            setattr(self, name, layers.Dense(4, **({"name": name} if named else {})))

    def build(self, input_shape):
        for name in ORDER:
            getattr(self, name).build(input_shape)
        self.built = True

    def call(self, x):
        return self.b(keras.ops.relu(self.a(x)))

    def get_config(self):
        return {**super().get_config(), "named": self.named}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_layers_of_equal_shape_in_another_order_keep_their_masks(
    named, inside, tmp_path, monkeypatch
):
    model = AnyOrder(named)
    model.build((None, 4))
    if inside:
        inputs = keras.Input((4,))
        model = keras.Model(inputs, model(inputs))
    ksd.sparsify(model, 0.5, seed=0)
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    expected = numpy(model(x))
    monkeypatch.setattr(f"{__name__}.ORDER", ["b", "a"])
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(x)), expected)
    ours, theirs = (m.layers[-1] if inside else m for m in (model, loaded))
    for name in ("a", "b"):
        [(kernel, mask)], [(other, its)] = getattr(ours, name).masks, getattr(theirs, name).masks
        np.testing.assert_array_equal(numpy(other), numpy(kernel))
        np.testing.assert_array_equal(numpy(its), numpy(mask))


def test_one_sparse_layer_of_two_is_found_by_its_place(tmp_path, monkeypatch):
    model = AnyOrder()
    model.build((None, 4))
    ksd.sparsify(model, 0.5, include=[model.a], seed=0)
    model.save(tmp_path / "model.keras")
    monkeypatch.setattr(f"{__name__}.ORDER", ["b", "a"])
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.a) is SparseDense and type(loaded.b) is layers.Dense


def test_files_of_a_newer_version_are_refused(tmp_path):
    model = outer_model()
    ksd.sparsify(model, 0.5, seed=0)
    config = model.get_layer("block").get_config()
    config["version"] = 3
    with pytest.raises(ValueError, match="newer keras_sparse_dm .*up to 2.*pip install --upgrade"):
        Sparsified.from_config(config)
    config = ksd.layers.SparseDense(4).get_config() | {"mask_version": 3, "mask_targets": {}}
    with pytest.raises(ValueError, match="newer keras_sparse_dm .*up to 2.*pip install --upgrade"):
        SparseDense.from_config(config)


def test_mask_targets_name_their_kernels():
    layer = ksd.layers.SparseMultiHeadAttention(2, 4)
    x = np.zeros((1, 3, 8), "float32")
    layer(x, x)
    model = keras.Sequential([keras.Input((8,)), SparseDense(8)])
    ksd.sparsify(model, 0.5, seed=0)
    config = model.layers[0].get_config()
    assert list(config["mask_targets"]) == ["kernel"]
    # The format of version 0.1.
    listed = {**config, "mask_targets": [config["mask_targets"]["kernel"]]}
    for one in (config, listed):
        again = SparseDense.from_config(one)
        again.build((None, 8))
        assert again.get_config()["mask_targets"] == config["mask_targets"]
    wrong = SparseDense.from_config({**config, "mask_targets": {"query/kernel": [0.5, 0, 0, 0]}})
    with pytest.raises(ValueError, match=r"must name its kernels \['kernel'\].*'query/kernel'"):
        wrong.build((None, 8))
    assert [name for name, _, _ in layer.mask_records()] == [
        "query/kernel",
        "key/kernel",
        "value/kernel",
        "attention_output/kernel",
    ]
