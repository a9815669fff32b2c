"""Matching of layers to their weights, for any order of layers in a class or a file."""

import json
import random
import struct

import keras
import numpy as np
import pytest
from keras import layers

import keras_sparse_dm as ksd
from keras_sparse_dm.export import load_sparse, save_sparse
from keras_sparse_dm.export.sparse_file.format import header_bytes, sealed
from keras_sparse_dm.layers import SparseDense
from keras_sparse_dm.layers.locations import locations

X = np.random.default_rng(0).normal(size=(12, 5, 6)).astype("float32")
NAMES = ("first", "second", "third")


def dense(name=None):
    return layers.Dense(6, "tanh", name=name)


class Block(layers.Layer):
    """Two equal layers without names."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        for attribute in Parts.order:
            if attribute != "third":
                setattr(self, attribute, dense())

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build(input_shape)

    def call(self, x):
        return self.second(self.first(x))


def bidirectional(name=None):
    return layers.Bidirectional(layers.GRU(6, return_sequences=True), merge_mode="sum", name=name)


MAKERS = {
    "unnamed": lambda name: dense(),
    "named": lambda name: dense(f"the_{name}"),
    "sparse": lambda name: SparseDense(6),
    "sequential": lambda name: keras.Sequential([dense(), dense()]),
    "named_sequential": lambda name: keras.Sequential([dense(), dense()], name=f"the_{name}"),
    "functional": lambda name: keras.Model(x := keras.Input((None, 6)), dense()(dense()(x))),
    "block": lambda name: Block(),
    "bidirectional": lambda name: bidirectional(),
    "attention": lambda name: Attention(),
    "dropout": lambda name: keras.Sequential([layers.Dropout(0.5), dense()]),
}


class Attention(layers.MultiHeadAttention):
    def __init__(self, **kwargs):
        super().__init__(2, 3, **kwargs)

    def build(self, input_shape):
        super().build(input_shape, input_shape)

    def call(self, x, **kwargs):
        return super().call(x, x, **kwargs)


@keras.saving.register_keras_serializable(package="test_order")
class Parts(keras.Model):
    """Layer that makes equal sublayers in the order `order` and calls them in the order `NAMES`."""

    order = NAMES
    make = None

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        for name in Parts.order:
            self.hold(name, Parts.make(name))

    def hold(self, name, layer):
        setattr(self, name, layer)

    def parts(self):
        return [getattr(self, name) for name in NAMES]

    def build(self, input_shape):
        # The order in which optimizers see the variables.
        for name in Parts.order:
            self.parts()[NAMES.index(name)].build(input_shape)
        self.built = True

    def call(self, x, training=False):
        for part in self.parts():
            x = part(x)
        return x


@keras.saving.register_keras_serializable(package="test_order")
class Listed(Parts):
    """Layer like `Parts` with its sublayers in a list, in the order `held`."""

    held = NAMES

    def __init__(self, **kwargs):
        self.made = {}
        super().__init__(**kwargs)
        made = self.made
        del self.made
        self.blocks = [made[name] for name in Listed.held]

    def hold(self, name, layer):
        self.made[name] = layer

    def parts(self):
        return list(self.blocks)


@keras.saving.register_keras_serializable(package="test_order")
class Graph(keras.Model):
    """Functional model whose class rebuilds it, with layers in the order of `Parts`."""

    def __init__(self, **kwargs):
        made = {name: Parts.make(name) for name in Parts.order}
        x = y = keras.Input((5, 6))
        for name in NAMES:
            y = made[name](y)
        super().__init__(x, y, **kwargs)


@pytest.fixture(autouse=True)
def restore(monkeypatch):
    monkeypatch.setattr(Parts, "order", NAMES)
    monkeypatch.setattr(Parts, "make", MAKERS["unnamed"])
    monkeypatch.setattr(Listed, "held", NAMES)


def built(cls, sparsity=None):
    model = cls()
    model(X)
    for variable in model.trainable_variables:
        variable.assign(keras.random.normal(variable.shape))
    if sparsity:
        ksd.sparsify(model, sparsity, "uniform", seed=0)
    return model


def same_answers(model, loaded):
    np.testing.assert_array_equal(loaded(X), model(X))


def refused(path, match):
    with pytest.raises(ValueError, match=match) as error:
        load_sparse(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


# Classes that make their layers in another order -----------------------------------------------


@pytest.mark.slow
@pytest.mark.cases(4)
@pytest.mark.parametrize(
    "sparsity, fresh", [(None, False), (0.5, True)], ids=["dense", "masked_with_the_same_names"]
)
@pytest.mark.parametrize("kind", MAKERS)
def test_attributes_in_another_order(tmp_path, kind, sparsity, fresh):
    Parts.make = MAKERS[kind]
    keras.backend.clear_session()
    model = built(Parts, sparsity)
    path = save_sparse(model, tmp_path / "m")
    Parts.order = ("third", "first", "second")
    if fresh:
        # The names of the file, of other layers.
        keras.backend.clear_session()
    loaded = load_sparse(path)
    same_answers(model, loaded)
    assert [k.target for k in ksd.sparsity.masked_kernels(loaded)] == [
        k.target for k in ksd.sparsity.masked_kernels(model)
    ]
    np.testing.assert_array_equal(model(X, training=True), loaded(X, training=True))


def test_a_list_of_named_layers_in_another_order(tmp_path):
    Parts.make = MAKERS["named"]
    model = built(Listed, 0.5)
    path = save_sparse(model, tmp_path / "m")
    Parts.order = Listed.held = ("second", "third", "first")
    loaded = load_sparse(path)
    assert [layer.name for layer in loaded.blocks] == ["the_second", "the_third", "the_first"]
    loaded.blocks = sorted(loaded.blocks, key=lambda layer: layer.name)
    same_answers(model, loaded)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("fresh", [False, True], ids=["renumbered", "same_numbers"])
@pytest.mark.parametrize("cls", [Listed, Graph])
@pytest.mark.parametrize("kind", ["unnamed", "sequential", "bidirectional"])
def test_unnamed_layers_of_lists_and_graphs(tmp_path, cls, kind, fresh):
    Parts.make = MAKERS[kind]
    keras.backend.clear_session()
    model = built(cls)
    path = save_sparse(model, tmp_path / "m")
    if fresh:
        keras.backend.clear_session()
    same_answers(model, load_sparse(path))
    # Nothing distinguishes them now.
    Parts.order = ("second", "first", "third")
    refused(path, "'.*' and '.*_1' may have changed places")


def test_a_graph_of_named_layers_in_another_order(tmp_path):
    Parts.make = MAKERS["named"]
    model = built(Graph, 0.5)
    path = save_sparse(model, tmp_path / "m")
    Parts.order = ("second", "third", "first")
    same_answers(model, load_sparse(path))


def test_numbered_names_in_another_order_are_refused(tmp_path):
    Parts.make = lambda name: dense(f"block_{NAMES.index(name)}")
    model = built(Listed)
    path = save_sparse(model, tmp_path / "m")
    same_answers(model, load_sparse(path))
    Listed.held = ("second", "first", "third")
    refused(path, r"'listed\w*/block_0' and 'listed\w*/block_1' may have changed places")


@pytest.mark.slow
def test_names_made_of_numbered_ones(tmp_path):
    class Outer(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = [dense(f"{self.name}_{i}") for i in range(2)]

        def build(self, input_shape):
            for layer in self.inner:
                layer.build(input_shape)

        def call(self, x):
            return self.inner[1](self.inner[0](x))

    Parts.make = lambda name: Outer()
    keras.backend.clear_session()
    model = built(Listed)
    path = save_sparse(model, tmp_path / "m")
    same_answers(model, load_sparse(path))


@keras.saving.register_keras_serializable(package="test_order")
class Sharing(Parts):
    """Layer that holds another one twice."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.again = self.second

    def parts(self):
        return [*super().parts(), self.again]


def test_shared_layers(tmp_path):
    model = built(Sharing, 0.5)
    path = save_sparse(model, tmp_path / "m")
    Parts.order = NAMES[::-1]
    loaded = load_sparse(path)
    same_answers(model, loaded)
    assert loaded.again is loaded.second


# Mismatches -----------------------------------------------------------------------------


def test_layers_that_are_not_those_of_the_file(tmp_path):
    path = save_sparse(built(Parts), tmp_path / "m")

    def renamed(name):
        return dense("the_second" if name == "second" else None)

    Parts.make = renamed
    refused(path, "layer 'parts.*/dense.*', at 'second', is missing")
    Parts.make = lambda name: layers.Dense(6, "tanh", use_bias=name != "second")
    refused(path, "layer 'parts.*/dense.*'")

    class Seven(layers.Dense):
        def build(self, input_shape):
            super().build((*input_shape[:-1], 7))

    Parts.make = lambda name: Seven(6, name="dense_9") if name == "second" else dense()
    refused(path, r"layer 'parts.*/dense_9': 'kernel' has shape \(7, 6\), in the file \(6, 6\)")


def test_a_layer_more_or_less(tmp_path, monkeypatch):
    path = save_sparse(built(Parts), tmp_path / "m")
    plain = Parts.__init__

    def with_more(self, **kwargs):
        plain(self, **kwargs)
        self.more = dense("more")
        self.more.build((None, 6))

    monkeypatch.setattr(Parts, "__init__", with_more)
    refused(path, "there is nothing for layer '.*more', at 'more'")
    other = save_sparse(built(Parts), tmp_path / "other")
    monkeypatch.setattr(Parts, "__init__", plain)
    refused(other, "layer '.*more', at 'more', is missing")


class Pair(layers.Layer):
    """Two equal variables."""

    order = ("a", "b")

    def build(self, input_shape):
        for name in Pair.order:
            setattr(self, name, self.add_weight(name=name, shape=(6,), initializer="normal"))

    def call(self, x):
        return x * self.a + self.b


def test_variables_of_a_layer_in_another_order(tmp_path, monkeypatch):
    Parts.make = lambda name: Pair()
    model = built(Parts)
    path = save_sparse(model, tmp_path / "m")
    same_answers(model, load_sparse(path))
    monkeypatch.setattr(Pair, "order", ("b", "a"))
    refused(path, "layer 'parts.*/pair.*': '.*/a' is '.*/b' here")


class Noisy(layers.Layer):
    """Two random generators."""

    order = ("one", "two")

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        for name in Noisy.order:
            setattr(self, name, keras.random.SeedGenerator(len(name)))

    def call(self, x):
        drawn = keras.random.normal((6,), seed=self.one)
        return x + drawn * keras.random.uniform((6,), seed=self.two)


def test_random_generators_in_another_order(tmp_path, monkeypatch):
    Parts.make = lambda name: Noisy()
    model = built(Parts)
    path = save_sparse(model, tmp_path / "m")
    monkeypatch.setattr(Noisy, "order", ("two", "one"))
    same_answers(model, load_sparse(path))


# The file --------------------------------------------------------------------------------------


def rewritten(path, change):
    """Change the content in a file's header, with valid checksums."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8 : 8 + length])
    content = json.loads(entries.pop("__metadata__")["content"])
    change(content)
    checksums = content.pop("checksums")
    path.write_bytes(sealed(header_bytes(content, checksums, entries)) + data[8 + length :])


def shuffled(value):
    """The same value with every list of records and every dictionary in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(v)) for key, v in value.items()]
        return dict(random.Random(0).sample(items, len(items)))
    return value


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("cls", [Parts, Listed, Graph])
def test_records_in_another_order(tmp_path, cls):
    model = built(cls, 0.5)
    model.compile("adam", "mse")
    model.fit(X, X, verbose=0, callbacks=[ksd.DynamicSparsity("static")])
    path = save_sparse(model, tmp_path / "m", optimizer=True)

    def change(content):
        for key in ("arrays", "checksums"):
            content[key] = shuffled(content[key])
        content["layers"] = [shuffled(record) for record in content["layers"]][::-1]
        content["optimizers"] = [shuffled(record) for record in content["optimizers"]]

    rewritten(path, change)
    loaded = load_sparse(path)
    same_answers(model, loaded)
    for one, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_records_are_what_the_format_says(tmp_path):
    # Two variables of one path.
    inner = keras.Model(x := keras.Input((6,)), dense("last")(x), name="nested")
    start = dense()
    model = keras.Model(x := keras.Input((6,)), inner(dense("last")(start(x))))
    path = save_sparse(model, tmp_path / "m")
    header = json.loads(path.read_bytes()[8 : 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]])
    content = json.loads(header["__metadata__"]["content"])
    records = {record["location"]: record for record in content["layers"]}
    assert set(records) == set(locations(model))
    first, last = records["dense"], records["last"]
    assert first["path"] == start.path and last["path"] == "last"
    assert first["arrays"] == {"0": start.kernel.path, "1": start.bias.path}
    assert last["arrays"] == {"0": "last/kernel", "1": "last/bias"}
    assert records["nested/last"]["arrays"]["0"] == "last/kernel_1"
    assert content["arrays"]["last/kernel_1"]["path"] == "last/kernel"
    same = load_sparse(path)
    np.testing.assert_array_equal(same(X[:, 0]), model(X[:, 0]))

    def twice(content):
        content["layers"].append(dict(content["layers"][1]))

    rewritten(path, twice)
    refused(path, "two records for")


# Optimizers ------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="test_order")
class ByPath(keras.optimizers.SGD):
    """Optimizer with its own `save_own_variables`, whose keys are the paths of kernels."""

    between = "/"

    def save_own_variables(self, store):
        for variable, momentum in zip(self._trainable_variables, self.momentums, strict=True):
            store[f"{variable.path.replace('/', self.between)}:momentum"] = momentum
        store["steps"] = self.iterations

    def load_own_variables(self, store):
        for variable, momentum in zip(self._trainable_variables, self.momentums, strict=True):
            momentum.assign(store[f"{variable.path.replace('/', self.between)}:momentum"])
        self.iterations.assign(store["steps"])


@keras.saving.register_keras_serializable(package="test_order")
class WithoutSlashes(ByPath):
    between = "|"


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(use_ema=True, gradient_accumulation_steps=2),
    "adafactor": lambda: keras.optimizers.Adafactor(1e-2),
    "muon": lambda: keras.optimizers.Muon(1e-2),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Lion(1e-2)),
    "by_path": lambda: ByPath(1e-2, momentum=0.9),
    "by_path_without_slashes": lambda: WithoutSlashes(1e-2, momentum=0.9),
}


@pytest.mark.slow
@pytest.mark.cases(3)
@pytest.mark.parametrize("fresh", [False, True], ids=["renumbered", "same_numbers"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_of_layers_in_another_order(tmp_path, name, fresh):
    keras.backend.clear_session()
    model = built(Parts)
    model.compile(OPTIMIZERS[name](), "mse")
    model.fit(X, X, batch_size=4, verbose=0, shuffle=False)
    path = save_sparse(model, tmp_path / "m", optimizer=True)
    Parts.order = ("third", "first", "second")
    if fresh:
        keras.backend.clear_session()
    loaded = load_sparse(path)
    for trained in (model, loaded):
        trained.fit(X, X, batch_size=4, verbose=0, shuffle=False)
    same_answers(model, loaded)
    assert not np.array_equal(model(X), load_sparse(path)(X))


def test_an_optimizer_with_other_state_is_refused(tmp_path):
    model = built(Parts)
    model.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    path = save_sparse(model, tmp_path / "m", optimizer=True)

    def change(content):
        arrays = content["optimizers"][0]["arrays"]
        key = next(key for key in arrays if key.endswith("kernel:momentum"))
        arrays[key.replace("momentum", "velocity")] = arrays.pop(key)

    rewritten(path, change)
    refused(path, "optimizer 'sgd' has other variables than in the file, such as '.*kernel:")
