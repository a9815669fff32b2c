"""Rows of one shape (images, latents) in a file that is mapped into memory and not loaded.

The rows lie in an `.npy` file. The `.json` file beside it describes them and holds their checksum.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from keras_sparse_dm.data.cache import fingerprint_of, new_cache_file, warn_of_damage


class Rows:
    """Writer of an `.npy` file whose number of rows is known only at the end.

    `numpy.lib.format.open_memmap` needs that number first, but images may turn out to be broken.

    Args:
        file: binary file, open for writing and empty.
        shape: shape of a row.
        dtype: dtype of the values.
    """

    def __init__(self, file, shape: tuple[int, ...], dtype):
        self.file = file
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.count = 0
        self.checksum = hashlib.sha256()
        # NumPy leaves room in the header, so its length does not depend on the number of rows.
        self._write_header(0)
        self._start = file.tell()

    def _write_header(self, count: int) -> None:
        np.lib.format.write_array_header_1_0(
            self.file,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (count, *self.shape),
            },
        )

    def add(self, rows: np.ndarray) -> None:
        """Append an array of shape `(any number, *shape)`."""
        rows = np.ascontiguousarray(rows, self.dtype)
        assert rows.shape[1:] == self.shape
        self.file.write(rows)
        self.checksum.update(rows)
        self.count += len(rows)

    def finish(self) -> str:
        """Write the number of rows into the header and return the checksum of the rows."""
        self.file.seek(0)
        self._write_header(self.count)
        assert self.file.tell() == self._start
        return self.checksum.hexdigest()


def content_checksum(rows: np.ndarray) -> str:
    """Return the checksum that `Rows.finish` gives; reads a mapped file in pieces."""
    checksum = hashlib.sha256()
    step = max(1, 2**24 // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        checksum.update(np.ascontiguousarray(rows[start : start + step]))
    return checksum.hexdigest()


def write_description(path: Path, description: dict, leftovers: str) -> None:
    """Write the description of the rows in `path` into the `.json` file beside it.

    Call it after the rows are written: the description also tells readers that they are complete.
    The description's own checksum is added.
    """
    description = description | {"description": fingerprint_of(description)}
    with new_cache_file(path.with_suffix(".json"), leftovers) as file:
        file.write(json.dumps(description, indent=1).encode("utf-8", "surrogateescape"))


def read_rows(path: Path) -> tuple[np.memmap, dict]:
    """Map the rows of a file and read their description.

    Args:
        path: the `.npy` file.

    Returns:
        `(rows, description)`: the read-only rows, and the dictionary that `write_description`
        took. Its `"checksum"` has been compared with the rows, which reads the file once.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is damaged.
    """
    description = json.loads(path.with_suffix(".json").read_bytes().decode("utf-8", "replace"))
    if description.pop("description") != fingerprint_of(description):
        raise ValueError("its description has changed since it was written: the checksum differs")
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if content_checksum(rows) != description["checksum"]:
        raise ValueError("its values have changed since they were written: the checksum differs")
    return rows, description


def read_rows_or_warn(path: Path, check=None):
    """Call `read_rows`, but return None if there is no file, or, with a warning, if it is damaged.

    Args:
        path: the `.npy` file.
        check: function of rows and description that raises an exception if they are damaged.

    Returns:
        `(rows, description)`, or None.
    """
    if not (path.exists() and path.with_suffix(".json").exists()):
        return None
    try:
        rows, description = read_rows(path)
        if check is not None:
            check(rows, description)
        return rows, description
    except Exception as error:  # damaged files raise almost anything; the remedy is the same
        warn_of_damage(path, error)
        return None
