import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from support import shared_folder

from keras_sparse_dm.data.sketches import digits as module
from keras_sparse_dm.data.sketches.digits import load_digits


def idx(array, magic=None):
    """Return the content of an IDX file of a uint8 array."""
    magic = 0x800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def some_digits(n, seed=0, size=5):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, size, size + 1)).astype(np.uint8)
    return images, rng.integers(0, 10, n).astype(np.uint8)


def write(folder, start="t10k-", dash="-", suffix=".gz", n=7, seed=0, size=5):
    """Write a set of `some_digits` and return the file of images."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in zip(("images", "labels"), some_digits(n, seed, size), strict=True):
        content = idx(array)
        name = f"{start}{kind}{dash}idx{array.ndim}-ubyte{suffix}"
        (folder / name).write_bytes(gzip.compress(content) if suffix else content)
    return folder / f"{start}images{dash}idx3-ubyte{suffix}"


def assert_is(digits, *expected):
    images, labels = (np.concatenate(arrays) for arrays in zip(*expected, strict=True))
    assert digits.images.dtype == digits.labels.dtype == np.uint8
    np.testing.assert_array_equal(digits.images, images)
    np.testing.assert_array_equal(digits.labels, labels)
    assert len(digits) == len(images)


@pytest.fixture
def no_tfds(monkeypatch):
    monkeypatch.setattr(module, "_read_tfds", lambda folder, part: None)


def test_unknown_parts_are_refused():
    with pytest.raises(ValueError, match="part='valid' is unknown; .* 'test', 'train', 'all'"):
        load_digits(part="valid")


# IDX files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dash", ["-", "."])
def test_a_folder_or_a_file_of_either_name_is_read(tmp_path, dash, suffix):
    file = write(tmp_path, dash=dash, suffix=suffix)
    for given in (tmp_path, str(tmp_path), file):
        digits = load_digits(given)
        assert_is(digits, some_digits(7))
        assert digits.source == f"MNIST ({file.name})"
        assert digits.files == (
            file,
            file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1")),
        )


def test_part_chooses_among_the_sets_of_a_folder(tmp_path):
    write(tmp_path, "train-", n=9, seed=1)
    write(tmp_path, "t10k-", n=4, seed=2)
    train, test = some_digits(9, 1), some_digits(4, 2)
    assert_is(load_digits(tmp_path), test)
    assert_is(load_digits(tmp_path, "train"), train)
    both = load_digits(tmp_path, "all")
    assert_is(both, train, test)
    assert len(both.files) == 4
    # A file that is given directly overrides `part`.
    assert_is(load_digits(tmp_path / "train-images-idx3-ubyte.gz"), train)


def test_a_file_that_lies_there_packed_too_is_read_once(tmp_path):
    write(tmp_path, suffix=".gz")
    unpacked = write(tmp_path, suffix="")
    assert load_digits(tmp_path, "test").files[0] == unpacked


def test_what_a_folder_lacks_or_has_twice_is_named(tmp_path, no_tfds):
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist; for MNIST, run `tfds"):
        load_digits(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match="neither IDX files of .*https://storage.googleapis"
    ):
        load_digits(tmp_path)
    train = write(tmp_path, "train-")
    for part in ("test", "all"):
        with pytest.raises(FileNotFoundError, match=f"part='{part}', 't10k-.*', but train-images"):
            load_digits(tmp_path, part)
    write(tmp_path, "emnist-digits-train-")
    with pytest.raises(ValueError, match="more than one .* part='train': emnist-.*, train-images"):
        load_digits(tmp_path, "train")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="no file of labels beside .* train-labels-idx1"):
        load_digits(train)
    (tmp_path / "digits.png").write_bytes(b"")
    with pytest.raises(ValueError, match="digits.png' is a file, but its name is not like those"):
        load_digits(tmp_path / "digits.png")


def test_all_parts_must_be_of_one_size(tmp_path):
    write(tmp_path, "train-", size=5)
    write(tmp_path, "t10k-", size=7)
    with pytest.raises(ValueError, match=r"t10k-im.*\(7, 8\), but \(5, 6\) in train-images"):
        load_digits(tmp_path, "all")


IMAGES, LABELS = some_digits(7)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("images", b"", "ends within the header"),
        ("images", idx(IMAGES)[:15], "ends within the header"),
        (
            "images",
            idx(np.tile(LABELS, 2)),
            "begins with the number 2049; .* images begins with 2051",
        ),
        ("images", b"\x89PNG\r\n" + bytes(99), "begins with the number 2303741511; an IDX"),
        ("images", idx(IMAGES)[:-1], r"announces shape \[7, 5, 6\], 210 bytes, but only 209"),
        ("images", idx(IMAGES) + b"\0", "210 bytes, but more follow"),
        (
            "images",
            struct.pack(">4I", 2051, 0, 28, 28),
            r"announces shape \[0, 28, 28\]; .* from 1 to",
        ),
        ("images", struct.pack(">4I", 2051, *[2**32 - 1] * 3), "shape .* from 1 to 536,870,912"),
        ("labels", idx(IMAGES), "begins with the number 2051; .* labels begins with 2049"),
        ("labels", idx(LABELS[:-1]), "7 images but 6 labels"),
        ("labels", idx(LABELS * 0 + 11), "label 0 is 11; labels must be from 0 to 9"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_broken_files_are_named(tmp_path, kind, content, message, suffix):
    file = write(tmp_path, suffix=suffix)
    if kind == "labels":
        file = file.with_name(f"t10k-labels-idx1-ubyte{suffix}")
    file.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ValueError, match=f"{tmp_path}/t10k-.*{message}"):
        load_digits(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:40] + bytes(60) + content[100:],
        lambda content: content[:-8] + bytes(8),
    ],
)
def test_damaged_gzip_files_are_named(tmp_path, damage):
    file = write(tmp_path, n=100)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz: cannot be unpacked: \w"):
        load_digits(tmp_path)


@pytest.mark.slow
def test_no_more_is_unpacked_than_the_header_announces(tmp_path):
    file = write(tmp_path)
    file.write_bytes(gzip.compress(idx(IMAGES) + bytes(2**28)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="but more follow"):
        load_digits(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_the_real_mnist_is_read():
    digits = load_digits(shared_folder("data") / "mnist")
    assert digits.images.shape == (10_000, 28, 28)
    assert digits.source == "MNIST (t10k-images-idx3-ubyte.gz)"
    # Published facts: the first labels, and the number of each.
    assert digits.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(digits.labels).tolist() == counts


# tensorflow-datasets


@pytest.fixture(scope="module")
def prepared(tfds, tmp_path_factory):
    """Return a folder in which tensorflow-datasets has prepared a small mnist from IDX files."""
    root = tmp_path_factory.mktemp("tfds")
    sets = {"train": some_digits(60, 1, 28), "t10k": some_digits(20, 2, 28)}
    sets = {name: (images[..., :28], labels) for name, (images, labels) in sets.items()}
    for name, (images, labels) in sets.items():
        (root / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (root / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))

    def download(self, urls):
        return {k: str(root / Path(url).name.removesuffix(".gz")) for k, url in urls.items()}

    from tensorflow_datasets.image_classification import mnist

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.download.DownloadManager, "download_and_extract", download)
        patch.setattr(mnist, "_TRAIN_EXAMPLES", 60)
        patch.setattr(mnist, "_TEST_EXAMPLES", 20)
        tfds.builder("mnist", data_dir=root / "data").download_and_prepare()
    return root / "data", sets


def in_order(images, labels):
    """Return sorted rows of pixels and label, because tensorflow-datasets uses another order."""
    rows = np.column_stack([images.reshape(len(images), -1), labels])
    return rows[np.lexsort(rows.T[::-1])]


def test_what_tensorflow_datasets_has_prepared_is_read(prepared):
    folder, sets = prepared
    test, train, both = (load_digits(folder, part) for part in ("test", "train", "all"))
    for digits, name in ((test, "t10k"), (train, "train")):
        np.testing.assert_array_equal(in_order(digits.images, digits.labels), in_order(*sets[name]))
    assert_is(both, (train.images, train.labels), (test.images, test.labels))
    assert_is(load_digits(folder), (test.images, test.labels))
    assert test.source.startswith("MNIST (tensorflow-datasets' mnist/3.") and "test" in test.source
    assert any("tfrecord" in file.name for file in test.files)
    assert all(file.is_file() for file in test.files)


def test_a_damaged_record_is_named(prepared, tmp_path):
    import shutil

    shutil.copytree(prepared[0], tmp_path / "data")
    (record,) = (tmp_path / "data").rglob("*test.tfrecord*")
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 255
    record.write_bytes(content)
    with pytest.raises(ValueError, match="mnist/3.* cannot be read .*; remove it and run `tfds"):
        load_digits(tmp_path / "data")


def test_without_a_folder_the_usual_one_comes_before_scikit_learn(tfds, tmp_path):
    with tfds.testing.mock_data(num_examples=6):
        digits = load_digits()
        assert digits.images.shape == (6, 28, 28) and digits.files == ()
        assert digits.source.startswith("MNIST (tensorflow-datasets")


def test_nothing_is_downloaded(tfds, tmp_path, monkeypatch):
    def download(*args, **kwargs):
        raise AssertionError("downloads")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", download)
    with pytest.raises(
        FileNotFoundError, match="nor mnist as prepared by tensorflow-datasets.* run `tfds"
    ):
        load_digits(tmp_path)
    assert not list(tmp_path.iterdir())


# scikit-learn's


@pytest.mark.slow
def test_the_last_resort_is_scikit_learns_digits_enlarged(no_tfds):
    from sklearn.datasets import load_digits as original

    digits = load_digits()
    assert digits.images.shape == (1797, 28, 28) and digits.files == ()
    assert "scikit-learn" in digits.source and "28 x 28" in digits.source
    np.testing.assert_array_equal(digits.labels, original().target)
    # Reduced again, they equal the originals except for the added contrast. The border is one of
    # the original pixels wide, 2.8 of the new ones.
    small = np.zeros((1797, 10, 10))
    at = np.minimum(np.arange(28 * 5) // 14, 9)
    fine = np.repeat(np.repeat(digits.images, 5, 1), 5, 2)
    for i in range(10):
        for j in range(10):
            small[:, i, j] = fine[:, at == i][:, :, at == j].mean((1, 2))
    inner = small[:, 1:-1, 1:-1].ravel()
    assert np.corrcoef(inner, original().images.ravel())[0, 1] > 0.97
    assert small[:, 0].mean() < 0.1 * inner.mean()
    again = load_digits(part="train")
    np.testing.assert_array_equal(again.images, digits.images)
