"""Arrays of images and their batches."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from keras_sparse_dm.data import (
    ImageArrays,
    eval_image_batches,
    image_steps_per_epoch,
    train_image_batches,
)


def numbered(n, size=8, flip=False):
    """Return images whose left half holds their number and whose right half is white."""
    rows = np.full((n, size, size, 3), 255, np.uint8)
    rows[:, :, : size // 2] = np.arange(n, dtype=np.uint8)[:, None, None, None]
    return ImageArrays(rows, flip=flip)


def numbers_and_flips(batch):
    """Return the numbers of the `numbered` images in a batch, and which of them are mirrored."""
    pixels = np.rint((batch + 1) * 127.5).astype(int)
    return pixels.min(axis=(1, 2, 3)), pixels[:, 0, 0, 0] == 255


def batches_of(dataset):
    return list(dataset.as_numpy_iterator())


def assert_same_batches(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape and x.tobytes() == y.tobytes()


# ImageArrays


def test_arrays_give_back_images_and_subsets_copy_nothing():
    rows = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    arrays = ImageArrays(rows, tuple("abcdef"), flip=True)
    assert (len(arrays), arrays.size) == (6, 8)
    assert repr(arrays) == "ImageArrays(6 images of 8 x 8, flip=True)"
    np.testing.assert_array_equal(arrays[-1], rows[5])
    assert [image.shape for image in arrays] == [(8, 8, 3)] * 6
    with pytest.raises(IndexError, match="index 6 is out of range for 6 rows"):
        arrays[6]
    part = arrays.subset(range(1, 4))
    assert np.shares_memory(part.images, rows) and part.images.shape == (3, 8, 8, 3)
    picked = arrays.subset([5, 0, 5, 3])
    assert picked.images is arrays.images
    assert (picked.names, picked.flip) == (("f", "a", "f", "d"), True)
    np.testing.assert_array_equal(np.stack(list(picked)), rows[[5, 0, 5, 3]])
    again = picked.subset(np.array([3, 0]))
    assert again.names == ("d", "f")
    np.testing.assert_array_equal(np.stack(list(again)), rows[[3, 5]])
    assert len(arrays.subset([])) == 0
    assert arrays.subset(range(6)) is arrays
    prints = [a.fingerprint for a in (arrays, part, picked, again, arrays.subset([5, 0]))]
    assert len(set(prints)) == 5
    assert arrays.subset([5, 0]).fingerprint == prints[-1]


def test_fingerprints_of_plain_arrays_follow_all_that_matters():
    rows = np.zeros((3, 8, 8, 3), np.uint8)
    other = rows.copy()
    other[2, 7, 7, 2] = 1
    variants = [
        ImageArrays(rows),
        ImageArrays(other),
        ImageArrays(rows, ("a", "b", "c")),
        ImageArrays(rows, flip=True),
        ImageArrays(rows, indices=[0, 1, 1]),
    ]
    assert len({a.fingerprint for a in variants}) == 5
    assert ImageArrays(rows.copy()).fingerprint == variants[0].fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros((2, 8, 8, 3))}, r"type float64; it must be uint8"),
        ({"images": np.zeros((2, 8, 9, 3), np.uint8)}, r"shape \(2, 8, 9, 3\)"),
        ({"images": np.zeros((2, 8, 8, 1), np.uint8)}, r"shape \(2, 8, 8, 1\)"),
        ({"images": [[1]]}, "type None"),
        ({"names": ("a",)}, "names holds 1 names for 2 images"),
        ({"indices": [2]}, "indices must be"),
        ({"indices": [[0]]}, "indices must be"),
    ],
)
def test_arrays_refuse_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageArrays(**{"images": np.zeros((2, 8, 8, 3), np.uint8)} | arguments)


def test_subsets_refuse_numbers_out_of_range():
    arrays = numbered(4)
    for wrong in ([4], [-1], [0.5], [True, False, True, False], [[0]]):
        with pytest.raises(ValueError, match="indices"):
            arrays.subset(wrong)


# Batches


def test_an_epoch_holds_every_image_once_the_last_batch_being_smaller():
    arrays = numbered(23)
    batches = batches_of(train_image_batches(arrays, 5, seed=3, epochs=1))
    assert [len(b) for b in batches] == [5, 5, 5, 5, 3]
    assert image_steps_per_epoch(arrays, 5) == 5
    for batch in batches:
        assert batch.dtype == np.float32 and batch.shape[1:] == (8, 8, 3)
    found = np.concatenate([numbers_and_flips(b)[0] for b in batches])
    assert sorted(found) == list(range(23)) != list(found)
    assert not np.concatenate([numbers_and_flips(b)[1] for b in batches]).any()


def test_values_run_from_minus_one_to_one():
    rows = np.arange(256, dtype=np.uint8).repeat(3 * 4).reshape(-1, 8, 8, 3)
    (batch,) = batches_of(eval_image_batches(ImageArrays(rows), 100))
    assert (batch.min(), batch.max()) == (-1, 1)
    np.testing.assert_array_equal(batch, rows.astype(np.float32) / np.float32(127.5) - 1)


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("flip", [False, True])
def test_a_stream_begun_later_gives_the_same_bits(flip):
    arrays = numbered(23, flip=flip)
    endless = train_image_batches(arrays, 5, 7).as_numpy_iterator()
    unbroken = list(itertools.islice(endless, 4 * 5))
    resumed = batches_of(train_image_batches(arrays, 5, 7, initial_epoch=2, epochs=2))
    assert_same_batches(unbroken[10:], resumed)
    assert_same_batches(unbroken, batches_of(train_image_batches(arrays, 5, 7, epochs=4)))
    other = batches_of(train_image_batches(arrays, 5, 8, epochs=1))
    assert any(a.tobytes() != b.tobytes() for a, b in zip(unbroken, other, strict=False))


def test_half_of_the_images_are_flipped_anew_in_each_epoch():
    arrays = numbered(200, flip=True)
    flips = np.zeros((10, 200), bool)
    for i, batch in enumerate(batches_of(train_image_batches(arrays, 64, 0, epochs=10))):
        found, flipped = numbers_and_flips(batch)
        flips[i // 4, found] = flipped
    # 2,000 fair coins give 0.5 with a standard deviation of 0.011.
    assert flips.mean() == pytest.approx(0.5, abs=0.045)
    # Flips depend on both epoch and image.
    assert np.abs(flips.mean(axis=1) - 0.5).max() < 0.15
    assert flips.mean(axis=0).std() == pytest.approx(np.sqrt(0.25 / 10), rel=0.2)
    assert not numbers_and_flips(next(iter(eval_image_batches(arrays, 200))).numpy())[1].any()


def test_evaluation_keeps_the_order_and_knows_its_length():
    import tensorflow as tf

    arrays = numbered(23, flip=True).subset(range(22, -1, -1))
    dataset = eval_image_batches(arrays, 5)
    spec = tf.TensorSpec((None, 8, 8, 3), tf.float32)
    assert dataset.cardinality() == 5 and dataset.element_spec == spec
    found = np.concatenate([numbers_and_flips(b)[0] for b in batches_of(dataset)])
    assert list(found) == list(range(22, -1, -1))
    endless = train_image_batches(arrays, 5, 0)
    assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
    assert endless.element_spec == spec
    assert train_image_batches(arrays, 5, 0, epochs=3).cardinality() == 15


def test_the_papers_steps_per_epoch():
    one = np.zeros((1, 8, 8, 3), np.uint8)
    steps = [
        image_steps_per_epoch(ImageArrays(one, indices=np.zeros(n, int), fingerprint="-"), 12)
        for n in (12_500, 10_598, 9_469)
    ]
    assert steps == [1042, 884, 790]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"seed": -1}, "seed=-1"),
        ({"initial_epoch": -1}, "initial_epoch=-1"),
        ({"epochs": 0}, "epochs=0"),
        ({"arrays": numbered(4).subset([])}, "arrays is empty"),
    ],
)
def test_bad_batch_arguments_are_named(arguments, message):
    good = {"arrays": numbered(4), "batch_size": 2, "seed": 0}
    with pytest.raises(ValueError, match=message):
        train_image_batches(**good | arguments)


@pytest.mark.slow
def test_a_file_larger_than_the_memory_is_read_batch_by_batch_and_let_go_of(tmp_path):
    # A sparse file of 59 GB, whose pages exist only once they are read.
    script = (
        "import sys, resource, itertools, numpy as np\n"
        "from keras_sparse_dm.data import ImageArrays, train_image_batches\n"
        "np.lib.format.open_memmap(sys.argv[1], 'w+', np.uint8, (300_000, 256, 256, 3))\n"
        "rows = np.load(sys.argv[1], mmap_mode='r')\n"
        "arrays = ImageArrays(rows, flip=True, fingerprint='-')\n"
        "arrays = arrays.subset(np.random.default_rng(0).permutation(len(arrays)))\n"
        "stream = train_image_batches(arrays, 12, 0).as_numpy_iterator()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "first, before = next(stream), peak()\n"
        "batches = list(itertools.islice(stream, 3))\n"
        "print(len(batches), np.min(batches), np.max(batches), peak() - before)\n"
        # Python exits while TensorFlow is still prefetching: it must not wait forever.
    )
    path = tmp_path / "rows.npy"
    try:
        with open(path, "wb") as file:
            file.truncate(6 * 10**10)
    except OSError:
        pytest.skip("no sparse file of 60 GB can be made here")
    try:
        out = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120
        )
    finally:
        path.unlink()
    assert out.returncode == 0, out.stderr
    count, low, high, megabytes = map(float, out.stdout.split())
    assert (count, low, high) == (3, -1, -1)
    assert megabytes < 1000
