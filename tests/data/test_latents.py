import json
import os
import shutil

import numpy as np
import pytest

from keras_sparse_dm.data import (
    ImageArrays,
    LatentArrays,
    cache_latents,
    eval_image_batches,
    image_steps_per_epoch,
    load_latents,
    train_image_batches,
)
from keras_sparse_dm.data.images import latents as module

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def images():
    rows = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3)).astype(np.uint8)
    return ImageArrays(rows, tuple("abcdefghijk"))


def encode(batch):
    """Return every fourth pixel, so that latents identify their image and its flip."""
    assert batch.dtype == np.float32 and -1 <= batch.min() and batch.max() <= 1
    return batch[:, ::4, ::4]


def expected(images, i, flip=False):
    image = images[i].astype(np.float32) / np.float32(127.5) - 1
    return (image[:, ::-1] if flip else image)[::4, ::4]


@pytest.fixture
def cache(tmp_path):
    def cache(encode, images, fingerprint="vq-1", **changes):
        return cache_latents(
            encode,
            images,
            tmp_path / "cache",
            fingerprint=fingerprint,
            **{"batch_size": 4, "progress": False} | changes,
        )

    return cache


def refuse(batch):
    raise AssertionError("encoded again")


def written(tmp_path):
    (rows,) = (tmp_path / "cache").glob("*.npy")
    return rows


# Encoding


def test_latents_are_encoded_once_and_mapped(cache, images, tmp_path):
    sizes = []

    def counting(batch):
        sizes.append(len(batch))
        return encode(batch)

    latents = cache(counting, images)
    assert sizes == [4, 4, 3]
    assert isinstance(latents.latents, np.memmap) and not latents.latents.flags.writeable
    assert latents.latents.dtype == np.float32 and latents.latents.shape == (11, 2, 2, 3)
    assert (len(latents), latents.shape, latents.names) == (11, (2, 2, 3), images.names)
    assert repr(latents) == "LatentArrays(11 of 2 x 2 x 3)" and not latents.flip
    for i in range(11):
        np.testing.assert_array_equal(latents[i], expected(images, i))
    again = cache(refuse, images)
    assert again.fingerprint == latents.fingerprint
    np.testing.assert_array_equal(again.latents, latents.latents)
    assert sorted(f.suffix for f in (tmp_path / "cache").iterdir()) == [".json", ".npy"]


def test_flipped_images_are_encoded_too(cache, images):
    flipping = ImageArrays(images.images, images.names, flip=True)
    latents = cache(encode, flipping)
    assert latents.flip and latents.latents.shape == (11, 2, 2, 2, 3)
    for i in range(11):
        np.testing.assert_array_equal(latents[i], expected(images, i))
        np.testing.assert_array_equal(latents.latents[i, 1], expected(images, i, flip=True))


def test_tensors_and_halves_are_taken(cache, images):
    import tensorflow as tf

    a = cache(lambda x: tf.cast(x[:, ::4, ::4], tf.bfloat16), images)
    assert a.latents.dtype == np.float32
    np.testing.assert_allclose(a[3], expected(images, 3), atol=0.01)
    b = cache(tf.function(lambda x: x[:, ::4, ::4]), images, "vq-2")
    np.testing.assert_array_equal(b[3], expected(images, 3))


def test_another_autoencoder_and_other_images_have_files_of_their_own(cache, images, tmp_path):
    one = cache(encode, images)
    two = cache(lambda x: -encode(x), images, "vq-2")
    np.testing.assert_array_equal(two[0], -one[0])
    part = cache(encode, images.subset([5, 2]))
    assert part.names == ("f", "c")
    np.testing.assert_array_equal(part[1], one[2])
    flipped = cache(encode, ImageArrays(images.images, images.names, flip=True))
    prints = {a.fingerprint for a in (one, two, part, flipped)}
    assert len(prints) == 4 == len(list((tmp_path / "cache").glob("*.npy")))
    cache(refuse, images.subset([5, 2]))


def test_what_encode_gives_is_checked(cache, images, tmp_path):
    def nan_later(batch):
        latents = encode(batch).copy()
        if (batch[0] == images.images[4] / np.float32(127.5) - 1).all():
            latents[2, 1, 1, 0] = np.nan
        return latents

    def shrinking(batch):
        return encode(batch) if len(batch) == 4 else batch

    for wrong, message in (
        (nan_later, "NaN or infinite value for image 'g'"),
        (lambda x: encode(x)[:2], r"encode gave shape \(2, 2, 2, 3\) for 4 images"),
        (lambda x: encode(x)[..., 0], r"must be \(4, height, width, channels\)"),
        (shrinking, r"shape \(8, 8, 3\) after \(2, 2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            cache(wrong, images)
        assert os.listdir(tmp_path / "cache") == []


def test_an_interrupted_encoding_leaves_nothing(cache, images, tmp_path):
    calls = []

    def interrupted(batch):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(batch)

    with pytest.raises(KeyboardInterrupt):
        cache(interrupted, images)
    assert os.listdir(tmp_path / "cache") == []
    assert len(cache(encode, images)) == 11


def test_too_little_space_is_an_error_that_says_so(cache, images, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**5}))
    with pytest.raises(OSError, match="GB free, but .* are needed.*cache_dir"):
        cache(encode, images)
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="latents cannot be written to .*sets another folder"):
        cache_latents(encode, images, tmp_path / "file" / "x", fingerprint="a", progress=False)
    assert os.listdir(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"fingerprint": ""}, "fingerprint='' must be a string"),
        ({"fingerprint": None}, "fingerprint=None"),
    ],
)
def test_bad_arguments_are_named(cache, images, changes, message):
    with pytest.raises(ValueError, match=message):
        cache(encode, images, **changes)
    with pytest.raises(ValueError, match="images is empty"):
        cache(encode, images.subset([]))


# Reading


def test_a_file_of_another_autoencoder_or_of_other_images_is_refused(cache, images, tmp_path):
    cache(encode, images)
    file = written(tmp_path)
    assert load_latents(file, "vq-1").names == images.names
    assert len(load_latents(str(file), "vq-1", images)) == 11
    message = "made with another autoencoder .*'vq-1', not 'vq-2'.*encode the images again"
    with pytest.raises(ValueError, match=message):
        load_latents(file, "vq-2")
    with pytest.raises(ValueError, match="made from other images .*encode these images"):
        load_latents(file, "vq-1", images.subset([0]))
    flipping = ImageArrays(images.images, images.names, True, fingerprint=images.fingerprint)
    with pytest.raises(ValueError, match="flip=False, not .*flip=True"):
        load_latents(file, "vq-1", flipping)
    with pytest.raises(ValueError, match="fingerprint=''"):
        load_latents(file, "")
    with pytest.raises(FileNotFoundError, match="path='.*nowhere.npy': there is no nowhere.npy"):
        load_latents(tmp_path / "nowhere.npy", "vq-1")


def test_damage_is_told_and_mended(cache, images, tmp_path):
    cache(encode, images)
    file = written(tmp_path)
    described = file.with_suffix(".json")
    whole, description = file.read_bytes(), json.loads(described.read_text())
    for path, content in (
        (file, whole[:-1]),
        (file, whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]),
        (described, b"{}"),
        (described, json.dumps(description | {"names": ["a"]}).encode()),
        (described, json.dumps(description | {"flip": True}).encode()),
    ):
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged .*encode the images again"):
            load_latents(file, "vq-1")
        with pytest.warns(UserWarning, match="cannot be read .*again"):
            latents = cache(encode, images)
        np.testing.assert_array_equal(latents[10], expected(images, 10))
        cache(refuse, images)
    described.unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no {described.name}"):
        load_latents(file, "vq-1")
    cache(encode, images)
    assert load_latents(file, "vq-1", images).names == images.names


# Batches


def batches_of(dataset):
    return [batch["latents"] for batch in dataset.as_numpy_iterator()]


@pytest.mark.slow
def test_batches_are_those_of_the_images(cache, images):
    """Check that batches of latents have the order and flips of batches of images."""
    flipping = ImageArrays(images.images, images.names, flip=True)
    latents = cache(encode, flipping)
    assert image_steps_per_epoch(latents, 4) == 3
    stream = train_image_batches(latents, 4, seed=5, epochs=4)
    assert stream.element_spec["latents"].shape.as_list() == [None, 2, 2, 3]
    found = batches_of(stream)
    assert [len(b) for b in found] == [4, 4, 3] * 4
    pictures = list(train_image_batches(flipping, 4, seed=5, epochs=4).as_numpy_iterator())
    for batch, picture in zip(found, pictures, strict=True):
        assert batch.dtype == np.float32
        np.testing.assert_array_equal(batch, picture[:, ::4, ::4])
    resumed = batches_of(train_image_batches(latents, 4, 5, initial_epoch=3, epochs=1))
    for a, b in zip(found[9:], resumed, strict=True):
        assert a.tobytes() == b.tobytes()
    # The comparison is meaningful only with some of each kind.
    upright = [(row == latents.latents[:, 0]).all(axis=(1, 2, 3)).any() for b in found for row in b]
    assert 10 < sum(upright) < 34


def test_evaluation_takes_the_images_as_they_are(cache, images):
    latents = cache(encode, ImageArrays(images.images, images.names, flip=True))
    dataset = eval_image_batches(latents, 4)
    assert dataset.cardinality() == 3
    found = np.concatenate(batches_of(dataset))
    np.testing.assert_array_equal(found, latents.latents[:, 0])
    part = latents.subset([7, 0, 3])
    assert part.names == ("h", "a", "d") and part.latents is latents.latents
    np.testing.assert_array_equal(
        np.concatenate(batches_of(eval_image_batches(part, 2))), latents.latents[[7, 0, 3], 0]
    )


# LatentArrays


def test_arrays_in_memory_and_what_does_not_fit():
    rows = np.zeros((3, 4, 4, 2), np.float32)
    assert LatentArrays(rows).names == ("0", "1", "2")
    assert LatentArrays(rows).fingerprint == LatentArrays(rows.copy()).fingerprint
    assert LatentArrays(rows).fingerprint != LatentArrays(rows + 1).fingerprint
    assert len(LatentArrays(rows[:, None].repeat(2, 1), flip=True)) == 3
    for arguments, message in (
        ({"latents": rows.astype(float)}, "type float64; with flip=False it must be float32"),
        ({"latents": rows[0]}, r"shape \(4, 4, 2\)"),
        ({"latents": rows, "flip": True}, r"must be float32 of shape \(n, 2, height"),
        ({"latents": rows[:, None], "flip": True}, r"shape \(3, 1, 4, 4, 2\)"),
        ({"latents": rows, "names": ("a",)}, "names holds 1 names for 3 latents"),
        ({"latents": rows, "indices": [3]}, "indices must be"),
    ):
        with pytest.raises(ValueError, match=message):
            LatentArrays(**arguments)


def test_the_version_is_in_the_name(cache, images, tmp_path, monkeypatch):
    cache(encode, images)
    assert written(tmp_path).name.startswith(f"latents-v{module.CACHE_VERSION}-")
    monkeypatch.setattr(module, "CACHE_VERSION", 99)
    cache(encode, images)
    assert len(list((tmp_path / "cache").glob("latents-v99-*.npy"))) == 1
