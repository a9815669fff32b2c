import gzip

import numpy as np
import pytest

from keras_sparse_dm.data import load_vmnist, prepare_sketch, to_points
from keras_sparse_dm.data.sketches.tracing import trace

pytestmark = pytest.mark.usefixtures("own_cache")


def digit(seed):
    """Return a thick one, cross or ring of 28 x 28 pixels, and its label."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:28, :28] - 13.5 + rng.uniform(-1, 1)
    kind = seed % 3
    ring = abs(np.hypot(x, y) - 8) < 1.6
    bar, beam = (abs(x) < 1.6) & (abs(y) < 9), (abs(y) < 1.6) & (abs(x) < 9)
    return np.where((ring, bar, bar | beam)[kind], 255, 0).astype(np.uint8), (0, 1, 4)[kind]


def write_idx(folder, prefix, images, labels):
    header = b"\0\0\x08\x03" + np.array(images.shape, ">i4").tobytes()
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(header + images.tobytes())
    )
    header = b"\0\0\x08\x01" + np.array(labels.shape, ">i4").tobytes()
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(header + labels.tobytes())
    )


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    images, labels = zip(*map(digit, range(40)), strict=True)
    write_idx(folder, "t10k", np.array(images), np.array(labels, np.uint8))
    return folder


def test_digits_become_prepared_strokes(folder):
    train, validation = load_vmnist(folder, progress=False)
    assert (len(train), len(validation)) == (34, 6)
    assert train.summary.labels == {"0": 14, "1": 13, "4": 13}
    assert "10k" in train.summary.source
    for part in (train, validation):
        for name, label, points in zip(part.names, part.labels, part, strict=True):
            image, which = digit(int(name.split()[-1]))
            assert label == str(which)
            np.testing.assert_array_equal(points, to_points(prepare_sketch(trace(image))))
    strokes = {
        label: (points[:, 2] > 0.5).sum() for label, points in zip(train.labels, train, strict=True)
    }
    assert strokes == {"0": 1, "1": 1, "4": 2}


def test_the_first_digits_only_and_the_cache(folder):
    train, validation = load_vmnist(folder, progress=False, max_sketches=10)
    names = {*train.names, *validation.names}
    assert names == {f"digit {i}" for i in range(10)}
    again, _ = load_vmnist(folder, progress=False, max_sketches=10)
    assert again.points.tobytes() == train.points.tobytes()
    # Changed pictures are traced again.
    images, labels = zip(*map(digit, range(12)), strict=True)
    write_idx(folder, "t10k", np.array(images), np.array(labels, np.uint8))
    assert load_vmnist(folder, progress=False)[0].summary.read == 12


@pytest.mark.slow
def test_the_embedded_digits(monkeypatch, tmp_path):
    train, validation = load_vmnist(progress=False, max_sketches=60)
    assert train.summary.read == 60
    assert not train.summary.broken
    assert {*train.labels} <= set("0123456789")


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_vmnist(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="part="):
        load_vmnist(part="validation")
