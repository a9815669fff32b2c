import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import warnings

import numpy as np
import pytest
from PIL import Image

from keras_sparse_dm.data import (
    ImageArrays,
    eval_image_batches,
    image_steps_per_epoch,
    kanjivg_folder,
    load_images,
    load_kanjivg,
    rasterize,
    read_svg,
    train_image_batches,
)
from keras_sparse_dm.data.images import folder as folders
from keras_sparse_dm.data.images import loading, published
from keras_sparse_dm.data.images import prepared as cached
from keras_sparse_dm.data.images.decoding import decode_image


@pytest.fixture(autouse=True)
def no_user_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_SPARSE_DM_CACHE", str(tmp_path / "from-environment"))


def smooth(width, height, seed=0):
    """Return a picture without fine detail, which all good filters resize alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3, 3, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_images(folder, count, width=40, height=30, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        smooth(width, height, i).save(folder / f"{i:03d}{suffix}")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "photos", 40)


@pytest.fixture
def load(folder, tmp_path):
    def load(dataset="folder", **changes):
        arguments = {"data_dir": folder, "cache_dir": tmp_path / "cache", "size": 16}
        return load_images(dataset, **arguments | {"progress": False} | changes)

    return load


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


def assert_same(a, b):
    np.testing.assert_array_equal(np.stack(list(a)), np.stack(list(b)))
    assert (a.names, a.flip, a.summary, a.fingerprint) == (
        b.names,
        b.flip,
        b.summary,
        b.fingerprint,
    )


# ImageArrays


def test_arrays_give_back_images_and_subsets_copy_nothing():
    rows = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    arrays = ImageArrays(rows, tuple("abcdef"), flip=True)
    assert (len(arrays), arrays.size) == (6, 8)
    assert repr(arrays) == "ImageArrays(6 images of 8 x 8, flip=True)"
    np.testing.assert_array_equal(arrays[-1], rows[5])
    assert [image.shape for image in arrays] == [(8, 8, 3)] * 6
    with pytest.raises(IndexError, match="number 6 of 6"):
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


# Loading a folder


def test_a_folder_is_split_by_the_seed_and_read_once(load, folder, tmp_path, monkeypatch):
    train, validation = load()
    assert (len(train), len(validation)) == (38, 2)
    assert {*train.names, *validation.names} == {f"{i:03d}.png" for i in range(40)}
    assert isinstance(train.images, np.memmap) and not train.images.flags.writeable
    assert train.images.shape == (38, 16, 16, 3)
    assert not train.flip and not validation.flip
    assert str(train.summary) == "photos: 40 images read, 40 kept, 0 broken"
    assert validation.summary is train.summary
    for arrays in (train, validation):
        for name, image in zip(arrays.names, arrays, strict=True):
            # The central square of 40 x 30.
            square = Image.open(folder / name).crop((5, 0, 35, 30))
            expected = square.resize((16, 16), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(image, np.asarray(expected))

    monkeypatch.setattr(loading, "write_images", None)  # the cache is used
    for a, b in zip(load(), (train, validation), strict=True):
        assert_same(a, b)
    assert load(flip=True)[0].flip and not load(flip=True)[1].flip
    monkeypatch.undo()
    elsewhere = load(cache_dir=tmp_path / "other")
    assert_same(elsewhere[0], train)
    assert set(load(split_seed=1)[1].names) != set(validation.names)
    assert len(load(size=8)[0].images[0]) == 8
    assert len(load(validation=0.5)[1]) == 20
    assert len(load(validation=0.001)[1]) == 1
    few = load(train_images=10, validation_images=7)
    assert [len(a) for a in few] == [10, 7]
    assert str(few[0].summary).startswith("photos: 17 of 40 images read")
    assert set(few[1].names).isdisjoint(few[0].names)


def test_fingerprints_follow_content_size_and_selection(load, folder):
    prints = {
        arrays.fingerprint
        for changes in ({}, {"size": 8}, {"split_seed": 1}, {"train_images": 30}, {"flip": True})
        for arrays in load(**changes)
    }
    # With train_images=30 the validation images stay the same.
    assert len(prints) == 9
    before = load()
    name = before[0].names[3]
    os.utime(folder / name, (1, 1))  # read anew, but the same
    assert load()[0].fingerprint == before[0].fingerprint
    smooth(40, 30, 99).save(folder / name)
    after = load()
    assert after[0].fingerprint != before[0].fingerprint
    assert not np.array_equal(after[0][3], before[0][3])


def test_subfolders_count_and_hidden_files_do_not(load, folder):
    write_images(folder / "deeper" / "still", 3, suffix=".JPG")
    write_images(folder / ".hidden", 3)
    (folder / "._000.png").write_bytes(b"what some archives leave")
    (folder / "notes.txt").write_text("not an image")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    train, validation = load()
    assert len(train) + len(validation) == 43
    assert "deeper/still/001.JPG" in train.names + validation.names


def encoded(image, format, **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def prepared(content, size=16):
    image, enlarged = decode_image(content, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    return image.astype(int), enlarged


def test_every_kind_of_picture_becomes_the_same_rgb():
    picture = smooth(32, 32)
    expected, enlarged = prepared(encoded(picture, "PNG"))
    assert not enlarged
    np.testing.assert_array_equal(prepared(encoded(picture, "BMP"))[0], expected)
    np.testing.assert_array_equal(prepared(encoded(picture.convert("RGBA"), "PNG"))[0], expected)
    for content, tolerance in (
        (encoded(picture, "JPEG", quality=95), 3),
        (encoded(picture.convert("CMYK"), "JPEG", quality=95), 3),
        (encoded(picture.convert("CMYK"), "TIFF"), 1),
        (encoded(picture, "WEBP", lossless=True), 0.01),
        (encoded(picture.quantize(256), "PNG"), 6),
        (encoded(picture.quantize(256), "GIF"), 6),
    ):
        # A wrong inversion or order of channels makes differences of dozens.
        assert np.abs(prepared(content)[0] - expected).mean() <= tolerance

    gray = picture.convert("L")
    expected = prepared(encoded(gray.convert("RGB"), "PNG"))[0]
    np.testing.assert_array_equal(prepared(encoded(gray, "PNG"))[0], expected)
    sixteen = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    assert np.asarray(sixteen).max() > 255
    np.testing.assert_array_equal(prepared(encoded(sixteen, "PNG"))[0], expected)
    np.testing.assert_array_equal(prepared(encoded(sixteen, "TIFF"))[0], expected)
    bits = Image.fromarray(np.eye(16, dtype=np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(prepared(encoded(bits, "PNG"))[0][:, :, 0], np.eye(16) * 255)


def test_transparent_pictures_lie_on_white():
    values = np.zeros((16, 16, 4), np.uint8)
    values[:, :8] = (200, 0, 0, 255)
    values[:8, :8, 3] = 128
    picture = Image.fromarray(values)
    result, _ = prepared(encoded(picture, "PNG"))
    assert (result[:, 8:] == 255).all()
    assert (result[8:, :8] == (200, 0, 0)).all()
    np.testing.assert_allclose(result[:8, :8], np.broadcast_to([227, 127, 127], (8, 8, 3)), atol=1)
    palette = Image.fromarray(np.repeat([[0, 1]], 16, axis=0).repeat(8, axis=1).astype(np.uint8))
    palette.putpalette([9, 8, 7, 6, 5, 4])
    result, _ = prepared(encoded(palette, "PNG", transparency=1))
    assert (result[:, :8] == (9, 8, 7)).all() and (result[:, 8:] == 255).all()
    gray = Image.fromarray(np.zeros((16, 16, 2), np.uint8), "LA")
    assert (prepared(encoded(gray, "PNG"))[0] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(orientation):
    from PIL import ImageOps

    picture = smooth(60, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture, "JPEG", exif=exif, quality=98)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(
        prepared(content)[0], prepared(encoded(upright.convert("RGB"), "PNG"))[0]
    )
    assert (orientation == 1) == np.array_equal(
        prepared(content)[0], prepared(encoded(picture, "JPEG", quality=98))[0]
    )


def test_large_pictures_are_not_aliased_and_small_ones_enlarged(load, folder):
    # Stripes of one pixel: a filter that samples single pixels gives black or white.
    stripes = Image.fromarray(np.tile([0, 255], (512, 256)).astype(np.uint8))
    result, _ = prepared(encoded(stripes, "PNG"))
    assert np.abs(result - 127.5).max() < 3
    result, enlarged = prepared(encoded(smooth(5, 3), "PNG"))
    assert enlarged
    Image.new("RGB", (1, 900), (9, 8, 7)).save(folder / "thin.png")
    Image.new("RGB", (16, 16)).save(folder / "fits.png")
    summary = load(train_images=40, validation_images=2)[0].summary
    assert summary.enlarged == 1
    assert "42 kept, 1 enlarged, 0 broken" in str(summary)


def test_broken_files_are_skipped_counted_and_named(load, folder):
    write_images(folder / "more", 80)
    whole = encoded(smooth(64, 64), "JPEG")
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    Image.fromarray(np.zeros((16, 16), np.float32)).save(folder / "floats.tif")
    (folder / "link.png").symlink_to(folder / "gone.png")
    split = [set(arrays.names) for arrays in load(validation=0.3)]
    for _ in range(2):  # prepared, then from the cache
        train, validation = load(validation=0.3)
        assert len(train) + len(validation) == 120
        assert train.summary.read == 125 and train.summary.kept == 120
        reasons = dict(train.summary.broken)
        assert sorted(reasons) == ["cut.jpg", "empty.png", "floats.tif", "link.png", "text.png"]
        assert reasons["text.png"] == "text.png: is no image of a known format"
        assert reasons["empty.png"] == "empty.png: is no image of a known format"
        assert "truncated" in reasons["cut.jpg"].lower()
        assert "floating-point" in reasons["floats.tif"]
        assert "link to nothing" in reasons["link.png"]
        assert "5 broken (" in str(train.summary)
    # A broken file does not move other files between training and validation.
    name = train.names[0]
    (folder / name).write_bytes(b"")
    train, validation = load(validation=0.3)
    assert set(train.names) == split[0] - {name} and set(validation.names) == split[1]


def test_many_broken_files_stop_and_leave_nothing(load, folder, tmp_path):
    for i in range(3):
        (folder / f"broken{i}.png").write_text("broken")
    message = r"photos: \d of 43 files are broken, more than 5%; the first are .*broken"
    with pytest.raises(ValueError, match=message):
        load()
    assert not list((tmp_path / "cache").glob("*"))


def test_processes_give_what_one_process_gives(load, tmp_path, monkeypatch):
    alone = load(workers=1)
    monkeypatch.setattr(cached, "_SERIAL_IMAGES", 0)
    monkeypatch.setattr(cached, "_CHUNK_IMAGES", 7)
    for a, b in zip(alone, load(workers=2, cache_dir=tmp_path / "other"), strict=True):
        assert_same(a, b)


def test_workers_do_not_import_tensorflow():
    from keras_sparse_dm.data.worker_processes import map_in_processes

    content = encoded(smooth(20, 20), "PNG")
    prepare_one = (
        "__import__('keras_sparse_dm.data.images.decoding', fromlist=['_']).decode_images("
        f"[('a', {content!r})], 8)[0][3]"
    )
    imported = "[m for m in ('tensorflow', 'keras') if m in __import__('sys').modules]"
    assert list(map_in_processes(eval, [prepare_one, imported], 1)) == [None, []]


def test_damaged_cache_files_are_made_anew_with_a_warning(load, tmp_path):
    good = load()
    (rows,) = (tmp_path / "cache").glob("*.npy")
    described = rows.with_suffix(".json")
    whole, description = rows.read_bytes(), json.loads(described.read_text())
    damages = [
        (rows, whole[:-100]),
        (rows, whole[:9999] + bytes([whole[9999] ^ 1]) + whole[10000:]),
        (described, b"{"),
        (described, json.dumps(description | {"names": []}).encode()),
        (described, json.dumps(description | {"train": 40}).encode()),
    ]
    for file, content in damages:
        # Replaced, not overwritten: `good` maps the old file.
        file.unlink()
        file.write_bytes(content)
        with pytest.warns(UserWarning, match="cannot be read .*preparing the data anew"):
            assert_same(load()[0], good[0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(load()[0], good[0])


def test_a_cache_that_cannot_be_written_is_an_error_that_says_so(load, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written to .*KERAS_SPARSE_DM_CACHE sets another"):
        load(cache_dir=tmp_path / "file" / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**6}))
    monkeypatch.setattr(folders, "decode_images", None)  # raised before the work
    with pytest.raises(OSError, match=r"0.00 GB free, but 0.02 GB are needed"):
        load(size=400)
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "cifar"}, "dataset='cifar' is unknown; it must be one of 'celebahq'"),
        ({"size": 7}, "size=7 must be from 8"),
        ({"size": 64.0}, "size=64.0 must be a whole number"),
        ({"workers": 0}, "workers=0"),
        ({"train_images": 0}, "train_images=0"),
        ({"validation_images": -1}, "validation_images=-1"),
        ({"train_images": 39, "validation_images": 2}, "40 images, but 39 .* and 2 for validation"),
        ({"validation": 0}, "validation=0 must be between"),
        ({"validation": 1.0}, "validation=1.0"),
        ({"split_seed": -1}, "split_seed=-1"),
        ({"download": True}, "download=True is for dataset='imagenette' only"),
        ({"data_dir": None}, "data_dir=None: dataset='folder' needs"),
    ],
)
def test_bad_settings_are_named(load, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(**changes)
    assert "\n" not in str(caught.value)


def test_bad_folders_are_named(load, tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="data_dir='.*nowhere' does not exist; give a"):
        load(data_dir=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="000.png' is no folder"):
        load(data_dir=folder / "000.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="data_dir='.*empty' holds no image file; .*jpg"):
        load(data_dir=tmp_path / "empty")
    write_images(tmp_path / "one", 1)
    with pytest.raises(ValueError, match="holds 1 images, but 1 for training and 1 for"):
        load(data_dir=tmp_path / "one")


# KanjiVG


def test_kanjivg_is_split_as_its_sketches_are_and_drawn(tmp_path):
    svg = tmp_path / "svg"
    svg.mkdir()
    for file in sorted(kanjivg_folder().glob("04e*.svg"))[:60]:
        shutil.copy(file, svg)
    arguments = {"cache_dir": tmp_path / "cache", "progress": False}
    sketches = load_kanjivg(svg, **arguments)
    pictures = load_images("kanjivg", svg, size=24, **arguments)
    assert [a.names for a in pictures] == [a.names for a in sketches]
    assert pictures[0].summary.source == "KanjiVG" and not pictures[0].flip
    for name, picture in zip(pictures[1].names, pictures[1], strict=True):
        expected = rasterize(read_svg(svg / f"{name}.svg"), 24, box=(0, 0, 109, 109))
        for channel in range(3):
            np.testing.assert_array_equal(picture[:, :, channel], expected)
    few = load_images("kanjivg", svg, size=24, train_images=5, **arguments)
    assert few[0].names == sketches[0].names[:5] and few[1].names == sketches[1].names
    every = load_images("kanjivg", svg, size=24, characters="all", **arguments)
    assert sum(map(len, every)) == 60 > sum(map(len, pictures))
    with pytest.raises(ValueError, match="train_images=61 is more than the"):
        load_images("kanjivg", svg, train_images=61, **arguments)
    with pytest.raises(ValueError, match="characters='kana'"):
        load_images("kanjivg", svg, characters="kana", **arguments)


# Published data sets: folders of files


@pytest.mark.parametrize(
    ("dataset", "counts", "flip"),
    [("celebahq", (12_500, 500), False), ("lsun_bedrooms", (10_598, 2_500), True)],
)
def test_the_papers_counts_and_a_fixed_choice(tmp_path, monkeypatch, dataset, counts, flip):
    plans = []

    class Planned(Exception):
        pass

    def planned(plan, *args):
        plans.append(plan)
        raise Planned

    monkeypatch.setattr(loading, "write_images", planned)
    monkeypatch.setattr(
        published, "list_images", lambda *args: [tmp_path / f"{i:05d}.jpg" for i in range(30_000)]
    )
    monkeypatch.setattr(folders, "state_of", lambda files, root: [(f.name, 0, 0) for f in files])
    for changes in ({}, {"split_seed": 1}, {"train_images": 100, "validation_images": 29_900}):
        with pytest.raises(Planned):
            load_images(dataset, tmp_path, tmp_path / "cache", **changes)
    names = [[name for name, _ in plan.items] for plan in plans]
    for plan, chosen in zip(plans[:2], names[:2], strict=True):
        assert (plan.train, plan.validation) == counts
        assert len(chosen) == len(set(chosen)) == sum(counts)
        assert plan.flip == flip and plan.available == 30_000
    order = np.random.default_rng(4321).permutation(30_000)[: sum(counts)]
    assert names[0] == [f"{i:05d}.jpg" for i in order] != names[1]
    assert (plans[2].train, plans[2].validation, plans[2].available) == (100, 29_900, None)
    with pytest.raises(ValueError, match="holds 30,000 images, but 30,000 for training and"):
        load_images(dataset, tmp_path, train_images=30_000)


@pytest.mark.parametrize("below", [False, True])
def test_imagenette_from_its_unpacked_folders(tmp_path, below):
    root = tmp_path / "data" / ("imagenette2-320" if below else "")
    for part, count in (("train", 6), ("val", 3)):
        for label in ("n01440764", "n03888257"):
            write_images(root / part / label, count, suffix=".JPEG")
    arguments = {"cache_dir": tmp_path / "cache", "size": 8, "progress": False}
    train, validation = load_images("imagenette", tmp_path / "data", **arguments)
    assert (len(train), len(validation)) == (12, 6)
    assert {name.split("/")[0] for name in train.names} == {"train"}
    assert {name.split("/")[0] for name in validation.names} == {"val"}
    # The classes are mixed.
    assert list(train.names) != sorted(train.names)
    assert train.summary.source == "Imagenette" and not train.flip
    few = load_images("imagenette", tmp_path / "data", train_images=4, **arguments)
    assert [len(a) for a in few] == [4, 6] and few[0].summary.available == 18
    with pytest.raises(ValueError, match="'.*val' holds 6 images, but validation_images=7"):
        load_images("imagenette", tmp_path / "data", validation_images=7, **arguments)
    shutil.rmtree(root / "val")
    with pytest.raises(ValueError, match="not the folders 'train' and 'val' of Imagenette; down"):
        load_images("imagenette", tmp_path / "data", **arguments)


# Published data sets: tensorflow-datasets


@pytest.fixture(scope="module")
def tfds():
    return pytest.importorskip("tensorflow_datasets")


@pytest.mark.parametrize("dataset", ["celebahq", "lsun_bedrooms", "imagenette"])
def test_every_published_set_is_read_through_tensorflow_datasets(tfds, tmp_path, dataset):
    arguments = {"cache_dir": tmp_path, "size": 8, "progress": False}
    counts = {"train_images": 5, "validation_images": 3}
    with tfds.testing.mock_data(num_examples=8):
        train, validation = load_images(dataset, **arguments, **counts)
        again = load_images(dataset, **arguments, **counts)
        if dataset == "imagenette":
            whole = load_images(dataset, **arguments)
            assert [len(a) for a in whole] == [8, 8]
        else:
            with pytest.raises(ValueError, match="holds 8 images, but 6 for training and 3 for"):
                load_images(dataset, **arguments, train_images=6, validation_images=3)
    assert (len(train), len(validation)) == (5, 3)
    assert train.images.shape == (5, 8, 8, 3) and np.std(train.images) > 1
    assert (train.flip, validation.flip) == (dataset == "lsun_bedrooms", False)
    assert_same(again[0], train)


@pytest.mark.parametrize(
    ("dataset", "phrases"),
    [
        ("celebahq", ["tkarras/progressive_growing_of_gans", "tfds build celeb_a_hq/256"]),
        ("lsun_bedrooms", ["43 GB", "bedroom_train_lmdb.zip", "tfds build lsun/bedroom"]),
        ("imagenette", ["imagenette2-320.tgz", "tfds build imagenette/320px-v2", "download=True"]),
    ],
)
def test_a_missing_set_is_answered_with_where_to_get_it(tfds, tmp_path, dataset, phrases):
    (tmp_path / "empty").mkdir()
    for data_dir, start in (
        (tmp_path / "nowhere", "data_dir='.*nowhere' does not exist; for "),
        (tmp_path / "empty", "is not there: data_dir='.*empty' holds no image file, and tensor"),
    ):
        with pytest.raises(FileNotFoundError, match=start) as caught:
            load_images(dataset, data_dir)
        for phrase in (*phrases, "data_dir"):
            assert phrase in str(caught.value)
        assert "\n" not in str(caught.value)


def test_celebahq_as_tensorflow_datasets_keeps_it(tfds, tmp_path):
    originals = {f"{i:05d}.png": smooth(256, 256, i) for i in range(12)}
    with tarfile.open(tmp_path / "data256x256.tar", "w") as tar:
        for name, picture in originals.items():
            content = encoded(picture, "PNG")
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    builder = tfds.builder("celeb_a_hq/256", data_dir=tmp_path / "tfds")
    config = tfds.download.DownloadConfig(manual_dir=tmp_path)
    builder.download_and_prepare(download_config=config)
    # Stray images in its folder do not make it a folder of images.
    write_images(tmp_path / "tfds" / "downloads" / "extracted", 3)

    arguments = {"cache_dir": tmp_path / "cache", "size": 256, "progress": False}
    counts = {"train_images": 5, "validation_images": 2}
    parts = load_images("celebahq", tmp_path / "tfds", **arguments, **counts)
    names = parts[0].names + parts[1].names
    assert [len(a) for a in parts] == [5, 2]
    assert len(set(names)) == 7
    for arrays in parts:
        for name, image in zip(arrays.names, arrays, strict=True):
            np.testing.assert_array_equal(image, np.asarray(originals[name]))
    assert str(parts[0].summary) == "CelebA-HQ: 7 of 12 images read, 7 kept, 0 broken"
    # Another seed begins at another image; all images are present.
    chosen = {
        load_images("celebahq", tmp_path / "tfds", split_seed=seed, **arguments, **counts)[0].names
        for seed in range(6)
    }
    assert len(chosen) > 1
    every = load_images(
        "celebahq", tmp_path / "tfds", train_images=10, validation_images=2, **arguments
    )
    assert {*every[0].names, *every[1].names} == set(originals)


def test_imagenette_is_downloaded_only_on_request(tfds, tmp_path, monkeypatch):
    # A small version of fast.ai's archive.
    for part, count in (("train", 4), ("val", 2)):
        for label in ("n01440764", "n03888257"):
            write_images(tmp_path / "imagenette2-320" / part / label, count, suffix=".JPEG")
            for file in (tmp_path / "imagenette2-320" / part / label).iterdir():
                file.rename(file.with_name(f"{label}_{part}_{file.name}"))
    urls = []

    def download(self, url):
        urls.append(url)
        return str(tmp_path)

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", download)
    arguments = {"cache_dir": tmp_path / "cache", "size": 8, "progress": False}
    with pytest.raises(FileNotFoundError):
        load_images("imagenette", tmp_path / "tfds", **arguments)
    assert not urls
    train, validation = load_images("imagenette", tmp_path / "tfds", download=True, **arguments)
    assert urls == ["https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz"]
    assert (len(train), len(validation)) == (8, 4)
    assert len(set(train.names + validation.names)) == 12
    again = load_images("imagenette", tmp_path / "tfds", **arguments)
    assert len(urls) == 1
    assert_same(again[0], train)
