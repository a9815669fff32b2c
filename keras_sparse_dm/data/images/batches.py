"""Batches of images or latents for training and evaluation."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time

import numpy as np

from keras_sparse_dm.checks import check_whole
from keras_sparse_dm.lazy import lazy_module

tf = lazy_module("tensorflow")


def image_steps_per_epoch(arrays, batch_size: int) -> int:
    """Return the number of training batches in an epoch, including the smaller last one.

    Args:
        arrays: the training images or latents.
        batch_size: images per batch, at least 1.

    Returns:
        `ceil(len(arrays) / batch_size)`.

    Raises:
        ValueError: if `batch_size` is below 1 or there is no image.
    """
    check_whole("batch_size", batch_size, 1, 2**31)
    if len(arrays) == 0:
        raise ValueError("arrays is empty; there must be at least one image")
    return -(-len(arrays) // int(batch_size))


def train_image_batches(
    arrays,
    batch_size: int,
    seed: int,
    initial_epoch: int = 0,
    epochs: int | None = None,
) -> tf.data.Dataset:
    """Return an endless stream of shuffled training batches; each epoch holds every image once.

    The order and flips of epoch e depend only on `seed` and e. A stream that starts at
    `initial_epoch=k` therefore equals, bit for bit, an uninterrupted stream from epoch k on: a
    resumed run sees the same batches.

    Args:
        arrays: `ImageArrays` or `LatentArrays`, whose rows are read batch by batch.
        batch_size: images per batch, at least 1. An epoch's last batch holds the remainder.
        seed: integer in `[0, 2**63)`.
        initial_epoch: number of the first epoch, counted from 0.
        epochs: number of epochs in the stream, counted from `initial_epoch`; endless if None.

    Returns:
        A `tf.data.Dataset` of float32 `(batch, size, size, 3)` in [-1, 1]; for latents, of
        dictionaries with float32 `"latents"`, `(batch, height, width, channels)`, where flipping
        selects the latents of the flipped image. An epoch has `image_steps_per_epoch` batches.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> images = ImageArrays(np.zeros((4, 8, 8, 3), "uint8"))
    >>> for batch in train_image_batches(images, batch_size=2, seed=0, epochs=1):
    ...     print(batch.shape, float(batch[0, 0, 0, 0]))
    (2, 8, 8, 3) -1.0
    (2, 8, 8, 3) -1.0
    """
    steps = image_steps_per_epoch(arrays, batch_size)
    check_whole("seed", seed, 0, 2**63)
    check_whole("initial_epoch", initial_epoch, 0, 2**31)
    if epochs is not None:
        check_whole("epochs", epochs, 1, 2**31)
    stop = np.iinfo(np.int64).max if epochs is None else initial_epoch + epochs

    def epoch_batches(epoch):
        order = _epoch_order(len(arrays), bool(arrays.flip), seed, epoch)
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

    dataset = tf.data.Dataset.range(initial_epoch, stop).flat_map(epoch_batches)
    return _read_batches(dataset, arrays).apply(
        tf.data.experimental.assert_cardinality(
            tf.data.INFINITE_CARDINALITY if epochs is None else steps * epochs
        )
    )


def eval_image_batches(arrays, batch_size: int) -> tf.data.Dataset:
    """Return batches of all images, each once, in their order and not flipped.

    Args:
        arrays: `ImageArrays` or `LatentArrays`, at least one image.
        batch_size: images per batch, at least 1; the last batch may hold fewer.

    Returns:
        A finite `tf.data.Dataset` of known cardinality, with the elements of
        `train_image_batches`.

    Raises:
        ValueError: if `batch_size` is below 1 or there is no image.
    """
    image_steps_per_epoch(arrays, batch_size)
    order = (np.arange(len(arrays)), np.zeros(len(arrays), bool))
    return _read_batches(tf.data.Dataset.from_tensor_slices(order).batch(batch_size), arrays)


def _epoch_order(n: int, flip: bool, seed: int, epoch) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the numbers of an epoch's images in order, int64 `(n,)`, and whether each is flipped.

    A pure function of its arguments in stateless TensorFlow operations.
    """
    epoch_seed = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    # "philox" explicitly: the automatic choice depends on the device.
    order = tf.random.experimental.stateless_shuffle(
        tf.range(n, dtype=tf.int64), seed=epoch_seed, alg="philox"
    )
    if not flip:
        return order, tf.zeros([n], tf.bool)
    flip_seed = tf.random.fold_in(epoch_seed, 1, alg="philox")
    return order, tf.random.stateless_uniform([n], flip_seed, alg="philox") < 0.5


def _read_batches(order: tf.data.Dataset, arrays) -> tf.data.Dataset:
    """Turn batches of numbers and flips into batches of the rows of `arrays`."""
    dtype = arrays.read_batch(np.arange(0), np.zeros(0, bool)).dtype

    def read_rows(positions, flips):
        with _reads.under_way():
            return arrays.read_batch(positions, flips)

    def read(positions, flips):
        # Python copies the rows out of the mapped file, because TensorFlow cannot index it.
        batch = tf.numpy_function(read_rows, [positions, flips], dtype)
        return arrays.model_batch(batch)

    dataset = order.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


class _Reads:
    """Guard that ends prefetching when Python exits.

    TensorFlow keeps calling Python from its own threads. Once Python has begun to shut down, it
    ends such a thread, and TensorFlow would wait for the thread's answer forever.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._count = 0
        self._last = 0.0
        self._ended = False
        atexit.register(self._end)

    @contextlib.contextmanager
    def under_way(self):
        """Mark a read as running; raises a RuntimeError if Python is exiting."""
        with self._lock:
            self._count += 1
        try:
            if self._ended:
                raise RuntimeError("no more batches are read, because Python is exiting")
            yield
        finally:
            with self._lock:
                self._count -= 1
                self._last = time.monotonic()

    def _end(self, quiet: float = 0.05, patience: float = 10.0):
        # From now on reads fail at once, so the prefetch buffers fill and the threads fall silent.
        self._ended = True
        limit = time.monotonic() + patience
        while time.monotonic() < limit:
            with self._lock:
                if self._count == 0 and time.monotonic() - self._last > quiet:
                    return
            time.sleep(0.005)


_reads = _Reads()
