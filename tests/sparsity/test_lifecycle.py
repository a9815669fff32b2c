"""Lifecycle of a sparse model beyond one training run; the invariant always holds."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.ops import convert_to_numpy as numpy
from tensorflow_model_optimization.sparsity.keras import PolynomialDecay

import keras_sparse_dm as ksd
from keras_sparse_dm.layers import SparseDense
from keras_sparse_dm.layers.masked import TWINS
from keras_sparse_dm.sparsity import NM, Blocks, SparseOptimizer, check_invariant, masked_kernels

X = np.random.default_rng(0).normal(size=(32, 16)).astype("float32")
Y = X[:, :4] ** 2


def dense_model(seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((16,)), layers.Dense(32, "relu"), layers.Dense(24, "relu"), layers.Dense(4)]
    )
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    return model


def step(model, optimizer, variables=None):
    variables = model.trainable_variables if variables is None else variables
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(X) - Y) ** 2)
    optimizer.apply(tape.gradient(loss, variables), variables)


def fit(model, *callbacks, epochs=2, **options):
    return model.fit(
        X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks), **options
    )


def pruned_is_zero(model, *optimizers):
    for k in masked_kernels(model):
        mask = numpy(k.mask)
        for variable in (k.kernel, *(v for o in optimizers for v in o.state_of(k.kernel))):
            assert not np.any(numpy(variable)[~mask])


@pytest.mark.slow
def test_masks_drawn_anew_reach_an_optimizer_of_a_loop_of_its_own():
    model = dense_model()
    ksd.sparsify(model, 0.5, seed=0)
    optimizer = ksd.sparse_optimizer(model, keras.optimizers.Adam(1e-2), "static")
    for seed in (1, 2):
        step(model, optimizer)
        ksd.sparsify(model, 0.8, seed=seed)
        pruned_is_zero(model, optimizer)
        step(model, optimizer)
        pruned_is_zero(model, optimizer)


@pytest.mark.slow
def test_two_optimizers_of_one_model():
    model = dense_model()
    ksd.sparsify(model, 0.8, seed=0)
    one = ksd.sparse_optimizer(
        model, keras.optimizers.Adam(1e-2), "magran", update_every=1, prune_rate=0.5, seed=0
    )
    other = ksd.sparse_optimizer(model, keras.optimizers.SGD(1e-2, 0.9), "static")
    for _ in range(3):
        step(model, other)
        step(model, one)
        pruned_is_zero(model, one, other)
    assert one.topology_updates == 3


@pytest.mark.slow
def test_masks_follow_weights_restored_by_hand():
    model = dense_model()
    ksd.sparsify(model, 0.8, seed=0)
    optimizer = ksd.sparse_optimizer(model, None, "magran", update_every=2, prune_rate=0.5, seed=0)
    earlier = model.get_weights()
    for _ in range(3):
        model.train_on_batch(X, Y)
    model.set_weights(earlier)
    optimizer.sync_masks_with_weights()
    model.train_on_batch(X, Y)
    check_invariant(model)


@pytest.mark.slow
def test_old_name_of_sync_masks_with_weights():
    model = dense_model()
    ksd.sparsify(model, 0.8, seed=0)
    optimizer = ksd.sparse_optimizer(model, None, "magran", update_every=2, prune_rate=0.5, seed=0)
    earlier = model.get_weights()
    for _ in range(3):
        model.train_on_batch(X, Y)
    model.set_weights(earlier)
    with pytest.warns(DeprecationWarning, match="put_back is now sync_masks_with_weights"):
        optimizer.weights_were_put_back()
    check_invariant(model)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("method", ["gmp", "global"])
def test_early_stopping_where_the_numbers_of_ones_change(method):
    model = dense_model()
    gmp = method == "gmp"
    ksd.sparsify(model, 0.8, seed=0, dense_start=gmp)
    options = {"competition": "global", "update_every": 3, "prune_rate": 0.5}
    if gmp:
        options = {"schedule": PolynomialDecay(0.0, 0.8, 0, 12, frequency=2)}
    callback = ksd.DynamicSparsity("gmp" if gmp else "rigl", **options)
    # The callback restores the first epoch's weights.
    stop = keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=3, restore_best_weights=True, start_from_epoch=0
    )
    fit(model, stop, callback, epochs=6)
    check_invariant(model)
    fit(model, callback)
    check_invariant(model)


@pytest.mark.slow
def test_gradual_pruning_of_a_model_trained_before(tmp_path):
    model = dense_model()
    fit(model, epochs=10)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert int(loaded.optimizer.iterations) == 40
    for _ in range(2):
        # Steps count from the draw of the masks, also after a second draw.
        ksd.sparsify(loaded, 0.8, seed=0, dense_start=True)
        assert ksd.sparsity_report(loaded).sparsity == 0
        schedule = PolynomialDecay(0.0, 0.8, 0, 8, frequency=4)
        fit(loaded, ksd.DynamicSparsity("gmp", schedule=schedule), epochs=1)
        assert 0 < ksd.sparsity_report(loaded).sparsity < 0.81
        fit(loaded, ksd.DynamicSparsity("gmp", schedule=schedule), epochs=1)
        assert ksd.sparsity_report(loaded).sparsity == pytest.approx(0.8, abs=5e-3)
        check_invariant(loaded)


@pytest.mark.slow
def test_schedules_count_from_where_the_masks_were_drawn():
    model = dense_model()
    fit(model, epochs=5)
    ksd.sparsify(model, 0.5, seed=0)
    cosine = {"schedule": "cosine", "stop_step": 8, "update_every": 2, "prune_rate": 0.5}
    fit(model, ksd.DynamicSparsity("rigl", **cosine), epochs=2)
    assert model.optimizer.topology_updates == 4


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("structure", [NM(2, 4), Blocks(4)])
def test_a_clone_keeps_the_structure(structure):
    model = dense_model()
    ksd.sparsify(model, 0.5, "uniform", seed=0, structure=structure)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert [k.target for k in masked_kernels(clone)] == [k.target for k in masked_kernels(model)]
    clone.compile("adam", "mse")
    fit(clone, ksd.DynamicSparsity("rigl", update_every=2, prune_rate=0.5))
    for k in masked_kernels(clone):
        groups = numpy(k.mask).T.reshape(-1, 4).sum(-1)
        assert set(groups) <= ({2} if isinstance(structure, NM) else {0, 4})


def test_global_competition_needs_units_of_one_size():
    model = dense_model()
    first, second, _ = model.layers
    ksd.sparsify(model, 0.5, seed=0, include=first, structure=Blocks(4))
    ksd.sparsify(model, 0.5, seed=0, include=second)
    with pytest.raises(ValueError, match="units of 1 and 4 weights cannot be exchanged"):
        fit(model, ksd.DynamicSparsity("rigl", competition="global"))


@pytest.mark.tensorflow
@pytest.mark.parametrize("competition", ["kernel", "global"])
def test_a_step_that_trains_no_kernel(competition):
    model = dense_model()
    ksd.sparsify(model, 0.5, seed=0)
    optimizer = ksd.sparse_optimizer(
        model, keras.optimizers.Adam(), "rigl", update_every=1, competition=competition
    )
    masks = [numpy(k.mask) for k in masked_kernels(model)]
    step(model, optimizer, [v for v in model.trainable_variables if v.name == "bias"])
    for k, mask in zip(masked_kernels(model), masks, strict=True):
        np.testing.assert_array_equal(numpy(k.mask), mask)
    assert optimizer.topology_updates == 0


@pytest.mark.slow
def test_lora_on_a_sparse_layer_is_saved_merged_and_dense(tmp_path):
    model = dense_model()
    ksd.sparsify(model, 0.8, seed=0)
    model.layers[0].enable_lora(2)
    model.compile(keras.optimizers.Adam(1e-1), "mse")
    fit(model, ksd.DynamicSparsity("static"))
    model.save_weights(tmp_path / "m.weights.h5")
    plain = dense_model()
    ksd.sparsify(plain, 0.8, seed=0)
    plain.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_allclose(plain(X), model(X), atol=1e-5)
    lora, other, _ = ksd.sparsity_report(plain).kernels
    assert lora.density == 1 and lora.nonzeros > 0.9 * lora.size and other.density < 0.3


@pytest.mark.slow
def test_quantized_after_training(tmp_path):
    model = dense_model()
    ksd.sparsify(model, 0.8, seed=0)
    kernels = [numpy(k.kernel) for k in masked_kernels(model)]
    before = numpy(model(X))
    model.quantize("int8")
    for layer, kernel in zip(model.layers, kernels, strict=True):
        quantized = numpy(layer._kernel)
        assert quantized.dtype == np.int8 and not np.any(quantized[kernel == 0])
        assert layer.masks == []
    assert 0 < np.abs(model(X) - before).max() < 0.1
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(X), model(X))
    with pytest.raises(ValueError, match="nothing to make sparse: left alone .*quantized"):
        ksd.sparsify(loaded, 0.5)


def test_a_layer_derived_from_a_sparse_one_is_nobodys_twin():
    class Mixin:
        pass

    before = dict(TWINS)

    class Derived(SparseDense, Mixin):
        pass

    assert TWINS == before and issubclass(Derived, SparseDense)


@pytest.mark.tensorflow
def test_exclusion_from_weight_decay_reaches_the_wrapped_optimizer():
    model = dense_model()
    ksd.sparsify(model, 0.5, seed=0)
    inner = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer = SparseOptimizer(inner, "static")
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.attach(model)
    bias = model.layers[0].bias
    bias.assign(keras.ops.ones_like(bias))
    zeros = [keras.ops.zeros_like(v) for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    np.testing.assert_array_equal(bias, 1.0)
    kernel = masked_kernels(model)[0]
    assert np.any(numpy(kernel.kernel)[numpy(kernel.mask)] != 0)


def test_a_later_report_says_what_cannot_be_sparse():
    model = keras.Sequential([keras.Input((8, 8)), layers.Dense(4), layers.Dense(4)])
    model.layers[0].trainable = False
    ksd.sparsify(model, 0.5, seed=0)
    (name,) = ksd.sparsity_report(model).left_alone
    assert ksd.sparsity_report(model).left_alone == {name: "frozen"}


@pytest.mark.slow
def test_an_exported_model_predicts_the_same(tmp_path):
    """`export` writes a SavedModel that works without Keras and this package."""
    model = dense_model()
    ksd.sparsify(model, 0.9, seed=0)
    model.export(tmp_path / "saved", verbose=False)
    served = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(served.serve(X), model(X), rtol=1e-6)


def test_gradual_pruning_where_a_step_trains_some_of_the_kernels():
    """The schedule ends at the sparsity of the whole model, whatever a step trains."""
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(32, name="a"), keras.layers.Dense(2, name="b")]
    )
    ksd.sparsify(model, 0.6, "erk", seed=0, dense_start=True)
    schedule = PolynomialDecay(0.0, 0.6, begin_step=0, end_step=2, power=1, frequency=1)
    optimizer = ksd.sparse_optimizer(model, keras.optimizers.SGD(0.1), "gmp", schedule=schedule)
    kernel = model.layers[1].kernel
    for _ in range(2):
        optimizer.apply([keras.ops.ones(kernel.shape)], [kernel])
    a, b = ksd.sparsity.masked_kernels(model)
    assert np.asarray(a.mask).all()
    assert np.asarray(b.mask).sum() == b.record.asked_ones < b.size
