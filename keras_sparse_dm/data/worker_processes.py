"""Work on lists of items in several processes, in order."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from keras_sparse_dm.lazy import lazy_module

loky = lazy_module("loky")


def map_in_processes(work, chunks: Iterable, workers: int) -> Iterator:
    """Map a function over worker processes, in order; closing the iterator ends the workers.

    Args:
        work: function that can be pickled.
        chunks: its arguments, taken only as the workers need them.
        workers: number of processes, at least 1.

    Yields:
        The results, in the order of `chunks`.
    """
    # loky's executor extends that of concurrent.futures: its workers do not import the user's
    # script again, which would start over if it had no main guard.
    executor = loky.ProcessPoolExecutor(
        workers, initializer=_end_with_parent, initargs=(os.getpid(),)
    )
    waiting = deque()
    try:
        for chunk in chunks:
            waiting.append(executor.submit(work, chunk))
            # Enough to keep all workers busy while the caller uses the first result, but no more:
            # a chunk may hold the bytes of many images.
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException:  # Ctrl-C too: end at once and leave no worker behind
        executor.shutdown(wait=True, kill_workers=True)
        raise
    executor.shutdown(wait=True)


def _end_with_parent(parent: int) -> None:
    """End this worker soon after its parent was killed; otherwise it would wait forever."""

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
    """Yield the results of `work` on lists of `items`, one by one, under a progress bar.

    Args:
        work: function that takes a list of items and returns as many results; can be pickled.
        items: inputs of `work`.
        total: number of items; None if unknown.
        chunk: items per list.
        workers: number of processes; by default one per available core. A single worker is this
            process.
        progress: whether to show a progress bar (on standard error).
        title: text of the bar.
        unit: unit that the bar counts.

    Yields:
        One result per item, in the same order for any number of workers.
    """
    workers = workers or loky.cpu_count()
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
    items = iter(items)
    while chunk := list(itertools.islice(items, length)):
        yield chunk
