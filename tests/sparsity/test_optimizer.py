"""`SparseOptimizer` without `fit`: single steps by hand, and custom training loops."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from keras.ops import convert_to_numpy as numpy
from support import assert_same_arrays as assert_same
from support import masks_of

import keras_sparse_dm as ksd
from keras_sparse_dm.layers import SparseDense
from keras_sparse_dm.sparsity import SparseOptimizer, check_invariant, masked_kernels
from keras_sparse_dm.sparsity.schedules import ConstantPruneRate

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
Y = np.random.default_rng(1).normal(size=(32, 4)).astype("float32")


def make_model(sparsity=0.5, layer=SparseDense):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), layer(9, "tanh", name="a"), layer(4, name="b")], name="m"
    )
    if sparsity is not None:
        ksd.sparsify(model, sparsity, "uniform", seed=0)
    return model


def dense_gradients(model, x=X, y=Y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x) - y) ** 2)
    return tape.gradient(loss, model.trainable_variables)


def weights_of(model):
    return {v.path: numpy(v) for v in model.trainable_variables}


def smallest_first(values):
    return np.argsort(np.abs(values).ravel(), kind="stable")


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["dense", "conv", "tiny"])
def test_weights_mask_and_momentum_are_those_of_the_original_program(reference, name):
    """With these settings, Lion's own update leaves weights and momentum unchanged."""
    arrays = reference.arrays("rigl.npz")
    before = {
        key: arrays[f"update_{name}_{key}"].reshape(-1, arrays[f"update_{name}_{key}"].shape[-1])
        for key in ("weights_before", "mask_before", "dense_gradient", "momentum_before")
    }
    model = keras.Sequential(
        [
            keras.Input((before["weights_before"].shape[0],)),
            SparseDense(before["weights_before"].shape[1], use_bias=False),
        ]
    )
    [k] = masked_kernels(model)
    mask = before["mask_before"].astype(bool)
    k.kernel.assign(before["weights_before"] * mask)
    k.mask.assign(mask)
    inner = keras.optimizers.Lion(0.0, beta_2=1.0)
    rate = float(arrays[f"update_{name}_fraction"])
    optimizer = SparseOptimizer(inner, "rigl", ConstantPruneRate(rate, 1))
    optimizer.attach(model)
    [momentum] = optimizer.state_of(k.kernel)
    momentum.assign(before["momentum_before"] * mask)
    optimizer.apply([ops.convert_to_tensor(before["dense_gradient"])], model.trainable_variables)

    def after(key):
        return arrays[f"update_{name}_{key}_after"].reshape(mask.shape)

    new_mask = after("mask").astype(bool)
    np.testing.assert_array_equal(numpy(k.mask), new_mask)
    np.testing.assert_array_equal(numpy(k.kernel), after("weights") * new_mask)
    survived = mask & new_mask
    np.testing.assert_array_equal(numpy(momentum), np.where(survived, after("momentum"), 0))
    np.testing.assert_array_equal(
        np.where(survived, before["momentum_before"], 0), np.where(survived, after("momentum"), 0)
    )
    assert not np.any(after("momentum")[new_mask & ~mask])
    assert optimizer.exchanged() == {k.name: int((new_mask & ~mask).sum())}


@pytest.mark.slow
def test_one_step_of_rigl_by_hand():
    """One step of RigL on a linear model equals the step in NumPy, in float64."""
    rng = np.random.default_rng(5)
    model = keras.Sequential([keras.Input((6,)), SparseDense(4)])
    ksd.sparsify(model, 0.5, seed=2)
    [k] = masked_kernels(model)
    w, mask = numpy(k.kernel).astype("float64"), numpy(k.mask)
    x, y = rng.normal(size=(8, 6)), rng.normal(size=(8, 4))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.fit(
        x,
        y,
        batch_size=8,
        verbose=0,
        callbacks=[ksd.DynamicSparsity("rigl", update_every=1, prune_rate=0.4)],
    )
    gradient = x.T @ (x @ w - y) * 2 / y.size
    stepped = w - 0.1 * gradient * mask
    dropped = int(0.4 * mask.sum())  # 4 of 12
    active = np.flatnonzero(mask)
    kept = np.zeros(mask.size, bool)
    kept[active[np.argsort(-np.abs(stepped.ravel()[active]))[: len(active) - dropped]]] = True
    free = np.flatnonzero(~kept)
    grown = free[np.argsort(-np.abs(gradient.ravel()[free]))[:dropped]]
    expected = kept.copy()
    expected[grown] = True
    expected = expected.reshape(mask.shape)
    np.testing.assert_array_equal(numpy(k.mask), expected)
    np.testing.assert_allclose(
        numpy(k.kernel), np.where(expected & mask, stepped, 0), rtol=1e-5, atol=1e-7
    )
    # Keras's momentum after one step is -0.1 * gradient; grown weights have none.
    [momentum] = model.optimizer.state_of(k.kernel)
    np.testing.assert_allclose(
        numpy(momentum), np.where(expected & mask, -0.1 * gradient, 0), rtol=1e-5, atol=1e-7
    )
    assert (expected & ~mask).any()


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "arguments",
    [
        dict(weight_decay=0.1, global_clipnorm=0.05, use_ema=True, ema_momentum=0.5),
        dict(weight_decay=0.1, clipnorm=0.02),
        dict(clipvalue=0.01, amsgrad=True),
        dict(weight_decay=0.1, global_clipnorm=0.05, gradient_accumulation_steps=2),
        dict(loss_scale_factor=8.0, use_ema=True, ema_overwrite_frequency=3),
    ],
    ids=lambda a: "-".join(a),
)
def test_static_is_the_plain_optimizer_on_hand_masked_gradients(arguments):
    """Clipping, decay and moments see masked gradients only, so results are equal bit for bit."""
    ours, theirs = make_model(), make_model()
    masks = list(masks_of(theirs).values())
    for k in masked_kernels(theirs):
        k.kernel.constraint = None  # this one is masked by hand, with no SparseOptimizer
    optimizer = SparseOptimizer(keras.optimizers.AdamW(0.01, **arguments), "static")
    optimizer.attach(ours)
    ours.optimizer = optimizer  # where `check_invariant` looks for the moments
    plain = keras.optimizers.AdamW(0.01, **arguments)
    plain.build(theirs.trainable_variables)
    for step in range(4):
        batch = slice(8 * step, 8 * step + 8)
        optimizer.apply(dense_gradients(ours, X[batch], Y[batch]), ours.trainable_variables)
        gradients = dense_gradients(theirs, X[batch], Y[batch])
        gradients[0], gradients[2] = gradients[0] * masks[0], gradients[2] * masks[1]
        plain.apply(gradients, theirs.trainable_variables)
    assert_same(weights_of(ours), weights_of(theirs))
    for a, b in zip(optimizer.inner_optimizer.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b), err_msg=a.name)
    check_invariant(ours)
    assert np.any(numpy(ours.layers[0].kernel) != numpy(make_model().layers[0].kernel))


@pytest.mark.slow
def test_magran_keeps_the_strongest_and_exchanges_what_was_asked():
    model = make_model(0.6)
    optimizer = SparseOptimizer(
        keras.optimizers.SGD(0.0), "magran", ConstantPruneRate(0.35, 2), seed=11
    )
    optimizer.attach(model)
    model.optimizer = optimizer  # where `check_invariant` looks for the moments
    regrown = 0
    for step in range(1, 7):
        before, weights = masks_of(model), weights_of(model)
        optimizer.apply(dense_gradients(model), model.trainable_variables)
        after = masks_of(model)
        if step % 2:
            assert_same(before, after)
            continue
        for name in before:
            active = int(before[name].sum())
            dropped = int(np.float32(active) * np.float32(0.35))
            order = np.flatnonzero(before[name])
            order = order[smallest_first(weights[name].ravel()[order])]
            strong = np.zeros(before[name].size, bool)
            strong[order[dropped:]] = True
            # Ties among zeros go to the first in row-major order, so only count those.
            strong &= weights[name].ravel() != 0
            assert after[name].ravel()[strong].all()
            assert after[name].sum() == active
            new = int((after[name] & ~before[name]).sum())
            assert 0 < new <= dropped
            assert new == int((before[name] & ~after[name]).sum())
            assert optimizer.exchanged()[name] == new
            regrown += dropped - new
    assert optimizer.topology_updates == 3
    assert regrown > 0  # a weight dropped in an update may grow back in it
    check_invariant(model)


@pytest.mark.slow
def test_magran_draws_by_its_seed():
    def run(seed, global_seed):
        model = make_model()
        keras.utils.set_random_seed(global_seed)
        optimizer = SparseOptimizer(
            keras.optimizers.SGD(0.01), "magran", ConstantPruneRate(0.5, 1), seed=seed
        )
        optimizer.attach(model)
        optimizer.apply(dense_gradients(model), model.trainable_variables)
        return np.concatenate([m.ravel() for m in masks_of(model).values()])

    np.testing.assert_array_equal(run(3, 0), run(3, 1))
    assert np.any(run(3, 0) != run(4, 0))
    assert np.any(run(None, 0) != run(None, 1))


@pytest.mark.tensorflow
def test_static_never_changes_a_mask():
    model = make_model()
    before = masks_of(model)
    optimizer = SparseOptimizer(keras.optimizers.SGD(0.1), "static", ConstantPruneRate(0.5, 1))
    optimizer.attach(model)
    for _ in range(3):
        optimizer.apply(dense_gradients(model), model.trainable_variables)
    assert_same(masks_of(model), before)
    assert optimizer.topology_updates == 0


OPTIMIZERS = {
    name: cls
    for name, cls in vars(keras.optimizers).items()
    if isinstance(cls, type)
    and issubclass(cls, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "SparseOptimizer")
}
REFUSED = {
    "Ftrl": "does not, and would let pruned weights change",
    "MultiOptimizer": "does not, and would let pruned weights change",
    "Adafactor": "unless `epsilon_1` is at least 1e-16; received epsilon_1=1e-30",
}


def test_every_optimizer_of_keras_is_tried():
    known = "SGD Adam AdamW Adamax Adadelta Adafactor Adagrad Lamb Lion Nadam RMSprop".split()
    assert {*known, *REFUSED} <= {*OPTIMIZERS} and len(OPTIMIZERS) >= 13


@pytest.mark.cases(2)
@pytest.mark.parametrize("arguments", [{}, {"use_ema": True, "weight_decay": 0.01}], ids=len)
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in REFUSED])
def test_an_optimizer_trains_the_active_weights_only(name, arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6, 2)), layers.Conv1D(5, 3), layers.Flatten(), layers.Dense(4)]
    )
    ksd.sparsify(model, 0.5, "uniform", seed=0)
    train_and_look(model, OPTIMIZERS[name](learning_rate=0.01, **arguments))


def train_and_look(model, inner, steps=5):
    """Train; every active weight moves in every step, and all others and their state stay zero."""
    counts = {name: mask.sum() for name, mask in masks_of(model).items()}
    start = masks_of(model)
    optimizer = SparseOptimizer(inner, "rigl", ConstantPruneRate(0.3, 3))
    optimizer.attach(model)
    model.optimizer = optimizer  # where `check_invariant` looks for the moments
    kernels = masked_kernels(model)
    assert all(optimizer.state_of(k.kernel) for k in kernels) or type(inner).__name__ in (
        "SGD",
        "Adafactor",
    )
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        before = [numpy(k.kernel) for k in kernels]
        masks = [numpy(k.mask) for k in kernels]
        gradients = [rng.normal(size=v.shape).astype("float32") for v in model.trainable_variables]
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients], model.trainable_variables)
        check_invariant(model, counts)
        for k, old, mask in zip(kernels, before, masks, strict=True):
            now, survived = numpy(k.kernel), mask & numpy(k.mask)
            assert np.isfinite(now).all(), (k.name, step)
            moved = (now != old)[survived]
            assert moved.all() if type(inner).__name__ != "Adadelta" else moved.mean() > 0.5
            assert not now[~survived].any()
    assert all(np.any(masks_of(model)[key] != start[key]) for key in start)
    return optimizer


@pytest.mark.slow
def test_adafactor_with_whole_rows_and_columns_pruned():
    """Keras then divides the zero mean squares of a row and a column by each other."""

    def model_with_gaps():
        model = make_model()
        for k in masked_kernels(model):
            mask = np.ones(k.mask.shape, bool)
            mask[:3], mask[:, 1:3] = False, False
            k.mask.assign(mask)
            k.kernel.assign(numpy(k.kernel) * mask)
        return model

    for epsilon in (1e-16, 1e-8):
        model = model_with_gaps()
        inner = keras.optimizers.Adafactor(0.01, epsilon_1=epsilon)
        optimizer = SparseOptimizer(inner, "rigl", ConstantPruneRate(0.3, 2))
        optimizer.attach(model)
        model.optimizer = optimizer
        for _ in range(5):
            optimizer.apply(dense_gradients(model), model.trainable_variables)
            check_invariant(model)
            assert all(np.isfinite(v).all() for v in weights_of(model).values())
        assert optimizer.topology_updates == 2
    train_and_look(make_model(), keras.optimizers.Adafactor(0.01, epsilon_1=1e-16))
    # The reason for the limit: the same by hand with Keras's default.
    model = model_with_gaps()
    plain = keras.optimizers.Adafactor(0.01)
    masks = masks_of(model)
    for k in masked_kernels(model):
        k.kernel.constraint = None
    gradients = dense_gradients(model)
    gradients[0] = gradients[0] * masks["m/a/kernel"]
    plain.apply(gradients, model.trainable_variables)
    assert np.isnan(weights_of(model)["m/a/kernel"]).any()


@pytest.mark.tensorflow
def test_muon_would_move_pruned_weights():
    """So the wrapper must reset pruned weights, which the invariant test above checks."""
    model = make_model()
    masks = masks_of(model)
    for k in masked_kernels(model):
        k.kernel.constraint = None
    gradients = dense_gradients(model)
    gradients[0] = gradients[0] * masks["m/a/kernel"]
    keras.optimizers.Muon(0.01).apply(gradients, model.trainable_variables)
    assert np.any(weights_of(model)["m/a/kernel"][~masks["m/a/kernel"]])


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_that_cannot_is_refused_when_fit_begins(name):
    model = make_model()
    before = weights_of(model)
    cls = OPTIMIZERS[name]
    inner = cls([keras.optimizers.SGD()]) if name == "MultiOptimizer" else cls(learning_rate=0.01)
    model.compile(inner, "mse")
    with pytest.raises(ValueError, match=f"`inner_optimizer` .*{REFUSED[name]}") as error:
        model.fit(X, Y, verbose=0, callbacks=[ksd.DynamicSparsity("static")])
    assert name in str(error.value)
    assert_same(weights_of(model), before)
    assert model.optimizer is inner


@pytest.mark.tensorflow
def test_gradient_accumulation_clears_what_was_gathered_for_dropped_weights():
    model = make_model()
    inner = keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=4)
    optimizer = SparseOptimizer(inner, "rigl", ConstantPruneRate(0.5, 3))
    optimizer.attach(model)
    model.optimizer = optimizer  # where `check_invariant` looks for the moments
    for _ in range(3):
        optimizer.apply(dense_gradients(model), model.trainable_variables)
    k = masked_kernels(model)[0]
    accumulated = [v for v in optimizer.state_of(k.kernel) if "accumulator" in v.name]
    assert len(accumulated) == 1 and np.any(numpy(accumulated[0]))
    check_invariant(model)


@pytest.mark.tensorflow
def test_a_gradient_that_is_nan_at_pruned_weights_does_no_harm():
    model = make_model()
    optimizer = SparseOptimizer(keras.optimizers.Adam(0.1, global_clipnorm=1.0), "static")
    optimizer.attach(model)
    model.optimizer = optimizer  # where `check_invariant` looks for the moments
    gradients = dense_gradients(model)
    for i, k in zip((0, 2), masked_kernels(model), strict=True):
        gradients[i] = tf.where(numpy(k.mask), gradients[i], np.nan)
    optimizer.apply(gradients, model.trainable_variables)
    check_invariant(model)
    assert all(np.isfinite(v).all() for v in weights_of(model).values())


@pytest.mark.slow
def test_custom_training_loop_in_a_compiled_function():
    def run(compiled):
        model = make_model()
        optimizer = SparseOptimizer(
            keras.optimizers.AdamW(0.01), "rigl", ConstantPruneRate(0.3, 2), seed=0
        )
        optimizer.attach(model)
        model.optimizer = optimizer  # where `check_invariant` looks for the moments

        def step(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x) - y) ** 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return loss

        if compiled:
            step = tf.function(step)
        losses = [float(step(X[i : i + 8], Y[i : i + 8])) for i in (0, 8, 16, 24, 0, 8, 16)]
        check_invariant(model)
        assert optimizer.topology_updates == 3
        return masks_of(model), losses

    (masks, losses), (compiled_masks, compiled_losses) = run(False), run(True)
    assert_same(masks, compiled_masks)
    np.testing.assert_allclose(losses, compiled_losses, rtol=1e-5)
    start = masks_of(make_model())
    assert all(np.any(start[name] != masks[name]) for name in start)


@pytest.mark.tensorflow
def test_looks_like_the_optimizer_that_it_wraps():
    model = make_model()
    inner = keras.optimizers.Adam(0.5)
    optimizer = SparseOptimizer(inner, "static")
    optimizer.attach(model)
    assert float(optimizer.learning_rate) == 0.5
    optimizer.learning_rate = 0.25
    assert float(inner.learning_rate) == 0.25
    for expected in (0, 1, 2):
        assert int(optimizer.iterations) == int(inner.iterations) == expected
        optimizer.apply(dense_gradients(model), model.trainable_variables)
    ids = [id(v) for v in optimizer.variables]
    assert len(ids) == len(set(ids)) and {id(v) for v in inner.variables} < set(ids)


@pytest.mark.parametrize("method", ["rigl", "magran", "static"])
def test_config_round_trip_through_json(method):
    optimizer = SparseOptimizer(
        keras.optimizers.AdamW(0.125, use_ema=True), method, ConstantPruneRate(0.25, 7), seed=3
    )
    config = json.loads(json.dumps(optimizer.get_config()))
    again = SparseOptimizer.from_config(config)
    assert again.get_config() == optimizer.get_config()
    assert type(again.inner_optimizer) is type(optimizer.inner_optimizer)
    assert again.method.name == method
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()


@pytest.mark.slow
def test_wrong_use_raises():
    adam = keras.optimizers.Adam
    with pytest.raises(ValueError, match="`schedule` must be given for method 'rigl'"):
        SparseOptimizer(adam(), "rigl")
    with pytest.raises(ValueError, match="`method` must be one of"):
        SparseOptimizer(adam(), "best")
    with pytest.raises(ValueError, match="must be a keras.optimizers.Optimizer; received 'adam'"):
        SparseOptimizer("adam", "static")
    with pytest.raises(ValueError, match="`optimizer` must be .* or None; received 'adam'"):
        ksd.sparse_optimizer(make_model(), "adam")
    model = make_model()
    optimizer = SparseOptimizer(adam(), "static")
    with pytest.raises(ValueError, match="is not attached to a model"):
        optimizer.apply(dense_gradients(model), model.trainable_variables)
    with pytest.raises(ValueError, match="Nothing is pruned in model 'm'"):
        optimizer.attach(make_model(sparsity=None))
    with pytest.raises(ValueError, match="'m' has no trainable sparse kernel"):
        optimizer.attach(make_model(sparsity=None, layer=layers.Dense))
    model.trainable = False
    with pytest.raises(ValueError, match="no trainable sparse kernel"):
        optimizer.attach(model)
    model.trainable = True
    optimizer.attach(model)
    with pytest.raises(ValueError, match="built for other variables"):
        optimizer.attach(make_model())


@pytest.mark.slow
def test_kernels_without_a_gradient_keep_weights_and_masks():
    for method, given in (("rigl", None), ("magran", None), ("rigl", "some")):
        model = make_model()
        schedule = ConstantPruneRate(0.5, 1)
        optimizer = SparseOptimizer(keras.optimizers.Adam(0.1), method, schedule, seed=0)
        optimizer.attach(model)
        before = [(numpy(k.kernel).copy(), numpy(k.mask).copy()) for k in masked_kernels(model)]
        gradients, variables = dense_gradients(model), model.trainable_variables
        if given is None:
            gradients[2] = None
        else:
            del gradients[2], variables[2]
        optimizer.apply(gradients, variables)
        first, second = masked_kernels(model)[:2]
        assert np.any(numpy(first.mask) != before[0][1]) and optimizer.topology_updates == 1
        assert np.all(numpy(second.kernel) == before[1][0])
        assert np.all(numpy(second.mask) == before[1][1])
        assert optimizer.exchanged()[second.name] == 0 < optimizer.exchanged()[first.name]


def test_masks_changed_behind_the_optimizer_are_noticed():
    model = make_model()
    optimizer = SparseOptimizer(keras.optimizers.Adam(), "static")
    optimizer.attach(model)
    k = masked_kernels(model)[0]
    mask = numpy(k.mask).copy()
    mask[tuple(np.argwhere(mask)[0])] = False
    k.mask.assign(mask)
    with pytest.raises(ValueError, match="number of ones in the masks differs"):
        optimizer.attach(model)
