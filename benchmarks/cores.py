"""Binding of threads to cores, for benchmarks that compare two libraries in one process."""

import contextlib
import os

import numpy as np
import tensorflow as tf


def spread_threads(with_torch):
    """Bind the threads of TensorFlow and PyTorch evenly to cores.

    Both libraries leave the choice to the operating system, which may keep all threads on one core
    of a virtual machine.

    Args:
        with_torch: Whether to bind PyTorch's threads too.

    Returns:
        The number of cores.
    """
    cores = sorted(os.sched_getaffinity(0))

    def threads():
        return {int(name) for name in os.listdir("/proc/self/task")}

    def bind(first, start):
        before = threads()
        for _ in range(3):
            start()
        for i, thread in enumerate(sorted(threads() - before)):
            os.sched_setaffinity(thread, {cores[(first + i) % len(cores)]})

    x = np.ones((512, 512), "float32")
    bind(0, tf.function(lambda: (tf.matmul(x, x), tf.matmul(x, x, transpose_b=True))))
    if with_torch:
        import torch

        torch.set_num_threads(len(cores))
        # PyTorch's first thread is the main thread of the process.
        bind(1, lambda: torch.from_numpy(x) @ torch.from_numpy(x))
        os.sched_setaffinity(0, cores[:1])
    return len(cores)


@contextlib.contextmanager
def all_cores():
    """Context in which new threads of the current thread run on any core."""
    bound = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count()))
    try:
        yield
    finally:
        os.sched_setaffinity(0, bound)
