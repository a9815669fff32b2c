"""Models in half precision as `.tflite` files: float32, with the same weights."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import keras_sparse_dm as ksd
from keras_sparse_dm._keras import flatten_layers
from keras_sparse_dm.export import (
    generate_from_tflite,
    read_tflite_metadata,
    remove_dead_units,
    representative_data,
    to_tflite,
)
from keras_sparse_dm.export.tflite import conversion, flatbuffer, float32_copy, write

interpreter = pytest.importorskip("ai_edge_litert.interpreter")

MIXED = ["mixed_float16", "mixed_bfloat16"]
# Weights are of half precision, too.
PURE = ["float16", "bfloat16"]
LENGTH = 6
SCHEDULE = ksd.diffusion.NoiseSchedule.linear(1000)


@pytest.fixture(autouse=True)
def default_policy():
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def randomize(model, seed=0):
    """Give random values to all active weights, biases and moving averages included."""
    rng = np.random.default_rng(seed)
    layers = flatten_layers(model)
    masks = {id(k): np.array(m) for layer in layers for k, m in getattr(layer, "masks", ())}
    for weight in weights_of(model):
        values = 0.4 * rng.standard_normal(weight.shape)
        if "variance" in weight.path:
            values = 0.5 + np.abs(values)
        weight.assign(values * masks.get(id(weight), 1.0))
    return model


def weights_of(model):
    """List all variables but masks and the states of generators."""
    return [v for v in model.variables if keras.backend.is_float_dtype(v.dtype)]


def made(make, policy, sparsity=0.5):
    """Make a sparse model under a policy, and a dense float32 model of the same weights."""
    keras.config.set_dtype_policy(policy)
    model = make()
    ksd.sparsify(model, sparsity, seed=0)
    randomize(model)
    keras.config.set_dtype_policy("float32")
    twin = make()
    for weight, value in zip(weights_of(twin), weights_of(model), strict=True):
        weight.assign(keras.ops.convert_to_numpy(value).astype("float32"))
    keras.config.set_dtype_policy(policy)
    return model, twin


def run_file(path, part="model", **inputs):
    return interpreter.Interpreter(str(path)).get_signature_runner(part)(**inputs)


def answers_of(path, arrays, part="model"):
    names = read_tflite_metadata(path)["inputs"]
    (answer,) = run_file(path, part, **dict(zip(names, arrays, strict=True))).values()
    return answer


def types_in(path):
    """Return the types of the tensors in a file."""
    details = interpreter.Interpreter(str(path)).get_tensor_details()
    return {np.dtype(tensor["dtype"]).name for tensor in details}


def drawn(model, seed=1):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((1, *tensor.shape[1:])).astype("float32")
        if "float" in tensor.dtype
        else rng.integers(0, 5, (1, *tensor.shape[1:])).astype(tensor.dtype)
        for tensor in model.inputs
    ]


def check_file(path, model, twin, atol=1e-5):
    """Check that a file is in float32, with the outputs of the twin, and nearly of the model."""
    inputs = drawn(twin)
    answer = answers_of(path, inputs)
    assert answer.dtype == "float32"
    assert not {"float16", "bfloat16"} & types_in(path)
    called = inputs if len(inputs) > 1 else inputs[0]
    np.testing.assert_allclose(answer, twin(called), atol=atol)
    rough = keras.ops.convert_to_numpy(keras.ops.cast(model(called), "float32"))
    assert np.abs(answer).max() > 0.05
    np.testing.assert_allclose(answer, rough, atol=0.05 * np.abs(answer).max() + 0.02)
    return answer


# Keras cannot initialize an orthogonal matrix in bfloat16.
RECURRENT = {"recurrent_initializer": "glorot_uniform"}


def dense():
    tokens, features = keras.Input((6,), dtype="int32"), keras.Input((6, 8))
    x = kl.Add()([kl.Embedding(5, 8)(tokens), kl.Dense(8, activation="gelu")(features)])
    x = kl.EinsumDense("abc,cde->abde", (None, 2, 8), bias_axes="de", activation="silu")(x)
    x = kl.RMSNormalization()(kl.LayerNormalization()(kl.Reshape((6, 16))(x)))
    return keras.Model([tokens, features], kl.Dense(5, activation="softmax")(kl.Flatten()(x)))


def images():
    x = inputs = keras.Input((8, 8, 3))
    x = kl.BatchNormalization()(kl.Conv2D(8, 3, strides=2, padding="same")(x))
    x = kl.GroupNormalization(4)(kl.SeparableConv2D(8, 3, activation="gelu")(x))
    x = kl.Conv2DTranspose(8, 3, strides=2)(x)
    x = kl.Conv2D(8, 3, groups=2)(kl.DepthwiseConv2D(2)(x))
    return keras.Model(inputs, kl.GlobalAveragePooling2D()(x))


def signals():
    x = inputs = keras.Input((8, 4))
    x = kl.Conv1DTranspose(8, 3, strides=2)(kl.Conv1D(8, 3, padding="causal")(x))
    x = kl.SeparableConv1D(8, 3, activation="mish")(kl.DepthwiseConv1D(3)(x))
    x = kl.Conv3D(4, 2)(kl.Reshape((2, 2, -1, 8))(x[:, :12]))
    return keras.Model(inputs, kl.Conv3DTranspose(2, 2)(x))


def recurrent():
    x = inputs = keras.Input((4, 5))
    x = kl.LSTM(8, return_sequences=True, **RECURRENT)(x)
    x = kl.SimpleRNN(8, return_sequences=True, **RECURRENT)(x)
    return keras.Model(inputs, kl.Bidirectional(kl.GRU(8, **RECURRENT))(x))


def attention():
    x = inputs = keras.Input((7, 8))
    x = kl.LayerNormalization()(x + kl.MultiHeadAttention(2, 5)(x, x, use_causal_mask=True))
    x = x + kl.GroupQueryAttention(4, 4, 2)(x, x)
    return keras.Model(inputs, kl.Dense(8)(x))


@pytest.mark.slow
@pytest.mark.cases(6)
@pytest.mark.parametrize(
    "make, policy",
    [
        pytest.param(make, policy, marks=pytest.mark.slow)
        if policy in PURE or (make, policy) == (recurrent, "mixed_bfloat16")
        else (make, policy)
        for make in (dense, images, signals, recurrent, attention)
        for policy in MIXED + PURE
    ],
)
def test_every_kind_of_layer(make, policy, tmp_path):
    model, twin = made(make, policy)
    exported = to_tflite(model, tmp_path / "model.tflite")
    check_file(exported.path, model, twin)
    assert exported.largest_difference < 1e-5
    assert exported.metadata["sparsity"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_the_field_report(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    m = keras.Sequential([keras.Input((6,)), kl.Dense(64), kl.Dense(4, dtype="float32")])
    ksd.sparsify(m, 0.8)
    assert to_tflite(m, tmp_path / "m.tflite").bytes == (tmp_path / "m.tflite").stat().st_size


# Policies of single layers, and layers within others


def offset(x):
    return keras.ops.sin(x) + 0.1


def own_layers():
    """Define layers that are not registered: one with arguments, one without."""

    class Gate(kl.Layer):
        def __init__(self, units, activation=None, **kwargs):
            super().__init__(**kwargs)
            self.units, self.activation = units, keras.activations.get(activation)
            # Sets half precision itself, whatever the policy.
            self.inner = kl.Dense(
                units, dtype=keras.dtype_policies.DTypePolicyMap(default_policy="mixed_bfloat16")
            )

        def build(self, shape):
            # `build` makes this layer.
            self.outer = kl.Dense(self.units, dtype="float16")
            self.inner.build(shape)
            self.outer.build(shape)

        def call(self, x):
            return keras.ops.multiply(self.activation(self.inner(x)), self.outer(x))

        def get_config(self):
            activation = keras.activations.serialize(self.activation)
            return super().get_config() | {"units": self.units, "activation": activation}

    class Block(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first, self.second = kl.Dense(8, activation="tanh"), kl.Dense(8)

        def call(self, x):
            return x + self.second(self.first(x))

    return Gate, Block


def policies_of_single_layers():
    x = inputs = keras.Input((6,))
    x = kl.Dense(8, dtype="float32", activation="gelu")(x)
    x = kl.Dense(8, dtype="mixed_bfloat16", activation="gelu")(x)
    x = kl.Dense(8, dtype="float16")(x)
    by_path = keras.dtype_policies.DTypePolicyMap(default_policy="float32")
    by_path["attention/query"] = keras.DTypePolicy("mixed_bfloat16")
    x = kl.Reshape((4, 2))(x)
    x = kl.MultiHeadAttention(2, 3, dtype=by_path, name="attention")(x, x)
    return keras.Model(inputs, kl.Dense(8, dtype=keras.DTypePolicy("mixed_float16"))(x))


def nested():
    x = inner_input = keras.Input((8,), name="inner_input")
    shared = kl.Dense(8, activation="tanh")
    inner = keras.Model(inner_input, shared(shared(x) * 0.1) / 0.7)
    x = inputs = keras.Input((6,))
    x = kl.Dense(8, dtype="float32")(x)
    x = keras.Sequential([inner, kl.Dense(8)])(inner(x))
    return keras.Model(inputs, shared(x))


def functions():
    def scaled(factor):
        inputs = keras.Input((6,))
        outputs = kl.Lambda(lambda x: offset(x) * factor, name="scale")(inputs)
        return keras.Model(inputs, outputs)

    x = inputs = keras.Input((6,))
    x = scaled(0.7)(scaled(0.1)(x))
    x = kl.Dense(8, activation=offset)(x)
    x = keras.ops.cast(keras.ops.cast(x, x.dtype) * 0.1, "float32")
    return keras.Model(inputs, kl.Dense(8, activation=lambda x: keras.ops.relu(x) + 0.3)(x))


def layers_of_one_s_own():
    gate, block = own_layers()
    x = inputs = keras.Input((8,))
    return keras.Model(inputs, block()(gate(8, offset)(x)))


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "policy",
    ["float32", "mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "make", [policies_of_single_layers, nested, functions, layers_of_one_s_own]
)
def test_policies_of_single_layers_and_layers_within_others(make, policy, tmp_path):
    model, twin = made(make, policy)
    for layer in flatten_layers(twin):
        # For a `make` that sets half precision itself.
        layer.dtype_policy = "float32"
    exported = to_tflite(model, tmp_path / "model.tflite")
    check_file(exported.path, model, twin)


def test_half_is_the_default_of_all(tmp_path):
    """Inputs and constants are in half precision too, not layers alone."""

    def make():
        class Tenth(kl.Layer):
            def call(self, x):
                return x * keras.ops.full((4,), 0.1) + 0.3

        return keras.Sequential([keras.Input((6,)), kl.Dense(4), Tenth()])

    keras.config.set_floatx("float16")
    keras.config.set_dtype_policy("float16")
    model = randomize(make())
    assert model.inputs[0].dtype == "float16"
    to_tflite(model, tmp_path / "model.tflite")
    assert keras.config.floatx() == "float16"
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    twin = make()
    twin.set_weights(model.get_weights())
    inputs = drawn(twin)
    answer = answers_of(tmp_path / "model.tflite", inputs)
    np.testing.assert_allclose(answer, twin(inputs[0]), atol=1e-6)


# The package's own models


def chirodiff():
    return ksd.models.ChiroDiff(units=16, num_layers=1, seed=0)


def denoiser_inputs(seed=0):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((1, LENGTH, 3)).astype("float32")
    return points, np.array([400], "int32"), np.array([5], "int32")


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy, quantize, sparse, bound",
    [
        ("mixed_float16", "none", True, 1e-5),
        pytest.param("mixed_bfloat16", "float16", False, 5e-3, marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", "int8", True, 0.2, marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", "none", False, 1e-5, marks=pytest.mark.slow),
        pytest.param("mixed_float16", "int8_dynamic", False, 0.2, marks=pytest.mark.slow),
        pytest.param("mixed_float16", "float16", True, 5e-3, marks=pytest.mark.slow),
    ],
)
def test_chirodiff(policy, quantize, sparse, bound, tmp_path):
    model, twin = made(chirodiff, policy, 0.8)
    model = ksd.diffusion.DiffusionModel(model, SCHEDULE)
    path, data = tmp_path / "model.tflite", None
    if quantize == "int8":
        rng = np.random.default_rng(0)
        sketches = [rng.standard_normal((LENGTH, 3)).astype("float32") for _ in range(8)]
        data = representative_data(model, sketches, length=LENGTH, n=10)
    exported = to_tflite(
        model, path, length=LENGTH, quantize=quantize, sparse=sparse, representative=data
    )
    inputs = denoiser_inputs()
    answer, expected = answers_of(path, inputs, "denoiser"), np.asarray(twin(inputs))
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(answer, expected, atol=bound)
    assert exported.metadata["sparsity"] == pytest.approx(0.8, abs=1e-2)
    graphs = flatbuffer.parse(path.read_bytes()).subgraphs
    assert any(t.sparsity is not None for graph in graphs for t in graph.tensors) == sparse


@pytest.mark.slow
def test_averaged_weights(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = ksd.diffusion.DiffusionModel(randomize(chirodiff()), SCHEDULE, seed=0)
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5))
    for _ in range(2):
        gradients = [keras.ops.ones_like(v) for v in model.trainable_variables]
        model.optimizer.apply(gradients, model.trainable_variables)
    trained = [np.array(v) for v in model.trainable_variables]
    to_tflite(model, tmp_path / "model.tflite", length=LENGTH)
    for variable, value in zip(model.trainable_variables, trained, strict=True):
        np.testing.assert_array_equal(variable, value)
    keras.config.set_dtype_policy("float32")
    twin = chirodiff()
    with model.averaged_weights():
        for weight, value in zip(weights_of(twin), weights_of(model.denoiser), strict=True):
            weight.assign(value)
    inputs = denoiser_inputs()
    answer = answers_of(tmp_path / "model.tflite", inputs, "denoiser")
    np.testing.assert_allclose(answer, twin(inputs), atol=1e-5)
    assert np.abs(answer - keras.ops.cast(model(inputs), "float32")).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("part", ["sampler", "sampler_step"])
@pytest.mark.parametrize("policy", MIXED)
def test_samplers(policy, part, tmp_path):
    model, twin = (ksd.diffusion.DiffusionModel(m, SCHEDULE) for m in made(chirodiff, policy))
    to_tflite(model, tmp_path / "model.tflite", length=LENGTH, part=part, steps=3)
    samples = generate_from_tflite(tmp_path / "model.tflite", lengths=[5], seed=1)
    expected = twin.generate(lengths=[5], steps=3, seed=1)
    np.testing.assert_allclose(samples, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("policy", MIXED)
def test_after_dead_units_are_removed(policy, tmp_path):
    model, _ = made(chirodiff, policy, 0.95)
    smaller, removed = remove_dead_units(model)
    assert removed.removed
    path = tmp_path / "model.tflite"
    to_tflite(smaller, path, length=LENGTH, sparse=False)
    keras.config.set_dtype_policy("float32")
    twin = ksd.models.ChiroDiff.from_config(smaller.get_config())
    for weight, value in zip(weights_of(twin), weights_of(smaller), strict=True):
        weight.assign(value)
    inputs = denoiser_inputs()
    np.testing.assert_allclose(answers_of(path, inputs, "denoiser"), twin(inputs), atol=1e-5)


def autoencoder():
    return ksd.models.VQAutoencoder(
        channels=4, channel_mult=(1,), num_res_blocks=1, norm_groups=4, codes=16
    )


def latents_of(autoencoder):
    codes = keras.ops.convert_to_numpy(autoencoder.codebook).astype("float32")
    return codes[np.random.default_rng(0).integers(0, 16, (1, 4, 4))]


@pytest.mark.slow
def test_the_decoder(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = randomize(autoencoder())
    keras.config.set_dtype_policy("float32")
    twin = randomize(autoencoder())
    to_tflite(model, tmp_path / "decoder.tflite", shape=(4, 4, 3))
    latents = latents_of(twin)
    expected = np.clip(twin.decode(latents), -1, 1)
    assert expected.std() > 0.1
    answer = answers_of(tmp_path / "decoder.tflite", (latents,), "decoder")
    np.testing.assert_allclose(answer, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("policy", MIXED)
def test_latent_diffusion(policy, tmp_path):
    def make():
        unet = ksd.models.UNet(model_channels=32, channel_mult=(1,), num_res_blocks=1)
        return ksd.models.LatentDiffusion(unet, autoencoder(), SCHEDULE, image_size=4)

    model, twin = made(make, policy)
    to_tflite(model, tmp_path / "unet.tflite")
    to_tflite(model, tmp_path / "decoder.tflite", part="decoder")
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((1, 4, 4, 3)).astype("float32"), np.array([500], "int32")
    expected = np.asarray(twin(inputs))
    assert expected.std() > 0.1
    answer = answers_of(tmp_path / "unet.tflite", inputs, "denoiser")
    np.testing.assert_allclose(answer, expected, atol=1e-4 * np.abs(expected).max())
    latents = latents_of(twin.autoencoder) * float(twin.scale_factor)
    answer = answers_of(tmp_path / "decoder.tflite", (latents,), "decoder")
    np.testing.assert_allclose(answer, twin.decode(latents), atol=1e-4)


@pytest.mark.slow
def test_a_denoiser_of_one_s_own(tmp_path):
    """The denoiser is built by its first call, and so is the rebuilt one."""

    class Denoiser(keras.Model):
        def __init__(self, units, **kwargs):
            super().__init__(**kwargs)
            self.units = units
            self.embedding = kl.Embedding(1000, units)
            self.hidden, self.out = kl.Dense(units, activation="gelu"), kl.Dense(4)

        def call(self, inputs):
            x, t = inputs
            return self.out(self.hidden(x) + self.embedding(t)[:, None, None])

        def get_config(self):
            return super().get_config() | {"units": self.units}

    inputs = np.ones((1, 4, 4, 4), "float32"), np.array([700], "int32")

    def make():
        denoiser = Denoiser(8)
        denoiser(inputs)
        return denoiser

    model, twin = made(make, "mixed_bfloat16")
    diffusion = ksd.diffusion.DiffusionModel(model, SCHEDULE)
    to_tflite(diffusion, tmp_path / "m.tflite", part="denoiser", shape=(4, 4, 4))
    answer = answers_of(tmp_path / "m.tflite", inputs, "denoiser")
    np.testing.assert_allclose(answer, twin(inputs), atol=1e-5)


# Models that stay as they are


def state_of(model):
    """Return values that any change of a model or of Keras's settings would change."""
    layers = flatten_layers(model)
    return (
        [(type(layer), layer.dtype_policy.name, layer.compute_dtype) for layer in layers],
        [sorted(vars(layer)) for layer in layers],
        [
            {key: id(value) for key, value in vars(layer).items() if callable(value)}
            for layer in layers
        ],
        [(v.dtype, keras.ops.convert_to_numpy(v).tobytes()) for v in model.variables],
        [np.asarray(m).tobytes() for layer in layers for _, m in getattr(layer, "masks", ())],
        (keras.config.dtype_policy().name, keras.config.floatx(), random.getstate()),
    )


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("make", [attention, layers_of_one_s_own])
def test_the_model_and_the_settings_stay_as_they_are(make, tmp_path):
    model, _ = made(make, "mixed_float16")
    model.compile("adam", "mse")
    model(drawn(model)[0])
    before = state_of(model)
    to_tflite(model, tmp_path / "m.tflite")
    assert state_of(model) == before


@pytest.mark.slow
def test_the_rebuilt_model_is_float32_and_has_the_masks(monkeypatch, tmp_path):
    def convert(part, *arguments):
        rebuilt.append(part.model)
        return original(part, *arguments)

    rebuilt, original = [], write.convert
    monkeypatch.setattr(write, "convert", convert)
    model, _ = made(layers_of_one_s_own, "mixed_float16")
    to_tflite(model, tmp_path / "m.tflite")
    pairs = list(zip(flatten_layers(model), flatten_layers(rebuilt[0]), strict=True))
    for layer, new in pairs:
        assert new is not layer and type(new) is type(layer)
        assert new.compute_dtype == new.dtype == "float32"
        masks, new_masks = getattr(layer, "masks", []), getattr(new, "masks", [])
        for (_, mask), (_, new_mask) in zip(masks, new_masks, strict=True):
            np.testing.assert_array_equal(mask, new_mask)
    assert sum(bool(getattr(layer, "masks", [])) for layer, _ in pairs) == 4


def test_float32_models_are_not_rebuilt(monkeypatch, tmp_path):
    monkeypatch.setattr(float32_copy, "rebuilt_in_float32", lambda part: pytest.fail("rebuilt"))
    model = keras.Sequential([keras.Input((6,)), kl.Dense(4)])
    keras.config.set_dtype_policy("mixed_float16")
    to_tflite(model, tmp_path / "m.tflite")


# Errors


def test_a_model_that_cannot_be_restored(tmp_path):
    class Opaque(kl.Layer):
        def __init__(self, inner, *more):
            super().__init__()
            self.inner = inner

        def call(self, x):
            return self.inner(x)

    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((6,)), Opaque(kl.Dense(4), 1)], name="mine")
    with pytest.raises(ValueError, match="`model` 'mine' .*cannot be rebuilt .*: Object Opaque"):
        to_tflite(model, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())
    assert keras.config.dtype_policy().name == "mixed_float16"
    # In float32 there is nothing to rebuild.
    keras.config.set_dtype_policy("float32")
    model = keras.Sequential([keras.Input((6,)), Opaque(kl.Dense(4), 1)])
    to_tflite(model, tmp_path / "m.tflite")


def test_a_configuration_that_forgets(tmp_path):
    class Forgetful(kl.Layer):
        def __init__(self, factor=1.0, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def call(self, x):
            return x * self.factor

        def get_config(self):
            return super().get_config()

    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((6,)), kl.Dense(4), Forgetful(3.0)], name="mine")
    with pytest.raises(ValueError, match="`model` 'mine' .*rebuilds another model in float32"):
        to_tflite(model, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())
    assert to_tflite(model, tmp_path / "m.tflite", verify=False).largest_difference is None


@pytest.mark.parametrize("name", ["overflows", "cannot be computed here"])
def test_a_model_that_gives_no_answer_in_half_precision(name, tmp_path):
    def call(x):
        if name == "overflows":
            return x * 1e3 * 1e3
        # TensorFlow computes this in bfloat16 on GPUs only.
        return tf.nn.local_response_normalization(x)

    keras.config.set_dtype_policy("mixed_float16" if name == "overflows" else "mixed_bfloat16")
    model = keras.Sequential([keras.Input((4, 4, 3)), kl.Lambda(call)])
    x = np.ones((1, 4, 4, 3), "float32")
    if name == "overflows":
        assert np.isinf(model(x)).all()
    else:
        with pytest.raises(tf.errors.OpError):
            model(x)
    to_tflite(model, tmp_path / "m.tflite")
    np.testing.assert_allclose(answers_of(tmp_path / "m.tflite", (x,)), call(x), rtol=1e-5)


@pytest.mark.slow
def test_the_users_layers_keep_their_methods_while_a_file_is_written(tmp_path, monkeypatch):
    """Only a copy's layers get other loops."""
    inputs = keras.Input((6, 4))
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GRU(8)(inputs)))
    ksd.sparsify(model, 0.5, seed=0)
    attributes = [dict(vars(layer)) for layer in model.layers]
    seen = []

    def traced(*arguments):
        for layer, then in zip(model.layers, attributes, strict=True):
            seen.append({"inner_loop", "call"} & (vars(layer).keys() - then.keys()))
        return original(*arguments)

    original = conversion.traced
    monkeypatch.setattr(conversion, "traced", traced)
    ksd.export.to_tflite(model, tmp_path / "m.tflite")
    assert seen and not any(seen)
