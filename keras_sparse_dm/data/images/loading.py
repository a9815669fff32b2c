"""`load_images`: images of any data set for training and validation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from keras_sparse_dm.checks import check_whole
from keras_sparse_dm.data.cache import cache_folder, fingerprint_of
from keras_sparse_dm.data.images.arrays import ImageArrays
from keras_sparse_dm.data.images.prepared import (
    CACHE_VERSION,
    check_images,
    image_arrays,
    write_images,
)
from keras_sparse_dm.data.row_files import read_rows_or_warn
from keras_sparse_dm.datasets import IMAGE_DATASETS
from keras_sparse_dm.places import load_place


def load_images(
    dataset: str,
    data_dir=None,
    cache_dir=None,
    size: int = 256,
    workers: int | None = None,
    progress: bool = True,
    *,
    train_images: int | None = None,
    validation_images: int | None = None,
    validation: float = 0.05,
    split_seed: int = 4321,
    flip: bool | None = None,
    characters: str = "kanji",
    download: bool = False,
) -> tuple[ImageArrays, ImageArrays]:
    """Load images of a data set for training and for validation, all of one size.

    The first call prepares the images in parallel and writes them into a cache, 3 size^2 bytes
    each; later calls with the same settings and files use the cache. Preparation applies the EXIF
    orientation, puts transparent images on white, converts to RGB, crops the central square, and
    resizes it by an antialiased bicubic filter, as the original latent diffusion program does for
    LSUN (https://github.com/CompVis/latent-diffusion, ``ldm/data/lsun.py``). For CelebA-HQ that
    program used OpenCV's bilinear filter, which is not antialiased, so its larger files give
    slightly different images here.

    Args:
        dataset: one of

            - `"celebahq"`: 12,500 and 500 of the 30,000 images, as in the paper;
            - `"lsun_bedrooms"`: 10,598 and 2,500 of the 3 million, flipped in training;
            - `"imagenette"`: its own 9,469 and 3,925;
            - `"kanjivg"`: the characters of `load_kanjivg`, in the same split, drawn black on
              white;
            - `"folder"`: the images of any folder and its subfolders.

        data_dir: a folder of image files, including its subfolders (Imagenette's folder holds
            `train` and `val`); or a folder in which tensorflow-datasets has prepared the data
            set, by default its usual one. For `"kanjivg"`, a folder of `.svg` files, by default
            that of the PyPI package ``kanjivg``.
        cache_dir: folder for the cache; by default that of the environment variable
            `KERAS_SPARSE_DM_CACHE`, or else the user's cache folder.
        size: width and height of the images in pixels, 8 or more.
        workers: number of processes; by default one per available core.
        progress: whether to show a progress bar (on standard error) while preparing.
        train_images: number of images for training; by default as above, or all images that are
            not for validation.
        validation_images: number of images for validation; by default as above.
        validation: for `"folder"`, the share of the images for validation, between 0 and 1; at
            least one image.
        split_seed: seed of the choice and the split, 0 or more. Data sets that tensorflow-datasets
            prepared are in random order already; the seed then determines the first image.
        flip: whether training flips images left to right; by default as in the original.
        characters: for `"kanjivg"`, the selection of files, see `select_characters`.
        download: for `"imagenette"`, whether tensorflow-datasets may download it (342 MB).

    Returns:
        `(train, validation)`. The `summary` of both counts the images that were read, kept and
        enlarged, and names the broken files, which are skipped.

    Raises:
        FileNotFoundError: if the data set is missing; the message explains how to get it.
        ValueError: if an argument is out of its range, there are fewer images than requested, or
            more than 5% of them are broken.
        OSError: if the cache cannot be written or its disk has too little space.
    """
    _check_settings(
        dataset, size, workers, train_images, validation_images, validation, split_seed, download
    )
    size = int(size)
    counts = (train_images, validation_images)
    plan = load_place(IMAGE_DATASETS[dataset].place)(
        dataset,
        data_dir,
        counts,
        split_seed,
        cache_dir=cache_dir,
        validation=validation,
        characters=characters,
        workers=workers,
        progress=progress,
        download=download,
    )
    if flip is not None:
        plan = replace(plan, flip=bool(flip))

    state = fingerprint_of([CACHE_VERSION, dataset, size, plan.train, plan.state])
    cache = cache_folder(cache_dir) / f"images-v{CACHE_VERSION}-{dataset}-{size}-{state}.npy"
    stored = read_rows_or_warn(cache, partial(check_images, size=size))
    if stored is None:
        write_images(plan, cache, size, workers, progress)
        stored = read_rows_or_warn(cache, partial(check_images, size=size))
        if stored is None:
            raise OSError(f"the cache file {cache} cannot be read though it was just written")
    return image_arrays(plan, *stored)


def _check_settings(
    dataset, size, workers, train_images, validation_images, validation, split_seed, download
):
    if dataset not in IMAGE_DATASETS:
        known = ", ".join(map(repr, IMAGE_DATASETS))
        raise ValueError(f"dataset={dataset!r} is unknown; it must be one of {known}")
    check_whole("size", size, 8, 2**14)
    if workers is not None:
        check_whole("workers", workers, 1, 2**16)
    for argument, value in (
        ("train_images", train_images),
        ("validation_images", validation_images),
    ):
        if value is not None:
            check_whole(argument, value, 1, 2**31)
    if not 0 < validation < 1:
        raise ValueError(f"validation={validation!r} must be between 0 and 1, for example 0.05")
    check_whole("split_seed", split_seed, 0, 2**63)
    if download and not IMAGE_DATASETS[dataset].downloads:
        able = " or ".join(repr(name) for name, facts in IMAGE_DATASETS.items() if facts.downloads)
        raise ValueError(f"download=True is for dataset={able} only; received dataset={dataset!r}")
