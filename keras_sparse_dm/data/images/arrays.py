"""Arrays of images, in memory or in a file that is read batch by batch."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from keras_sparse_dm.data.cache import fingerprint_of
from keras_sparse_dm.data.row_files import content_checksum
from keras_sparse_dm.data.summary import PreparationSummary
from keras_sparse_dm.lazy import lazy_module

tf = lazy_module("tensorflow")


class StoredArrays:
    """Base class of arrays of images and of latents: rows of one shape, in memory or in a file."""

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
            raise IndexError(f"index {i} is out of range for {len(self)} rows")
        return int(i % len(self) if self.indices is None else self.indices[i])

    def _row_numbers(self, positions: np.ndarray) -> np.ndarray:
        return positions if self.indices is None else self.indices[positions]

    def subset(self, indices):
        """Return the rows at `indices`, in that order, without copying them.

        Args:
            indices: integers in `[0, len(self))`.

        Returns:
            Arrays with the same properties: a slice if the rows are consecutive, or else a
            selection by row numbers (`.indices`).

        Raises:
            ValueError: if one of `indices` is not an integer in the range.
        """
        indices = np.asarray(list(indices) if isinstance(indices, range) else indices)
        if indices.size == 0:
            indices = indices.astype(np.int64)
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise ValueError(
                f"indices must be a one-dimensional array of integers; received shape "
                f"{indices.shape} and type {indices.dtype}"
            )
        if indices.size and not (0 <= indices.min() and indices.max() < len(self)):
            raise ValueError(
                f"indices ranges from {indices.min()} to {indices.max()}; it must lie from 0 to "
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
        """Check and set `indices` and `names`, after the rows were checked."""
        if self.indices is not None:
            indices = np.asarray(self.indices, np.int64)
            if indices.ndim != 1 or (indices < 0).any() or (indices >= len(self._stored)).any():
                raise ValueError(
                    f"indices must be a one-dimensional array of numbers from 0 to "
                    f"{len(self._stored) - 1}, the last of the stored {unit}"
                )
            object.__setattr__(self, "indices", indices)
        names = self.names
        names = tuple(map(str, range(len(self)) if names is None else names))
        if len(names) != len(self):
            raise ValueError(f"names holds {len(names)} names for {len(self)} {unit}")
        object.__setattr__(self, "names", names)


@dataclass(frozen=True, eq=False)
class ImageArrays(StoredArrays):
    """Square images of one size, in memory or in a file of which only the used rows are read.

    `len(arrays)` is the number of images and `arrays[i]` is image i, uint8 `(size, size, 3)`.

    Args:
        images: uint8 array or read-only memory map of shape `(n, size, size, 3)`.
        names: n strings; by default the numbers of the images.
        flip: whether training mirrors each image left to right with probability 1/2.
        summary: counts of the data set's preparation, or None.
        fingerprint: a string that changes with the images, their order, names and `flip`. By
            default a hash of them all, which reads them once.
        indices: row numbers of the selected images, in order; n is then their number. By default
            all rows.

    Raises:
        ValueError: if type, shapes or numbers are inconsistent.

    Example:

    >>> images = ImageArrays(np.zeros((4, 8, 8, 3), "uint8"), flip=True)
    >>> len(images), images[0].shape
    (4, (8, 8, 3))
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
        """Return a copy of the images at `positions`, uint8, mirrored where `flips` is true."""
        batch = np.array(self.images[self._row_numbers(positions)])
        # Moving a pixel's three bytes as one value takes half the time.
        pixels = batch.view("V3")[..., 0]
        for i in np.flatnonzero(flips):
            pixels[i] = pixels[i, :, ::-1].copy()
        return batch

    def model_batch(self, batch: tf.Tensor) -> tf.Tensor:
        """Convert the result of `read_batch` to the batch that models see: float32 in [-1, 1]."""
        batch = tf.ensure_shape(batch, (None, *self.images.shape[1:]))
        return tf.cast(batch, tf.float32) / 127.5 - 1.0
