"""Latents of a data set's images: encoded once, cached on disk, read batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from tqdm import tqdm

from keras_sparse_dm.checks import check_whole
from keras_sparse_dm.data.cache import (
    cache_folder,
    check_free_space,
    fingerprint_of,
    new_cache_file,
    warn_of_damage,
)
from keras_sparse_dm.data.images.arrays import ImageArrays, StoredArrays
from keras_sparse_dm.data.row_files import Rows, content_checksum, read_rows, write_description
from keras_sparse_dm.lazy import lazy_module

tf = lazy_module("tensorflow")

# Part of the cache's file name. Increase it with every change of the file's layout.
CACHE_VERSION = 1


@dataclass(frozen=True, eq=False)
class LatentArrays(StoredArrays):
    """Latents of images, in memory or in a file of which only the used rows are read.

    `len(arrays)` is the number of images and `arrays[i]` holds the latents of image i, not
    flipped, float32 `(height, width, channels)`.

    Args:
        latents: float32 array or read-only memory map of shape `(n, height, width, channels)`;
            with `flip`, `(n, 2, height, width, channels)` for each image and its mirror image.
        names: names of the images, n strings; by default their numbers.
        flip: whether training uses the mirror image's latents with probability 1/2.
        fingerprint: a string that changes with autoencoder and images; by default a hash of
            latents, names and `flip`, which reads them once.
        indices: row numbers of the selected latents, in order; n is then their number. By default
            all rows.

    Raises:
        ValueError: if type, shapes or numbers are inconsistent.
    """

    latents: np.ndarray
    names: tuple[str, ...] | None = None
    flip: bool = False
    fingerprint: str | None = None
    indices: np.ndarray | None = None

    _rows: ClassVar[str] = "latents"

    def __post_init__(self):
        shape, dtype = np.shape(self.latents), getattr(self.latents, "dtype", None)
        dimensions = 5 if self.flip else 4
        if (
            dtype != np.float32
            or len(shape) != dimensions
            or 0 in shape[1:]
            or (self.flip and shape[1] != 2)
        ):
            right = (
                "(n, 2, height, width, channels)" if self.flip else "(n, height, width, channels)"
            )
            raise ValueError(
                f"latents has shape {shape} and type {dtype}; with flip={bool(self.flip)} it must "
                f"be float32 of shape {right}"
            )
        self._set_checked("latents")
        if self.fingerprint is None:
            rows = None if self.indices is None else self.indices.tolist()
            content = [content_checksum(self.latents), rows, self.names, bool(self.flip)]
            object.__setattr__(self, "fingerprint", fingerprint_of(content))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image's latents."""
        return self.latents.shape[-3:]

    def __getitem__(self, i: int) -> np.ndarray:
        row = self.latents[self._row_number(i)]
        return np.asarray(row[0] if self.flip else row)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return f"LatentArrays({len(self)} of {shape}{', flip=True' if self.flip else ''})"

    def read_batch(self, positions: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """Return a copy of the latents at `positions`, mirror images where `flips` is true."""
        rows = self._row_numbers(positions)
        return np.array(self.latents[rows, flips.astype(int)] if self.flip else self.latents[rows])

    def model_batch(self, batch: tf.Tensor) -> dict[str, tf.Tensor]:
        """Convert the result of `read_batch` to the batch that models see."""
        return {"latents": tf.ensure_shape(batch, (None, *self.shape))}


def cache_latents(
    encode: Callable,
    images: ImageArrays,
    cache_dir=None,
    *,
    fingerprint: str,
    batch_size: int = 16,
    progress: bool = True,
) -> LatentArrays:
    """Encode images once; later calls with the same autoencoder and images read the result.

    Args:
        encode: function from float32 images `(batch, size, size, 3)` in [-1, 1] to latents
            `(batch, height, width, channels)`, an array or tensor.
        images: the images. If their `flip` is true, their mirror images are encoded too.
        cache_dir: folder for the cache; by default that of the environment variable
            `KERAS_SPARSE_DM_CACHE`, or else the user's cache folder.
        fingerprint: a string that changes with `encode`, above all with its weights.
        batch_size: number of images encoded at once, at least 1.
        progress: whether to show a progress bar (on standard error) while encoding.

    Returns:
        The latents, in the images' order and with their names, mapped from the cache's file.

    Raises:
        ValueError: if an argument is out of its range, or `encode` returns another shape or a
            value that is not finite.
        OSError: if the cache cannot be written or its disk has too little space.

    Example:

    >>> images = ImageArrays(np.zeros((4, 8, 8, 3), "uint8"))
    >>> cache_latents(lambda x: x[:, ::4, ::4], images, fingerprint="thinned", progress=False)
    LatentArrays(4 of 2 x 2 x 3)
    """
    check_whole("batch_size", batch_size, 1, 2**31)
    _check_fingerprint(fingerprint)
    if len(images) == 0:
        raise ValueError("images is empty; there must be at least one image to encode")
    state = fingerprint_of([CACHE_VERSION, fingerprint, images.fingerprint, bool(images.flip)])
    cache = cache_folder(cache_dir) / f"latents-v{CACHE_VERSION}-{state}.npy"
    if cache.exists() and cache.with_suffix(".json").exists():
        try:
            return load_latents(cache, fingerprint, images)
        except (OSError, ValueError) as error:
            warn_of_damage(cache, error, stacklevel=3)
    _encode_all(encode, images, cache, fingerprint, int(batch_size), progress)
    return load_latents(cache, fingerprint, images)


def load_latents(path, fingerprint: str, images: ImageArrays | None = None) -> LatentArrays:
    """Read a file that `cache_latents` wrote.

    Args:
        path: the `.npy` file, with its `.json` file beside it.
        fingerprint: fingerprint of the autoencoder, as passed to `cache_latents`.
        images: images that the latents must belong to; None accepts any.

    Returns:
        The latents, mapped from the file.

    Raises:
        FileNotFoundError: if one of the files does not exist.
        ValueError: if it was made with another autoencoder or from other images, or is damaged.
    """
    path = Path(path).expanduser()
    _check_fingerprint(fingerprint)
    for file in (path, path.with_suffix(".json")):
        if not file.exists():
            raise FileNotFoundError(
                f"path={str(path)!r}: there is no {file.name}; cache_latents makes both files"
            )
    try:
        rows, description = read_rows(path)
        made_with, made_of = description["autoencoder"], description["images"]
        names, flip = tuple(description["names"]), description["flip"]
        latents = LatentArrays(rows, names, flip, fingerprint_of([made_with, made_of]))
    except Exception as error:  # damaged files raise almost anything
        raise ValueError(
            f"path={str(path)!r} is damaged ({type(error).__name__}: {error}); remove it and "
            "encode the images again with cache_latents"
        ) from error
    if made_with != fingerprint:
        raise ValueError(
            f"path={str(path)!r} was made with another autoencoder (fingerprint {made_with!r}, "
            f"not {fingerprint!r}); encode the images again with cache_latents, or load the "
            "autoencoder it was made with"
        )
    if images is not None and (made_of, flip) != (images.fingerprint, bool(images.flip)):
        raise ValueError(
            f"path={str(path)!r} was made from other images (fingerprint {made_of!r}, flip={flip}, "
            f"not {images.fingerprint!r}, flip={bool(images.flip)}); encode these images with "
            "cache_latents, or load the images it was made from"
        )
    return latents


def _check_fingerprint(fingerprint) -> None:
    if not isinstance(fingerprint, str) or not fingerprint:
        raise ValueError(
            f"fingerprint={fingerprint!r} must be a string that names the autoencoder's weights"
        )


def _encode_all(encode, images, cache: Path, fingerprint, batch_size: int, progress) -> None:
    leftovers = f"latents-v{CACHE_VERSION}-*.tmp"
    rows = None
    starts = range(0, len(images), batch_size)
    try:
        with (
            new_cache_file(cache, leftovers) as file,
            tqdm(total=len(images), desc="Encoding", unit=" images", disable=not progress) as bar,
        ):
            for start in starts:
                positions = np.arange(start, min(start + batch_size, len(images)))
                variants = [
                    _encode_batch(encode, images, positions, flips)
                    for flips in ([False, True] if images.flip else [False])
                ]
                batch = np.stack(variants, axis=1) if images.flip else variants[0]
                if rows is None:
                    check_free_space(cache.parent, len(images) * batch[0].nbytes + 2**20)
                    rows = Rows(file, batch.shape[1:], np.float32)
                if batch.shape[1:] != rows.shape:
                    raise ValueError(
                        f"encode gave latents of shape {batch.shape[1:]} after {rows.shape}; all "
                        "images must give the same shape"
                    )
                rows.add(batch)
                bar.update(len(positions))
            checksum = rows.finish()
        description = {
            "checksum": checksum,
            "autoencoder": fingerprint,
            "images": images.fingerprint,
            "flip": bool(images.flip),
            "names": images.names,
        }
        write_description(cache, description, leftovers)
    except OSError as error:
        raise OSError(
            f"the latents cannot be written to {cache} ({error}); "
            "cache_dir or KERAS_SPARSE_DM_CACHE sets another folder",
        ) from error


def _encode_batch(encode, images: ImageArrays, positions, flip: bool) -> np.ndarray:
    batch = images.read_batch(positions, np.full(len(positions), flip))
    latents = encode(batch.astype(np.float32) / np.float32(127.5) - np.float32(1))
    latents = np.asarray(latents).astype(np.float32)
    if latents.ndim != 4 or len(latents) != len(positions):
        raise ValueError(
            f"encode gave shape {latents.shape} for {len(positions)} images; it must be "
            f"({len(positions)}, height, width, channels)"
        )
    finite = np.isfinite(latents).all(axis=(1, 2, 3))
    if not finite.all():
        name = images.names[positions[int(np.argmin(finite))]]
        raise ValueError(f"encode gave a NaN or infinite value for image {name!r}")
    return latents
