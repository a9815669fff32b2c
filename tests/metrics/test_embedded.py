"""Embedded features: equality to Keras layers, image formats, ranking, damaged files."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from keras_sparse_dm.data import from_points, load_kanjivg, load_vmnist
from keras_sparse_dm.metrics import frechet_distance
from keras_sparse_dm.metrics.features.embedded import (
    SIZE,
    WEIGHTS,
    EmbeddedFeatures,
    area_weights,
    read_weights,
    write_weights,
)
from keras_sparse_dm.metrics.features.sketch_images import render_sketches

SLOW_FIXTURES = {"training"}

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def features():
    return EmbeddedFeatures()


@pytest.fixture(scope="module")
def sketches(tmp_path_factory):
    """`{data set: (sketches, others)}`, 300 of each; the digits are scikit-learn's."""
    options = {
        "cache_dir": tmp_path_factory.mktemp("cache"),
        "max_sketches": 620,
        "split": 0.5,
        "progress": False,
    }
    kanji = load_kanjivg(**options)
    digits = load_vmnist(**options)
    return {"kanji": [a.take(300) for a in kanji], "digits": [a.take(300) for a in digits]}


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rank():
    return script("rank_features")


@pytest.fixture(scope="module")
def training(monkeypatch_module):
    module = script("train_feature_network")
    # Dataclasses and pickles look up the module here.
    monkeypatch_module.setitem(sys.modules, "train_feature_network", module)
    return module


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def images(n=5, shape=(SIZE, SIZE), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


# Features ------------------------------------------------------------------------------------


def test_features_are_those_of_the_same_network_in_keras(features):
    layers, scale, description = read_weights(WEIGHTS)
    x = inputs = keras.Input((SIZE, SIZE, 1))
    means = []
    for (kernel, bias), stride in zip(layers, description["strides"], strict=True):
        layer = keras.layers.Conv2D(
            bias.size, kernel.shape[:2], stride, padding="same", activation="relu"
        )
        x = layer(x)
        layer.set_weights([kernel, bias])
        means.append(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, [means[i] for i in description["pooled"]])
    given = images()
    expected = np.concatenate(model.predict((1 - given[..., None] / 255), verbose=0), axis=1)
    received = features(given)
    assert received.dtype == np.float32
    assert received.shape == (5, features.dimensions)
    np.testing.assert_allclose(received, expected * np.float32(scale), rtol=1e-3, atol=1e-4)
    assert (received.std(axis=0) > 0).mean() > 0.5


@pytest.mark.parametrize("length", [640, 129, 100, 64])
def test_images_are_averaged_down_as_pillow_does(length):
    row = images(1, (1, length))[0]
    expected = np.asarray(
        Image.fromarray(row.astype(np.float32)).resize((SIZE, 1), Image.Resampling.BOX)
    )
    weights = area_weights(length, SIZE)
    assert weights.shape == (SIZE, length) and weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(axis=0), SIZE / length, rtol=1e-5)
    if length % SIZE == 0:  # otherwise Pillow takes whole pixels only
        np.testing.assert_allclose(row @ weights.T, expected, rtol=1e-5)
    # The definition: the mean over each 64th of a row with every pixel split into 64.
    fine = np.repeat(row[0].astype(float), SIZE).reshape(SIZE, length).mean(axis=1)
    np.testing.assert_allclose(weights @ row[0], fine, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 28, 63])
def test_small_images_are_spread(length):
    row = images(1, (length,))[0]
    weights = area_weights(length, SIZE)
    fine = np.repeat(row.astype(float), SIZE).reshape(SIZE, length).mean(axis=1)
    np.testing.assert_allclose(weights @ row, fine, rtol=1e-5)


def test_size_and_colour_of_images(features):
    given = images(3)
    expected = features(given)
    np.testing.assert_allclose(features(given[..., None]), expected, atol=1e-5)
    large = given.repeat(3, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(features(large), expected, rtol=1e-4, atol=1e-4)
    grey = np.repeat(given[..., None], 3, axis=3)
    np.testing.assert_allclose(features(grey), expected, rtol=1e-4, atol=1e-4)
    colour = images(3, (SIZE, SIZE, 3))
    pillow = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colour])
    # Pillow rounds to integers.
    np.testing.assert_allclose(features(colour), features(pillow), atol=0.05)
    assert features(images(2, (28, 28))).shape == (2, features.dimensions)
    assert features(images(2, (300, 1))).shape == (2, features.dimensions)


def test_batches_and_order_make_no_difference(features, tmp_path):
    given = images(23)
    expected = features(given)
    for batch_size in (1, 7, 23, 1000):
        np.testing.assert_allclose(features(given, batch_size), expected, rtol=1e-5, atol=1e-5)
    order = np.random.default_rng(0).permutation(23)
    np.testing.assert_allclose(features(given[order], 8), expected[order], rtol=1e-5, atol=1e-5)
    np.save(tmp_path / "images.npy", given)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    np.testing.assert_array_equal(features(mapped), expected)
    assert features(given[:0]).shape == (0, features.dimensions)


def test_progress(features, capsys):
    features(images(3), 2, progress=True)
    assert "FD-kanji" in (error := capsys.readouterr().err) and "3/3" in error
    features(images(3))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 8, 8)), r"has type float64; it must be uint8.*np.round\(images \* 255\)"),
        (np.zeros((2, 8, 8), np.int64), "has type int64"),
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\); it must be \(n, height, width\).*image\["),
        (np.zeros((2, 8, 8, 4), np.uint8), r"shape \(2, 8, 8, 4\)"),
        (np.zeros((2, 0, 8), np.uint8), r"shape \(2, 0, 8\)"),
    ],
)
def test_refuses_images(features, given, message):
    with pytest.raises(ValueError, match=message):
        features(given)
    with pytest.raises(ValueError, match="batch_size=0"):
        features(images(), 0)


# Files ---------------------------------------------------------------------------------------


def test_the_file_is_small_plain_and_tells_its_accuracy(features):
    assert WEIGHTS.stat().st_size <= 3_000_000
    with np.load(WEIGHTS, allow_pickle=False) as stored:
        kinds = {stored[name].dtype for name in stored.files if name != "description"}
    assert kinds == {np.dtype(np.float16)}
    assert features.name == "FD-kanji"
    assert features.name in repr(features) and features.fingerprint in repr(features)
    assert 128 <= features.dimensions <= 256
    # Chance level is the mean share of characters with a component, a few percent.
    assert features.accuracy["KanjiVG: mean average precision"] > 0.6
    assert features.accuracy["digits: accuracy"] > 0.9
    assert features.accuracy["KanjiVG: held-out drawings"] > 900
    assert len(features.description["classes"]["KanjiVG"]) >= 200
    assert "CC BY-SA" in features.description["licence"]


def tiny(tmp_path, change=None, **description):
    rng = np.random.default_rng(0)
    layers = [
        (rng.normal(size=(3, 3, 1, 4)), np.zeros(4)),
        (rng.normal(size=(3, 3, 4, 2)), np.zeros(2)),
    ]
    scale = np.ones(6)
    if change:
        change(layers, scale)
    path = tmp_path / "tiny.npz"
    description = {"strides": [4, 2], "pooled": [0, 1], "accuracy": {"digits": 1}} | description
    write_weights(path, layers, scale, description)
    return EmbeddedFeatures(path)


def test_the_fingerprint_changes_with_all_that_changes_features(features, tmp_path):
    def kernel(layers, scale):
        layers[1][0][0, 0, 0, 0] += 1

    def bias(layers, scale):
        layers[0][1][0] += 1

    def scales(layers, scale):
        scale[5] = 2

    assert EmbeddedFeatures().fingerprint == features.fingerprint
    same = tiny(tmp_path).fingerprint
    assert len(same) == 20 and tiny(tmp_path, accuracy={}, seed=3).fingerprint == same
    others = [tiny(tmp_path, change).fingerprint for change in (kernel, bias, scales)]
    others += [
        tiny(tmp_path, strides=[2, 2]).fingerprint,
        tiny(tmp_path, pooled=[1, 0]).fingerprint,
    ]
    assert len({same, features.fingerprint, *others}) == 7
    assert tiny(tmp_path).accuracy == {"digits": 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooled": [1]}, "a scale of shape"),
        ({"strides": [2]}, "cannot be read"),
        ({"strides": [2, 2, 2]}, "kernel_2"),
        ({"strides": []}, "cannot be read"),
        ({"accuracy": 1}, "cannot be read"),
        ({"change": lambda layers, scale: layers.reverse()}, "does not fit its neighbours"),
        ({"change": lambda layers, scale: scale.fill(np.nan)}, "not finite"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=f"(?s)tiny.npz cannot be read.*{message}|{message}"):
        tiny(tmp_path, **arguments)


def test_missing_cut_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.npz are missing; install"):
        EmbeddedFeatures(tmp_path / "nowhere.npz")
    whole = WEIGHTS.read_bytes()
    for name, content in (
        ("cut", whole[: len(whole) // 2]),
        ("changed", whole[:9000] + bytes([whole[9000] ^ 255]) + whole[9001:]),
        ("empty", b""),
        ("text", b"no weights"),
    ):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.npz cannot be read.*install the package"):
            EmbeddedFeatures(path)


def test_a_file_with_a_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "evil.npz"
    np.savez(path, description=np.array([Evil()], dtype=object))
    assert zipfile.is_zipfile(path)
    with pytest.raises(ValueError, match="cannot be read"):
        EmbeddedFeatures(path)
    assert not (tmp_path / "ran").exists()


def test_importing_loads_no_tensorflow():
    code = (
        "import sys, keras_sparse_dm.metrics.features.embedded\n"
        "import keras_sparse_dm.metrics.features.sketch_images\n"
        "print([m for m in ('tensorflow', 'keras', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


# Training ------------------------------------------------------------------------------------


def test_what_is_written_computes_what_was_trained(training, tmp_path):
    model = training.build(10)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    layers = training.folded(model)
    last = layers[-1][1].size
    path = tmp_path / "weights.npz"
    description = {"strides": [s for *_, s in training.LAYERS], "pooled": [5], "accuracy": {}}
    write_weights(path, layers, np.ones(last), description)
    given = images(3)
    pooled = keras.Model(model.input, model.layers[-2].output)
    expected = pooled.predict(training.ink(given), verbose=0)
    assert expected.shape == (3, last) and expected.std() > 0
    # Weights are rounded to float16.
    np.testing.assert_allclose(
        EmbeddedFeatures(path)(given), expected, rtol=0.02, atol=0.02 * expected.std()
    )


def test_training_pictures_depend_on_seed_and_number_alone(training, sketches):
    drawings = [from_points(points) for points in sketches["kanji"][0].take(40)]

    def draw(*arguments):
        return training.draw_all(drawings, *arguments)

    plain, strengths = draw(3, False, 0.0)
    assert not strengths.any()
    np.testing.assert_array_equal(plain, render_sketches(drawings, SIZE, progress=False))
    warped, strengths = draw(3, True, 1.0)
    again, strengths_again = draw(3, True, 1.0)
    np.testing.assert_array_equal(warped, again)
    np.testing.assert_array_equal(strengths, strengths_again)
    assert strengths.min() == 0 and strengths.max() <= 1 and (strengths.max(axis=0) > 0).all()
    assert (warped != draw(4, True, 1.0)[0]).any(axis=(1, 2)).all()
    # Undamaged drawings change so little that ink stays in place.
    ink, moved = (255.0 - p.reshape(40, -1) for p in (plain, draw(3, True, 0.0)[0]))
    assert (ink * moved).sum() > 1.5 * (ink * np.roll(moved, 1, axis=0)).sum()


# Use -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_digits_are_told_apart_by_their_features_alone(features, sketches):
    from sklearn.linear_model import LogisticRegression

    train, held_out = sketches["digits"]
    x, y = (features(render_sketches(part, progress=False)) for part in (train, held_out))
    guess = LogisticRegression(C=0.1, max_iter=500).fit(x, train.labels).predict(y)
    assert (guess == np.array(held_out.labels)).mean() > 0.85


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["kanji", "digits"])
def test_worse_sketches_are_farther_away(features, sketches, rank, name):
    train, held_out = sketches[name]

    def features_of(sketches):
        return features(render_sketches(sketches, size=64, progress=False))

    real = features_of(train)

    def distance(sketches):
        return frechet_distance(real, features_of(sketches))

    untouched = distance(held_out)
    drawings = [from_points(points) for points in held_out]
    for worse in (
        [rank.jittered(held_out, amount) for amount in (0.4, 1.2)],
        [rank.rough(held_out, amount) for amount in (0.1, 0.4)],
        [rank.replaced(drawings, share) for share in (0.1, 1.0)],
        [rank.displaced(drawings, share) for share in (0.1, 1.0)],
        [rank.thinned(drawings, share) for share in (0.1, 0.5)],
    ):
        distances = [untouched, *map(distance, worse)]
        assert distances == sorted(distances)
        assert distances[-1] > 2 * untouched
    noise = distance(rank.pure_noise(held_out.lengths))
    assert noise > 5 * untouched and noise > distances[-1]
