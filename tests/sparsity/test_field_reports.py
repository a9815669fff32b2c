"""Common Keras workflows: checkpoints, HDF5, TensorBoard, callbacks, trained models."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from support import assert_same_arrays as assert_same

import keras_sparse_dm as ksd
from keras_sparse_dm.sparsity import check_invariant, masked_kernels

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 12)).astype("float32")
Y = X[:, :4]


def dense_model():
    return keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(24, activation="relu", name="first"),
            keras.layers.Dense(4, name="second"),
        ]
    )


def recurrent_model():
    inputs = keras.Input((4, 3))
    h = keras.layers.Bidirectional(keras.layers.GRU(6, return_sequences=True))(inputs)
    h = keras.layers.MultiHeadAttention(2, 4)(h, h)
    h = keras.layers.SeparableConv1D(6, 3, padding="same")(h)
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(h)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = keras.layers.Dense(24), keras.layers.Dense(4)

    def call(self, x):
        return self.second(keras.ops.relu(self.first(x)))


def subclassed_model():
    model = Subclassed()
    model(X)
    return model


MODELS = {"dense": dense_model, "recurrent": recurrent_model, "subclassed": subclassed_model}


def data(name):
    return X.reshape(-1, 4, 3) if name == "recurrent" else X


def arrays(model):
    return [np.array(v) for k in masked_kernels(model) for v in (k.kernel, k.mask)]


# tf.train.Checkpoint


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "name, method",
    [(name, "rigl") for name in MODELS] + [("dense", "snfs"), ("dense", "magran")],
)
def test_a_tensorflow_checkpoint_restores_everything(name, method, tmp_path):
    """A checkpoint restores the masks, and training continues with equal results."""

    def build(seed):
        model = MODELS[name]()
        ksd.sparsify(model, 0.7, seed=seed)
        inner = keras.optimizers.AdamW(1e-2, use_ema=True)
        options = {"update_every": 3, "prune_rate": 0.3, "seed": seed, "gradient_steps": 2}
        if method != "rigl":
            del options["gradient_steps"]
        optimizer = ksd.sparse_optimizer(model, inner, method, **options)

        @tf.function
        def step(x, y):
            with tf.GradientTape() as tape:
                loss = keras.ops.mean((model(x) - y) ** 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)

        return model, optimizer, lambda: step(tf.constant(data(name)), tf.constant(Y))

    model, optimizer, step = build(0)
    for _ in range(7):
        step()
    path = tf.train.Checkpoint(model=model, optimizer=optimizer).save(str(tmp_path / "c"))
    other, its_optimizer, its_step = build(1)
    checkpoint = tf.train.Checkpoint(model=other, optimizer=its_optimizer)
    checkpoint.restore(path).assert_consumed()
    assert_same(arrays(other), arrays(model))
    for _ in range(6):
        step()
        its_step()
    assert optimizer.topology_updates == its_optimizer.topology_updates == 4
    assert_same(arrays(other), arrays(model))
    check_invariant(other)


# HDF5


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("name, compiled", [("dense", True), ("dense", False), ("recurrent", True)])
def test_hdf5_files_save_and_load(name, compiled, tmp_path):
    model = MODELS[name]()
    ksd.sparsify(model, 0.7, seed=0)
    model.compile(keras.optimizers.Adam(use_ema=True), loss=keras.losses.MeanSquaredError())
    # After seven steps, the weights that the last update grew have moved in one step.
    callback = ksd.DynamicSparsity("rigl", update_every=2, prune_rate=0.3)
    model.fit(data(name)[:56], Y[:56], batch_size=8, verbose=0, callbacks=[callback])
    model.save(tmp_path / "m.h5", include_optimizer=compiled)
    loaded = keras.models.load_model(tmp_path / "m.h5", compile=compiled)
    assert_same(arrays(loaded), arrays(model))
    assert_same([np.array(w) for w in loaded.get_weights()], model.get_weights())
    check_invariant(loaded)
    names = [v.path for v in model.optimizer.variables]
    assert len(set(names)) == len(names)
    if compiled:
        # Keras never restores the optimizer from these files; it starts from zero.
        loaded.compile("adam", loss="mse")
        loaded.fit(data(name), Y, verbose=0, callbacks=[callback])
        check_invariant(loaded)


# TensorBoard


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("name", MODELS)
def test_kerass_tensorboard_draws_the_weights(name, tmp_path):
    model = MODELS[name]()
    ksd.sparsify(model, 0.7, seed=0)
    model.compile("adam", "mse")
    board = keras.callbacks.TensorBoard(tmp_path, histogram_freq=1, write_images=True)
    callbacks = [ksd.DynamicSparsity("static", log_dir=tmp_path / "masks"), board]
    model.fit(data(name), Y, verbose=0, callbacks=callbacks)
    assert list(tmp_path.rglob("events*"))


# Weights restored by something else


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("competition", ["kernel", "global"])
def test_early_stopping_in_any_order(order, competition, tmp_path):
    model = dense_model()
    ksd.sparsify(model, 0.7, seed=0)
    model.compile(keras.optimizers.AdamW(use_ema=True), loss="mse")
    stop = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    options = {"update_every": 3, "prune_rate": 0.3, "competition": competition}
    sparsity = ksd.DynamicSparsity("rigl", **options)
    callbacks = [stop, sparsity] if order == "before" else [sparsity, stop]
    model.fit(
        X, Y, batch_size=16, epochs=6, verbose=0, validation_data=(X, -Y), callbacks=callbacks
    )
    assert stop.stopped_epoch
    predicted = np.asarray(model(X))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for one in (loaded, model):
        check_invariant(one)
        np.testing.assert_array_equal(np.asarray(one(X)), predicted)
        one.fit(X, Y, verbose=0, callbacks=[ksd.DynamicSparsity("rigl", **options)])
        check_invariant(one)


@pytest.mark.slow
def test_masks_are_those_of_weights_put_back_between_epochs():
    # In one linear layer every weight has a gradient and is nonzero one step after growth.
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4)])
    ksd.sparsify(model, 0.7, seed=0)
    model.compile(keras.optimizers.Adam(1e-2), loss="mse")
    kept = {}

    class PutsBack(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            # With three steps per epoch and updates at even steps, no weight has just grown.
            if epoch == 2:
                kept["weights"], kept["masks"] = self.model.get_weights(), arrays(self.model)[1::2]
            elif epoch == 4:
                assert any(
                    np.any(now != then)
                    for now, then in zip(arrays(self.model)[1::2], kept["masks"], strict=True)
                )
                self.model.set_weights(kept["weights"])
                assert_same(arrays(self.model)[1::2], kept["masks"])

    sparsity = ksd.DynamicSparsity("magran", update_every=2, prune_rate=0.5)
    model.fit(X[:48], Y[:48], batch_size=16, epochs=6, verbose=0, callbacks=[sparsity, PutsBack()])
    check_invariant(model)


@pytest.mark.parametrize("structure", [None, ksd.sparsity.Blocks(4), ksd.sparsity.NM(2, 4)])
def test_a_clone_with_the_weights_has_the_masks(structure):
    model = dense_model()
    distribution = "uniform" if structure == ksd.sparsity.NM(2, 4) else "erk"
    ksd.sparsify(model, 0.5, distribution, structure=structure, seed=0)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_same(arrays(clone), arrays(model))


def test_weights_with_more_nonzeros_than_the_mask_has_ones_are_refused():
    model = dense_model()
    dense = model.get_weights()
    ksd.sparsify(model, 0.7, seed=0)
    model.compile("adam", "mse")
    model.set_weights(dense)
    with pytest.raises(ValueError, match=r"first/kernel .*288 of them.* and the mask has \d+ ones"):
        model.fit(X, Y, verbose=0, callbacks=[ksd.DynamicSparsity("static")])
    with pytest.raises(AssertionError, match="pruned entries of weight are not zero"):
        check_invariant(model)


def test_a_mask_of_another_shape_is_refused():
    [layer] = ksd_layers = [ksd.layers.SparseDense(4)]
    keras.Sequential([keras.Input((6,)), *ksd_layers])
    store = {}
    layer.save_own_variables(store)
    store["kernel_mask"] = np.ones((4, 6), bool)
    with pytest.raises(ValueError, match=r"mask of .*kernel must have .* \(6, 4\).*\(4, 6\)"):
        layer.load_own_variables(store)


# Trained models


def trained(build=dense_model):
    model = build()
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(X, Y, epochs=2, verbose=0)
    return model


@pytest.mark.slow
def test_random_masks_on_trained_weights_are_warned_of(recwarn):
    with pytest.warns(UserWarning, match='is trained .*use masks="magnitude"'):
        ksd.sparsify(trained(), 0.7, seed=0)
    loaded = dense_model()
    loaded.set_weights(trained().get_weights())
    with pytest.warns(UserWarning, match="first/bias differs from its initial value"):
        ksd.sparsify(loaded, 0.7, seed=0)
    recwarn.clear()
    ksd.sparsify(dense_model(), 0.7, seed=0)
    ksd.sparsify(trained(), 0.7, seed=0, masks="magnitude")
    ksd.sparsify(keras.applications.MobileNetV3Small(weights=None, include_top=False), 0.5)
    assert not [w for w in recwarn if "is trained" in str(w.message)]


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "structure, distribution, sparsity",
    [
        (None, "erk", 0.7),
        (None, "uniform", 0.9),
        (ksd.sparsity.Blocks(4), "erk", 0.7),
        (ksd.sparsity.NM(1, 4), "uniform", 0.75),
    ],
    ids=str,
)
def test_magnitude_masks_keep_the_largest_weights(structure, distribution, sparsity):
    model = trained()
    before = {k.path: np.array(k) for k in model.trainable_variables if k.name == "kernel"}
    random = dense_model()
    ksd.sparsify(random, sparsity, distribution, structure=structure, seed=0)
    ksd.sparsify(model, sparsity, distribution, structure=structure, masks="magnitude")
    for k, other in zip(masked_kernels(model), masked_kernels(random), strict=True):
        weights, mask = np.abs(before[k.kernel.path]), np.asarray(k.mask)
        # As many ones as in random masks, at the largest weights by a plain sort.
        assert mask.sum() == np.asarray(other.mask).sum()
        if structure is None:
            assert weights[mask].min() >= weights[~mask].max()
        else:
            size = getattr(structure, "size", None) or structure.m
            groups = weights.T.reshape(weights.shape[1], -1, size)
            ones = mask.T.reshape(groups.shape)
            if isinstance(structure, ksd.sparsity.NM):
                largest = np.argmax(groups, axis=-1)
                np.testing.assert_array_equal(np.argmax(ones, axis=-1), largest)
            else:
                sums = groups.sum(axis=-1)
                whole = ones.all(axis=-1)
                assert np.array_equal(whole, ones.any(axis=-1))
                assert sums[whole].min() >= sums[~whole].max()
        np.testing.assert_array_equal(
            np.asarray(k.kernel), np.where(mask, before[k.kernel.path], 0)
        )


@pytest.mark.slow
def test_magnitude_masks_answer_better_than_random_ones():
    model = trained()
    model.fit(X, Y, epochs=40, verbose=0)
    other = dense_model()
    other.set_weights(model.get_weights())
    truth = np.asarray(model(X))
    ksd.sparsify(model, 0.6, masks="magnitude")
    with pytest.warns(UserWarning, match="is trained"):
        ksd.sparsify(other, 0.6, seed=0)
    errors = [np.mean((np.asarray(m(X)) - truth) ** 2) for m in (model, other)]
    assert errors[0] < 0.5 * errors[1]


def test_masks_of_an_unbuilt_model_or_an_unknown_kind():
    model = keras.Sequential([keras.layers.Dense(4)])
    with pytest.raises(ValueError, match="must be built"):
        ksd.sparsify(model, 0.5, masks="magnitude")
    with pytest.raises(ValueError, match="`masks` must be 'random' or 'magnitude'; received 'l1'"):
        ksd.sparsify(dense_model(), 0.5, masks="l1")


# One optimizer, several models


@pytest.mark.slow
def test_an_optimizer_of_another_model_raises_kerass_own_error():
    optimizer = keras.optimizers.Adam()
    for i in range(2):
        model = dense_model()
        ksd.sparsify(model, 0.5, seed=0)
        model.compile(optimizer, "mse")
        if i == 0:
            model.fit(X, Y, verbose=0, callbacks=[ksd.DynamicSparsity("static")])
    before = arrays(model)
    with pytest.raises(ValueError, match="(?s)Unknown variable.*recreate a new optimizer instance"):
        model.fit(X, Y, verbose=0, callbacks=[ksd.DynamicSparsity("static")])
    assert_same(arrays(model), before)


# Updates that never come


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "arguments, fit, warns",
    [
        ({"update_every": 100}, {}, True),
        ({"update_every": 8}, {}, False),
        ({"update_every": 9}, {}, True),
        ({"update_every": 9}, {"epochs": 2}, False),
        ({"update_every": 9}, {"epochs": 2, "initial_epoch": 1}, True),
        ({"update_every": 2, "start_step": 20}, {}, True),
        ({"update_every": 100, "method": "static"}, {}, False),
        # No further update is due, as requested.
        ({"update_every": 2, "stop_step": 1}, {}, False),
    ],
)
def test_a_fit_too_short_for_an_update_is_warned_of(arguments, fit, warns, recwarn):
    model = dense_model()
    ksd.sparsify(model, 0.5, seed=0)
    model.compile("adam", "mse")
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[ksd.DynamicSparsity(**arguments)], **fit)
    found = [w for w in recwarn if "No topology update" in str(w.message)]
    assert bool(found) == warns


# Masks are not weights


def test_masks_are_no_parameters_and_print_no_arrays(capsys):
    model, plain = dense_model(), dense_model()
    ksd.sparsify(model, 0.5, seed=0)
    assert model.count_params() == plain.count_params()
    assert len(model.weights) == len(plain.weights)
    model.summary()
    assert "Non-trainable params: 0" in capsys.readouterr().out
    text = repr(masked_kernels(model))
    assert "first/kernel" in text and "(12, 24)" in text and "[[" not in text


# A failure changes nothing


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("turned", [False, True])
def test_a_sparsify_that_fails_leaves_the_model_as_it_was(turned, monkeypatch):
    model = recurrent_model()
    if turned:
        ksd.sparsify(model, 0.3, seed=1)
    model.compile("adam", "mse")
    model.fit(data("recurrent"), Y, verbose=0, callbacks=[ksd.DynamicSparsity("static")] * turned)
    classes = [type(layer) for layer in model._flatten_layers()]
    attributes = [set(vars(layer)) for layer in model._flatten_layers()]
    weights = model.get_weights()
    constraints = [v.constraint for v in model.trainable_variables]
    masks = [np.array(k.mask) for k in masked_kernels(model)]

    import keras_sparse_dm.layers.in_place as in_place

    def fails(layer):
        raise MemoryError("no more")

    monkeypatch.setattr(in_place, "_forgets_sparse_layers", fails)
    with pytest.raises(MemoryError):
        ksd.sparsify(model, 0.5, seed=0, masks="magnitude")
    assert [type(layer) for layer in model._flatten_layers()] == classes
    assert [set(vars(layer)) for layer in model._flatten_layers()] == attributes
    assert [v.constraint for v in model.trainable_variables] == constraints
    assert_same(model.get_weights(), weights)
    assert_same([np.array(k.mask) for k in masked_kernels(model)], masks)
    model.fit(data("recurrent"), Y, verbose=0, callbacks=[ksd.DynamicSparsity("static")] * turned)


@pytest.mark.slow
def test_a_kernel_that_the_optimizer_does_not_know_is_refused_before_anything_changes():
    model = dense_model()
    model.layers[1].trainable = False
    ksd.sparsify(model, 0.5, seed=0)
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0, callbacks=[ksd.DynamicSparsity("static")])
    model.layers[1].trainable = True
    before = model.get_weights()
    with pytest.raises(ValueError, match="built for other variables.*second/kernel"):
        ksd.sparsify(model, 0.5, seed=0, masks="magnitude")
    assert_same(model.get_weights(), before)
    assert len(masked_kernels(model)) == 1


# Back to plain layers


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("name", MODELS)
def test_to_plain_gives_the_same_model_of_plain_keras_layers(name, tmp_path):
    model, never = MODELS[name](), MODELS[name]()
    ksd.sparsify(model, 0.6, seed=0)
    model.compile("adam", "mse")
    model.fit(data(name), Y, verbose=0, callbacks=[ksd.DynamicSparsity("rigl", update_every=1)])
    predicted = np.asarray(model(data(name)))
    plain = ksd.to_plain(model)
    assert plain is model
    np.testing.assert_array_equal(np.asarray(plain(data(name))), predicted)
    never.set_weights(plain.get_weights())
    np.testing.assert_array_equal(np.asarray(never(data(name))), predicted)
    assert type(plain) is type(never)
    layers = zip(plain._flatten_layers(), never._flatten_layers(), strict=True)
    for layer, other in list(layers)[1:]:
        assert type(layer) is type(other)
        assert set(vars(layer)) - set(vars(other)) <= {"_losses_override"}
    assert all(v.constraint is None for v in plain.trainable_variables)
    assert not masked_kernels(plain)
    assert isinstance(plain.optimizer, keras.optimizers.Adam)
    plain.fit(data(name), Y, verbose=0)
    ksd.sparsify(plain, 0.5, masks="magnitude")
    check_invariant(plain)
    if name != "subclassed":
        ksd.to_plain(plain).save(tmp_path / "plain.keras")
        assert b"keras_sparse_dm" not in (tmp_path / "plain.keras").read_bytes()


def test_to_plain_keeps_a_constraint_of_the_users_own():
    constraint = keras.constraints.NonNeg()
    model = keras.Sequential(
        [keras.Input((12,)), ksd.layers.SparseDense(4, kernel_constraint=constraint)]
    )
    assert model.layers[0].kernel.constraint is constraint
    ksd.sparsify(model, 0.5, seed=0)
    ksd.to_plain(model)
    assert type(model.layers[0]) is keras.layers.Dense
    assert model.layers[0].kernel.constraint is constraint
    with pytest.raises(TypeError, match="`model` must be a keras.Model"):
        ksd.to_plain("model")
