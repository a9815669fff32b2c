"""Images of a folder and of KanjiVG."""

import io
import json
import os
import shutil
import warnings

import numpy as np
import pytest
from image_files import assert_same, encoded, smooth, write_images
from PIL import Image

from keras_sparse_dm.data import (
    kanjivg_folder,
    load_images,
    load_kanjivg,
    rasterize,
    read_svg,
)
from keras_sparse_dm.data.images import folder as folders
from keras_sparse_dm.data.images import loading
from keras_sparse_dm.data.images import prepared as cached
from keras_sparse_dm.data.images.decoding import decode_image

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "photos", 40)


@pytest.fixture
def load(folder, tmp_path):
    def load(dataset="folder", **changes):
        arguments = {"data_dir": folder, "cache_dir": tmp_path / "cache", "size": 16}
        return load_images(dataset, **arguments | {"progress": False} | changes)

    return load


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
    os.utime(folder / name, (1, 1))  # read again, with the same result
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
        assert reasons["text.png"] == "text.png: is not an image of a known format"
        assert reasons["empty.png"] == "empty.png: is not an image of a known format"
        assert "truncated" in reasons["cut.jpg"].lower()
        assert "floating-point" in reasons["floats.tif"]
        assert "dangling link" in reasons["link.png"]
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
        with pytest.warns(UserWarning, match="cannot be read .*preparing the data again"):
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
        ({"dataset": "cifar"}, "dataset='cifar' is unknown; it must be one of 'kanjivg'"),
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
    with pytest.raises(FileNotFoundError, match="000.png' is not a folder"):
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
