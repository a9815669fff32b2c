"""Measures of exported files: sizes, exactness and speed."""

import statistics
import time
from dataclasses import dataclass

import numpy as np
from keras import ops


@dataclass(frozen=True)
class ExportedFile:
    """A file that was written, and its sizes, exactness and speed.

    Attributes:
        name: Name of the file or directory.
        format: A name in `FORMATS`.
        quantize: As of `export_run`.
        dense_bytes: What it would take if zeros were stored as all other weights are.
        bytes: What it takes.
        compressed_bytes: What it takes after zlib.
        difference: Largest absolute difference of the denoiser's outputs from Keras's; None
            where they were not compared.
        dense_seconds, seconds: Median time of one call with the dense and with this file, batch
            size as exported, one thread; None where there is nothing to run or nobody asked.
    """

    name: str
    format: str
    quantize: str
    dense_bytes: int
    bytes: int
    compressed_bytes: int
    difference: float | None
    dense_seconds: float | None = None
    seconds: float | None = None

    @property
    def ratio(self):
        """Ratio of its size to the dense one's."""
        return self.bytes / self.dense_bytes


def inputs_of(run):
    """Return inputs of the denoiser, drawn at random, of batch size 1."""
    rng = np.random.default_rng(0)
    x, _, *lengths = run.example
    t = np.array([run.settings.noise.timesteps // 2], "int32")
    return (rng.normal(size=x.shape).astype("float32"), t, *(n.astype("int32") for n in lengths))


def difference_of(expected, found):
    """Return the largest absolute difference of two tensors."""
    difference = ops.cast(expected, "float32") - ops.cast(found, "float32")
    return float(ops.max(ops.abs(difference)))


def seconds_of(calls, rounds):
    """Return medians of the seconds that calls take, in turn: `{name: seconds}`."""
    if not rounds:
        return {}
    seconds = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}
