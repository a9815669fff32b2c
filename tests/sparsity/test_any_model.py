"""`sparsify`, training, saving and loading with any Keras model, including opaque ones."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from keras.ops import convert_to_numpy as numpy

import keras_sparse_dm as ksd
from keras_sparse_dm.sparsity import check_invariant, masked_kernels

registered = keras.saving.register_keras_serializable("any_model")


@registered
class Branches(keras.Model):
    """Model with sublayers in lists and dictionaries, a repeated layer and a repeated name."""

    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.before = [layers.Dense(units, name="same"), layers.Dense(units, name="same")]
        self.by_name = {"b": layers.Dense(units), "a": layers.Conv1D(units, 3, padding="same")}
        self.deep = [
            {"x": [layers.Dense(units)]},
            (layers.Dense(units), layers.BatchNormalization()),
        ]
        self.twice = layers.Dense(units)
        self.last = layers.Dense(3)

    def call(self, x, training=False):
        for layer in self.before:
            x = self.twice(layer(x))
        x = self.by_name["a"](x) + self.by_name["b"](x)
        first, (second, normalization) = self.deep
        x = normalization(second(first["x"][0](x)), training=training)
        return self.last(self.twice(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@registered
class AutomaticBlock(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.inside = layers.Dense(units, "relu")

    def call(self, x):
        return self.inside(x)


@registered
class Automatic(keras.Model):
    """Block without `get_config`, whose arguments Keras serializes by itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = [AutomaticBlock(6), AutomaticBlock(units=8)]
        self.rnn = layers.Bidirectional(layers.GRU(4, return_sequences=True))
        self.out = layers.Dense(3)

    def call(self, x):
        for layer in self.hidden:
            x = layer(x)
        return self.out(self.rnn(x))


@registered
class TwoInputs(keras.Model):
    """Block called with keyword arguments, with sublayers made in `build`."""

    def build(self, first_shape, second_shape):
        self.a, self.b = layers.Dense(4), layers.Dense(4)
        self.a.build(first_shape)
        self.b.build(second_shape)
        self.out = layers.Dense(3)
        self.out.build((*first_shape[:-1], 8))

    def call(self, first, second):
        return self.out(keras.ops.concatenate([self.a(first), self.b(second)], -1))


@registered
class Wrapper(keras.Model):
    """Model that makes the keyword call of `TwoInputs`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = TwoInputs()

    def call(self, x):
        return self.inner(first=x, second=2 * x)


@registered
class LateBlock(layers.Layer):
    """Block that makes its sublayers in `build`, as in KerasHub."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.attention = layers.MultiHeadAttention(2, 4, name="attention")
        self.attention.build(input_shape, input_shape)
        self.wide = layers.Dense(self.units, activation="relu", name="wide")
        self.wide.build(input_shape)
        self.narrow = layers.EinsumDense("abc,cd->abd", (None, input_shape[-1]), name="narrow")
        self.narrow.build((*input_shape[:-1], self.units))
        self.normalization = layers.LayerNormalization()
        self.normalization.build(input_shape)
        self.built = True

    def call(self, x):
        x = x + self.attention(x, x)
        return self.normalization(x + self.narrow(self.wide(x)))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@registered
class EarlyBlock(layers.Layer):
    """Block without `build` that makes its sublayers, a block and a model too, in `__init__`."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.late = LateBlock(units, name="late")
        self.stack = keras.Sequential([layers.Dense(units), layers.Dense(8)])

    def call(self, x):
        return self.stack(self.late(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@registered
class Backbone(keras.Model):
    """Functional model with its own configuration, as in KerasHub."""

    def __init__(self, vocabulary, width, blocks, **kwargs):
        tokens = keras.Input((None,), dtype="int32", name="token_ids")
        embedding = layers.Embedding(vocabulary, width, name="token_embedding")
        x = embedding(tokens)
        for i in range(blocks):
            x = LateBlock(2 * width, name=f"block_{i}")(x)
        super().__init__(inputs=tokens, outputs=layers.Dense(3, name="head")(x), **kwargs)
        self.token_embedding = embedding
        self.vocabulary, self.width, self.blocks = vocabulary, width, blocks

    def get_config(self):
        return {
            "name": self.name,
            "vocabulary": self.vocabulary,
            "width": self.width,
            "blocks": self.blocks,
        }


@registered
class Doubled(layers.Dense):
    """Custom layer derived from a layer with a sparse twin."""

    def call(self, x):
        return 2 * super().call(x)


@registered
class OwnCell(layers.Layer):
    """Recurrent cell around a Dense layer."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units
        self.inside = layers.Dense(units, activation="tanh")

    def build(self, input_shape):
        self.inside.build((input_shape[0], input_shape[-1] + self.units))

    def call(self, x, states):
        h = self.inside(keras.ops.concatenate([x, states[0]], -1))
        return h, [h]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def sequential():
    return keras.Sequential(
        [
            keras.Input((5, 8)),
            layers.Dense(8, "relu"),
            layers.BatchNormalization(),
            Doubled(6),
            layers.Dense(3),
        ]
    )


def convolutions():
    x = inputs = keras.Input((5, 8))
    x = layers.Conv1D(8, 3, padding="same", groups=2)(x)
    x = layers.DepthwiseConv1D(3, padding="same", depth_multiplier=2)(x)
    x = layers.SeparableConv1D(6, 3, padding="same")(x)
    x = layers.Conv1DTranspose(4, 3, padding="same")(x)
    x = layers.Reshape((5, 2, 2))(x)
    x = layers.Conv2D(3, 2, padding="same")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def nested():
    inner_in = keras.Input((5, 8))
    inner = keras.Model(inner_in, layers.Dense(8, name="d")(inner_in), name="inner")
    stack = keras.Sequential([layers.Dense(8, name="d"), layers.ReLU()], name="stack")
    inputs = keras.Input((5, 8))
    return keras.Model(inputs, layers.Dense(3, name="d")(inner(stack(inner(inputs)))))


def shared():
    layer, inputs = layers.Dense(8, name="both"), keras.Input((5, 8))
    x = layers.Concatenate()([layer(inputs), layer(2 * inputs)])
    return keras.Model(inputs, layers.Dense(3)(x))


def recurrent():
    inputs = keras.Input((5, 8))
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(inputs)
    x = layers.RNN([layers.GRUCell(4), layers.LSTMCell(3)], return_sequences=True)(x)
    x = layers.RNN(OwnCell(4), return_sequences=True)(x)
    x = layers.SimpleRNN(4, return_sequences=True)(x)
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(3))(x))


def blocks():
    """Return a model with two equal blocks, and a block that holds one."""
    inputs = keras.Input((5, 8))
    x = LateBlock(8)(LateBlock(4)(inputs))
    return keras.Model(inputs, layers.Dense(3)(EarlyBlock(6)(x)))


def subclassed_in_functional():
    inputs = keras.Input((5, 8))
    x = Branches(4, name="branches")(inputs)
    x = layers.SpectralNormalization(layers.Dense(8))(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()([x, Automatic()(x)])))


def called(model):
    model(np.zeros((1, 5, 8), "float32"))
    return model


# Function that makes the model, and its number of kernels.
MODELS = {
    "sequential": (sequential, 3),
    "convolutions": (convolutions, 7),
    "nested": (nested, 3),
    "shared": (shared, 2),
    "recurrent": (recurrent, 2 * 2 + 4 + 1 + 2 + 1),
    "subclassed": (lambda: called(Branches()), 8),
    "automatic": (lambda: called(Automatic()), 2 + 2 * 2 + 1),
    "two inputs": (lambda: called(Wrapper()), 3),
    "blocks": (blocks, 3 * 6 + 2 + 1),
    "subclassed in functional": (subclassed_in_functional, 8 + 1 + 7 + 1),
    "backbone": (lambda: Backbone(20, 8, 2), 2 * 6 + 1),
}


def made(kind):
    keras.utils.set_random_seed(7)
    return MODELS[kind][0]()


def data(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 5, 8)).astype("float32")
    if kind == "backbone":
        x = rng.integers(0, 20, size=(12, 5))
    y = rng.normal(size=(12, 3) if kind == "convolutions" else (12, 5, 3))
    return x, y.astype("float32")


def kernels_by_name(model):
    """Return the kernels by their names, without functions of the package."""
    return [v for v in model.trainable_variables if "kernel" in v.name.split("_")]


def outputs(model, x):
    return numpy(model(x, training=False))


def masks(model):
    return [numpy(k.mask) for k in masked_kernels(model)]


def fit(model, kind, epochs=1, eagerly=True, **options):
    """Train for six steps, with an update at every second one."""
    x, y = data(kind)
    if getattr(model, "optimizer", None) is None:
        model.compile(keras.optimizers.AdamW(0.01), "mse", run_eagerly=eagerly)
    callback = ksd.DynamicSparsity("rigl", update_every=2, prune_rate=0.3, **options)
    model.fit(x, y, batch_size=2, epochs=epochs, verbose=0, callbacks=[callback])


def assert_same_sparse_model(one, other, x):
    np.testing.assert_array_equal(outputs(other, x), outputs(one, x))
    assert len(masked_kernels(other)) == len(masked_kernels(one)) > 0
    for a, b in zip(masked_kernels(one), masked_kernels(other), strict=True):
        np.testing.assert_array_equal(numpy(a.mask), numpy(b.mask))
        np.testing.assert_array_equal(numpy(a.kernel), numpy(b.kernel))
        assert a.target == b.target and a.target.density is not None
        assert a.axes == b.axes


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
            marks=[pytest.mark.slow] * (kind in ("blocks", "subclassed in functional", "backbone")),
        )
        for kind in MODELS
    ],
)
def test_sparsify_train_save_load_and_train_on(kind, tmp_path):
    model = made(kind)
    x, _ = data(kind)
    before, objects = outputs(model, x), [id(v) for v in model.variables]
    kernels = kernels_by_name(model)
    assert len(kernels) == MODELS[kind][1]

    # Sparsity 0 changes nothing, bit for bit.
    assert ksd.sparsify(model, 0.0).sparsity == 0.0
    np.testing.assert_array_equal(outputs(model, x), before)
    assert [id(v) for v in model.variables if v.dtype != "bool"] == objects

    old = {id(v): numpy(v).copy() for v in model.variables}
    report = ksd.sparsify(model, 0.6, "uniform", seed=1)
    assert not report.left_alone and len(report.kernels) == len(kernels)
    assert {id(k.kernel) for k in masked_kernels(model)} == {id(v) for v in kernels}
    for k in masked_kernels(model):
        mask = numpy(k.mask)
        assert mask.sum() == round(0.4 * mask.size)
        np.testing.assert_array_equal(numpy(k.kernel), np.where(mask, old[id(k.kernel)], 0))
    touched = {id(v) for k in masked_kernels(model) for v in (k.kernel, k.mask)}
    for v in model.variables:
        if id(v) not in touched:
            np.testing.assert_array_equal(numpy(v), old[id(v)])
    assert not np.array_equal(outputs(model, x), before)

    start = masks(model)
    fit(model, kind)
    assert model.optimizer.topology_updates == 3
    check_invariant(model, {k.name: round(0.4 * k.size) for k in masked_kernels(model)})
    assert sum(np.sum(a != b) for a, b in zip(start, masks(model), strict=True)) > 0

    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert_same_sparse_model(model, loaded, x)
    assert type(loaded).__name__ == type(model).__name__
    start = masks(loaded)
    fit(loaded, kind)
    assert loaded.optimizer.topology_updates == 6
    check_invariant(loaded, {k.name: round(0.4 * k.size) for k in masked_kernels(loaded)})
    assert sum(np.sum(a != b) for a, b in zip(start, masks(loaded), strict=True)) > 0
    if kind in ("blocks", "recurrent"):
        # A loaded model can be saved again.
        loaded.save(path)
        assert_same_sparse_model(loaded, keras.saving.load_model(path), x)


@pytest.mark.slow
@pytest.mark.cases(2)
@pytest.mark.parametrize("kind", ["sequential", "recurrent", "subclassed", "blocks", "backbone"])
def test_weights_file_and_list_of_weights_go_to_a_fresh_instance(kind, tmp_path):
    model = made(kind)
    ksd.sparsify(model, 0.6, "uniform", seed=1)
    model.save_weights(tmp_path / "model.weights.h5")
    x, _ = data(kind)
    fresh = MODELS[kind][0]()
    ksd.sparsify(fresh, 0.1, seed=2)
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert_same_sparse_model(model, fresh, x)
    other = MODELS[kind][0]()
    # `set_weights` sets no masks; they adapt to weights with the target sparsity.
    ksd.sparsify(other, 0.6, "uniform", seed=3)
    other.set_weights(model.get_weights())
    np.testing.assert_array_equal(outputs(other, x), outputs(model, x))
    assert all(map(np.array_equal, masks(model), masks(other)))


@pytest.mark.slow
def test_compiled_steps_train_it_too(kind="two inputs"):
    model = made(kind)
    ksd.sparsify(model, 0.6, seed=1)
    ones = {k.name: int(numpy(k.mask).sum()) for k in masked_kernels(model)}
    fit(model, kind, eagerly=False)
    assert model.optimizer.topology_updates == 3
    check_invariant(model, ones)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("kind", ["blocks", "backbone"])
def test_clone_is_sparse_once_it_has_the_weights(kind):
    model = made(kind)
    ksd.sparsify(model, 0.6, seed=1)
    if kind == "backbone":
        clone = type(model).from_config(model.get_config())
    else:
        clone = keras.models.clone_model(model)
    # The copy has new weights and none pruned.
    assert not {id(v) for v in clone.variables} & {id(v) for v in model.variables}
    assert all(mask.all() for mask in masks(clone))
    clone.set_weights(model.get_weights())
    x, _ = data(kind)
    np.testing.assert_array_equal(outputs(clone, x), outputs(model, x))
    assert all(map(np.array_equal, masks(model), masks(clone)))


@pytest.mark.slow
def test_layers_keep_being_what_they_were():
    """`isinstance`, class names and references stay valid."""
    model = made("blocks")
    early = model.layers[3]
    wide = early.late.wide
    ksd.sparsify(model, 0.5)
    assert model.layers[3] is early and early.late.wide is wide
    assert isinstance(early, EarlyBlock) and type(early).__name__ == "EarlyBlock"
    assert isinstance(early.late, LateBlock) and isinstance(wide, layers.Dense)
    assert type(early.late) is type(model.layers[1])
    kinds = [type(layer) for layer in model._flatten_layers()]
    ksd.sparsify(model, 0.7)
    assert [type(layer) for layer in model._flatten_layers()] == kinds


@pytest.mark.slow
def test_classes_themselves_stay_as_they_were():
    ksd.sparsify(made("blocks"), 0.5)
    another = made("blocks")
    assert type(another.layers[1]) is LateBlock and not masked_kernels(another)
    assert type(another.layers[-1]) is layers.Dense


@pytest.mark.slow
def test_load_in_a_fresh_process(tmp_path, kind="blocks"):
    model = made(kind)
    ksd.sparsify(model, 0.6, seed=1)
    fit(model, kind)
    model.save(tmp_path / "model.keras")
    x, _ = data(kind)
    np.save(tmp_path / "x.npy", x)
    program = (
        "import sys, json; sys.path.insert(0, sys.argv[2])\n"
        "import keras, numpy as np, keras_sparse_dm as ksd, test_any_model\n"
        "model = keras.saving.load_model(sys.argv[1] + '/model.keras')\n"
        "x = np.load(sys.argv[1] + '/x.npy')\n"
        "np.save(sys.argv[1] + '/y.npy', test_any_model.outputs(model, x))\n"
        "report = ksd.sparsity_report(model)\n"
        "print(json.dumps([report.to_dict(), model.optimizer.topology_updates]))\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report, updates = json.loads(done.stdout.splitlines()[-1])
    expected = ksd.sparsity_report(model)
    assert updates == 3
    assert [k["active"] for k in report["kernels"]] == [k.active for k in expected.kernels]
    assert [k["asked"] for k in report["kernels"]] == [k.asked for k in expected.kernels]
    # Another process may use other numbers of threads: equal up to rounding.
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), outputs(model, x), rtol=1e-5, atol=1e-6)
