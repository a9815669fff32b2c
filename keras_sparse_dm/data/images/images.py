"""Image data sets: prepared once, kept on disk, read batch by batch.

Pictures are cropped to the square in their middle and resized by Pillow's bicubic filter, as the
original latent diffusion program does with LSUN (https://github.com/CompVis/latent-diffusion,
``ldm/data/lsun.py``); for CelebA-HQ it used OpenCV's bilinear filter, which is not antialiased,
so its larger files give slightly other pictures here. The prepared pictures of a data set lie in
one file, of which a batch reads only its own: a data set may be larger than the memory.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import itertools
import operator
import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from keras_sparse_dm.data.batches import check_whole
from keras_sparse_dm.data.cache import (
    PreparationSummary,
    Rows,
    cache_folder,
    check_broken,
    check_free_space,
    content_checksum,
    fingerprint_of,
    map_chunks,
    new_cache_file,
    read_rows_or_warn,
    state_of,
    write_description,
)

if TYPE_CHECKING:
    import tensorflow as tf

# Part of the cache's file name: raise it with every change of the file's layout or of what
# preparing gives for the same file.
CACHE_VERSION = 1

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")


class StoredArrays:
    """What arrays of images and of latents share: rows of one shape, in memory or in a file."""

    # The field that holds the rows.
    _rows: ClassVar[str]

    @property
    def _stored(self) -> np.ndarray:
        return getattr(self, self._rows)

    def __len__(self) -> int:
        return len(self._stored if self.indices is None else self.indices)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def _row_number(self, i) -> int:
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"number {i} of {len(self)}")
        return int(i % len(self) if self.indices is None else self.indices[i])

    def _row_numbers(self, positions: np.ndarray) -> np.ndarray:
        return positions if self.indices is None else self.indices[positions]

    def subset(self, indices):
        """Those at `indices`, in that order.

        Args:
            indices: integers in `[0, len(self))`.

        Returns:
            Arrays with the same properties. Nothing is copied: neighbours in order are a slice,
            others are numbers of rows to read (`.indices`).

        Raises:
            ValueError: if one of `indices` is no whole number in the range.
        """
        indices = np.asarray(list(indices) if isinstance(indices, range) else indices)
        if indices.size == 0:
            indices = indices.astype(np.int64)
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise ValueError("indices must be a row of whole numbers")
        if indices.size and not (0 <= indices.min() and indices.max() < len(self)):
            raise ValueError(
                f"indices runs from {indices.min()} to {indices.max()}; it must stay from 0 to "
                f"{len(self) - 1}"
            )
        indices = indices.astype(np.int64)
        if np.array_equal(indices, np.arange(len(self))):
            return self
        rows = self._row_numbers(indices)
        changes = {"indices": rows}
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            changes = {self._rows: self._stored[rows[0] : rows[-1] + 1], "indices": None}
        return replace(
            self,
            **changes,
            names=tuple(self.names[i] for i in indices),
            fingerprint=fingerprint_of([self.fingerprint, indices.tolist()]),
        )

    def _set_checked(self, unit: str) -> None:
        """What both check at construction, once their rows have been."""
        if self.indices is not None:
            indices = np.asarray(self.indices, np.int64)
            if indices.ndim != 1 or (indices < 0).any() or (indices >= len(self._stored)).any():
                raise ValueError(f"indices must be a row of numbers of the stored {unit}")
            object.__setattr__(self, "indices", indices)
        names = self.names
        names = tuple(map(str, range(len(self)) if names is None else names))
        if len(names) != len(self):
            raise ValueError(f"names holds {len(names)} names for {len(self)} {unit}")
        object.__setattr__(self, "names", names)


@dataclass(frozen=True, eq=False)
class ImageArrays(StoredArrays):
    """Square images of one size, in memory or in a file that is read as far as it is used.

    `len(arrays)` is the number of images, `arrays[i]` image i, uint8 `(size, size, 3)`.

    Args:
        images: uint8 array or read-only memory map of shape `(n, size, size, 3)`.
        names: n strings; by default the images' numbers.
        flip: whether training mirrors each image left to right with probability 1/2.
        summary: how the data set was prepared, or None.
        fingerprint: a string that changes with the images, their order, names and `flip`. By
            default a hash of them all, which reads them once.
        indices: where only some of `images` are meant, the numbers of their rows, in order; n
            then counts these.

    Raises:
        ValueError: if type, shapes or numbers do not fit together.
    """

    images: np.ndarray
    names: tuple[str, ...] | None = None
    flip: bool = False
    summary: PreparationSummary | None = None
    fingerprint: str | None = None
    indices: np.ndarray | None = None

    _rows: ClassVar[str] = "images"

    def __post_init__(self):
        shape, dtype = np.shape(self.images), getattr(self.images, "dtype", None)
        if dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
            raise ValueError(
                f"images has shape {shape} and type {dtype}; it must be uint8 of shape "
                "(n, size, size, 3)"
            )
        self._set_checked("images")
        if self.fingerprint is None:
            rows = None if self.indices is None else self.indices.tolist()
            content = [content_checksum(self.images), rows, self.names, bool(self.flip)]
            object.__setattr__(self, "fingerprint", fingerprint_of(content))

    @property
    def size(self) -> int:
        """Width and height of an image in pixels."""
        return self.images.shape[1]

    def __getitem__(self, i: int) -> np.ndarray:
        return np.asarray(self.images[self._row_number(i)])

    def __repr__(self) -> str:
        flip = ", flip=True" if self.flip else ""
        return f"ImageArrays({len(self)} images of {self.size} x {self.size}{flip})"

    def read_batch(self, positions: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """The images at `positions`, mirrored where `flips` is true: uint8, a copy."""
        batch = np.array(self.images[self._row_numbers(positions)])
        # A pixel's three bytes move as one value: half the time.
        pixels = batch.view("V3")[..., 0]
        for i in np.flatnonzero(flips):
            pixels[i] = pixels[i, :, ::-1].copy()
        return batch

    def model_batch(self, batch: tf.Tensor) -> tf.Tensor:
        """What `read_batch` gave, as the batch that models see: float32 in [-1, 1]."""
        import tensorflow as tf

        batch = tf.ensure_shape(batch, (None, *self.images.shape[1:]))
        return tf.cast(batch, tf.float32) / 127.5 - 1.0


# Batches -----------------------------------------------------------------------------------


def image_steps_per_epoch(arrays, batch_size: int) -> int:
    """Number of training batches in an epoch, the smaller last one included.

    Args:
        arrays: the training images or latents.
        batch_size: images per batch, at least 1.

    Returns:
        `ceil(len(arrays) / batch_size)`.

    Raises:
        ValueError: if `batch_size` is below 1, or there is no image.
    """
    check_whole("batch_size", batch_size, 1, 2**31)
    if len(arrays) == 0:
        raise ValueError("arrays is empty; there must be at least one image")
    return -(-len(arrays) // int(batch_size))


def train_image_batches(
    arrays,
    batch_size: int,
    seed: int,
    initial_epoch: int = 0,
    epochs: int | None = None,
) -> tf.data.Dataset:
    """An endless stream of shuffled training batches; each epoch holds every image once.

    Order and flips of epoch e depend on `seed` and e alone. So the stream begun at
    `initial_epoch=k` is, bit for bit, what an unbroken stream gives from epoch k on: a resumed
    run sees the batches that it would have seen.

    Args:
        arrays: `ImageArrays` or `LatentArrays`. Only a batch's own rows are read.
        batch_size: images per batch, at least 1. An epoch's last batch holds what is left.
        seed: integer in `[0, 2**63)`.
        initial_epoch: number of the first epoch, from 0 on.
        epochs: how many epochs the stream holds, counted from `initial_epoch`; endless if None.

    Returns:
        A `tf.data.Dataset` of float32 `(batch, size, size, 3)` in [-1, 1], or for latents of
        dictionaries with float32 `"latents"`, `(batch, height, width, channels)`; a flipped
        image's latents are those of the flipped image. `image_steps_per_epoch` batches make an
        epoch.

    Raises:
        ValueError: if an argument is out of its range.
    """
    import tensorflow as tf

    steps = image_steps_per_epoch(arrays, batch_size)
    check_whole("seed", seed, 0, 2**63)
    check_whole("initial_epoch", initial_epoch, 0, 2**31)
    if epochs is not None:
        check_whole("epochs", epochs, 1, 2**31)
    stop = np.iinfo(np.int64).max if epochs is None else initial_epoch + epochs

    def epoch_batches(epoch):
        order = _epoch_order(len(arrays), bool(arrays.flip), seed, epoch)
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

    dataset = tf.data.Dataset.range(initial_epoch, stop).flat_map(epoch_batches)
    return _read_batches(dataset, arrays).apply(
        tf.data.experimental.assert_cardinality(
            tf.data.INFINITE_CARDINALITY if epochs is None else steps * epochs
        )
    )


def eval_image_batches(arrays, batch_size: int) -> tf.data.Dataset:
    """All images once, in their order, none flipped.

    Args:
        arrays: `ImageArrays` or `LatentArrays`, at least one image.
        batch_size: images per batch, at least 1; the last batch may hold fewer.

    Returns:
        A finite `tf.data.Dataset` of known cardinality, with elements as `train_image_batches`
        has.

    Raises:
        ValueError: if `batch_size` is below 1, or there is no image.
    """
    import tensorflow as tf

    image_steps_per_epoch(arrays, batch_size)
    order = (np.arange(len(arrays)), np.zeros(len(arrays), bool))
    return _read_batches(tf.data.Dataset.from_tensor_slices(order).batch(batch_size), arrays)


def _epoch_order(n: int, flip: bool, seed: int, epoch) -> tuple[tf.Tensor, tf.Tensor]:
    """Numbers of an epoch's images in order, int64 `(n,)`, and whether each is flipped.

    Stateless TensorFlow operations throughout: a pure function of its arguments.
    """
    import tensorflow as tf

    epoch_seed = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    # "philox" by name, since the automatic choice depends on the device.
    order = tf.random.experimental.stateless_shuffle(
        tf.range(n, dtype=tf.int64), seed=epoch_seed, alg="philox"
    )
    if not flip:
        return order, tf.zeros([n], tf.bool)
    flip_seed = tf.random.fold_in(epoch_seed, 1, alg="philox")
    return order, tf.random.stateless_uniform([n], flip_seed, alg="philox") < 0.5


def _read_batches(order: tf.data.Dataset, arrays) -> tf.data.Dataset:
    """Turns batches of numbers and flips into batches of what `arrays` holds."""
    import tensorflow as tf

    dtype = arrays.read_batch(np.arange(0), np.zeros(0, bool)).dtype

    def read_rows(positions, flips):
        with _reads.under_way():
            return arrays.read_batch(positions, flips)

    def read(positions, flips):
        # Python only copies the rows out of the mapped file, which TensorFlow cannot index.
        batch = tf.numpy_function(read_rows, [positions, flips], dtype)
        return arrays.model_batch(batch)

    dataset = order.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


class _Reads:
    """Ends the reading ahead when Python ends.

    TensorFlow goes on to call Python from threads of its own. Python ends such a thread once it
    has begun to shut down, and TensorFlow would wait for its answer for ever.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._count = 0
        self._last = 0.0
        self._ended = False
        atexit.register(self._end)

    @contextlib.contextmanager
    def under_way(self):
        """Context of a read; raises where Python is ending."""
        with self._lock:
            self._count += 1
        try:
            if self._ended:
                raise RuntimeError("no more batches are read, for Python is ending")
            yield
        finally:
            with self._lock:
                self._count -= 1
                self._last = time.monotonic()

    def _end(self, quiet: float = 0.05, patience: float = 10.0):
        # From now on reads fail at once, which fills the buffers ahead; then it is quiet.
        self._ended = True
        limit = time.monotonic() + patience
        while time.monotonic() < limit:
            with self._lock:
                if self._count == 0 and time.monotonic() - self._last > quiet:
                    return
            time.sleep(0.005)


_reads = _Reads()


# Data sets ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Published:
    """A data set that tensorflow-datasets knows, and where to get it."""

    title: str
    # Configurations in the order in which they are looked for.
    tfds_names: tuple[str, ...]
    # Numbers of images as in the paper; None for all.
    train: int | None
    validation: int | None
    # tfds's name of a split for validation, and the folders of both; None where it has none.
    validation_split: str | None
    folders: tuple[str, str] | None
    flip: bool
    how_to_get: str


_PUBLISHED = {
    "celebahq": _Published(
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
    "lsun_bedrooms": _Published(
        title="LSUN-Bedrooms",
        tfds_names=("lsun/bedroom",),
        train=10_598,
        validation=2_500,
        validation_split=None,
        folders=None,
        # The original's LSUNBedroomsTrain; its LSUNBedroomsValidation does not flip.
        flip=True,
        how_to_get=(
            "get LSUN's bedrooms from its makers, https://github.com/fyu/lsun (43 GB, "
            "http://dl.yf.io/lsun/scenes/bedroom_train_lmdb.zip), export at least 13,098 of them "
            "as image files and name their folder as data_dir; or run `pip install "
            "tensorflow-io` and `tfds build lsun/bedroom`, and leave data_dir out"
        ),
    ),
    "imagenette": _Published(
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

DATASETS = (*_PUBLISHED, "kanjivg", "folder")


@dataclass(frozen=True)
class _Plan:
    """What there is to prepare: the images for training first, then those for validation."""

    title: str
    train: int
    validation: int
    # Pairs of a name and what `prepare` makes an image of; as many as both together.
    items: Iterable[tuple[str, object]] = field(repr=False)
    # What the cache's name depends on, besides size and version.
    state: object = field(repr=False)
    flip: bool = False
    available: int | None = None
    # Takes a list of items and the size; runs in worker processes.
    prepare: object = field(default=None, repr=False)


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
    """Images of a data set for training and for validation, all of one size.

    The first call prepares the images, in parallel, and writes them into a cache, 3 size^2 bytes
    each; later calls with the same settings and files use it. An image is turned as its EXIF
    orientation says, laid on white where it is transparent, made RGB, cropped to the square in
    its middle, and resized by an antialiased bicubic filter.

    Args:
        dataset: one of

            - `"celebahq"`: 12,500 and 500 of the 30,000 images, as in the paper;
            - `"lsun_bedrooms"`: 10,598 and 2,500 of the 3 million, flipped in training;
            - `"imagenette"`: its own 9,469 and 3,925;
            - `"kanjivg"`: KanjiVG drawn black on white, the characters that `load_kanjivg`
              splits, split in the same way;
            - `"folder"`: the images of any folder and its subfolders.

        data_dir: a folder of image files, of which those in subfolders count too (Imagenette's
            holds `train` and `val`); or a folder in which tensorflow-datasets has prepared the
            data set, by default its usual one. For `"kanjivg"` a folder of `.svg` files, by
            default those of the PyPI package ``kanjivg``.
        cache_dir: folder for the cache; by default what the environment variable
            `KERAS_SPARSE_DM_CACHE` names, else the user's cache folder.
        size: width and height of the images in pixels, 8 or more.
        workers: processes that prepare; by default one per available core.
        progress: whether to show a progress bar (on standard error) while preparing.
        train_images: number of images for training; by default as above, or all that validation
            leaves.
        validation_images: number of images for validation, likewise.
        validation: for `"folder"`, the share of the images for validation, between 0 and 1; at
            least one image.
        split_seed: seed of the choice and the split, 0 or more. What tensorflow-datasets
            prepared is in random order already; the seed says where to begin.
        flip: whether training flips images left to right; by default as in the original.
        characters: for `"kanjivg"`, which files, see `select_characters`.
        download: for `"imagenette"`, whether tensorflow-datasets may download it (342 MB).

    Returns:
        `(train, validation)`. The `summary` of both counts what was read, kept and enlarged,
        and names the broken files, which are skipped.

    Raises:
        FileNotFoundError: if the data set is not there; the message says how to get it.
        ValueError: if an argument is out of its range, there are fewer images than asked for, or
            more than 5% of them are broken.
        OSError: if the cache cannot be written, or its disk has too little space.
    """
    _check_settings(
        dataset, size, workers, train_images, validation_images, validation, split_seed, download
    )
    size = int(size)
    counts = (train_images, validation_images)
    if dataset == "folder":
        if data_dir is None:
            raise ValueError("data_dir=None: dataset='folder' needs data_dir, a folder of images")
        files = _list_images(data_dir)
        title = Path(data_dir).expanduser().resolve().name
        plan = _plan_folder(title, files, data_dir, counts, split_seed, validation)
    elif dataset == "kanjivg":
        plan = _plan_kanjivg(data_dir, cache_dir, counts, split_seed, characters, workers, progress)
    else:
        plan = _plan_published(dataset, data_dir, counts, split_seed, download)
    if flip is not None:
        plan = replace(plan, flip=bool(flip))

    state = fingerprint_of([CACHE_VERSION, dataset, size, plan.train, plan.state])
    cache = cache_folder(cache_dir) / f"images-v{CACHE_VERSION}-{dataset}-{size}-{state}.npy"
    stored = read_rows_or_warn(cache, partial(_check_stored, size=size))
    if stored is None:
        _prepare(plan, cache, size, workers, progress)
        stored = read_rows_or_warn(cache, partial(_check_stored, size=size))
        if stored is None:
            raise OSError(f"the cache file {cache} cannot be read though it was just written")
    return _arrays(plan, *stored)


def _check_settings(
    dataset, size, workers, train_images, validation_images, validation, split_seed, download
):
    if dataset not in DATASETS:
        raise ValueError(
            f"dataset={dataset!r} is unknown; it must be one of " + ", ".join(map(repr, DATASETS))
        )
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
    if download and dataset != "imagenette":
        raise ValueError(
            f"download=True is for dataset='imagenette' only; received dataset={dataset!r}"
        )


def _list_images(data_dir, hint: str = "") -> list[Path]:
    """The image files in a folder and its subfolders, sorted; hidden ones are left out."""
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"data_dir={str(folder)!r} {what}; " + (hint or "give a folder of image files")
        )
    files = []
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        # A link back to a folder above would go on for ever.
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files.extend(
            Path(parent, name)
            for name in sorted(names)
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        )
    return files


def _split(files, counts, seed: int, share: float, what: str):
    """Two lists: files for training and for validation, in random order."""
    train, validation = counts
    if validation is None:
        validation = max(1, int(len(files) * share))
    if train is None:
        train = max(1, len(files) - validation)
    if train + validation > len(files):
        raise ValueError(_too_few(what, len(files), train, validation))
    order = np.random.default_rng(seed).permutation(len(files))
    return (
        [files[i] for i in order[:train]],
        [files[i] for i in order[train : train + validation]],
    )


def _too_few(what: str, there: int, train: int, validation: int) -> str:
    return (
        f"{what} holds {there:,} images, but {train:,} for training and {validation:,} for "
        "validation are asked for; train_images and validation_images take other numbers"
    )


def _plan_folder(title, files, data_dir, counts, seed, share=0.5, flip=False) -> _Plan:
    folder = Path(data_dir).expanduser()
    what = f"data_dir={str(folder)!r}"
    if not files:
        raise ValueError(
            f"{what} holds no image file; give a folder with files of a known format "
            f"({', '.join(IMAGE_SUFFIXES)})"
        )
    train, validation = _split(files, counts, seed, share, what)
    return _plan_files(title, folder, train, validation, len(files), flip)


def _plan_files(title, folder, train, validation, available, flip) -> _Plan:
    files = train + validation
    state = state_of(files, folder)
    return _Plan(
        title=title,
        train=len(train),
        validation=len(validation),
        items=[(name, file) for (name, *_), file in zip(state, files, strict=True)],
        state=state,
        flip=flip,
        available=available if available > len(files) else None,
        prepare=_prepare_images,
    )


def _plan_kanjivg(data_dir, cache_dir, counts, seed, characters, workers, progress) -> _Plan:
    from keras_sparse_dm.data.sketches.kanjivg import kanjivg_folder, load_kanjivg

    folder = kanjivg_folder() if data_dir is None else Path(data_dir).expanduser()
    # The names, for the very same split, some long sketches left out included.
    sketches = load_kanjivg(
        folder,
        cache_dir,
        split_seed=seed,
        workers=workers,
        progress=progress,
        characters=characters,
    )
    parts = []
    for part, arrays in zip(("train_images", "validation_images"), sketches, strict=True):
        count = counts[len(parts)]
        if count is not None and count > len(arrays):
            raise ValueError(
                f"{part}={count} is more than the {len(arrays):,} sketches of KanjiVG there are"
            )
        parts.append([folder / f"{name}.svg" for name in arrays.names[:count]])
    files = sum(parts, [])
    available = sum(map(len, sketches))
    return _Plan(
        title="KanjiVG",
        train=len(parts[0]),
        validation=len(parts[1]),
        items=[(file.stem, file) for file in files],
        state=state_of(files),
        available=available if available > len(files) else None,
        prepare=_render_sketches,
    )


def _plan_published(dataset, data_dir, counts, seed, download) -> _Plan:
    published = _PUBLISHED[dataset]
    asked = [
        default if count is None else count
        for count, default in zip(counts, (published.train, published.validation), strict=True)
    ]
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
        hint = f"for {published.title}, {published.how_to_get}"
        if download:
            folder.mkdir(parents=True, exist_ok=True)
        files = _list_images(folder, hint)
        name = published.tfds_names[0].partition("/")[0]
        # What tensorflow-datasets unpacked on the way may lie below its own folder.
        if files and not (folder / name).is_dir():
            return _plan_published_folder(published, folder, files, asked, seed)
    return _plan_tfds(published, data_dir, asked, seed, download)


def _plan_published_folder(published, folder, files, counts, seed) -> _Plan:
    if published.folders is None:
        return _plan_folder(published.title, files, folder, counts, seed, flip=published.flip)
    # `train` and `val` lie in the folder or in one below it.
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
        images = _list_images(root / part)
        available += len(images)
        if not images or (count is not None and count > len(images)):
            raise ValueError(
                f"{str(root / part)!r} holds {len(images):,} images, but {argument}={count} are "
                "asked for"
            )
        order = np.random.default_rng(seed).permutation(len(images))
        parts.append([images[i] for i in order[:count]])
    return _plan_files(published.title, root, *parts, available, published.flip)


def _plan_tfds(published, data_dir, counts, seed, download) -> _Plan:
    import tensorflow_datasets as tfds

    candidates = published.tfds_names[:1] if download else published.tfds_names
    builders = [tfds.builder(name, data_dir=data_dir) for name in candidates]
    builder = next((b for b in builders if b.data_path.exists()), builders[0])
    if download:
        builder.download_and_prepare()

    splits = ["train", published.validation_split or "train"]
    sizes = [_tfds_size(published, builder, split, data_dir) for split in splits]
    rng = np.random.default_rng(seed)
    if published.validation_split is None:
        # tensorflow-datasets has shuffled the examples, by a hash of their keys: any run of them
        # is a random choice, and only that run is read.
        if sum(counts) > sizes[0]:
            raise ValueError(_too_few(builder.info.full_name, sizes[0], *counts))
        start = int(rng.integers(sizes[0] - sum(counts) + 1))
        runs = [("train", start, start + sum(counts))]
        available = sizes[0]
    else:
        runs = []
        for i, argument in enumerate(("train_images", "validation_images")):
            counts[i] = sizes[i] if counts[i] is None else counts[i]
            if counts[i] > sizes[i]:
                raise ValueError(
                    f"{argument}={counts[i]} is more than the {sizes[i]:,} images that "
                    f"{builder.info.full_name} has there"
                )
            start = int(rng.integers(sizes[i] - counts[i] + 1))
            runs.append((splits[i], start, start + counts[i]))
        available = sum(sizes)
    folder = Path(builder.data_path)
    files = sorted(f for f in folder.iterdir() if f.is_file()) if folder.is_dir() else []
    return _Plan(
        title=published.title,
        train=counts[0],
        validation=counts[1],
        items=_tfds_items(builder, runs),
        state=[builder.info.full_name, runs, state_of(files)],
        flip=published.flip,
        available=available if available > sum(counts) else None,
        prepare=_prepare_images,
    )


def _tfds_dataset(builder, split: str) -> tf.data.Dataset:
    """The examples of a split in the order of its files, the images as the bytes of a file."""
    import tensorflow_datasets as tfds

    return builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(
            interleave_cycle_length=1, add_tfds_id=True, try_autocache=False
        ),
    )


def _tfds_size(published, builder, split: str, data_dir) -> int:
    try:
        return int(_tfds_dataset(builder, split).cardinality())
    except AssertionError:  # what tensorflow-datasets raises for data that are not there
        here = "" if data_dir is None else f"data_dir={str(data_dir)!r} holds no image file, and "
        raise FileNotFoundError(
            f"{published.title} is not there: {here}tensorflow-datasets has no "
            f"{builder.info.full_name} in {str(builder.data_path)!r}; {published.how_to_get}"
        ) from None


def _tfds_items(builder, runs) -> Iterator[tuple[str, bytes]]:
    for split, start, end in runs:
        dataset = _tfds_dataset(builder, f"{split}[{start}:{end}]")
        for example in itertools.islice(dataset.as_numpy_iterator(), end - start):
            # The file's name where the data set keeps it; else where the example lies.
            name = example.get("image/filename", example.get("id", example["tfds_id"]))
            yield name.decode("utf-8", "replace"), example["image"]


# Preparation -------------------------------------------------------------------------------

# Below this number of images starting processes costs more time than it saves.
_SERIAL_IMAGES = 128
_CHUNK_IMAGES = 16


def _prepare(plan: _Plan, cache: Path, size: int, workers, progress: bool) -> None:
    """Prepares all images of a plan and writes them, and what is known of them, to the cache."""
    total = plan.train + plan.validation
    check_free_space(cache.parent, total * size * size * 3 + 2**20)
    leftovers = f"images-v{CACHE_VERSION}-*.tmp"
    names, broken = [], []
    enlarged = train = 0
    results = map_chunks(
        partial(plan.prepare, size=size),
        plan.items,
        total=total,
        chunk=_CHUNK_IMAGES,
        workers=1 if total < _SERIAL_IMAGES else workers,
        progress=progress,
        title=f"Preparing images of {plan.title}",
    )
    try:
        with contextlib.closing(results), new_cache_file(cache, leftovers) as file:
            rows = Rows(file, (size, size, 3), np.uint8)
            for i, (name, image, small, reason) in enumerate(results):
                if image is None:
                    broken.append((name, reason))
                    check_broken(broken, total, plan.title)
                    continue
                rows.add(image[None])
                names.append(name)
                enlarged += small
                train += i < plan.train
            if len(names) + len(broken) != total:
                raise ValueError(
                    f"{plan.title}: {len(names) + len(broken)} images could be read, but there "
                    f"should be {total}; its files are not whole"
                )
            if not 0 < train < len(names):
                raise ValueError(
                    f"{plan.title}: of {total} images {train} are left for training and "
                    f"{len(names) - train} for validation; both need at least one"
                )
            checksum = rows.finish()
        description = {
            "checksum": checksum,
            "names": names,
            "train": train,
            "read": total,
            "enlarged": enlarged,
            "broken": broken,
        }
        write_description(cache, description, leftovers)
    except OSError as error:
        raise OSError(
            f"the prepared images cannot be written to {cache} ({error}); "
            "cache_dir or KERAS_SPARSE_DM_CACHE sets another folder",
        ) from error


def _check_stored(rows, description, size: int) -> None:
    if rows.dtype != np.uint8 or rows.shape[1:] != (size, size, 3):
        raise ValueError(f"it holds {rows.dtype} of shape {rows.shape}")
    if len(description["names"]) != len(rows) or not 0 < description["train"] < len(rows):
        raise ValueError("its description does not fit")


def _arrays(plan: _Plan, rows: np.ndarray, description) -> tuple[ImageArrays, ImageArrays]:
    names = tuple(description["names"])
    train = description["train"]
    summary = PreparationSummary(
        source=plan.title,
        read=description["read"],
        kept=len(rows),
        broken=tuple((name, reason) for name, reason in description["broken"]),
        unit="images",
        available=plan.available,
        enlarged=description["enlarged"],
    )

    def part(chosen: slice, flip: bool) -> ImageArrays:
        content = [description["checksum"], chosen.start, chosen.stop, names[chosen], flip]
        return ImageArrays(rows[chosen], names[chosen], flip, summary, fingerprint_of(content))

    return part(slice(0, train), plan.flip), part(slice(train, len(rows)), False)


def _prepare_images(items, size: int) -> list[tuple[str, np.ndarray | None, bool, str | None]]:
    """(name, image, whether enlarged, None) or (name, None, False, reason) for each item."""
    return [_prepare_one(name, partial(_prepare_image, image, size)) for name, image in items]


def _render_sketches(items, size: int) -> list[tuple[str, np.ndarray | None, bool, str | None]]:
    return [_prepare_one(name, partial(_render_sketch, file, size)) for name, file in items]


def _prepare_one(name: str, prepare):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return name, *prepare(), None
    except Exception as error:  # decoders answer bad input with whatever they stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        return name, None, False, f"{name}: {reason}"


def _render_sketch(file: Path, size: int) -> tuple[np.ndarray, bool]:
    from keras_sparse_dm.data.reading import read_svg
    from keras_sparse_dm.data.rendering import KANJIVG_BOX, render

    picture = render(read_svg(file), size, box=KANJIVG_BOX)
    return np.repeat(picture[:, :, None], 3, axis=2), False


def _prepare_image(source: Path | bytes, size: int) -> tuple[np.ndarray, bool]:
    """The image in a file or in its bytes, uint8 `(size, size, 3)`; whether it was smaller."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(source, Path) and not source.is_file():
        raise ValueError("is no file, but a link to nothing or a pipe")
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image.load()
    except UnidentifiedImageError:
        raise ValueError("is no image of a known format") from None
    # A damaged EXIF block is no reason to lose the image.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    image = _to_rgb(image.crop((left, top, left + side, top + side)))
    if side != size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image), side < size


def _to_rgb(image):
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("holds integers of more than 16 bits, whose white is not known")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("holds floating-point numbers, whose white is not known")
    elif "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
