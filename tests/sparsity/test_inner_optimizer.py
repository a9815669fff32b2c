"""Per-weight state of wrapped optimizers, and Adam's warm-up of grown weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sparse_dm as ksd
from keras_sparse_dm.layers import SparseDense
from keras_sparse_dm.sparsity import SparseOptimizer, check_invariant, masked_kernels
from keras_sparse_dm.sparsity.inner_optimizer import slots

# State of a matrix in each of Keras's optimizers, from their documentation and names.
STATE = {
    "Adadelta": {"accumulated_grad", "accumulated_delta_var"},
    "Adafactor": set(),  # its velocity is recomputed at every step
    "Adagrad": {"accumulator"},
    "Adam": {"momentum", "velocity"},
    "Adamax": {"momentum", "norm"},
    "AdamW": {"momentum", "velocity"},
    "Lamb": {"momentum", "velocity"},
    "Lion": {"momentum"},
    "Muon": {"momentum"},
    "Nadam": {"momentum", "velocity"},
    "RMSprop": {"velocity"},
    "ScheduleFreeAdamW": {"momentum", "velocity"},
    "SGD": set(),
}


@pytest.mark.parametrize("loss_scaling", [False, True])
@pytest.mark.parametrize("name", STATE)
def test_the_state_of_each_weight_is_found(name, loss_scaling):
    # Layers with the same name and shapes: neither identifies their state.
    variables = [
        layer.kernel
        for layer in (keras.layers.Dense(5, name="same"), keras.layers.Dense(5, name="same"))
        if layer.build((None, 5)) is None
    ]
    optimizer = getattr(keras.optimizers, name)(0.1, use_ema=True)
    built = keras.optimizers.LossScaleOptimizer(optimizer) if loss_scaling else optimizer
    built.build(variables)
    found = slots(optimizer, variables)
    for i, state in enumerate(found):
        assert set(state) == STATE[name] | {"average"}
        assert all(v.shape == (5, 5) for v in state.values())
        # Only the variable's own state changes with it.
        others = [v for v in found[1 - i].values()]
        before = [np.array(v) for v in others]
        gradients = [keras.ops.ones((5, 5)) if j == i else None for j in range(2)]
        with np.errstate(all="ignore"), pytest.warns(UserWarning, match="Gradients do not exist"):
            optimizer.apply(gradients, variables)
        moved = [n for n, v in state.items() if np.any(np.asarray(v))]
        assert "average" in moved or name == "ScheduleFreeAdamW"
        for v, then in zip(others, before, strict=True):
            if "average" not in v.name:
                np.testing.assert_array_equal(np.asarray(v), then)


def test_an_optimizer_that_cannot_be_made_again_is_named():
    class Mine(keras.optimizers.SGD):
        def __init__(self, needed):
            super().__init__(needed)

    model = keras.Sequential([keras.Input((4,)), SparseDense(4)])
    ksd.sparsify(model, 0.5, seed=0)
    with pytest.raises(ValueError, match="Mine cannot be made again from its `get_config"):
        ksd.sparse_optimizer(model, Mine(0.1), "static")


@pytest.mark.tensorflow
def test_the_users_optimizer_is_not_changed():
    model = keras.Sequential([keras.Input((4,)), SparseDense(4)])
    ksd.sparsify(model, 0.5, seed=0)
    inner = keras.optimizers.AdamW(0.1, use_ema=True)
    optimizer = ksd.sparse_optimizer(model, inner, "rigl", update_every=1)
    attributes = dict(vars(inner))
    during = []

    class Looks(keras.constraints.Constraint):
        def __call__(self, w):
            during.append({n for n, v in attributes.items() if vars(inner)[n] is not v})
            return w

    model.layers[0].bias.constraint = Looks()

    @tf.function
    def step(gradient):
        optimizer.apply([gradient, gradient[0]], model.trainable_variables)

    step(tf.ones((4, 4)))
    assert during and not any(during)
    assert type(inner) is keras.optimizers.AdamW
    assert all(vars(inner)[name] is value for name, value in attributes.items())


# Bias correction from each weight's growth


def adam_of_each_weight(weights, gradients, grown_at, lr, betas=(0.9, 0.999), epsilon=1e-7):
    """Run Adam in float64 (Kingma & Ba 2015) with a step count for each weight."""
    w, m, v = weights.astype("float64"), np.zeros(weights.shape), np.zeros(weights.shape)
    for t, g in enumerate(gradients, 1):
        active = grown_at < t
        g = np.where(active, g, 0.0)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        own = np.maximum(t - grown_at, 1)
        rate = lr * np.sqrt(1 - betas[1] ** own) / (1 - betas[0] ** own)
        w = np.where(active, w - rate * m / (np.sqrt(v) + epsilon), w)
    return w


@pytest.mark.cases(1)
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("make", [keras.optimizers.Adam, keras.optimizers.AdamW])
def test_adam_counts_from_each_weights_growth(make, graph):
    """A late-grown weight moves as at Adam's start; the other weights move as before."""
    model = keras.Sequential([keras.Input((8,)), SparseDense(8, use_bias=False)])
    ksd.sparsify(model, 0.5, seed=0)
    inner = make(0.01) if make is keras.optimizers.Adam else make(0.01, weight_decay=0.0)
    inner.use_ema, inner.ema_momentum = False, 0.9
    optimizer = ksd.sparse_optimizer(
        model, inner, "magran", 10, 0.25, seed=0, stop_step=10, grow_warmup=True
    )
    [k] = masked_kernels(model)
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=(8, 8)).astype("float32") for _ in range(16)]
    start, mask = np.array(k.kernel), np.array(k.mask)

    def apply(g):
        optimizer.apply([g], model.trainable_variables)

    step = tf.function(apply) if graph else apply
    for g in gradients:
        step(tf.constant(g))
    new_mask = np.asarray(k.mask)
    grown, stayed = new_mask & ~mask, new_mask & mask
    assert grown.any() and stayed.any() and optimizer.topology_updates == 1
    expected = adam_of_each_weight(
        np.where(stayed, start, 0.0), gradients, np.where(grown, 10, 0), 0.01
    )
    np.testing.assert_allclose(
        np.asarray(k.kernel), np.where(new_mask, expected, 0.0), rtol=2e-4, atol=1e-6
    )
    check_invariant(model)


@pytest.mark.slow
def test_without_growth_the_warm_up_changes_nothing():
    kernels = []
    for grow_warmup in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((8,)), SparseDense(8)])
        ksd.sparsify(model, 0.5, seed=0)
        # XLA may round fused operations differently.
        model.compile(keras.optimizers.AdamW(0.01, use_ema=True), "mse", jit_compile=False)
        callback = ksd.DynamicSparsity("rigl", 1000, grow_warmup=grow_warmup)
        x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        with pytest.warns(UserWarning, match="No topology update"):
            model.fit(x, x, batch_size=8, verbose=0, callbacks=[callback])
        kernels.append([np.array(v) for v in model.trainable_variables])
    for a, b in zip(*kernels, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_warm_up_is_saved_and_resumed(tmp_path):
    def make():
        model = keras.Sequential([keras.Input((8,), name="i"), SparseDense(8, name="d")])
        ksd.sparsify(model, 0.5, seed=0)
        model.compile(keras.optimizers.Adam(0.01, use_ema=True), "mse")
        return model

    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")

    def fit(model):
        callback = ksd.DynamicSparsity("rigl", 3, 0.3, seed=0, grow_warmup=True)
        model.fit(x, x, batch_size=8, shuffle=False, verbose=0, callbacks=[callback])

    model = make()
    fit(model)
    # `fit` would copy the averages to the weights at its end.
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.optimizer.options.grow_warmup
    for one in (model, loaded):
        fit(one)
    for a, b in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    check_invariant(loaded)


def test_the_warm_up_needs_adam():
    with pytest.raises(ValueError, match="`grow_warmup` counts .* Adam and AdamW; .* SGD"):
        SparseOptimizer(keras.optimizers.SGD(), "rigl", "constant", grow_warmup=True)
    with pytest.raises(ValueError, match="`grow_warmup` must be one of False, True; received 'no'"):
        ksd.DynamicSparsity("rigl", grow_warmup="no")
