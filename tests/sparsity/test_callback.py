"""`DynamicSparsity` in plain `compile` and `fit`."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.ops import convert_to_numpy as numpy
from support import assert_same_arrays as assert_same_bits
from support import masks_of

import keras_sparse_dm as ksd
from keras_sparse_dm.layers import SparseConv1D, SparseDense, SparseGRU
from keras_sparse_dm.sparsity import SparseOptimizer, callback, check_invariant, masked_kernels

RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(48, n)).astype("float32") for n in (6, 4))
SEQUENCES = RNG.normal(size=(48, 5, 3)).astype("float32")
SEQUENCES[:, 3:] *= RNG.integers(0, 2, (48, 1, 1))  # some sequences are padded


def sequential(name="m"):
    return keras.Sequential(
        [keras.Input((6,)), SparseDense(9, "tanh", name="a"), SparseDense(4, name="b")], name=name
    )


def functional():
    inputs = keras.Input((5, 3))
    x = layers.Masking()(inputs)
    x = layers.Bidirectional(SparseGRU(4))(x)
    shared = SparseDense(8, "tanh", kernel_regularizer="l2", name="shared")
    x = layers.BatchNormalization()(shared(shared(x)))
    return keras.Model(inputs, layers.Dense(4)(x))


@keras.saving.register_keras_serializable()
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [SparseDense(8, "relu", kernel_constraint="max_norm"), SparseDense(4)]
        self.dropout = layers.Dropout(0.1, seed=3)

    def call(self, x, training=False):
        return self.blocks[1](self.dropout(self.blocks[0](x), training=training))


class Recorder(keras.callbacks.Callback):
    """Callback that records masks and the exchanged weights after every batch."""

    def on_train_begin(self, logs=None):
        self.masks = [masks_of(self.model)]
        self.exchanged, self.updates = [None], [None]
        self.logs, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        optimizer = sparse_optimizer(self.model)
        self.masks.append(masks_of(self.model))
        self.exchanged.append(optimizer.exchanged())
        self.updates.append(optimizer.topology_updates)
        self.logs.append(dict(logs))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(logs))


def sparse_optimizer(model):
    optimizer = model.optimizer
    return optimizer if isinstance(optimizer, SparseOptimizer) else optimizer.inner_optimizer


def everything(model):
    """Return weights, masks and all state of the optimizer, by position."""
    return [numpy(v) for v in (*model.weights, *model.optimizer.variables)]


def make(build=sequential, optimizer=None, sparsity=0.5, x=X, **compile_arguments):
    keras.utils.set_random_seed(0)
    model = build()
    if not model.built:
        model(x[:1])
    ksd.sparsify(model, sparsity, seed=1)
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", **compile_arguments)
    return model


def fit(model, *callbacks, x=X, epochs=2, **arguments):
    return model.fit(
        x,
        Y,
        batch_size=8,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=callbacks,
        **arguments,
    )


def rigl(update_every=4, prune_rate=0.4, **arguments):
    return ksd.DynamicSparsity("rigl", update_every, prune_rate, **arguments)


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "build, method, optimizer",
    [
        (sequential, "rigl", lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)),
        (
            functional,
            "magran",
            lambda: keras.optimizers.AdamW(0.01, use_ema=True, global_clipnorm=0.1),
        ),
        (Subclassed, "static", lambda: keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True)),
        (Subclassed, "rigl", lambda: keras.optimizers.Lion(0.001, weight_decay=0.1)),
    ],
)
def test_training_keeps_the_invariant_and_changes_masks_when_due(build, method, optimizer):
    x = SEQUENCES if build is functional else X
    model = make(build, optimizer(), x=x)
    counts = {name: mask.sum() for name, mask in masks_of(model).items()}
    before = [numpy(v) for v in model.trainable_variables]
    recorder = Recorder()
    callback = ksd.DynamicSparsity(method, update_every=5, prune_rate=0.3, start_step=4)
    history = fit(model, callback, recorder, x=x)
    check_invariant(model)
    check_invariant(model, counts)
    assert all(np.isfinite(history.history["loss"]))
    assert all(
        np.any(numpy(v) != b) for v, b in zip(model.trainable_variables, before, strict=True)
    )
    assert len(recorder.masks) == 13
    for step in range(1, 13):
        old, new = recorder.masks[step - 1], recorder.masks[step]
        changed = {name: int((new[name] & ~old[name]).sum()) for name in new}
        if method == "static" or step % 5:
            assert not any(changed.values())
        else:
            for name, count in changed.items():
                assert count == int((old[name] & ~new[name]).sum())
                assert count <= int(np.float32(counts[name]) * np.float32(0.3))
            assert sum(changed.values()) > 0
            assert recorder.exchanged[step] == changed
        assert recorder.updates[step] == (0 if method == "static" else step // 5)


@pytest.mark.slow
def test_graph_xla_eager_and_many_steps_per_execution_agree():
    runs = {}
    for name, arguments in {
        "graph": {},
        "eager": {"run_eagerly": True},
        "xla": {"jit_compile": True},
        "steps": {"steps_per_execution": 3},
    }.items():
        model = make(**arguments)
        history = fit(model, rigl(update_every=3), epochs=1)
        check_invariant(model)
        assert sparse_optimizer(model).topology_updates == 2
        runs[name] = (history.history["loss"], masks_of(model), model.get_weights())
    losses, masks, weights = runs.pop("graph")
    for other_losses, other_masks, other_weights in runs.values():
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
        assert_same_bits(list(other_masks.values()), list(masks.values()))
        for a, b in zip(other_weights, weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert any(
        np.any(m != s) for m, s in zip(masks.values(), masks_of(make()).values(), strict=True)
    )


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("method", ["rigl", "magran"])
def test_load_and_go_on_ends_with_the_bits_of_an_unbroken_run(method, tmp_path):
    def callback():
        return ksd.DynamicSparsity(method, update_every=4, prune_rate=0.4, seed=7)

    def optimizer():
        return keras.optimizers.AdamW(0.01, use_ema=True, ema_overwrite_frequency=5)

    unbroken = make(optimizer=optimizer())
    fit(unbroken, callback(), epochs=1)
    fit(unbroken, callback(), epochs=1)  # a second `fit` continues after the first
    assert sparse_optimizer(unbroken).topology_updates == 3

    broken = make(optimizer=optimizer())
    fit(broken, callback(), epochs=1)
    broken.save(tmp_path / "m.keras")
    del broken
    keras.utils.set_random_seed(99)
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer) is SparseOptimizer
    assert loaded.optimizer.method.name == method
    fit(loaded, callback(), epochs=1)
    check_invariant(loaded)
    assert sparse_optimizer(loaded).topology_updates == 3
    assert_same_bits(everything(loaded), everything(unbroken))


@pytest.mark.slow
def test_one_fit_is_two_fits():
    one, two = make(), make()
    fit(one, rigl(seed=0))
    fit(two, rigl(seed=0), epochs=1)
    fit(two, rigl(seed=0), initial_epoch=1)
    assert_same_bits(everything(one), everything(two))
    # Weights, SparseOptimizer's state (a history per kernel) and Adam's: wrapped only once.
    assert len(everything(one)) == len(everything(two)) == 4 + (7 + 2) + (2 + 4 * 2)


@pytest.mark.slow
def test_loaded_model_does_not_train_densely_without_the_callback(tmp_path):
    model = make(run_eagerly=True)
    fit(model, rigl(), epochs=1)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    assert loaded.evaluate(X, Y, verbose=0) == pytest.approx(model.evaluate(X, Y, verbose=0))
    before = everything(loaded)
    with pytest.raises(ValueError, match="pass the DynamicSparsity callback to `fit`"):
        fit(loaded)
    assert_same_bits(everything(loaded), before)


@pytest.mark.slow
def test_interrupted_run_goes_on_with_backup_and_restore(tmp_path):
    class Killed(Exception):
        pass

    class Kill(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if int(sparse_optimizer(self.model).iterations) == 8:
                raise Killed

    def start(seed):
        keras.utils.set_random_seed(0)
        model = sequential()
        ksd.sparsify(model, 0.5, seed=seed)
        model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
        return model

    unbroken, killed, resumed = start(1), start(1), start(8)  # other masks, which are then restored
    fit(unbroken, rigl(seed=0))
    backup = str(tmp_path / "backup")
    with pytest.raises(Killed):
        fit(killed, rigl(seed=0), keras.callbacks.BackupAndRestore(backup), Kill())
    fit(resumed, rigl(seed=0), keras.callbacks.BackupAndRestore(backup))
    check_invariant(resumed)
    assert_same_bits(everything(resumed), everything(unbroken))


@pytest.mark.slow
def test_mixed_float16_with_loss_scaling(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = make(optimizer=keras.optimizers.AdamW(0.01, use_ema=True))
        assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
        start = masks_of(model)
        fit(model, rigl(), epochs=1)
        assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
        assert type(model.optimizer.inner_optimizer) is SparseOptimizer
        check_invariant(model)
        # Steps that overflow at the initial scale are skipped.
        done = int(model.optimizer.iterations)
        assert sparse_optimizer(model).topology_updates == done // 4 > 0
        assert any(np.any(mask != start[name]) for name, mask in masks_of(model).items())
        model.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        assert_same_bits(everything(loaded), everything(model))
        fit(loaded, rigl(), epochs=1)
        fit(model, rigl(), epochs=1)
        check_invariant(loaded)
        assert_same_bits(everything(loaded), everything(model))
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.cases(1)
@pytest.mark.parametrize("trained_before", [False, True])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_adafactor_is_restored_from_a_file(policy, trained_before, tmp_path):
    """Keras tracks Adafactor's state of vectors or not, depending on how it is built."""
    keras.config.set_dtype_policy(policy)
    try:
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6), keras.layers.Dense(4)])
        model.compile(keras.optimizers.Adafactor(0.01, epsilon_1=1e-16), "mse", run_eagerly=True)
        x = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
        if trained_before:
            model.fit(x, x[:, :4], verbose=0)
        ksd.sparsify(model, 0.5, seed=0)
        static = ksd.DynamicSparsity("static", seed=0)
        model.fit(x, x[:, :4], batch_size=8, verbose=0, callbacks=[static])
        model.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    pairs = list(zip(loaded.optimizer.variables, model.optimizer.variables, strict=True))
    assert len(pairs) > 10
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_swapped_averages_and_learning_rate_callbacks(policy):
    """Keras's callbacks that use attributes of the optimizer work through the wrapper."""
    keras.config.set_dtype_policy(policy)
    try:
        model = make(optimizer=keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.5))
        recorder = Recorder()
        history = fit(
            model,
            rigl(),
            keras.callbacks.SwapEMAWeights(),
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5 * rate),
            keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=1e6),
            recorder,
            epochs=3,
            validation_data=(X, Y),
        )
    finally:
        keras.config.set_dtype_policy("float32")
    check_invariant(model)
    # The rate halves before each epoch and falls to a tenth after the second and the third.
    rates = history.history["learning_rate"]
    np.testing.assert_allclose(rates, [0.005, 0.0025, 0.000125], rtol=1e-5)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.0000125, rel=1e-5)
    assert all(np.isfinite(history.history["val_loss"]))
    # Evaluation uses the averages, which become the weights at the end of `fit`.
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(
        history.history["val_loss"][-1], rel=1e-2
    )


@pytest.mark.slow
def test_gradient_accumulation_and_train_on_batch():
    """With three batches per step, an update every two steps is one every six batches."""
    model = make(optimizer=keras.optimizers.SGD(0.1, 0.9, gradient_accumulation_steps=3))
    recorder = Recorder()
    fit(model, rigl(update_every=2), recorder)
    check_invariant(model)
    assert recorder.updates[1:] == [0] * 5 + [1] * 6 + [2]
    before = masks_of(model)
    # The next update is due at batch 18, after batches 13 to 17.
    for updates in (2, 2, 2, 2, 2, 3):
        assert all(np.array_equal(mask, before[name]) for name, mask in masks_of(model).items())
        model.train_on_batch(X[:8], Y[:8])
        assert sparse_optimizer(model).topology_updates == updates
    assert any(np.any(mask != before[name]) for name, mask in masks_of(model).items())
    check_invariant(model)


@pytest.mark.slow
def test_method_and_schedule_of_a_later_fit_are_those_given():
    model = make(run_eagerly=True)
    start = masks_of(model)
    fit(model, ksd.DynamicSparsity("static"), epochs=1)
    assert_same_bits(list(masks_of(model).values()), list(start.values()))
    recorder = Recorder()
    fit(model, rigl(update_every=5), recorder, epochs=1)  # steps 7 to 12; 10 is due
    assert recorder.updates[1:] == [0, 0, 0, 1, 1, 1]
    fit(model, ksd.DynamicSparsity("static"), epochs=1)
    assert sparse_optimizer(model).topology_updates == 1
    check_invariant(model)


@pytest.mark.slow
def test_compiling_again_starts_afresh():
    model = make(run_eagerly=True)
    fit(model, rigl(), epochs=1)
    weights = model.get_weights()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", run_eagerly=True)
    recorder = Recorder()
    fit(model, rigl(update_every=2), recorder, epochs=1)
    check_invariant(model)
    assert type(model.optimizer.inner_optimizer) is keras.optimizers.SGD
    assert recorder.updates[1:] == [0, 1, 1, 2, 2, 3]
    assert any(np.any(a != b) for a, b in zip(weights, model.get_weights(), strict=True))


@pytest.mark.slow
def test_weights_file_without_optimizer_state_loads_as_into_any_keras_model(tmp_path):
    other = sequential("other")
    ksd.sparsify(other, 0.5, seed=4)
    other.save_weights(tmp_path / "m.weights.h5")
    model = make(run_eagerly=True)
    fit(model, rigl(), epochs=1)
    model.load_weights(tmp_path / "m.weights.h5")
    assert_same_bits(model.get_weights(), other.get_weights())
    fit(model, rigl(), epochs=1)
    check_invariant(model)


@pytest.mark.slow
def test_frozen_layer_keeps_weights_and_mask():
    model = sequential()
    ksd.sparsify(model, 0.5, seed=0)
    model.get_layer("a").trainable = False
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    before = [numpy(v) for v in model.get_layer("a").weights]
    start = masks_of(model)
    fit(model, rigl(update_every=2), epochs=1)
    check_invariant(model)
    assert_same_bits([numpy(v) for v in model.get_layer("a").weights], before)
    assert np.any(masks_of(model)["m/b/kernel"] != start["m/b/kernel"])


@pytest.mark.slow
def test_cosine_schedule_exchanges_less_and_less():
    model = make(run_eagerly=True, sparsity=0.3)
    recorder = Recorder()
    callback = ksd.DynamicSparsity(
        "magran", update_every=2, prune_rate=0.9, stop_step=12, schedule="cosine", seed=0
    )
    start = masks_of(model)["m/a/kernel"].sum()
    fit(model, callback, recorder)
    exchanged = [recorder.exchanged[step]["m/a/kernel"] for step in range(2, 13, 2)]
    most = [
        int(start * 0.45 * (1 + math.cos(math.pi * step / 12)) + 1e-4) for step in range(2, 13, 2)
    ]
    assert all(e <= m for e, m in zip(exchanged, most, strict=True))
    assert exchanged[0] > exchanged[-1] == 0 == most[-1]
    assert recorder.updates[-1] == 6


@pytest.mark.slow
def test_logs_hold_the_sparsity(tmp_path, capsys):
    model = make(run_eagerly=True, sparsity=0.5)
    recorder = Recorder()
    log = tmp_path / "log.csv"
    history = model.fit(
        X, Y, epochs=2, verbose=2, callbacks=[rigl(), recorder, keras.callbacks.CSVLogger(log)]
    )
    expected = ksd.sparsity_report(model).sparsity
    assert history.history["sparsity"] == [expected] * 2
    assert all(logs["sparsity"] == expected for logs in recorder.logs + recorder.epochs)
    assert "sparsity: 0.5" in capsys.readouterr().out
    header, *rows = log.read_text().splitlines()
    assert "sparsity" in header.split(",") and len(rows) == 2


@pytest.mark.slow
def test_tensorboard_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = make(run_eagerly=True)
    recorder = Recorder()
    fit(model, rigl(update_every=5, log_dir=tmp_path / "logs"), recorder)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    tags = {tag for kind in events.Tags().values() if isinstance(kind, list) for tag in kind}
    names = ["m/a/kernel", "m/b/kernel"]
    assert {f"{kind}/{name}" for kind in ("density", "exchanged") for name in names} <= tags

    def scalars(tag):
        return {e.step: float(tf.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)}

    for k in ksd.sparsity_report(model).kernels:
        assert scalars(f"density/{k.name}") == {
            6: pytest.approx(k.density),
            12: pytest.approx(k.density),
        }
        # Counted in the masks after every batch.
        masks = [m[k.name] for m in recorder.masks]
        assert scalars(f"ever_active/{k.name}") == {
            step: pytest.approx(np.any(masks[: step + 1], axis=0).mean()) for step in (6, 12)
        }
        assert scalars(f"ever_active/{k.name}")[12] > k.density
        [_, picture] = events.Tensors(f"mask/{k.name}")
        width, height, png = picture.tensor_proto.string_val
        pixels = tf.io.decode_png(png).numpy()[..., 0]
        assert (int(width), int(height)) == pixels.shape[::-1]
        np.testing.assert_array_equal(pixels, 255 * masks[12].astype(int))
        assert scalars(f"exchanged/{k.name}") == {
            step: pytest.approx(recorder.exchanged[step][k.name] / k.active) for step in (5, 10)
        }


def test_pictures_of_large_kernels_show_densities():
    """An image is at most as wide as asked, and its mean is the density."""
    model = keras.Sequential([keras.Input((7, 3)), SparseConv1D(10, 5)])
    ksd.sparsify(model, 0.7, seed=0)
    [k] = masked_kernels(model)
    whole = callback._picture(k)
    np.testing.assert_array_equal(whole, numpy(k.mask).reshape(15, 10))
    small = callback._picture(k, side=5)
    expected = numpy(k.mask).reshape(5, 3, 5, 2).mean((1, 3))
    np.testing.assert_allclose(small, expected, rtol=1e-6)


def custom_loop(model, optimizer, compiled=False):
    """Train as `fit` does in two epochs."""
    loss_of = keras.losses.MeanSquaredError()

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
            loss = optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    if compiled:
        step = tf.function(step, reduce_retracing=True)
    for _ in range(2):
        for i in range(0, len(X), 8):
            step(tf.constant(X[i : i + 8]), tf.constant(Y[i : i + 8]))
    optimizer.finalize_variable_values(model.trainable_variables)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "policy, compiled, method, options",
    [
        ("float32", False, "rigl", {"gradient_steps": 2}),
        ("float32", True, "magran", {"grow_init": "normal"}),
        ("mixed_float16", False, "snfs", {}),
        ("mixed_float16", True, "rigl", {"competition": "global"}),
        ("mixed_bfloat16", False, "set", {}),
    ],
)
def test_a_custom_loop_is_fit(policy, compiled, method, options):
    """Weights, masks and all state of the optimizer are equal bit for bit."""
    options = {"update_every": 4, "prune_rate": 0.4, "seed": 0} | options

    def optimizer():
        return keras.optimizers.AdamW(0.01, use_ema=True, global_clipnorm=0.1)

    keras.config.set_dtype_policy(policy)
    try:
        by_fit = make(optimizer=optimizer(), run_eagerly=not compiled)
        start = masks_of(by_fit)
        fit(by_fit, ksd.DynamicSparsity(method, **options))
        by_loop, inner = make(), optimizer()
        if policy == "mixed_float16":
            inner = keras.optimizers.LossScaleOptimizer(inner)
        ours = ksd.sparsity.sparse_optimizer(by_loop, inner, method, **options)
        assert (ours is inner) == (policy == "mixed_float16")
        custom_loop(by_loop, ours, compiled)
        by_loop.optimizer = ours  # where `check_invariant` looks for the moments
        check_invariant(by_loop)
    finally:
        keras.config.set_dtype_policy("float32")
    assert_same_bits(everything(by_loop), everything(by_fit))
    assert any(np.any(mask != start[name]) for name, mask in masks_of(by_loop).items())


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_train_on_batch_is_fit(policy):
    keras.config.set_dtype_policy(policy)
    try:
        by_fit, by_batch = make(), make()
        fit(by_fit, rigl(seed=0), epochs=1)
        optimizer = ksd.sparsity.sparse_optimizer(
            by_batch, method="rigl", update_every=4, prune_rate=0.4, seed=0
        )
        assert optimizer is by_batch.optimizer
        for i in range(0, len(X), 8):
            by_batch.train_on_batch(X[i : i + 8], Y[i : i + 8])
        check_invariant(by_batch)
    finally:
        keras.config.set_dtype_policy("float32")
    assert sparse_optimizer(by_batch).topology_updates == 1
    assert_same_bits(everything(by_batch), everything(by_fit))


@pytest.mark.slow
def test_kernels_made_sparse_after_training_are_trained_sparsely_and_saved(tmp_path):
    """The compiled step did not include them, and they come last in the state."""
    model = keras.Sequential(
        [keras.Input((6,)), *(layers.Dense(6, name=name) for name in "abc"), layers.Dense(4)]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    ksd.sparsify(model, 0.5, "uniform", seed=0, include=["b"])
    fit(model, rigl(update_every=2, gradient_steps=2), epochs=1)
    ksd.sparsify(model, 0.5, "uniform", seed=0, include=["a"])
    fit(model, rigl(update_every=5, gradient_steps=5), epochs=1)
    check_invariant(model)
    ours = model.optimizer
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    theirs = loaded.optimizer
    for k, other in zip(masked_kernels(model), masked_kernels(loaded), strict=True):
        assert_same_bits(ours.history(k.kernel), theirs.history(other.kernel))
        dense, again = (
            o._state_of(kernel).gradient for o, kernel in ((ours, k.kernel), (theirs, other.kernel))
        )
        assert np.any(numpy(dense))  # the gradients of steps 11 and 12
        np.testing.assert_array_equal(numpy(dense), numpy(again))


@pytest.mark.slow
def test_gradients_added_up_for_another_schedule_are_forgotten():
    model = make(run_eagerly=True)
    fit(model, rigl(update_every=8, gradient_steps=4), epochs=1)  # steps 5 and 6 were accumulated
    totals = [state.gradient for state in model.optimizer._state.kernels.values()]
    assert len(totals) == 2 and all(np.any(numpy(total)) for total in totals)
    rigl(update_every=9, gradient_steps=4).set_model(model)
    assert not any(np.any(numpy(total)) for total in totals)


@pytest.mark.slow
def test_what_cannot_be_trained_sparsely_raises_before_the_first_step():
    class Begun(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            raise AssertionError("training began")

    def refused(model, message):
        weights = [numpy(v) for v in model.weights]
        with pytest.raises(ValueError, match=message):
            fit(model, rigl(), Begun())
        if weights:
            assert_same_bits([numpy(v) for v in model.weights], weights)

    plain = keras.Sequential([keras.Input((6,)), layers.Dense(4)], name="plain")
    plain.compile("adam", "mse")
    refused(plain, "Model 'plain' was never made sparse")
    dense = sequential()
    dense.compile("adam", "mse")
    refused(dense, "Nothing is pruned in model 'm'")
    unbuilt = Subclassed(name="unbuilt")
    unbuilt.compile("adam", "mse")
    refused(unbuilt, "(Nothing is pruned in|was never made sparse).*sparsify")
    uncompiled = sequential()
    ksd.sparsify(uncompiled, 0.5)
    refused(uncompiled, "compile")
    with pytest.raises(ValueError, match="Compile model 'm' with an optimizer"):
        rigl().set_model(uncompiled)
    frozen = make()
    frozen.trainable = False
    frozen.compile("adam", "mse")
    refused(frozen, "no trainable sparse kernel")
