"""Images of published data sets, from folders and from tensorflow-datasets."""

import io
import shutil
import tarfile

import numpy as np
import pytest
from image_files import assert_same, encoded, smooth, write_images

from keras_sparse_dm.data import (
    load_images,
)
from keras_sparse_dm.data.images import folder as folders
from keras_sparse_dm.data.images import loading, published

pytestmark = pytest.mark.usefixtures("own_cache")


# Published data sets: folders of files


@pytest.mark.slow
@pytest.mark.cases(1)
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
