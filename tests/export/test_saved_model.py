import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import saved_model_pb2

import keras_sparse_dm as ksd
from keras_sparse_dm.diffusion import DiffusionModel, NoiseSchedule, ddim
from keras_sparse_dm.export import read_metadata, saved_model, to_saved_model
from keras_sparse_dm.models import ChiroDiff, LatentDiffusion, UNet, VQAutoencoder

SLOW_FIXTURES = {"images", "sketches"}

ROOT = Path(__file__).resolve().parents[2]
T = 20
SCHEDULE = NoiseSchedule.scaled_linear(T, 0.01, 0.3)
LENGTHS = [3, 9, 4, 1, 9, 6]


def sketch_model():
    """Model after a few training steps, so that the averages differ from the weights."""
    keras.utils.set_random_seed(0)
    denoiser = ChiroDiff(units=8, num_layers=2, representation="delta", timesteps=T, seed=0)
    model = DiffusionModel(denoiser, SCHEDULE, seed=3)
    ksd.sparsify(model, 0.5, seed=0)
    model.compile(keras.optimizers.AdamW(3e-2, use_ema=True, ema_momentum=0.8))
    ksd.sparse_optimizer(model, None, "static")
    points = np.random.default_rng(0).normal(size=(8, 9, 3)).astype("float32")
    for _ in range(4):
        model.train_on_batch({"points": points, "lengths": np.full(8, 9)})
    return model


def image_model():
    keras.utils.set_random_seed(0)
    autoencoder = VQAutoencoder(
        channels=8, channel_mult=(1, 2), num_res_blocks=1, codes=16, norm_groups=4, seed=0
    )
    unet = UNet(32, (1,), num_res_blocks=1, attention_factors=(), timesteps=T)
    model = LatentDiffusion(unet, autoencoder, SCHEDULE, image_size=8, seed=3)
    ksd.sparsify(model, 0.5, seed=0)
    model.scale_factor.assign(0.7)
    return model


@pytest.fixture(scope="module")
def sketches(tmp_path_factory):
    model = sketch_model()
    path = tmp_path_factory.mktemp("sketches") / "model"
    with pytest.MonkeyPatch.context() as patch:
        # Several batches, of which the last is smaller.
        patch.setattr(saved_model, "SKETCHES_A_BATCH", 4)
        to_saved_model(model, path, {"run": "r1"})
    return model, path, tf.saved_model.load(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    model = image_model()
    path = tmp_path_factory.mktemp("images") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_model, "IMAGES_A_BATCH", 2)
        to_saved_model(model, path)
    return model, path, tf.saved_model.load(path)


def generate(loaded, seed=0, steps=5, eta=0.0, **arguments):
    arguments = {name: tf.constant(value, "int32") for name, value in arguments.items()}
    return loaded.signatures["generate"](
        seed=tf.constant(seed, "int64"), steps=tf.constant(steps), eta=tf.constant(eta), **arguments
    )["samples"].numpy()


# Computations ------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 7])
def test_sketches_are_those_of_the_model(sketches, steps, eta):
    model, _, loaded = sketches
    wanted = model.generate(lengths=LENGTHS, steps=steps, eta=eta, seed=11, batch_size=4)
    found = generate(loaded, 11, steps, eta, lengths=LENGTHS)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    # With the averages; the weights would give other samples.
    with_weights = DiffusionModel(model.denoiser, SCHEDULE)
    other = with_weights.generate(lengths=LENGTHS, steps=steps, eta=eta, seed=11, batch_size=4)
    assert np.abs(other - wanted).max() > 1e-3


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**32 + 5])
def test_any_seed_and_other_batches(sketches, seed):
    model, _, loaded = sketches
    wanted = model.generate(lengths=[2, 5], steps=3, seed=seed)
    np.testing.assert_allclose(generate(loaded, seed, 3, lengths=[2, 5]), wanted, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_images_are_those_of_the_model(images, eta):
    model, _, loaded = images
    wanted = model.generate(5, steps=4, eta=eta, seed=2, batch_size=2, progress=False)
    found = generate(loaded, 2, 4, eta, n=5)
    assert found.shape == (5, 8, 8, 3) and np.abs(found).max() <= 1.0
    # A latent between two codes may be decoded from either.
    assert np.mean(np.abs(found - wanted) < 1e-4) > 0.99


def test_the_denoisers(sketches, images):
    model, _, loaded = sketches
    random = np.random.default_rng(0)
    for n, length in ((1, 4), (3, 7)):
        points = random.normal(size=(n, length, 3)).astype("float32")
        t, lengths = np.arange(n, dtype="int32"), np.full(n, length - 1, "int32")
        with model.averaged_weights():
            wanted = model((points, t, lengths))
        found = loaded.signatures["denoise"](
            points=tf.constant(points), t=tf.constant(t), lengths=tf.constant(lengths)
        )
        np.testing.assert_allclose(found["epsilon"], wanted, atol=1e-5)
    model, _, loaded = images
    latents = random.normal(size=(2, 4, 4, 3)).astype("float32")
    t = np.array([0, T - 1], "int32")
    found = loaded.signatures["denoise"](latents=tf.constant(latents), t=tf.constant(t))
    np.testing.assert_allclose(found["epsilon"], model((latents, t)), atol=1e-5)


def scaled(x, t):
    return 0.3 * x + 0.01 * keras.ops.cast(t, "float32")[:, None]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    timesteps=st.integers(1, 60),
    share=st.floats(0, 1),
    eta=st.sampled_from([0.0, 0.25, 1.0]),
    kind=st.sampled_from(["linear", "cosine"]),
    seed=st.integers(0, 2**31),
)
def test_the_sampler_is_that_of_the_library(timesteps, share, eta, kind, seed):
    schedule = getattr(NoiseSchedule, kind)(timesteps)
    steps = 1 + round(share * (timesteps - 1))
    x_T = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    sample = saved_model._sampler(lambda x, t: {"epsilon": scaled(x, t)}, schedule)
    found = sample(
        tf.constant(x_T), tf.constant(steps), tf.constant(eta), tf.constant(seed, "int64")
    )
    wanted = ddim(scaled, schedule, x_T, steps, eta=eta, seed=seed)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_steps_and_eta_have_defaults(sketches):
    model, path, loaded = sketches
    found = loaded.generate(tf.constant(4, "int64"), tf.constant([3, 5]))["samples"]
    wanted = model.generate(lengths=[3, 5], steps=T, seed=4)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    # The signature, for servers, has it too.
    file = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    defaults = file.meta_graphs[0].signature_def["generate"].defaults
    assert {name: tf.make_ndarray(value).item() for name, value in defaults.items()} == {
        "steps": T,
        "eta": 0.0,
    }


CODE = '''
import importlib.abc, sys

class Hiding(importlib.abc.MetaPathFinder):
    """Import finder that hides some modules from another finder."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *arguments):
        if name.split(".")[0] in ("keras", "tf_keras", "keras_sparse_dm"):
            return None
        return self.finder.find_spec(name, *arguments)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import numpy as np, tensorflow as tf

def generate(path, **arguments):
    arguments = {name: tf.constant(value) for name, value in arguments.items()}
    function = tf.saved_model.load(path).signatures["generate"]
    seed, eta = tf.constant(11, "int64"), tf.constant(0.0)
    return function(seed=seed, steps=tf.constant(5), eta=eta, **arguments)["samples"].numpy()

sketches = generate(sys.argv[1], lengths=[3, 9, 4])
images = generate(sys.argv[2], n=2)
assert not {"keras", "keras_sparse_dm"} & set(sys.modules)
np.savez(sys.argv[3], sketches=sketches, images=images)
'''


@pytest.mark.slow
def test_it_needs_neither_keras_nor_this_package(sketches, images, tmp_path):
    file = tmp_path / "samples.npz"
    result = subprocess.run(
        [sys.executable, "-c", CODE, sketches[1], images[1], file],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
        | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    with np.load(file) as samples:
        wanted = generate(sketches[2], 11, lengths=[3, 9, 4])
        np.testing.assert_allclose(samples["sketches"], wanted, atol=1e-6)
        np.testing.assert_allclose(samples["images"], generate(images[2], 11, n=2), atol=1e-6)


# Contents of the directory ----------------------------------------------------------------------


def test_only_weights_that_are_used_are_saved(sketches, images):
    def saved(path):
        variables = tf.train.list_variables(str(path / "variables" / "variables"))
        return sum(int(np.prod(shape)) for name, shape in variables if name.startswith("weights"))

    model, path, _ = sketches
    assert saved(path) == sum(
        int(np.prod(v.shape)) for v in model.denoiser.weights if v.dtype == "float32"
    )
    model, path, _ = images
    # Decoder, code book and scale, but no encoder.
    unused = ("/encoder_", "/to_code/", "/unused_steps")
    used = [v for v in model.autoencoder.weights if not any(name in v.path for name in unused)]
    used += [model.scale_factor, *(v for v in model.denoiser.weights if v.dtype == "float32")]
    assert saved(path) == sum(int(np.prod(v.shape)) for v in used)
    assert len(used) < len(model.weights) - 20


def test_metadata(sketches, images, tmp_path):
    facts = read_metadata(sketches[1])
    assert facts["run"] == "r1" and facts["kind"] == "sketches"
    assert (facts["representation"], facts["point_features"]) == ("delta", 3)
    assert (facts["timesteps"], facts["default_steps"]) == (T, T)
    assert facts["signatures"] == ["denoise", "generate"]
    assert NoiseSchedule.from_config(facts["noise_schedule"]) == SCHEDULE
    facts = read_metadata(images[1])
    assert (facts["kind"], facts["latent_shape"]) == ("images", [4, 4, 3])
    assert (facts["image_size"], facts["image_channels"]) == (8, 3)
    with pytest.raises(ValueError, match="is no SavedModel of .*to_saved_model"):
        read_metadata(tmp_path)
    file = tmp_path / saved_model.METADATA_FILE
    file.parent.mkdir()
    file.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        read_metadata(tmp_path)
    file.write_text('{"format_version": 2}')
    with pytest.raises(ValueError, match="upgrade"):
        read_metadata(tmp_path)


@pytest.mark.slow
def test_denoisers_by_themselves(tmp_path):
    chirodiff = ChiroDiff(units=4, num_layers=1, timesteps=T)
    loaded = tf.saved_model.load(to_saved_model(chirodiff, tmp_path / "chirodiff"))
    assert list(loaded.signatures) == ["denoise"]
    assert read_metadata(tmp_path / "chirodiff")["signatures"] == ["denoise"]
    assert [layer.use_cudnn for layer in chirodiff._flatten_layers() if hasattr(layer, "use_cudnn")]
    unet = UNet(32, (1,), num_res_blocks=1, attention_factors=(), timesteps=T)
    for size in (None, 0):
        with pytest.raises(ValueError, match="`latent_size` must be the height and width"):
            to_saved_model(unet, tmp_path / "unet", latent_size=size)
    with pytest.raises(ValueError, match="`latent_size` is for a UNet"):
        to_saved_model(chirodiff, tmp_path / "chirodiff", latent_size=4)
    model = DiffusionModel(unet, SCHEDULE)
    loaded = tf.saved_model.load(to_saved_model(model, tmp_path / "unet", latent_size=4))
    wanted = model.generate(shape=(2, 4, 4, 3), steps=3, seed=1)
    np.testing.assert_allclose(generate(loaded, 1, 3, n=2), wanted, atol=2e-5)


# Bad input -------------------------------------------------------------------------------------


def test_bad_input_in_the_graph(sketches, images):
    loaded = sketches[2]
    for arguments, message in (
        ({"steps": 0}, f"`steps` must be from 1 to {T}"),
        ({"steps": T + 1}, f"`steps` must be from 1 to {T}"),
        ({"eta": 1.5}, r"`eta` must be in \[0, 1\]"),
        ({"lengths": [3, 0]}, "`lengths` must be 1 or more"),
        ({"lengths": []}, "`lengths` must not be empty"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            generate(loaded, **{"lengths": [3], **arguments})
    with pytest.raises(tf.errors.InvalidArgumentError, match="`n` must be 1 or more"):
        generate(images[2], n=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`t` must be"):
        loaded.signatures["denoise"](
            points=tf.zeros((1, 3, 3)), t=tf.constant([T]), lengths=tf.constant([3])
        )


def test_bad_input(tmp_path):
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="received Sequential.*`model.export`"):
        to_saved_model(other, tmp_path / "m")
    model = ChiroDiff(units=4, num_layers=1, timesteps=T)
    with pytest.raises(ValueError, match="`metadata` must be"):
        to_saved_model(model, tmp_path / "m", metadata={"x": np.zeros(2)})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    for path in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(ValueError, match="`path` must be a new directory or that of a Saved"):
            to_saved_model(model, path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# Directories are whole or not there ------------------------------------------------------------


@pytest.mark.slow
def test_an_error_leaves_what_was_there(tmp_path, monkeypatch):
    model = ChiroDiff(units=4, num_layers=1, timesteps=T)
    path = to_saved_model(model, tmp_path / "m", {"number": 1})
    save = tf.saved_model.save

    def fails(module, folder, **arguments):
        save(module, folder, **arguments)
        raise OSError("No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", fails)
    with pytest.raises(OSError, match="No space"):
        to_saved_model(model, path, {"number": 2})
    assert list(tmp_path.iterdir()) == [path]
    assert read_metadata(path)["number"] == 1
    monkeypatch.undo()
    to_saved_model(model, path, {"number": 3})
    assert read_metadata(path)["number"] == 3


@pytest.mark.slow
def test_a_kill_while_writing_leaves_what_was_there(tmp_path):
    code = """
import sys, time
import tensorflow as tf
import keras_sparse_dm as ksd
model = ksd.models.ChiroDiff(units=4, num_layers=1)
ksd.export.to_saved_model(model, sys.argv[1], {"number": 1})
save = tf.saved_model.save
def save_slowly(*arguments, **options):
    save(*arguments, **options)
    print("writing", flush=True)
    time.sleep(600)
tf.saved_model.save = save_slowly
ksd.export.to_saved_model(model, sys.argv[1], {"number": 2})
"""
    path = tmp_path / "model"
    process = subprocess.Popen(
        [sys.executable, "-c", code, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read_metadata(path)["number"] == 1
    assert len(list(tmp_path.iterdir())) == 2
    assert "denoise" in tf.saved_model.load(path).signatures
    to_saved_model(ChiroDiff(units=4, num_layers=1), path)
    assert list(tmp_path.iterdir()) == [path]
