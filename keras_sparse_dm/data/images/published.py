"""Published data sets: from a folder of image files, or as tensorflow-datasets prepared them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_sparse_dm.data.images.folder import list_images, plan_files, plan_folder
from keras_sparse_dm.data.images.plan import Plan
from keras_sparse_dm.data.images.tfds import plan_tfds


@dataclass(frozen=True)
class Published:
    """Data set that tensorflow-datasets knows, with instructions for getting it."""

    title: str
    # Configurations, in order of preference.
    tfds_names: tuple[str, ...]
    # Numbers of images in the paper; None for all.
    train: int | None
    validation: int | None
    # tensorflow-datasets' name of the validation split, and the folders of both splits, or None.
    validation_split: str | None
    folders: tuple[str, str] | None
    flip: bool
    how_to_get: str


PUBLISHED = {
    "celebahq": Published(
        title="CelebA-HQ",
        tfds_names=("celeb_a_hq/256", "celeb_a_hq/512", "celeb_a_hq/1024"),
        train=12_500,
        validation=500,
        validation_split=None,
        folders=None,
        flip=False,
        how_to_get=(
            "get the 30,000 images of CelebA-HQ from its makers, "
            "https://github.com/tkarras/progressive_growing_of_gans (or as files of 256 x 256 "
            "from elsewhere), and name their folder as data_dir; or put data256x256.tar into a "
            "folder, run `tfds build celeb_a_hq/256 --manual_dir FOLDER`, and leave data_dir out"
        ),
    ),
    "lsun_bedrooms": Published(
        title="LSUN-Bedrooms",
        tfds_names=("lsun/bedroom",),
        train=10_598,
        validation=2_500,
        validation_split=None,
        folders=None,
        # As the original's LSUNBedroomsTrain; its LSUNBedroomsValidation does not flip.
        flip=True,
        how_to_get=(
            "get LSUN's bedrooms from its makers, https://github.com/fyu/lsun (43 GB, "
            "http://dl.yf.io/lsun/scenes/bedroom_train_lmdb.zip), export at least 13,098 of them "
            "as image files and name their folder as data_dir; or run `pip install "
            "tensorflow-io` and `tfds build lsun/bedroom`, and leave data_dir out"
        ),
    ),
    "imagenette": Published(
        title="Imagenette",
        tfds_names=("imagenette/320px-v2", "imagenette/full-size-v2", "imagenette/160px-v2"),
        train=None,
        validation=None,
        validation_split="validation",
        folders=("train", "val"),
        flip=False,
        how_to_get=(
            "download https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz (342 MB, by "
            "fast.ai), unpack it, and name the folder that holds its `train` and `val` as "
            "data_dir; or run `tfds build imagenette/320px-v2`, or call with download=True, and "
            "leave data_dir out"
        ),
    ),
}


def plan_published(dataset, data_dir, counts, seed, *, download, **others) -> Plan:
    """Plan the images of a published data set; the arguments are those of `load_images`."""
    published = PUBLISHED[dataset]
    asked = [
        default if count is None else count
        for count, default in zip(counts, (published.train, published.validation), strict=True)
    ]
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
        hint = f"for {published.title}, {published.how_to_get}"
        if download:
            folder.mkdir(parents=True, exist_ok=True)
        files = list_images(folder, hint)
        name = published.tfds_names[0].partition("/")[0]
        # Image files that tensorflow-datasets unpacked may lie below its own folder.
        if files and not (folder / name).is_dir():
            return _plan_published_folder(published, folder, files, asked, seed)
    return plan_tfds(published, data_dir, asked, seed, download)


def _plan_published_folder(published, folder, files, counts, seed) -> Plan:
    if published.folders is None:
        return plan_folder(published.title, files, folder, counts, seed, flip=published.flip)
    # `train` and `val` lie in the folder or in one of its subfolders.
    below = [f for f in sorted(folder.iterdir()) if f.is_dir()]
    for root in (folder, *below):
        if all((root / part).is_dir() for part in published.folders):
            break
    else:
        raise ValueError(
            f"data_dir={str(folder)!r} holds images, but not the folders "
            + " and ".join(map(repr, published.folders))
            + f" of {published.title}; {published.how_to_get}"
        )
    parts = []
    available = 0
    for part, count, argument in zip(
        published.folders, counts, ("train_images", "validation_images"), strict=True
    ):
        images = list_images(root / part)
        available += len(images)
        if not images or (count is not None and count > len(images)):
            raise ValueError(
                f"{str(root / part)!r} holds {len(images):,} images, but {argument}={count} were "
                "requested"
            )
        order = np.random.default_rng(seed).permutation(len(images))
        parts.append([images[i] for i in order[:count]])
    return plan_files(published.title, root, *parts, available, published.flip)
