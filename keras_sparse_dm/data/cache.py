"""What data sets share that are prepared once: the cache's folder, worker processes, whole files.

Rows of one shape (pictures, latents) are cached as an `.npy` file, which is mapped rather than
read, with a `.json` file beside it that says what the rows are and holds their checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MAX_BROKEN = 0.05
# More categories than this are not listed in one line.
MANY_LABELS = 12


@dataclass(frozen=True)
class PreparationSummary:
    """What became of a data set's files on their way to arrays; `print` shows it in one line.

    Args:
        source: the data set's name.
        read: number of sketches or images that were read.
        kept: number of them prepared and kept.
        broken: `(name, reason)` of each that could not be read or prepared.
        too_long: names of the sketches that were dropped for their length.
        max_points: number of points from which on a sketch counts as too long.
        unit: what is counted, `"sketches"` or `"images"`.
        available: number that the source holds, where only a part of it was read; else None.
        enlarged: number of images that were smaller than the size asked for.
        left_out: number of drawings that were read but not asked for.
        labels: how many of the kept ones there are of each category, where there are any.
    """

    source: str
    read: int
    kept: int
    broken: tuple[tuple[str, str], ...] = ()
    too_long: tuple[str, ...] = ()
    max_points: int | None = None
    unit: str = "sketches"
    available: int | None = None
    enlarged: int = 0
    left_out: int = 0
    labels: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        of = "" if self.available is None else f" of {self.available:,}"
        text = f"{self.source}: {self.read:,}{of} {self.unit} read, {self.kept:,} kept"
        if 1 < len(self.labels) <= MANY_LABELS:
            text += f" ({', '.join(f'{label} {n:,}' for label, n in self.labels.items())})"
        if self.left_out:
            text += f", {self.left_out:,} left out"
        if self.max_points is not None:
            text += f", {len(self.too_long):,} too long ({self.max_points} points or more)"
        if self.enlarged:
            text += f", {self.enlarged:,} enlarged"
        text += f", {len(self.broken):,} broken"
        if self.broken:
            text += " (" + "; ".join(reason for _, reason in self.broken[:5])
            text += ", ...)" if len(self.broken) > 5 else ")"
        return text


def check_broken(broken, read: int, source: str, unit: str = "files") -> None:
    """Raises the ValueError that names the first broken ones where they are more than 5%."""
    if len(broken) > MAX_BROKEN * read:
        raise ValueError(
            f"{source}: {len(broken)} of {read} {unit} are broken, more than {MAX_BROKEN:.0%}; "
            "the first are " + "; ".join(reason for _, reason in broken[:3])
        )


# Worker processes --------------------------------------------------------------------------


def map_in_processes(work, chunks: Iterable, workers: int) -> Iterator:
    """`map` over worker processes, in order; closing it early ends the workers.

    Args:
        work: a function that can be pickled.
        chunks: its arguments, one after the other; taken only as the workers need them.
        workers: number of processes, at least 1.

    Yields:
        The results, in the order of `chunks`.
    """
    # loky's executor is concurrent.futures' own but that its workers do not import the user's
    # script again, which without a main guard would start over.
    from loky import ProcessPoolExecutor

    executor = ProcessPoolExecutor(workers, initializer=_end_with_parent, initargs=(os.getpid(),))
    waiting = deque()
    try:
        for chunk in chunks:
            waiting.append(executor.submit(work, chunk))
            # Enough to keep all busy while the first result is used, and no more: a chunk may
            # hold the bytes of many pictures.
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException:  # Ctrl-C too: leave at once, with no worker left behind
        executor.shutdown(wait=True, kill_workers=True)
        raise
    executor.shutdown(wait=True)


def _end_with_parent(parent: int) -> None:
    """Makes a worker end soon after its parent was killed, rather than wait for it for ever."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def map_chunks(
    work,
    items: Iterable,
    total: int | None,
    chunk: int,
    workers: int | None,
    progress: bool,
    title: str,
    unit: str = "files",
) -> Iterator:
    """Yields the results of `work` on lists of `items`, one by one, under a progress bar.

    Args:
        work: takes a list of items, returns as many results; can be pickled.
        items: what to work on.
        total: number of items; None where it is not known.
        chunk: items per list.
        workers: processes; by default one per available core. A single one is this process.
        progress: whether to show a progress bar (on standard error).
        title: what the bar says.
        unit: what the bar counts.

    Yields:
        One result per item, in order, whatever the number of workers.
    """
    from loky import cpu_count
    from tqdm import tqdm

    workers = workers or cpu_count()
    if total is not None:
        workers = min(workers, -(-total // chunk))
    lists = _lists(items, chunk)
    results = (
        (work(items) for items in lists) if workers <= 1 else map_in_processes(work, lists, workers)
    )
    with (
        tqdm(total=total, desc=title, unit=f" {unit}", disable=not progress) as bar,
        contextlib.closing(results),
    ):
        for done in results:
            yield from done
            bar.update(len(done))


def _lists(items: Iterable, length: int) -> Iterator[list]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == length:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


# Cache files -------------------------------------------------------------------------------


def cache_folder(cache_dir=None) -> Path:
    """The folder for caches.

    Args:
        cache_dir: a folder that the user names, or None.

    Returns:
        `cache_dir`; without it what the environment variable `KERAS_SPARSE_DM_CACHE` names;
        without that the user's cache folder. It need not exist.
    """
    if cache_dir is None:
        cache_dir = os.environ.get("KERAS_SPARSE_DM_CACHE")
    if not cache_dir:
        import platformdirs

        cache_dir = platformdirs.user_cache_dir("keras_sparse_dm", appauthor=False)
    return Path(cache_dir).expanduser()


def fingerprint_of(value) -> str:
    """20 hexadecimal digits that change with `value`, which JSON must be able to write."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def state_of(files: Iterable[Path], root=None) -> list[tuple[str, int, int]]:
    """Name (below `root`, if given), size in bytes and time of the last change of each file.

    Size and time of a link to nothing are 0: whoever reads it counts it as broken.
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
    """Context that gives a file open for writing, which at the end becomes `path`.

    It lies beside `path` under a name of its own, so that two processes may write at once, and
    is renamed where the block ends well: `path` is whole or not there. Otherwise it is removed.

    Args:
        path: the file to make; its folder is made too.
        leftovers: pattern of the temporary files of this kind. Those older than an hour, which
            killed runs left, are removed.

    Yields:
        The binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem + "-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        # Gone already where all went well.
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        # A file that another process still writes is not as old as an hour.
        for leftover in path.parent.glob(leftovers):
            with contextlib.suppress(OSError):
                if leftover.stat().st_mtime < time.time() - 3600:
                    leftover.unlink()


def check_free_space(folder: Path, needed: int, argument: str = "cache_dir") -> None:
    """Raises the OSError that says so where a folder's disk has fewer than `needed` bytes free."""
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


class Rows:
    """An `.npy` file in the making: rows of one shape, added one after the other.

    Args:
        file: binary file, open for writing and empty.
        shape: shape of a row.
        dtype: of the values.
    """

    def __init__(self, file, shape: tuple[int, ...], dtype):
        self.file = file
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.count = 0
        self.checksum = hashlib.sha256()
        # The header's length does not change with the number of rows: NumPy leaves room.
        self._header(0)
        self._start = file.tell()

    def _header(self, count: int) -> None:
        np.lib.format.write_array_header_1_0(
            self.file,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (count, *self.shape),
            },
        )

    def add(self, rows: np.ndarray) -> None:
        """Appends an array of shape `(any number, *shape)`."""
        rows = np.ascontiguousarray(rows, self.dtype)
        assert rows.shape[1:] == self.shape
        self.file.write(rows)
        self.checksum.update(rows)
        self.count += len(rows)

    def finish(self) -> str:
        """Writes the number of rows into the header; returns the rows' checksum."""
        self.file.seek(0)
        self._header(self.count)
        assert self.file.tell() == self._start
        return self.checksum.hexdigest()


def content_checksum(rows: np.ndarray) -> str:
    """The checksum that `Rows.finish` gives for the same rows; reads a mapped file in pieces."""
    checksum = hashlib.sha256()
    step = max(1, 2**24 // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        checksum.update(np.ascontiguousarray(rows[start : start + step]))
    return checksum.hexdigest()


def write_description(path: Path, description: dict, leftovers: str) -> None:
    """Writes what is to be known about the rows in `path` into the `.json` file beside it.

    Written after the rows, it also says that they are whole. Its own checksum is added.
    """
    description = description | {"description": fingerprint_of(description)}
    with new_cache_file(path.with_suffix(".json"), leftovers) as file:
        file.write(json.dumps(description, indent=1).encode("utf-8", "surrogateescape"))


def read_rows(path: Path) -> tuple[np.memmap, dict]:
    """The rows of a file, mapped and not loaded, and their description.

    Args:
        path: the `.npy` file.

    Returns:
        The read-only rows, and what was given to `write_description`. Its `"checksum"` was
        compared with the rows, which reads the file through once.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if one is damaged.
    """
    description = json.loads(path.with_suffix(".json").read_bytes().decode("utf-8", "replace"))
    if description.pop("description") != fingerprint_of(description):
        raise ValueError("its description is not the one that was written: the checksum differs")
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if content_checksum(rows) != description["checksum"]:
        raise ValueError("its values are not those that were written: the checksum differs")
    return rows, description


def read_rows_or_warn(path: Path, check=None):
    """As `read_rows`, but None without a file, and with a warning where it is damaged.

    Args:
        path: the `.npy` file.
        check: called with rows and description; an exception means damage.

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


def warn_of_damage(cache: Path, error: Exception, stacklevel: int = 4) -> None:
    """Warns that a cache file is of no use and that the data are prepared anew."""
    warnings.warn(
        f"the cache file {cache} cannot be read ({type(error).__name__}: {error}); "
        "preparing the data anew",
        stacklevel=stacklevel,
    )
