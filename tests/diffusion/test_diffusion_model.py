import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_sparse_dm import DynamicSparsity, sparsify
from keras_sparse_dm.diffusion import DiffusionModel, NoiseSchedule, generation, samplers
from keras_sparse_dm.layers import SparseDense
from keras_sparse_dm.models import ChiroDiff
from keras_sparse_dm.sparsity import check_invariant, masked_kernels

T = 20
SCHEDULE = NoiseSchedule.linear(T, 0.05, 0.3)


class Recorder(keras.Model):
    """Denoiser that returns `0.3 * x_t`, and records its inputs in eager mode."""

    point_features = 3

    def __init__(self):
        super().__init__()
        self.scale = self.add_weight(name="scale", initializer="ones")
        self.built = True
        self.asked = []

    def call(self, inputs, training=False):
        if not isinstance(inputs[0], keras.KerasTensor) and tf.executing_eagerly():
            self.asked.append(tuple(np.asarray(tensor) for tensor in inputs))
        return 0.3 * self.scale * inputs[0]


def vector_denoiser():
    """Functional, of registered layers only: its kernels are sparse, its embedding is not."""
    x = keras.Input((6,))
    t = keras.Input((), dtype="int32")
    hidden = keras.layers.Concatenate()([x, keras.layers.Embedding(T, 4)(t)])
    hidden = SparseDense(16, activation="tanh", name="hidden")(hidden)
    return keras.Model((x, t), SparseDense(6, name="out")(hidden))


def vectors(n=48):
    return np.random.default_rng(0).standard_normal((n, 6)).astype("float32")


def batches(n=48, batch_size=16):
    return tf.data.Dataset.from_tensor_slices(vectors(n)).batch(batch_size)


def compiled(seed=7, optimizer=None, **compile_arguments):
    keras.utils.set_random_seed(11)
    model = DiffusionModel(vector_denoiser(), SCHEDULE, seed=seed)
    model.compile(optimizer or keras.optimizers.AdamW(1e-2), **compile_arguments)
    return model


def weights(model):
    return [ops.convert_to_numpy(v) for v in model.variables]


def assert_same_bits(a, b):
    a, b = weights(a), weights(b)
    assert len(a) == len(b)
    for mine, theirs in zip(a, b, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def sketches():
    random = np.random.default_rng(3)
    points = random.standard_normal((4, 9, 3)).astype("float32")
    lengths = np.array([9, 1, 4, 6], "int32")
    points[np.arange(9)[None] >= lengths[:, None]] = 0
    return points, lengths


# The loss --------------------------------------------------------------------------------------


def drawn_noise(x, x_t, t):
    """Solve equation 4 of Ho et al. 2020 for the noise."""
    a = SCHEDULE.alphas_cumprod[t].reshape((-1,) + (1,) * (x.ndim - 1))
    return (x_t - np.sqrt(a) * x) / np.sqrt(1 - a)


@pytest.mark.parametrize("step", ["evaluate", "fit"])
def test_loss_of_sketches_is_the_mean_over_features_own_points_and_sketches(step):
    points, lengths = sketches()
    data = tf.data.Dataset.from_tensors({"points": points, "lengths": lengths})
    model = DiffusionModel(Recorder(), SCHEDULE, seed=1)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    if step == "evaluate":
        loss = model.evaluate(data, verbose=0, return_dict=True)["loss"]
    else:
        loss = model.fit(data, verbose=0).history["loss"][0]
    ((x_t, t, given_lengths),) = model.denoiser.asked
    np.testing.assert_array_equal(given_lengths, lengths)
    noise = drawn_noise(points.astype("float64"), x_t, t)
    per_sketch = [
        np.mean([(((0.3 * x_t - noise)[i, j]) ** 2).mean() for j in range(length)])
        for i, length in enumerate(lengths)
    ]
    assert loss == pytest.approx(np.mean(per_sketch), rel=1e-4)
    # The solution is noise, not zeros.
    assert 0.5 < noise.std() < 1.5


def test_loss_of_images_is_the_mean_over_everything():
    x = np.random.default_rng(0).standard_normal((5, 4, 4, 2)).astype("float32")
    model = DiffusionModel(Recorder(), SCHEDULE, seed=1)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    loss = model.evaluate(x, batch_size=5, verbose=0, return_dict=True)["loss"]
    ((x_t, t),) = model.denoiser.asked
    noise = drawn_noise(x.astype("float64"), x_t, t)
    assert loss == pytest.approx(((0.3 * x_t - noise) ** 2).mean(), rel=1e-4)


@pytest.mark.slow
def test_the_old_name_of_clean_batch_still_works():
    class Halved(DiffusionModel):
        def clean_batch(self, data, training):
            x, lengths = super().clean_batch(data, training)
            return x / 2, lengths

    class HalvedByTheOldName(DiffusionModel):
        def prepare(self, data, training):
            x, lengths = super().prepare(data, training)
            return x / 2, lengths

    def loss(cls):
        model = cls(Recorder(), SCHEDULE, seed=1)
        model.compile(keras.optimizers.SGD(0.0))
        return model.evaluate(vectors(8), verbose=0)

    with pytest.warns(DeprecationWarning, match="prepare is now clean_batch"):
        old = loss(HalvedByTheOldName)
    assert old == loss(Halved) != loss(DiffusionModel)
    with pytest.warns(DeprecationWarning, match="prepare is now clean_batch"):
        x, _ = Halved(Recorder(), SCHEDULE).prepare(np.ones((2, 3)), training=False)
    np.testing.assert_array_equal(x, 0.5 * np.ones((2, 3)))


def test_a_smaller_last_batch_weighs_less():
    x = np.random.default_rng(0).standard_normal((7, 3)).astype("float32")
    model = DiffusionModel(Recorder(), SCHEDULE, seed=1)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    loss = model.evaluate(x, batch_size=5, verbose=0, return_dict=True)["loss"]
    errors = [
        ((0.3 * x_t - drawn_noise(part.astype("float64"), x_t, t)) ** 2).mean(axis=1)
        for part, (x_t, t) in zip((x[:5], x[5:]), model.denoiser.asked, strict=True)
    ]
    assert loss == pytest.approx(np.concatenate(errors).mean(), rel=1e-4)


@pytest.mark.cases(1)
@pytest.mark.parametrize("denoiser", ["chirodiff", "one that lets padding through"])
@pytest.mark.parametrize("garbage", [1e6, np.inf, np.nan])
def test_padding_never_enters_the_loss(garbage, denoiser):
    points, lengths = sketches()
    padding = np.arange(9)[None] >= lengths[:, None]
    dirty = points.copy()
    dirty[padding] = garbage
    network = Recorder() if denoiser != "chirodiff" else ChiroDiff(4, 1, timesteps=T, seed=0)
    model = DiffusionModel(network, SCHEDULE, seed=1)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    clean_loss, loss = (
        model.evaluate(
            tf.data.Dataset.from_tensors({"points": p, "lengths": lengths}),
            verbose=0,
            return_dict=True,
        )["loss"]
        for p in (points, dirty)
    )
    assert np.isfinite(clean_loss)
    assert loss == pytest.approx(clean_loss, rel=1e-6)


@pytest.mark.slow
def test_padding_never_enters_the_gradient():
    points, lengths = sketches()
    dirty = points.copy()
    dirty[np.arange(9)[None] >= lengths[:, None]] = np.nan
    trained = []
    for p in (points, dirty):
        keras.utils.set_random_seed(1)
        model = DiffusionModel(ChiroDiff(4, 1, timesteps=T, seed=0), SCHEDULE, seed=1)
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        model.fit(tf.data.Dataset.from_tensors({"points": p, "lengths": lengths}), verbose=0)
        trained.append(model)
    assert all(np.isfinite(w).all() for w in weights(trained[0]))
    assert_same_bits(*trained)


def test_timesteps_are_uniform_from_0_to_T_minus_1():
    x = np.zeros((6000, 1), "float32")
    model = DiffusionModel(Recorder(), SCHEDULE, seed=5)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    model.fit(x, batch_size=3000, verbose=0)
    first, second = (t for _, t in model.denoiser.asked)
    assert (first != second).mean() > 0.8
    counts = np.bincount(np.concatenate([first, second]), minlength=T)
    assert len(counts) == T
    chi_squared = ((counts - 6000 / T) ** 2 / (6000 / T)).sum()
    assert chi_squared < 50  # 19 degrees of freedom: 1 in 10,000


def test_diffuse_is_equation_4():
    x, noise = vectors(4), vectors(8)[4:]
    t = np.array([0, 3, T - 1, 7])
    model = DiffusionModel(Recorder(), SCHEDULE)
    a = np.cumprod(1 - np.linspace(0.05, 0.3, T))[t][:, None]
    wanted = np.sqrt(a) * x + np.sqrt(1 - a) * noise
    np.testing.assert_allclose(model.diffuse(ops.array(x), t, noise), wanted, rtol=1e-5)


# Draws -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluate_makes_the_same_draws_every_time_and_leaves_training_alone():
    model, without = compiled(), compiled()
    first = model.evaluate(batches(), verbose=0)
    assert model.evaluate(batches(), verbose=0) == first
    history = model.fit(
        batches(), epochs=3, validation_data=batches(32, 16), verbose=0, shuffle=False
    ).history
    without.fit(batches(), epochs=3, verbose=0, shuffle=False)
    assert_same_bits(model.denoiser, without.denoiser)
    assert len(set(history["val_loss"])) == 3


@pytest.mark.tensorflow
def test_validation_loss_of_frozen_weights_is_the_same_in_every_epoch():
    model = compiled(optimizer=keras.optimizers.SGD(0.0))
    history = model.fit(
        batches(), epochs=3, validation_data=batches(32, 16), verbose=0, shuffle=False
    ).history
    assert len(set(history["val_loss"])) == 1
    assert model.evaluate(batches(32, 16), verbose=0) == history["val_loss"][0]
    # Training draws new noise each time.
    assert len(set(history["loss"])) == 3


@pytest.mark.slow
def test_the_seed_decides_training():
    losses = [
        compiled(seed).fit(batches(), epochs=2, verbose=0, shuffle=False).history["loss"]
        for seed in (7, 7, 8)
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


# Saving ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("method", ["dense", "rigl", "magran"])
def test_a_loaded_model_continues_to_the_same_bits(tmp_path, method):
    def callbacks():
        if method == "dense":
            return []
        return [DynamicSparsity(method, update_every=2, prune_rate=0.3, seed=0)]

    model = compiled()
    if method != "dense":
        sparsify(model, 0.5, seed=0)
    model.fit(batches(), epochs=1, verbose=0, shuffle=False, callbacks=callbacks())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same_bits(loaded, model)
    assert loaded.noise_schedule == SCHEDULE
    assert loaded.evaluate(batches(), verbose=0) == model.evaluate(batches(), verbose=0)

    histories = [
        m.fit(batches(), epochs=2, verbose=0, shuffle=False, callbacks=callbacks()).history
        for m in (model, loaded)
    ]
    assert histories[0]["loss"] == histories[1]["loss"]
    assert_same_bits(loaded, model)
    for mine, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    if method != "dense":
        check_invariant(loaded)


def test_evaluation_draws_survive_saving_where_the_seed_was_random(tmp_path):
    model = compiled(seed=None)
    loss = model.evaluate(batches(), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(batches(), verbose=0) == loss


@pytest.mark.tensorflow
def test_training_a_sparse_model_without_the_callback_raises(tmp_path):
    model = compiled()
    sparsify(model, 0.5)
    before = weights(model.denoiser)
    with pytest.raises(ValueError, match="DynamicSparsity"):
        model.fit(batches(), verbose=0)
    for mine, theirs in zip(weights(model.denoiser), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    # Evaluating and sampling need no callback.
    assert np.isfinite(model.evaluate(batches(), verbose=0))
    model.generate(shape=(2, 6), steps=2)


# Sampling --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sketch_model():
    return DiffusionModel(ChiroDiff(4, 1, timesteps=T, seed=0), SCHEDULE, seed=0)


@pytest.mark.slow
def test_generated_sketches_do_not_depend_on_the_batch_size(sketch_model):
    lengths = [7, 2, 11, 5, 2]
    all_at_once = sketch_model.generate(lengths=lengths, steps=5, seed=3)
    assert all_at_once.shape == (5, 11, 3) and all_at_once.dtype == np.float32
    for sample, length in zip(all_at_once, lengths, strict=True):
        assert (sample[length:] == 0).all()
        assert (sample[:length] != 0).all()
    for batch_size in (1, 2):
        apart = sketch_model.generate(lengths=lengths, steps=5, seed=3, batch_size=batch_size)
        np.testing.assert_allclose(apart, all_at_once, atol=1e-4)


def test_generated_sketches_follow_the_seed_and_the_length(sketch_model):
    first = sketch_model.generate(lengths=[4, 6], steps=5, seed=3)
    np.testing.assert_array_equal(
        first, sketch_model.generate(lengths=np.array([4, 6]), steps=5, seed=3)
    )
    other = sketch_model.generate(lengths=[4, 6], steps=5, seed=4)
    assert np.abs(first - other).max() > 1e-2
    unseeded = [sketch_model.generate(lengths=[4, 6], steps=5) for _ in range(2)]
    assert np.abs(unseeded[0] - unseeded[1]).max() > 1e-2


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("arguments", [{"eta": 1.0}, {"sampler": "ddpm"}])
def test_stochastic_sampling_follows_the_seed(sketch_model, arguments):
    first, again, other = (
        sketch_model.generate(lengths=[3, 5], steps=5, seed=seed, **arguments) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    assert (first[0, 3:] == 0).all()
    plain = sketch_model.generate(lengths=[3, 5], steps=5, seed=1)
    assert np.abs(first - plain).max() > 1e-2


@pytest.mark.parametrize(
    "arguments, received",
    [
        ({}, "shape"),
        ({"shape": (2, 6), "lengths": [3]}, "shape"),
        ({"lengths": []}, "lengths"),
        ({"lengths": [3, 0]}, "0"),
        ({"lengths": [[3, 4]]}, "lengths"),
        ({"lengths": [3], "sampler": "euler"}, "euler"),
        ({"lengths": [3], "steps": T + 1}, str(T + 1)),
        ({"lengths": [3], "steps": 0}, "0"),
        ({"lengths": [3], "eta": -1.0}, "-1.0"),
        ({"lengths": [3], "batch_size": 0}, "0"),
        ({"lengths": [3], "batch_size": 2.5}, "2.5"),
        ({"lengths": [3], "jit_compile": "always"}, "always"),
    ],
)
def test_generate_says_what_is_wrong(sketch_model, arguments, received):
    with pytest.raises(ValueError, match=received):
        sketch_model.generate(**arguments)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("cores", [1, 2, 3])
def test_compiled_sketches_side_by_side_are_the_same(sketch_model, monkeypatch, cores):
    monkeypatch.setattr(generation, "cpu_count", lambda: cores)
    monkeypatch.setattr(generation, "LEAST_SKETCHES_A_THREAD", 2)
    monkeypatch.setattr(generation, "LENGTH_STEP", 8)
    lengths = [7, 2, 11, 5, 2]
    plain = sketch_model.generate(lengths=lengths, steps=5, seed=3, jit_compile=False)
    compiled = sketch_model.generate(
        lengths=lengths, steps=5, seed=3, batch_size=6, jit_compile=True, progress=True
    )
    assert np.abs(plain).max() > 1
    np.testing.assert_allclose(compiled, plain, atol=1e-4)


@pytest.mark.parametrize(
    ("number", "batch_size", "cores", "wanted"),
    [
        # Every core gets equally many batches; only the last has fewer sketches.
        (1000, 256, 2, (2, 100)),
        (1000, 256, 8, (8, 32)),
        (1000, 1024, 8, (8, 63)),
        (256, 256, 2, (2, 64)),
        (250, 256, 1, (1, 84)),
        (3, 256, 4, (4, 1)),
        (5, 3, 4, (1, 3)),
    ],
)
def test_cores_share_the_sketches_evenly(monkeypatch, number, batch_size, cores, wanted):
    monkeypatch.setattr(generation, "cpu_count", lambda: cores)
    monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: 0)
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    assert generation._batches_side_by_side(number, batch_size) == wanted


@pytest.mark.slow
def test_few_compilations_serve_all_batches_and_calls(sketch_model, monkeypatch):
    monkeypatch.setattr(generation, "cpu_count", lambda: 2)
    monkeypatch.setattr(generation, "LEAST_SKETCHES_A_THREAD", 3)
    shapes = []
    sampler = samplers.ddim

    def spy(denoise, schedule, x, *args, **kwargs):
        shapes.append((x.shape, kwargs["jit_compile"]))
        return sampler(denoise, schedule, x, *args, **kwargs)

    monkeypatch.setattr(samplers, "ddim", spy)
    options = {"steps": 2, "seed": 0, "jit_compile": True, "batch_size": 6}
    for lengths in ([3, 9, 4, 4, 8, 2, 5], [20, 7, 2, 2, 30, 1, 4, 4]):
        sketch_model.generate(lengths=lengths, **options)
    assert set(shapes) == {((2, 32, 3), True)} and len(shapes) == 4 + 4


def test_a_failing_thread_stops_the_others_and_is_heard(sketch_model, monkeypatch):
    monkeypatch.setattr(generation, "cpu_count", lambda: 2)
    monkeypatch.setattr(generation, "LEAST_SKETCHES_A_THREAD", 1)
    begun = []

    def fail(denoise, schedule, x, *args, on_progress, **kwargs):
        begun.append(len(x))
        if len(begun) == 1:
            raise MemoryError("no room")
        for _ in range(1000):
            time.sleep(0.01)
            on_progress(0)

    monkeypatch.setattr(samplers, "ddim", fail)
    started = time.monotonic()
    with pytest.raises(MemoryError, match="no room"):
        sketch_model.generate(lengths=[3] * 40, steps=2, batch_size=2, jit_compile=True)
    assert len(begun) < 5 and time.monotonic() - started < 8


@pytest.mark.tensorflow
def test_large_samplings_are_compiled_where_that_pays(sketch_model, monkeypatch):
    compiled = []

    def spy(denoise, schedule, x, *args, jit_compile, **kwargs):
        compiled.append(jit_compile)
        return x

    monkeypatch.setattr(samplers, "ddim", spy)
    monkeypatch.setattr(samplers, "ddpm", spy)

    def choice(model, **options):
        compiled.clear()
        model.generate(steps=5, seed=0, **options)
        return set(compiled)

    many = {"lengths": [10] * 20}
    assert choice(sketch_model, **many) == {False}
    work = 2 * sketch_model.denoiser.count_params() * 200 * 5
    monkeypatch.setattr(generation, "WORTH_COMPILING", work)
    assert choice(sketch_model, **many) == {True}
    assert choice(sketch_model, lengths=[10] * 19) == {False}
    assert choice(sketch_model, **many, jit_compile=False) == {False}
    # Those would draw other noise or read padding; images have no known gain.
    assert choice(sketch_model, **many, eta=0.5) == {False}
    assert choice(sketch_model, **many, sampler="ddpm") == {False}
    assert choice(DiffusionModel(Recorder(), SCHEDULE), **many) == {False}
    assert choice(DiffusionModel(vector_denoiser(), SCHEDULE), shape=(4000, 6)) == {False}
    half = ChiroDiff(4, 1, timesteps=T, seed=0, dtype="mixed_bfloat16")
    assert choice(DiffusionModel(half, SCHEDULE), **many) == {False}


@pytest.mark.slow
def test_images_and_noisy_sketches_can_be_compiled(sketch_model):
    model = DiffusionModel(vector_denoiser(), SCHEDULE)
    plain, compiled = (
        model.generate(shape=(5, 6), steps=4, seed=0, batch_size=2, jit_compile=choice)
        for choice in (False, True)
    )
    np.testing.assert_allclose(compiled, plain, atol=1e-4)
    noisy = [
        sketch_model.generate(lengths=[3, 5], steps=4, eta=1.0, seed=1, jit_compile=True)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*noisy)
    assert np.isfinite(noisy[0]).all() and (noisy[0][0, 3:] == 0).all()


@pytest.mark.slow
def test_generating_uses_averaged_weights_and_then_restores_the_trained_ones():
    momentum = 0.8
    model = compiled(optimizer=keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=momentum))
    untrained = model.generate(shape=(3, 6), steps=4, seed=0)
    averages = None
    for _ in range(4):
        # Unlike fit, this does not end with the averages in the weights.
        model.train_on_batch(vectors(16))
        now = [ops.convert_to_numpy(v) for v in model.trainable_variables]
        averages = (
            now
            if averages is None
            else [momentum * a + (1 - momentum) * w for a, w in zip(averages, now, strict=True)]
        )
    trained = weights(model)
    samples = model.generate(shape=(3, 6), steps=4, seed=0)
    for mine, theirs in zip(weights(model), trained, strict=True):
        np.testing.assert_array_equal(mine, theirs)

    averaged, raw = compiled(), compiled()
    for variable, value in zip(averaged.trainable_variables, averages, strict=True):
        variable.assign(value)
    for variable, value in zip(raw.trainable_variables, now, strict=True):
        variable.assign(value)
    np.testing.assert_allclose(samples, averaged.generate(shape=(3, 6), steps=4, seed=0), atol=1e-4)
    assert np.abs(samples - raw.generate(shape=(3, 6), steps=4, seed=0)).max() > 1e-3
    assert np.abs(samples - untrained).max() > 1e-3


@pytest.mark.slow
def test_trained_weights_come_back_when_sampling_fails():
    model = compiled(optimizer=keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9))
    for _ in range(3):
        model.train_on_batch(vectors(16))
    trained = weights(model)
    with pytest.raises(ValueError, match="steps"):
        model.generate(shape=(3, 6), steps=T + 1)
    for mine, theirs in zip(weights(model), trained, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_images_train_and_sample_with_a_convolutional_denoiser(tmp_path):
    x = keras.Input((8, 8, 1))
    t = keras.Input((), dtype="int32")
    time = keras.layers.Reshape((1, 1, 4))(keras.layers.Embedding(T, 4)(t))
    hidden = keras.layers.Conv2D(4, 3, padding="same")(x)
    hidden = keras.layers.Activation("relu")(keras.layers.Add()([hidden, time]))
    denoiser = keras.Model((x, t), keras.layers.Conv2D(1, 3, padding="same")(hidden))
    model = DiffusionModel(denoiser, SCHEDULE, seed=0)
    model.compile(keras.optimizers.Adam(1e-2))
    # All images alike, so that there is much to learn.
    images = np.ones((64, 8, 8, 1), "float32")
    before = model.evaluate(images, verbose=0)
    model.fit(images, epochs=4, batch_size=16, verbose=0)
    assert model.evaluate(images, verbose=0) < 0.8 * before
    samples = model.generate(shape=(3, 8, 8, 1), steps=5, seed=0)
    assert samples.shape == (3, 8, 8, 1) and np.isfinite(samples).all()
    apart = model.generate(shape=(3, 8, 8, 1), steps=5, seed=0, batch_size=1)
    np.testing.assert_allclose(apart, samples, atol=1e-4)


def test_the_sparse_kernels_of_the_denoiser_are_found():
    model = compiled()
    assert sum(int(np.prod(k.kernel.shape)) for k in masked_kernels(model)) == 10 * 16 + 16 * 6


# Other uses ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_and_generates(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = DiffusionModel(
            ChiroDiff(4, 1, timesteps=50, seed=0), NoiseSchedule.linear(50), seed=0
        )
    finally:
        keras.config.set_dtype_policy("float32")
    sparsify(model, 0.5, seed=0)
    model.compile("adam")
    data = {
        "points": np.random.default_rng(0).normal(size=(8, 6, 3)).astype("float32"),
        "lengths": np.full(8, 6),
    }
    model.fit(data, verbose=0, callbacks=[DynamicSparsity("rigl", update_every=1, seed=0)])
    check_invariant(model)
    samples = model.generate(lengths=[6, 4], steps=3, eta=1.0, seed=0)
    assert samples.dtype == np.float32 and np.isfinite(samples).all()


@pytest.mark.slow
def test_weights_loaded_after_fit_bring_their_averages(tmp_path):
    model = compiled(optimizer=keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9))
    path = tmp_path / "epoch.weights.h5"
    checkpoint = keras.callbacks.ModelCheckpoint(str(path), save_weights_only=True)
    history = model.fit(
        batches(), validation_data=batches(), epochs=2, verbose=0, callbacks=[checkpoint]
    )
    model.load_weights(path)
    assert model.evaluate(batches(), verbose=0) == history.history["val_loss"][-1]


def test_regularizers_of_the_denoiser_count():
    def trained(regularizer):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,)), keras.Input((), dtype="int32")
        outputs = keras.layers.Dense(6, kernel_regularizer=regularizer)(inputs[0])
        model = DiffusionModel(keras.Model(inputs, outputs), NoiseSchedule.linear(20), seed=0)
        model.compile(keras.optimizers.SGD(0.1))
        model.fit(batches(), verbose=0)
        return np.linalg.norm(np.asarray(model.trainable_variables[0]))

    assert trained("l2") < trained(None)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "use, message",
    [
        (lambda m: (m.compile("adam", loss="mae"), m.fit(vectors())), "optimizer alone"),
        (lambda m: m.fit(vectors(), vectors()), "targets or sample weights"),
        (lambda m: m.generate(lengths=[3]), "`point_features`"),
    ],
    ids=["loss", "targets", "no sequences"],
)
def test_what_would_be_ignored_is_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use(compiled())


def test_a_denoiser_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match="must be built"):
        DiffusionModel(keras.Sequential([keras.layers.Dense(3)]), NoiseSchedule.linear(20))


def test_another_denoiser_samples_at_once():
    model = compiled()
    first = model.generate(shape=(4, 6), steps=3, seed=0)
    model.denoiser = vector_denoiser()
    assert np.any(model.generate(shape=(4, 6), steps=3, seed=0) != first)
