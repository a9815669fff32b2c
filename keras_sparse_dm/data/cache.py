"""Cache of prepared data sets: its folder, the names of its files, and complete writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterable
from pathlib import Path

from keras_sparse_dm.files import whole_file
from keras_sparse_dm.lazy import lazy_module

platformdirs = lazy_module("platformdirs")


def cache_folder(cache_dir=None) -> Path:
    """Return the folder for caches.

    Args:
        cache_dir: folder that the user names, or None.

    Returns:
        `cache_dir`; if None, the value of the environment variable `KERAS_SPARSE_DM_CACHE`; if
        that is unset or empty, the user's cache folder. It need not exist.
    """
    if cache_dir is None:
        cache_dir = os.environ.get("KERAS_SPARSE_DM_CACHE")
    if not cache_dir:
        cache_dir = platformdirs.user_cache_dir("keras_sparse_dm", appauthor=False)
    return Path(cache_dir).expanduser()


def fingerprint_of(value) -> str:
    """Return 20 hexadecimal digits that change with `value`, which JSON must be able to hold."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def state_of(files: Iterable[Path], root=None) -> list[tuple[str, int, int]]:
    """Return the name (relative to `root`, if given), size and modification time of each file.

    The size, in bytes, and the time of a dangling link are 0: its reader counts it as broken.
    """

    def size_and_time(file):
        try:
            state = file.stat()
        except FileNotFoundError:
            return 0, 0
        return state.st_size, int(state.st_mtime)

    return [
        (file.name if root is None else file.relative_to(root).as_posix(), *size_and_time(file))
        for file in files
    ]


@contextlib.contextmanager
def new_cache_file(path: Path, leftovers: str):
    """Open a temporary file that replaces `path` when the block ends without an error.

    The temporary name is unique, so that two processes can prepare the same data at once. If the
    block raises, the file is removed and `path` stays.

    Args:
        path: file to write; its folder is created if needed.
        leftovers: glob pattern of temporary files of this kind. Killed processes leave them
            behind; those older than an hour are removed.

    Yields:
        The binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}-{uuid.uuid4().hex}.tmp")
    try:
        with whole_file(path, temporary), open(temporary, "w+b") as file:
            yield file
    finally:
        # Another process's unfinished file is younger than an hour.
        for leftover in path.parent.glob(leftovers):
            with contextlib.suppress(OSError):
                if leftover.stat().st_mtime < time.time() - 3600:
                    leftover.unlink()


def check_free_space(folder: Path, needed: int, argument: str = "cache_dir") -> None:
    """Raise an OSError if the disk of `folder` has fewer than `needed` bytes free."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            f"{argument}={str(folder)!r} has {free / 1e9:.2f} GB free, but {needed / 1e9:.2f} GB "
            f"are needed; free some, or name another folder by {argument} or the environment "
            "variable KERAS_SPARSE_DM_CACHE",
        )


def warn_of_damage(cache: Path, error: Exception, stacklevel: int = 4) -> None:
    """Warn that a cache file cannot be used and that the data are prepared again."""
    warnings.warn(
        f"the cache file {cache} cannot be read ({type(error).__name__}: {error}); "
        "preparing the data again",
        stacklevel=stacklevel,
    )
