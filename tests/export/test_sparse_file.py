import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import keras_sparse_dm as ksd
from keras_sparse_dm.diffusion import DiffusionModel, NoiseSchedule
from keras_sparse_dm.export import load_sparse, read_header, save_sparse
from keras_sparse_dm.export.sparse_file.format import header_bytes, sealed
from keras_sparse_dm.layers import SparseDense
from keras_sparse_dm.models import ChiroDiff, LatentDiffusion, UNet, VQAutoencoder
from keras_sparse_dm.sparsity import Blocks, check_invariant, masked_kernels
from keras_sparse_dm.sparsity.install import innermost_optimizer

ROOT = Path(__file__).resolve().parents[2]
X = np.random.default_rng(0).normal(size=(32, 16)).astype("float32")
Y = X[:, :4] ** 2


def arrays(variables):
    return [keras.ops.convert_to_numpy(v) for v in variables]


def assert_equal(one, other):
    """Assert that variables, masks and the masks' targets are bitwise equal."""
    assert len(one.variables) == len(other.variables)
    for a, b in zip(one.variables, other.variables, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(*arrays([a, b]), err_msg=a.path)
    assert [k.target for k in masked_kernels(one)] == [k.target for k in masked_kernels(other)]
    if masked_kernels(other):
        check_invariant(other)


def network(dropout=0.0):
    return keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(32, "relu", name="first"),
            layers.BatchNormalization(),
            layers.Dropout(dropout, seed=3),
            SparseDense(24, "relu"),
            layers.Dense(4),
        ]
    )


def sketch_model(sparsity, **arguments):
    denoiser = ChiroDiff.from_preset("chirodiff_kanjivg", **arguments)
    model = DiffusionModel(denoiser, NoiseSchedule.linear(1000), seed=3)
    ksd.sparsify(model, sparsity, seed=0)
    return model


def image_model():
    autoencoder = VQAutoencoder(
        channels=8, channel_mult=(1, 2), num_res_blocks=1, codes=16, norm_groups=4, seed=0
    )
    unet = UNet(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, timesteps=20)
    noise = NoiseSchedule.scaled_linear(20, 0.01, 0.3)
    return LatentDiffusion(unet, autoencoder, noise, image_size=8, seed=3)


# Saving and loading ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_sizes_of_the_sketch_network(tmp_path, sparsity):
    model = sketch_model(sparsity)
    sizes = {
        dtype: save_sparse(model, tmp_path / dtype, dtype).stat().st_size
        for dtype in ("float32", "float16", "bfloat16")
    }
    weights = sum(k.size for k in masked_kernels(model))
    assert weights == 413_304
    assert sizes["float32"] <= weights * ((1 - sparsity) * 4 + 1 / 8) + 64 * 1024
    header = read_header(tmp_path / "float32")
    kernels = [header["arrays"][k.kernel.path]["bytes"] for k in masked_kernels(model)]
    # One bit per weight at most; at sparsity 0.9, 0.131 with a bit mask and less with numbers.
    assert sum(kernels) <= weights * 4 * ((1 - sparsity) + 1 / 32) + len(kernels)
    assert sparsity != 0.9 or 0.11 < sum(kernels) / (4 * weights) < 0.1313
    assert sparsity != 0.0 or sum(kernels) == 4 * weights
    for dtype in ("float16", "bfloat16"):
        saved = sizes["float32"] - sizes[dtype]
        values = sum(int(np.sum(k.mask)) for k in masked_kernels(model))
        # Half of the values; the headers differ by a few characters.
        assert abs(saved - 2 * values) < 200
    loaded = load_sparse(tmp_path / "float32")
    assert_equal(model, loaded)
    wanted = model.generate(lengths=[5, 9], steps=2, seed=0)
    np.testing.assert_array_equal(loaded.generate(lengths=[5, 9], steps=2, seed=0), wanted)


@pytest.mark.slow
def test_file_bytes_of_the_cost_are_those_of_the_file(tmp_path):
    model = ChiroDiff(units=24, num_layers=2)
    example = (np.zeros((1, 5, 3), "float32"), np.zeros(1, "int32"), np.array([5]))
    for sparsity in (0.0, 0.5, 0.9):
        ksd.sparsify(model, sparsity, seed=0)
        stored = read_header(save_sparse(model, tmp_path / "m"))["arrays"]
        paths = {variable.path for variable in model.weights}
        written = sum(facts["bytes"] for name, facts in stored.items() if name in paths)
        files = ksd.metrics.cost(model, example).file_bytes
        assert files.sparse == written
        assert files.dense == 4 * sum(
            int(np.prod(v.shape)) for v in model.weights if v.dtype != "bool"
        )


@pytest.mark.parametrize("dtype, numpy_dtype", [("float16", "float16"), ("bfloat16", "bfloat16")])
def test_values_are_rounded_to_what_was_asked_and_all_else_is_not(tmp_path, dtype, numpy_dtype):
    model = network()
    ksd.sparsify(model, {"*": 0.5, "first": 0.0}, seed=0)
    loaded = load_sparse(save_sparse(model, tmp_path / "m", dtype))
    kernels = {id(k.kernel) for k in masked_kernels(model)}
    assert len(kernels) == 3
    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else numpy_dtype)
    for a, b in zip(model.variables, loaded.variables, strict=True):
        wanted, found = arrays([a, b])
        if id(a) in kernels:
            wanted = wanted.astype(numpy_dtype).astype("float32")
        np.testing.assert_array_equal(found, wanted)
    assert np.allclose(model(X), loaded(X), atol=0.05)


def test_an_active_weight_that_is_zero_stays_active(tmp_path):
    model = network()
    ksd.sparsify(model, 0.8, seed=0)
    k = masked_kernels(model)[1]
    kernel, mask = arrays([k.kernel, k.mask])
    row, column = np.argwhere(mask)[3]
    kernel[row, column] = 0.0
    k.kernel.assign(kernel)
    loaded = load_sparse(save_sparse(model, tmp_path / "m"))
    assert_equal(model, loaded)
    assert arrays([masked_kernels(loaded)[1].mask])[0][row, column]


def test_targets_structures_and_dense_starts(tmp_path):
    model = network()
    ksd.sparsify(model, 0.75, structure=Blocks(4), seed=0, dense_start=True)
    loaded = load_sparse(save_sparse(model, tmp_path / "m"))
    assert_equal(model, loaded)
    assert masked_kernels(loaded)[0].target.structure == Blocks(4)
    assert ksd.sparsity_report(loaded).sparsity == 0


@pytest.mark.slow
def test_latent_diffusion(tmp_path):
    model = image_model()
    ksd.sparsify(model, 0.5, seed=0)
    model.scale_factor.assign(0.7)
    model.scale_known.assign(1.0)
    # Where training stands.
    model._seed_generator.next()
    loaded = load_sparse(save_sparse(model, tmp_path / "m", metadata={"kind": "images"}))
    assert_equal(model, loaded)
    assert float(loaded.scale_factor) == np.float32(0.7) and not loaded.autoencoder.trainable
    np.testing.assert_array_equal(*arrays([g._seed_generator.state for g in (model, loaded)]))
    wanted = model.generate(2, steps=2, seed=0, progress=False)
    np.testing.assert_array_equal(loaded.generate(2, steps=2, seed=0, progress=False), wanted)


@keras.saving.register_keras_serializable(package="test_sparse_file")
class Own(keras.Model):
    """Model that makes its own layers, and has a weight outside of them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.last = layers.Dense(16), layers.Conv1D(4, 3, padding="same")

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(16,), initializer="ones")
        self.first.build(input_shape)
        self.last.build((None, 1, 16))
        self.built = True

    def call(self, x):
        return self.last(self.scale * self.first(x)[:, None])[:, 0]


def functional():
    x = keras.Input((6, 6, 2))
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    y = layers.SeparableConv2D(2, 3, padding="same")(shared(shared(x)))
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(layers.Add()([x, y]))))


@pytest.mark.parametrize("make", [network, functional], ids=["sequential", "functional"])
@pytest.mark.parametrize("sparsity", [None, 0.0, 0.7])
def test_any_model(tmp_path, make, sparsity):
    model = make()
    if sparsity is not None:
        ksd.sparsify(model, sparsity, "uniform", seed=0)
    loaded = load_sparse(save_sparse(model, tmp_path / "m"))
    assert type(loaded) is type(model)
    assert_equal(model, loaded)
    x = np.ones((2, *model.input_shape[1:]), "float32")
    np.testing.assert_array_equal(model(x), loaded(x))


def test_a_model_that_makes_its_layers_itself(tmp_path):
    model = Own()
    model.build((None, 16))
    ksd.sparsify(model, 0.6, seed=0)
    model.scale.assign(np.arange(16))
    loaded = load_sparse(save_sparse(model, tmp_path / "m"))
    assert_equal(model, loaded)
    np.testing.assert_array_equal(model(X), loaded(X))


def test_one_kernel_of_two_layers(tmp_path):
    first, second = layers.Dense(16, name="one"), layers.Dense(16, name="two")
    model = keras.Sequential([keras.Input((16,)), first, second])
    second._tracker.unlock()
    second._kernel = first._kernel
    ksd.sparsify(model, 0.6, seed=0)
    stored = read_header(save_sparse(model, tmp_path / "m"))["arrays"]
    assert [f["encoding"] for n, f in stored.items() if n.endswith("kernel")].count("bitmask") == 1


def test_half_precision_models(tmp_path):
    model = keras.Sequential([keras.Input((16,)), layers.Dense(8, dtype="bfloat16")])
    ksd.sparsify(model, 0.5, seed=0)
    path = save_sparse(model, tmp_path / "m")
    kernel = read_header(path)["arrays"][model.layers[0].kernel.path]
    assert (kernel["dtype"], kernel["active"]) == ("bfloat16", 64)
    assert kernel["bytes"] == 64 * 2 + 16
    assert_equal(model, load_sparse(path))


def test_dropout_draws_on_where_it_was(tmp_path):
    model = network(dropout=0.5)
    model(X, training=True)
    loaded = load_sparse(save_sparse(model, tmp_path / "m"))
    np.testing.assert_array_equal(model(X, training=True), loaded(X, training=True))


# The format ------------------------------------------------------------------------------------


def test_the_file_is_what_its_description_says(tmp_path):
    model = network()
    ksd.sparsify(model, {"*": 0.5, "first": 0.95}, seed=0)
    path = save_sparse(model, tmp_path / "m", metadata={"run": "1", "numbers": [1, 2.5]})
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert metadata["format"] == "keras_sparse_dm.sparse" and metadata["format_version"] == "2"
    content = json.loads(metadata["content"])
    assert content["metadata"] == {"run": "1", "numbers": [1, 2.5]}
    assert content["optimizers"] == [] and "compile_config" not in content["config"]
    encodings = set()
    for k in masked_kernels(model):
        facts = content["arrays"][k.kernel.path]
        encodings.add(facts["encoding"])
        data = tensors[f"{k.kernel.path}:mask"]
        bits = [byte >> i & 1 for byte in data.tolist() for i in range(8)]
        if facts["encoding"] == "elias_fano":
            # The definition of the code.
            low = int(np.floor(np.log2(k.size / facts["active"])))
            numbers, zeros = [], 0
            unary = bits[-(-facts["active"] * low // 8) * 8 :]
            for bit in unary:
                if bit:
                    i = len(numbers)
                    lowest = sum(bits[i * low + j] << j for j in range(low))
                    numbers.append((zeros << low) + lowest)
                zeros += 1 - bit
            bits = [number in set(numbers) for number in range(k.size)]
        mask = np.array(bits[: k.size], "bool").reshape(facts["shape"])
        kernel = np.zeros(facts["shape"], "float32")
        kernel[mask] = tensors[k.kernel.path]
        np.testing.assert_array_equal(kernel, k.kernel)
        np.testing.assert_array_equal(mask, k.mask)
    assert encodings == {"bitmask", "elias_fano"}
    header = read_header(path)
    assert header["metadata"] == content["metadata"] and header["optimizer"] is False
    assert header["config"]["class_name"] == "Sequential"
    assert sum(f["bytes"] for f in header["arrays"].values()) == sum(
        t.nbytes for t in tensors.values()
    )


def small_file(folder):
    model = keras.Sequential([keras.Input((9,)), SparseDense(7), layers.Dense(3)])
    ksd.sparsify(model, 0.6, seed=0)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    return save_sparse(model, folder / "m", optimizer=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return small_file(tmp_path_factory.mktemp("whole")).read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "model.sparse"


def complains(path, match="model.sparse"):
    with pytest.raises(ValueError, match=match) as error:
        load_sparse(path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.cases(1)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("part", ["header", "data"])
def test_a_flipped_bit_is_detected(whole, scratch, part, data):
    begins = 8 + struct.unpack("<Q", whole[:8])[0]
    span = (0, begins - 1) if part == "header" else (begins, len(whole) - 1)
    position = data.draw(st.integers(*span))
    changed = bytearray(whole)
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    scratch.write_bytes(changed)
    complains(scratch, r"model\.sparse.*damaged.*save")
    if part == "header":
        with pytest.raises(ValueError, match="damaged"):
            read_header(scratch)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_truncated_or_longer_file_is_detected(whole, scratch, data):
    length = data.draw(st.integers(0, len(whole) - 1))
    scratch.write_bytes(whole[:length])
    complains(scratch)
    scratch.write_bytes(whole + bytes(data.draw(st.integers(1, 9))))
    complains(scratch, "model.sparse.*must have")


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"kernel": np.zeros((3, 3), "float32")}, path)
    for function in (load_sparse, read_header):
        with pytest.raises(ValueError, match="other.safetensors is no file of.*load_pytorch"):
            function(path)
    network().save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="m.keras is no file of.*keras.models.load_model"):
        load_sparse(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="`path` must be an existing file; received .*nothing"):
        load_sparse(tmp_path / "nothing")


def test_a_newer_version_asks_for_an_upgrade(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_sparse_dm.export.sparse_file.format.FORMAT_VERSION", 3)
        path = small_file(tmp_path).rename(tmp_path / "newer.sparse")
    for function in (load_sparse, read_header):
        with pytest.raises(ValueError, match="newer.sparse has version 3.*2: upgrade") as error:
            function(path)
        assert "\n" not in str(error.value)


def test_code_in_a_configuration_is_not_run(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: 2 * x), layers.Dense(3)])
    path = save_sparse(model, tmp_path / "m")
    with pytest.raises(ValueError, match="cannot be rebuilt here"):
        load_sparse(path)


# Resumed training ------------------------------------------------------------------------------


class Save(keras.callbacks.Callback):
    def __init__(self, path, **arguments):
        super().__init__()
        self.path, self.arguments = path, arguments

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            save_sparse(self.model, self.path, **self.arguments)


OPTIMIZERS = {
    "adamw": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1),
    "sgd": lambda: keras.optimizers.SGD(1e-2, momentum=0.9, nesterov=True),
    "ema": lambda: keras.optimizers.AdamW(1e-2, use_ema=True, ema_momentum=0.9),
    "schedule": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(1e-2, 20), amsgrad=True
    ),
}


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "name, method",
    [
        *(
            pytest.param(n, "rigl", marks=[pytest.mark.slow] * (n in ("sgd", "schedule")))
            for n in OPTIMIZERS
        ),
        ("adamw", "snfs"),
    ],
)
def test_training_goes_on_bit_for_bit(tmp_path, name, method):
    def fit(model, *callbacks, **arguments):
        sparsity = ksd.DynamicSparsity(method, update_every=3, prune_rate=0.4, seed=5)
        callbacks = [sparsity, *callbacks]
        model.fit(
            X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=callbacks, **arguments
        )

    model = network(dropout=0.2)
    ksd.sparsify(model, 0.8, seed=0)
    model.compile(OPTIMIZERS[name](), "mse", metrics=["mae"])
    fit(model, Save(tmp_path / "m", optimizer=True))
    loaded = load_sparse(tmp_path / "m")
    assert int(loaded.optimizer.iterations) == 8
    assert loaded.get_compile_config().keys() == model.get_compile_config().keys()
    fit(loaded, initial_epoch=1)
    assert_equal(model, loaded)
    a, b = model.optimizer, loaded.optimizer
    assert a.get_config()["method"] == b.get_config()["method"]
    assert a.topology_updates == b.topology_updates == 5
    own, own_loaded = {}, {}
    a.save_own_variables(own)
    b.save_own_variables(own_loaded)
    for (key, one), other in zip(own.items(), own_loaded.values(), strict=True):
        np.testing.assert_array_equal(*arrays([one, other]), err_msg=key)
    for one, other in zip(a.inner_optimizer.variables, b.inner_optimizer.variables, strict=True):
        np.testing.assert_array_equal(*arrays([one, other]), err_msg=one.path)
    # Equally sparse: the state of a kernel's active weights only.
    stored = read_header(tmp_path / "m")["arrays"]
    active = {f["active"] for f in stored.values() if "active" in f}
    state = [f for f in stored.values() if f["encoding"] == "as_kernel"]
    slots = {"adamw": 2, "sgd": 1, "ema": 3, "schedule": 3}[name]
    assert len(state) == slots * len([f for f in stored.values() if "active" in f])
    assert {f["bytes"] for f in state} == {4 * count for count in active}


@pytest.mark.slow
def test_training_of_a_diffusion_model_goes_on_bit_for_bit(tmp_path):
    data = np.random.default_rng(0).normal(size=(24, 8, 3)).astype("float32")
    batch = {"points": data, "lengths": np.full(24, 8)}

    def fit(model, *callbacks, **arguments):
        callbacks = [ksd.DynamicSparsity("rigl", update_every=2, seed=5), *callbacks]
        model.fit(
            batch,
            batch_size=8,
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
            **arguments,
        )

    model = sketch_model(0.8, units=8, num_layers=1)
    model.compile(keras.optimizers.AdamW(1e-2, use_ema=True, ema_momentum=0.9))
    averaged = tmp_path / "averaged"
    fit(model, Save(tmp_path / "m", optimizer=True), Save(averaged))
    loaded = load_sparse(tmp_path / "m")
    # Before training resumes, both files sample with the averages.
    sample = {"lengths": [4, 6], "steps": 3, "seed": 1}
    used = load_sparse(averaged)
    assert not used.compiled
    np.testing.assert_array_equal(loaded.generate(**sample), used.generate(**sample))
    kernels = [masked_kernels(m)[0].kernel for m in (loaded, used)]
    assert np.any(arrays(kernels[:1])[0] != arrays(kernels[1:])[0])
    fit(loaded, initial_epoch=1)
    assert_equal(model, loaded)
    np.testing.assert_array_equal(loaded.generate(**sample), model.generate(**sample))
    for one, other in zip(
        innermost_optimizer(model).variables, innermost_optimizer(loaded).variables, strict=True
    ):
        np.testing.assert_array_equal(*arrays([one, other]))
    np.testing.assert_array_equal(*arrays([m._seed_generator.state for m in (model, loaded)]))


@pytest.mark.slow
def test_training_with_loss_scaling_goes_on_bit_for_bit(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network()
        ksd.sparsify(model, 0.5, seed=0)
        model.compile(keras.optimizers.Adam(1e-2), "mse")

        def fit(model, *callbacks, **arguments):
            callbacks = [ksd.DynamicSparsity("rigl", update_every=3, seed=5), *callbacks]
            model.fit(
                X,
                Y,
                batch_size=4,
                epochs=2,
                shuffle=False,
                verbose=0,
                callbacks=callbacks,
                **arguments,
            )

        fit(model, Save(tmp_path / "m", optimizer=True))
        loaded = load_sparse(tmp_path / "m")
        assert type(loaded.optimizer) is keras.optimizers.LossScaleOptimizer
        fit(loaded, initial_epoch=1)
    finally:
        keras.config.set_dtype_policy("float32")
    assert_equal(model, loaded)
    for one, other in zip(
        innermost_optimizer(model).variables, innermost_optimizer(loaded).variables, strict=True
    ):
        np.testing.assert_array_equal(*arrays([one, other]))
    assert float(model.optimizer.dynamic_scale) == float(loaded.optimizer.dynamic_scale)


@pytest.mark.slow
def test_the_state_of_an_optimizer_that_has_moved_pruned_weights_is_kept_whole(tmp_path):
    model = network()
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(X, Y, epochs=1, verbose=0)
    # Moments before the update.
    ksd.sparsify(model, 0.5, seed=0)
    loaded = load_sparse(save_sparse(model, tmp_path / "m", optimizer=True))
    for one, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*arrays([one, other]))


# Files are whole or not there ------------------------------------------------------------------


@pytest.mark.slow
def test_a_kill_while_writing_leaves_the_file_before(tmp_path):
    code = """
import sys, time
import keras
import keras_sparse_dm as ksd
from keras_sparse_dm.export.sparse_file import writer
model = keras.Sequential([keras.Input((9,)), keras.layers.Dense(7)])
ksd.sparsify(model, 0.5, seed=0)
ksd.export.save_sparse(model, sys.argv[1])
encode = writer.encode_mask
def encode_slowly(*arguments):
    print("writing", flush=True)
    time.sleep(600)
writer.encode_mask = encode_slowly
model.layers[0].bias.assign([1.0] * 7)
ksd.export.save_sparse(model, sys.argv[1])
"""
    path = tmp_path / "model.sparse"
    process = subprocess.Popen(
        [sys.executable, "-c", code, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert process.stdout.readline() == "writing\n"
    before = path.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.read_bytes() == before
    model = load_sparse(path)
    assert not np.any(model.layers[0].bias)
    save_sparse(model, path)
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_nothing_partial(tmp_path, monkeypatch):
    model = network()
    ksd.sparsify(model, 0.5, seed=0)

    def fails(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("keras_sparse_dm.export.sparse_file.writer.encode_mask", fails)
    with pytest.raises(OSError, match="No space"):
        save_sparse(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_the_header_has_its_checksum_where_all_versions_look_for_it():
    begins = b'{"__metadata__":{"header_checksum":"'
    header = header_bytes({}, {}, {})
    assert header.startswith(begins + b"0" * 32)
    length = len(header).to_bytes(8, "little")
    digits = hashlib.blake2b(length + header, digest_size=16).hexdigest().encode()
    assert sealed(header) == length + header.replace(b"0" * 32, digits)


# Bad input -------------------------------------------------------------------------------------


def test_bad_input(tmp_path):
    path = tmp_path / "m"
    model = network()
    ksd.sparsify(model, 0.5, seed=0)
    with pytest.raises(ValueError, match="`dtype` must be one of.*received 'int8'"):
        save_sparse(model, path, dtype="int8")
    with pytest.raises(ValueError, match="`optimizer` must be False.*not compiled"):
        save_sparse(model, path, optimizer=True)
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match="`dtype` must be 'float32' with `optimizer=True`"):
        save_sparse(model, path, dtype="float16", optimizer=True)
    for metadata in ({"x": np.zeros(2)}, {"x": float("nan")}, [1]):
        with pytest.raises(ValueError, match="`metadata` must be"):
            save_sparse(model, path, metadata=metadata)
    with pytest.raises(ValueError, match="`model`.*must be built"):
        save_sparse(keras.Sequential([layers.Dense(3)]), path)
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(3)])
    with pytest.raises(ValueError, match="has none: call .*sparsify"):
        save_sparse(plain, path, dtype="float16")
    k = masked_kernels(model)[0]
    k.kernel.assign(keras.ops.ones_like(k.kernel))
    with pytest.raises(ValueError, match="Pruned weights of .* are not zero"):
        save_sparse(model, path)
    k.kernel.assign(keras.ops.where(k.mask, 1e5, 0.0))
    with pytest.raises(ValueError, match="float16 cannot hold the weights of .*use 'bfloat16'"):
        save_sparse(model, path, dtype="float16")
    save_sparse(model, path, dtype="bfloat16")
    words = layers.TextVectorization()
    words.adapt(["a b"])
    with pytest.raises(ValueError, match="keeps files of its own.*model.save"):
        save_sparse(keras.Sequential([keras.Input((1,), dtype="string"), words]), path)
