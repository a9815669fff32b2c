"""Guards: no plain optimizer trains a sparse model densely, in any order of calls."""

import keras
import numpy as np
import pytest

import keras_sparse_dm as ksd
from keras_sparse_dm.layers import SparseDense, SparseGRU
from keras_sparse_dm.sparsity import SparseOptimizer, check_invariant, masked_kernels

RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(32, n)).astype("float32") for n in (6, 4))


def make():
    model = keras.Sequential([keras.Input((6,)), SparseDense(12), SparseDense(4)])
    model.compile("adam", loss="mse")
    return model


def pruned_alive(model):
    return sum(
        np.count_nonzero(np.asarray(k.kernel)[~np.asarray(k.mask)]) for k in masked_kernels(model)
    )


@pytest.mark.slow
def test_dense_training_of_sparse_layers_is_that_of_keras():
    """With full masks, guards allow training and change no bit."""
    ours = make()
    theirs = keras.Sequential([keras.Input((6,)), keras.layers.Dense(12), keras.layers.Dense(4)])
    theirs.compile("adam", loss="mse")
    for mine, other in zip(ours.trainable_variables, theirs.trainable_variables, strict=True):
        other.assign(mine)
    for model in (ours, theirs):
        model.fit(X, Y, epochs=2, shuffle=False, verbose=0)
    for mine, other in zip(ours.trainable_variables, theirs.trainable_variables, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))


@pytest.mark.tensorflow
def test_a_sparse_model_without_the_callback_raises_before_its_first_step():
    model = make()
    ksd.sparsify(model, 0.6, seed=0)
    before = [np.array(v) for v in model.trainable_variables]
    with pytest.raises(ValueError, match="callback `keras_sparse_dm.DynamicSparsity`"):
        model.fit(X, Y, verbose=0)
    for mine, other in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), other)


@pytest.mark.slow
def test_a_step_compiled_before_sparsify_leaves_pruned_weights_at_zero():
    model = make()
    model.fit(X, Y, verbose=0)
    ksd.sparsify(model, 0.6, seed=0)
    before = np.array(model.layers[0].kernel)
    model.fit(X, Y, verbose=0)
    assert pruned_alive(model) == 0
    assert np.any(np.asarray(model.layers[0].kernel) != before)


@pytest.mark.tensorflow
def test_a_clone_with_the_weights_set_is_guarded_too():
    model = make()
    ksd.sparsify(model, 0.6, seed=0)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    clone.compile("adam", loss="mse")
    with pytest.raises(ValueError, match="DynamicSparsity"):
        clone.fit(X, Y, verbose=0)


def test_a_kernel_keeps_its_own_constraint():
    model = keras.Sequential(
        [keras.Input((6,)), SparseDense(4, kernel_constraint=keras.constraints.NonNeg())]
    )
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    ksd.sparsify(model, 0.5, seed=0)
    model.fit(X, Y, verbose=0, callbacks=[ksd.DynamicSparsity("static")])
    check_invariant(model)
    kernel = np.asarray(model.layers[0].kernel)
    assert kernel.min() == 0 and kernel.max() > 0
    again = SparseDense.from_config(model.layers[0].get_config())
    assert isinstance(again.kernel_constraint, keras.constraints.NonNeg)


@pytest.mark.slow
def test_restored_weights_of_an_earlier_epoch_keep_the_invariant():
    model = make()
    ksd.sparsify(model, 0.6, seed=0)
    stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=1, restore_best_weights=True)
    sparsity = ksd.DynamicSparsity("magran", update_every=1, prune_rate=0.5, seed=0)
    model.fit(X, Y, batch_size=8, epochs=4, verbose=0, callbacks=[stop, sparsity])
    check_invariant(model)


@pytest.mark.parametrize(
    "inner",
    [
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
        lambda: SparseOptimizer(keras.optimizers.Adam(), "static"),
        lambda: type("Mine", (keras.optimizers.Ftrl,), {})(),
    ],
    ids=["loss scaling", "itself", "subclass of one that is refused"],
)
def test_optimizers_that_cannot_be_wrapped_are_refused(inner):
    with pytest.raises(ValueError, match="`inner_optimizer` must"):
        SparseOptimizer(inner(), "static")


@pytest.mark.slow
def test_freezing_a_layer_between_fits():
    model = make()
    ksd.sparsify(model, 0.6, seed=0)
    model.fit(X, Y, verbose=0, callbacks=[ksd.DynamicSparsity("static")])
    model.layers[0].trainable = False
    frozen = np.array(model.layers[0].kernel)
    model.compile("adam", loss="mse")
    model.fit(X, Y, verbose=0, callbacks=[ksd.DynamicSparsity("static")])
    np.testing.assert_array_equal(np.asarray(model.layers[0].kernel), frozen)
    check_invariant(model)


def test_a_kernel_left_without_weights_is_named():
    model = keras.Sequential([keras.Input((6,)), SparseDense(32), SparseDense(1, name="last")])
    with pytest.warns(UserWarning, match="no weight is left in .*last/kernel"):
        ksd.sparsify(model, 0.99, "uniform", seed=0)


def test_weights_of_a_plain_gru_load_with_full_masks(tmp_path):
    class Net(keras.Model):
        def __init__(self, gru):
            super().__init__()
            self.gru = gru

        def call(self, x):
            return self.gru(x)

    x = RNG.normal(size=(2, 5, 3)).astype("float32")
    plain, sparse = Net(keras.layers.GRU(4)), Net(SparseGRU(4))
    plain(x), sparse(x)
    plain.save_weights(tmp_path / "plain.weights.h5")
    sparse.load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_array_equal(np.asarray(sparse(x)), np.asarray(plain(x)))
    assert all(np.asarray(k.mask).all() for k in masked_kernels(sparse))
