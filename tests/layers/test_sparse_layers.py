"""Sparse layers against the Keras layers that they replace."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.ops import convert_to_numpy as numpy

import keras_sparse_dm as ksd
from keras_sparse_dm.layers import SparseDense, SparseGRU

X2 = np.random.default_rng(0).normal(size=(5, 7)).astype("float32")
X3 = np.random.default_rng(1).normal(size=(5, 6, 4)).astype("float32")
PADDING = np.arange(6) < np.array([6, 4, 1, 3, 5])[:, None]


def copy_trainable(source, target):
    """Gives the twin the same trained weights, matched by position and shape."""
    assert [v.shape for v in source.trainable_variables] == [
        v.shape for v in target.trainable_variables
    ]
    for a, b in zip(source.trainable_variables, target.trainable_variables, strict=True):
        b.assign(a)


def outputs_and_gradients(layer, x, **call):
    """Outputs, and the gradients of a loss that weighs every output entry differently."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = tf.nest.flatten(layer(x, **call))
        loss = sum(
            tf.reduce_sum(tf.sin(tf.range(tf.size(y), dtype=y.dtype)) * tf.reshape(y, [-1]) ** 2)
            for y in outputs
        )
    return outputs, tape.gradient(loss, [x, *layer.trainable_variables])


def assert_same_bits(ours, theirs):
    ours, theirs = tf.nest.flatten(ours), tf.nest.flatten(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        a, b = numpy(a), numpy(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def bidirectional(cls, **arguments):
    return layers.Bidirectional(cls(4, return_sequences=True), **arguments)


# name: (the layer made of a given class pair, input, call arguments)
TWINS = {
    "dense": (lambda dense, gru: dense(3, activation="gelu"), X2, {}),
    "dense_no_bias": (lambda dense, gru: dense(3, use_bias=False), X2, {}),
    "dense_3d": (lambda dense, gru: dense(units=3, kernel_regularizer="l2"), X3, {}),
    "gru": (lambda dense, gru: gru(4), X3, {}),
    "gru_backwards": (lambda dense, gru: gru(4, go_backwards=True, return_sequences=True), X3, {}),
    "gru_state": (lambda dense, gru: gru(4, return_sequences=True, return_state=True), X3, {}),
    "gru_reset_before": (lambda dense, gru: gru(4, reset_after=False, unroll=True), X3, {}),
    "gru_no_bias": (lambda dense, gru: gru(4, use_bias=False), X3, {}),
    "gru_padded": (
        lambda dense, gru: gru(4, return_sequences=True),
        X3,
        {"mask": tf.constant(PADDING)},
    ),
    "gru_padded_backwards": (
        lambda dense, gru: gru(4, return_state=True, go_backwards=True),
        X3,
        {"mask": tf.constant(PADDING)},
    ),
    "gru_initial_state": (
        lambda dense, gru: gru(4),
        X3,
        {"initial_state": tf.constant(X2[:, :4])},
    ),
    "bidirectional": (lambda dense, gru: bidirectional(gru), X3, {}),
    "bidirectional_padded": (
        lambda dense, gru: bidirectional(gru, merge_mode="sum"),
        X3,
        {"mask": tf.constant(PADDING)},
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_full_masks_give_the_bits_of_the_keras_layer(name):
    make, x, call = TWINS[name]
    theirs, ours = make(layers.Dense, layers.GRU), make(SparseDense, SparseGRU)
    theirs(x), ours(x)
    copy_trainable(theirs, ours)
    theirs_y, theirs_g = outputs_and_gradients(theirs, x, **call)
    ours_y, ours_g = outputs_and_gradients(ours, x, **call)
    assert_same_bits(ours_y, theirs_y)
    assert_same_bits(ours_g, theirs_g)
    assert all(np.any(g) for g in ours_g)  # the loss reaches every weight


def test_initial_weights_are_those_of_the_keras_layer():
    for cls, sparse_cls, x in ((layers.Dense, SparseDense, X2), (layers.GRU, SparseGRU, X3)):
        twins = []
        for c in (cls, sparse_cls):
            keras.utils.set_random_seed(7)
            twins.append(c(4))
            twins[-1](x)
        assert_same_bits(twins[1].trainable_variables, twins[0].trainable_variables)


def test_dropout_of_gru_is_that_of_the_keras_layer():
    twins = [cls(4, dropout=0.5, recurrent_dropout=0.5, seed=3) for cls in (layers.GRU, SparseGRU)]
    for twin in twins:
        twin(X3)
    copy_trainable(*twins)
    theirs, ours = (twin(X3, training=True) for twin in twins)
    assert_same_bits(ours, theirs)
    assert np.any(numpy(ours) != numpy(twins[1](X3)))


def test_output_ignores_padding():
    model = keras.Sequential([layers.Masking(), bidirectional(SparseGRU)])
    x = np.where(PADDING[..., None], X3, 0).astype("float32")
    full = numpy(model(x))
    for i, length in enumerate(PADDING.sum(axis=1)):
        alone = numpy(model(x[i : i + 1, :length]))
        np.testing.assert_allclose(full[i : i + 1, :length], alone, atol=1e-6)


@pytest.mark.parametrize(
    "layer, x, shapes",
    [
        (lambda: SparseDense(3), X2, {"kernel": (7, 3)}),
        (lambda: SparseGRU(4), X3, {"kernel": (4, 12), "recurrent_kernel": (4, 12)}),
    ],
)
def test_masks_are_boolean_variables_beside_their_kernels(layer, x, shapes):
    layer = layer()
    assert list(layer.masks) == []
    plain = {SparseDense: layers.Dense, SparseGRU: layers.GRU}[type(layer)](layer.units)
    plain(x)
    layer(x)
    assert [tuple(kernel.shape) for kernel, _ in layer.masks] == list(shapes.values())
    assert [kernel.name for kernel, _ in layer.masks] == list(shapes)
    for kernel, mask in layer.masks:
        assert isinstance(mask, keras.Variable)
        assert mask.dtype == "bool" and not mask.trainable and mask.shape == kernel.shape
        assert numpy(mask).all()
        assert any(kernel is v for v in layer.trainable_variables)
        assert sum(mask is v for v in layer.non_trainable_variables) == 1
        assert sum(mask is v for v in layer.weights) == 1
        assert sum(kernel is v for v in layer.weights) == 1
    size = sum(np.prod(shape) for shape in shapes.values())
    assert layer.count_params() == plain.count_params() + size
    layer.trainable = False
    assert len(layer.trainable_variables) == 0 and len(layer.masks) == len(shapes)


def test_masks_of_a_bidirectional_model_are_each_there_once():
    model = keras.Sequential([keras.Input((6, 4)), bidirectional(SparseGRU), SparseDense(2)])
    masks = [v for v in model.non_trainable_variables if v.dtype == "bool"]
    assert len(masks) == 5 == len({id(v) for v in masks})
    assert len(ksd.sparsity_report(model).kernels) == 5
    assert len({k.name for k in ksd.sparsity_report(model).kernels}) == 5


@pytest.mark.parametrize(
    "sparse, plain, arguments",
    [
        (
            SparseDense,
            layers.Dense,
            {
                "units": 3,
                "activation": "relu",
                "use_bias": False,
                "kernel_initializer": "he_normal",
                "kernel_regularizer": keras.regularizers.L2(0.1),
                "kernel_constraint": keras.constraints.MaxNorm(2),
                "name": "d",
                "dtype": "mixed_bfloat16",
            },
        ),
        (
            SparseGRU,
            layers.GRU,
            {
                "units": 3,
                "activation": "relu",
                "recurrent_activation": "tanh",
                "use_bias": False,
                "reset_after": False,
                "go_backwards": True,
                "return_sequences": True,
                "return_state": True,
                "dropout": 0.25,
                "recurrent_dropout": 0.125,
                "seed": 5,
                "unroll": True,
                "recurrent_initializer": "glorot_uniform",
                "name": "g",
            },
        ),
    ],
)
def test_config_round_trip(sparse, plain, arguments):
    layer, twin = sparse(**arguments), plain(**arguments)
    config = layer.get_config()
    assert config == twin.get_config()
    assert sparse.from_config(config).get_config() == config
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is sparse and again.get_config() == config
    assert issubclass(sparse, plain)


def small_model():
    inputs = keras.Input((6, 4))
    x = layers.Masking()(inputs)
    x = layers.Bidirectional(SparseGRU(3, return_sequences=True))(x)
    x = SparseGRU(4)(x)
    return keras.Model(inputs, SparseDense(2)(x))


def weights_and_masks(model):
    return [numpy(v) for v in model.weights]


def test_keras_file_restores_masks(tmp_path):
    model = small_model()
    ksd.sparsify(model, 0.6, seed=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same_bits(weights_and_masks(loaded), weights_and_masks(model))
    report, before = ksd.sparsity_report(loaded), ksd.sparsity_report(model)
    assert [k.active for k in report.kernels] == [k.active for k in before.kernels]
    assert 0.55 < report.sparsity < 0.65
    assert_same_bits(loaded(X3), model(X3))


def test_weights_file_restores_masks(tmp_path):
    model, other = small_model(), small_model()
    ksd.sparsify(model, 0.6, seed=0)
    ksd.sparsify(other, 0.3, seed=9)
    model.save_weights(tmp_path / "m.weights.h5")
    other.load_weights(tmp_path / "m.weights.h5")
    assert_same_bits(weights_and_masks(other), weights_and_masks(model))


class Network(keras.Model):
    def __init__(self, dense, gru, use_bias):
        super().__init__()
        self.both = layers.Bidirectional(gru(3, return_sequences=True, use_bias=use_bias))
        self.gru = gru(4, use_bias=use_bias)
        self.dense = dense(2, use_bias=use_bias)

    def call(self, x):
        return self.dense(self.gru(self.both(x)))


@pytest.mark.parametrize("use_bias", [True, False])
def test_weights_of_the_dense_twin_fill_the_masks(tmp_path, use_bias):
    plain = Network(layers.Dense, layers.GRU, use_bias)
    sparse = Network(SparseDense, SparseGRU, use_bias)
    plain(X3), sparse(X3)
    ksd.sparsify(sparse, 0.6, seed=0)
    plain.save_weights(tmp_path / "m.weights.h5")
    sparse.load_weights(tmp_path / "m.weights.h5")
    assert_same_bits(sparse.trainable_variables, plain.trainable_variables)
    masks = [numpy(v) for v in sparse.non_trainable_variables if v.dtype == "bool"]
    assert len(masks) == 7 and all(mask.all() for mask in masks)
    assert_same_bits(sparse(X3), plain(X3))


def test_functional_dense_twin_is_loaded_or_refused_but_never_passed_over(tmp_path):
    """Keras files hold a functional model's layers under the names of their classes."""
    plain, sparse = (
        keras.Sequential([keras.Input((4,)), dense(3), dense(2)])
        for dense in (layers.Dense, SparseDense)
    )
    ksd.sparsify(sparse, 0.6, seed=0)
    plain.save_weights(tmp_path / "m.weights.h5")
    try:
        sparse.load_weights(tmp_path / "m.weights.h5")
    except ValueError as error:
        assert "could not be loaded" in str(error)
    else:
        assert_same_bits(sparse.trainable_variables, plain.trainable_variables)
        assert ksd.sparsity_report(sparse).sparsity == 0.0


def test_weights_of_another_shape_are_refused(tmp_path):
    small, large = (keras.Sequential([keras.Input((4,)), SparseDense(n)]) for n in (2, 3))
    small.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError):
        large.load_weights(tmp_path / "m.weights.h5")


LOAD = """
import sys
import keras
import keras_sparse_dm
import numpy as np
model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[2], model(np.load(sys.argv[3])))
"""


def test_fresh_process_loads_with_the_package_import_alone(tmp_path):
    """No `custom_objects`, and nothing of the package touched: only `import keras_sparse_dm`."""
    model = small_model()
    model.compile("adam", "mse")
    ksd.sparsify(model, 0.6, seed=0)
    callback = ksd.DynamicSparsity("rigl", update_every=1, prune_rate=0.3, seed=0)
    model.fit(X3, X2[:, :2], verbose=0, callbacks=[callback])
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", X3)
    names = ("model.keras", "y.npy", "x.npy")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *(str(tmp_path / name) for name in names)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(X3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_dtype_policies(policy):
    for cls, sparse_cls, x in ((layers.Dense, SparseDense, X2), (layers.GRU, SparseGRU, X3)):
        theirs, ours = cls(4, dtype=policy), sparse_cls(4, dtype=policy)
        theirs(x), ours(x)
        copy_trainable(theirs, ours)
        y = ours(x)
        assert keras.backend.standardize_dtype(y.dtype) == ours.compute_dtype
        assert_same_bits(numpy(y).view("uint8"), numpy(theirs(x)).view("uint8"))
        for kernel, mask in ours.masks:
            assert mask.dtype == "bool" and kernel.dtype == ours.variable_dtype


def test_shared_layer_keeps_one_mask():
    shared = SparseDense(4)
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], layers.add([shared(a), shared(shared(b))]))
    assert len(ksd.sparsity_report(model).kernels) == 1
    assert sum(v.dtype == "bool" for v in model.non_trainable_variables) == 1


def test_clone_of_a_sparse_model_has_its_own_full_masks():
    model = small_model()
    ksd.sparsify(model, 0.5, seed=0)
    clone = keras.models.clone_model(model)
    assert ksd.sparsity_report(clone).sparsity == 0.0
    assert 0.4 < ksd.sparsity_report(model).sparsity < 0.6
