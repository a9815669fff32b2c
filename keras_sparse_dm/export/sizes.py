"""Sizes of files, plain and compressed, as in the guides of tensorflow_model_optimization."""

import os
import zlib
from pathlib import Path

_CHUNK = 1 << 20


def file_sizes(path, level=-1):
    """Measure a file, or all files in a directory, before and after compression by zlib.

    Compresses each file separately, so that the result depends neither on the order of files nor on
    their names, and in chunks, to save memory. Does not follow symbolic links.

    Args:
        path: A file or a directory.
        level: zlib's level, from 0 (none) to 9 (most), or -1 for its default.

    Returns:
        `(bytes, compressed bytes)`.

    Raises:
        ValueError: if `path` does not exist, or for a level out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> report = sparsify(model, 0.5)
    >>> size, compressed = file_sizes(save_sparse(model, "model.sparse"))
    """
    path = Path(path)
    if not -1 <= level <= 9:
        raise ValueError(f"`level` must be from -1 to 9; received {level}.")
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = [
            file
            for folder, _, names in os.walk(path)
            for name in names
            if (file := Path(folder, name)).is_file() and not file.is_symlink()
        ]
    else:
        raise ValueError(f"`path` must be an existing file or directory; received {path}.")
    sizes = [_sizes(file, level) for file in files]
    return sum(plain for plain, _ in sizes), sum(compressed for _, compressed in sizes)


def _sizes(file, level):
    compressor = zlib.compressobj(level)
    plain = compressed = 0
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            plain += len(chunk)
            compressed += len(compressor.compress(chunk))
    return plain, compressed + len(compressor.flush())
