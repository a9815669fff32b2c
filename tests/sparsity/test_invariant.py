"""`check_invariant` holds after training, and breaks where anything is tampered with."""

import keras
import numpy as np
import pytest
from keras.ops import convert_to_numpy as numpy

import keras_sparse_dm as ksd
from keras_sparse_dm.layers import SparseDense
from keras_sparse_dm.sparsity import check_invariant, masked_kernels


def trained(optimizer):
    model = keras.Sequential(
        [keras.Input((6,)), SparseDense(8, "tanh", name="a"), SparseDense(4, name="b")]
    )
    ksd.sparsify(model, 0.5, "uniform", seed=0)
    model.compile(optimizer, "mse", run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    callback = ksd.DynamicSparsity("rigl", update_every=2, prune_rate=0.3)
    model.fit(x, x[:, :4], batch_size=8, verbose=0, callbacks=[callback])
    return model


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return trained(keras.optimizers.AdamW(0.01, use_ema=True, gradient_accumulation_steps=2))


def change(variable, pick, value):
    """Sets one entry among those that `pick` marks; returns what puts it back."""
    before = numpy(variable)
    after = before.copy()
    after[tuple(np.argwhere(pick)[0])] = value
    variable.assign(after)
    return lambda: variable.assign(before)


def test_passes_after_training(model):
    check_invariant(model)
    check_invariant(
        model, {k.name: k.mask.shape[0] * k.mask.shape[1] // 2 for k in masked_kernels(model)}
    )


@pytest.mark.parametrize("kernel", [0, 1])
@pytest.mark.parametrize("value", [1.0, -1e-30, float("nan"), float("inf")])
def test_a_pruned_weight_that_is_not_zero(model, kernel, value):
    k = masked_kernels(model)[kernel]
    undo = change(k.kernel, ~numpy(k.mask), value)
    try:
        with pytest.raises(AssertionError, match=f"{k.name}: 1 pruned entries of weight"):
            check_invariant(model)
    finally:
        undo()
    check_invariant(model)


@pytest.mark.parametrize("kind", ["momentum", "velocity", "average", "gradient_accumulator"])
def test_state_of_a_pruned_weight_that_is_not_zero(model, kind):
    k = masked_kernels(model)[1]
    [state] = [
        v
        for v in model.optimizer.inner_optimizer.variables
        if v.name.endswith(kind) and "b_kernel" in v.name
    ]
    undo = change(state, ~numpy(k.mask), 1e-20)
    try:
        with pytest.raises(AssertionError, match=f"{k.name}: 1 pruned entries of .*{kind}"):
            check_invariant(model)
    finally:
        undo()
    check_invariant(model)


@pytest.mark.parametrize("kernel", [0, 1])
@pytest.mark.parametrize("value", [True, False])
def test_a_mask_with_another_number_of_ones(model, kernel, value):
    k = masked_kernels(model)[kernel]
    mask, weights = numpy(k.mask), numpy(k.kernel)
    ones = int(mask.sum())
    undo = change(k.mask, mask != value, value)
    k.kernel.assign(np.where(numpy(k.mask), weights, 0))  # only the count is wrong
    for v in model.optimizer.state_of(k.kernel):
        v.assign(np.where(numpy(k.mask), numpy(v), 0))
    try:
        message = f"{k.name}: mask has {ones + (1 if value else -1)} ones instead of {ones}"
        with pytest.raises(AssertionError, match=message):
            check_invariant(model)
    finally:
        undo()
        k.kernel.assign(weights)
    check_invariant(model)


def test_every_broken_kernel_is_named(model):
    undo = [change(k.kernel, ~numpy(k.mask), 1.0) for k in masked_kernels(model)]
    try:
        with pytest.raises(AssertionError) as error:
            check_invariant(model)
    finally:
        [u() for u in undo]
    assert all(k.name in str(error.value) for k in masked_kernels(model))


def test_numbers_given_are_held_to(model):
    name = masked_kernels(model)[0].name
    with pytest.raises(AssertionError, match="mask has 24 ones instead of 23"):
        check_invariant(model, {name: 23})


def test_model_that_is_not_compiled():
    model = keras.Sequential([keras.Input((4,)), SparseDense(4)])
    ksd.sparsify(model, 0.5, seed=0)
    check_invariant(model)
    k = masked_kernels(model)[0]
    change(k.kernel, ~numpy(k.mask), 1.0)
    with pytest.raises(AssertionError, match="1 pruned entries of weight"):
        check_invariant(model)


def test_loaded_model_is_checked_with_its_moments(model, tmp_path):
    """Before any callback attached the optimizer to the loaded model."""
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    check_invariant(loaded)
    k = masked_kernels(loaded)[0]
    [velocity] = [
        v
        for v in loaded.optimizer.inner_optimizer.variables
        if v.name.endswith("velocity") and "a_kernel" in v.name
    ]
    change(velocity, ~numpy(k.mask), 1.0)
    with pytest.raises(AssertionError, match="velocity"):
        check_invariant(loaded)


def test_model_without_sparse_kernels_raises():
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="has no sparse kernel"):
        check_invariant(plain)
