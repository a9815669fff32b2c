"""Arrays of `.npz` files, read with bounded memory and without running anything in them."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from keras_sparse_dm.data.formats.bounded_files import UNPACKED_RATIO, unpacked_limit
from keras_sparse_dm.data.formats.restricted_pickle import unpickle

# Greatest unpacked size of one array, and of all arrays of a file.
MAX_ARRAY_BYTES = 2**30
MAX_FILE_BYTES = 2**31

_ENDING = ".npy"


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays of an `.npz` file, in the file's order.

    Raises:
        ValueError: if it is not a zip archive.
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        names = _open(file).namelist()
    return [name.removesuffix(_ENDING) for name in names if name.endswith(_ENDING)]


def read_array(path: Path, name: str) -> np.ndarray:
    """Return one array of an `.npz` file: of numbers, or of objects, which `unpickle` reads.

    Args:
        path: the file. All arrays together may unpack to 2 GiB and one array to 1 GiB. A file
            that unpacks to more than both 16 MiB and 100 times its size is refused as an attack.
        name: one of `array_names`.

    Raises:
        ValueError: if the file or the array is damaged or too large, or holds anything but plain
            values.
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        archive = _open(file)
        size = file.seek(0, io.SEEK_END)
        total = sum(info.file_size for info in archive.infolist())
        limit = min(MAX_FILE_BYTES, unpacked_limit(size))
        if total > limit:
            raise ValueError(
                f"unpacks to {total:,} bytes; the maximum is {MAX_FILE_BYTES:,}, and "
                f"{UNPACKED_RATIO} times the file's size of {size:,}"
            )
        try:
            data = _member(archive, archive.getinfo(name + _ENDING))
        except Exception as error:  # a damaged zip raises almost anything, an OSError too
            reason = str(error) or type(error).__name__
            raise ValueError(f"its array {name!r} cannot be unpacked: {reason}") from error
    return _parse(data)


def _open(file) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except Exception as error:  # a damaged zip raises almost anything, an OSError too
        raise ValueError(f"is not an .npz file, which is a zip archive: {error}") from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.flag_bits & 1:
        raise ValueError("it is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"it is compressed by method {info.compress_type}; deflate is read")
    if info.file_size > MAX_ARRAY_BYTES:
        raise ValueError(f"it has {info.file_size:,} bytes; {MAX_ARRAY_BYTES:,} is the maximum")
    with archive.open(info) as member:
        # At most the size that the archive states, which has been checked.
        data = member.read(info.file_size)
        # Reading at the end compares the checksum.
        if len(data) != info.file_size or member.read(1):
            raise ValueError(
                f"it does not have the {info.file_size:,} bytes that the archive states"
            )
    return data


def _parse(data: bytes) -> np.ndarray:
    """Return the array that the content of an `.npy` file describes."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        headers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, fortran, dtype = headers[version](stream)
    except Exception as error:  # the header is Python source, whose parser raises almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"holds an array whose header cannot be read: {reason[:200]}") from error
    start = stream.tell()
    if dtype == np.dtype(object):
        array = unpickle(data, start)
        if not isinstance(array, np.ndarray) or not array.dtype.hasobject:
            raise ValueError("holds a pickle of something else than an array of objects")
        return array
    if dtype.kind not in "biuf":
        raise ValueError(f"holds an array of dtype {dtype}; numbers and objects are read")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(
            f"holds an array of shape {shape} and dtype {dtype}, but {len(data) - start:,} bytes"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
