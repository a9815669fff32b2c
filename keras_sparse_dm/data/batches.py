"""Batches of prepared sketches for training and evaluation."""

from __future__ import annotations

import numpy as np

from keras_sparse_dm.checks import check_whole
from keras_sparse_dm.data.representations import check_representation
from keras_sparse_dm.data.sketch_arrays import SketchArrays
from keras_sparse_dm.lazy import lazy_module

tf = lazy_module("tensorflow")

# Sketches are sorted by length in pools of this many batches. Larger pools waste less padding;
# smaller ones mix sketches of different lengths better.
POOL_BATCHES = 16
# Distance, in points, between the points for which augmentation noise is drawn.
JITTER_SPACING = 8


def steps_per_epoch(arrays: SketchArrays, batch_size: int) -> int:
    """Return the number of training batches in an epoch: `len(arrays) // batch_size` full ones.

    Args:
        arrays: the training sketches.
        batch_size: sketches per batch.

    Returns:
        The number, at least 1.

    Raises:
        ValueError: if `batch_size` is below 1 or above the number of sketches.
    """
    batch_size = _check_batch_size(batch_size)
    if batch_size > len(arrays):
        raise ValueError(
            f"batch_size={batch_size} is more than the {len(arrays)} sketches; "
            f"it must be from 1 to {len(arrays)}"
        )
    return len(arrays) // batch_size


def train_batches(
    arrays: SketchArrays,
    batch_size: int,
    seed: int,
    initial_epoch: int = 0,
    epochs: int | None = None,
    jitter: float = 0.0,
    num_shards: int = 1,
    shard: int = 0,
    length_multiple: int = 1,
) -> tf.data.Dataset:
    """Return an endless stream of shuffled training batches of sketches of similar length.

    Each epoch permutes all sketches, splits the permutation into pools of `POOL_BATCHES` batches,
    sorts each pool by length, splits it into batches of exactly `batch_size`, and shuffles the
    batches. The last `len(arrays) % batch_size` sketches of the permutation are not used in that
    epoch.

    The order of epoch e depends only on `seed` and e. A stream that starts at `initial_epoch=k`
    therefore equals, bit for bit, an uninterrupted stream from epoch k on: a resumed run sees the
    same batches.

    Args:
        arrays: the training sketches; memory holds them once.
        batch_size: sketches per batch, from 1 to `len(arrays)`.
        seed: integer in `[0, 2**63)`.
        initial_epoch: number of the first epoch, counted from 0.
        epochs: number of epochs in the stream, counted from `initial_epoch`; endless if None.
        jitter: amount of augmentation, see `jitter_points`, with new noise in each epoch; 0 for
            none.
        num_shards: number of workers that share the batches of each epoch. All pass the same
            `seed`.
        shard: number of this worker, counted from 0.
        length_multiple: number of which `length` is a multiple. JAX compiles a program for each
            length: with 32 there are few.

    Returns:
        A `tf.data.Dataset` of dictionaries: `"points"`, float32 `(batch, length, 3)`, zero after
        each sketch's own length, where `length` is that of the batch's longest sketch, rounded up
        to the next multiple; and `"lengths"`, int32 `(batch,)`. An epoch has `steps_per_epoch`
        batches. Several workers get the same number of them each; the remainder is dropped.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> arrays = SketchArrays.from_list([np.ones((n, 3)) for n in (5, 7, 9, 11)])
    >>> for batch in train_batches(arrays, batch_size=4, seed=0, epochs=1):
    ...     print(batch["points"].shape, batch["lengths"].numpy())
    (4, 11, 3) [ 5  7  9 11]
    """
    check_whole("length_multiple", length_multiple, 1, 2**31)
    check_whole("num_shards", num_shards, 1, 2**31)
    check_whole("shard", shard, 0, num_shards)
    steps = steps_per_epoch(arrays, batch_size) // num_shards
    if not steps:
        raise ValueError(
            f"num_shards={num_shards} is more than the {len(arrays) // batch_size} batches of an "
            "epoch; every worker needs at least one"
        )
    check_whole("seed", seed, 0, 2**63)
    check_whole("initial_epoch", initial_epoch, 0, 2**31)
    if epochs is not None:
        check_whole("epochs", epochs, 1, 2**31)
    _check_jitter(jitter)
    stop = np.iinfo(np.int64).max if epochs is None else initial_epoch + epochs
    with tf.device("CPU"):
        lengths = tf.constant(arrays.lengths)

    def batches_of(epoch):
        order = tf.reshape(_epoch_order(lengths, batch_size, seed, epoch), [-1, batch_size])
        mine = order[shard::num_shards][:steps]
        numbers = tf.range(steps, dtype=tf.int64) * num_shards + shard
        seeds = tf.stack([tf.fill([steps], epoch), numbers], axis=1)
        return tf.data.Dataset.from_tensor_slices((mine, seeds))

    dataset = tf.data.Dataset.range(initial_epoch, stop).flat_map(batches_of)
    augment = None
    if jitter:
        run_seed = tf.constant([seed, 2], tf.int64)

        def augment(batch, place):
            # The order folds other numbers into the same seed, so the two streams differ.
            noise_seed = run_seed
            for number in tf.unstack(place):
                noise_seed = tf.random.fold_in(noise_seed, number, alg="philox")
            points = jitter_points(
                batch["points"], batch["lengths"], jitter, noise_seed, arrays.representation
            )
            return batch | {"points": points}

    dataset = _gather_batches(dataset, arrays, length_multiple, augment)
    return dataset.apply(
        tf.data.experimental.assert_cardinality(
            tf.data.INFINITE_CARDINALITY if epochs is None else steps * epochs
        )
    )


def jitter_points(
    points, lengths, amount: float, seed, representation: str = "absolute"
) -> tf.Tensor:
    """Augment sketches by bending them slightly, as if another hand had drawn them.

    Each point moves by noise that changes smoothly along the sketch: drawn every
    `JITTER_SPACING` points and interpolated in between. Pen bits and padding stay unchanged. (The
    original ChiroDiff offers smooth noise too, drawn once when it reads a sketch.)

    Args:
        points: float tensor `(batch, length, 3)` in the model's representation.
        lengths: integers `(batch,)`, the number of points of each sketch.
        amount: standard deviation of the drawn noise, in the unit of `points`: for sketches of
            radius 10, 0.1 is a hundredth of the radius.
        seed: two integers; equal seeds give equal noise.
        representation: meaning of the columns, `"absolute"` or `"delta"`; steps change by the
            differences of the noise.

    Returns:
        float32 tensor of the shape of `points`.

    Raises:
        ValueError: if `amount` is negative or not finite, or `representation` is unknown.
    """
    _check_jitter(amount)
    check_representation(representation)
    points = tf.convert_to_tensor(points, tf.float32)
    shape = tf.shape(points)
    # One knot before the first point and one after the last.
    knots = tf.random.stateless_normal(
        [shape[0], shape[1] // JITTER_SPACING + 2, 2], seed, stddev=amount, alg="philox"
    )
    place = tf.range(shape[1])
    knot = place // JITTER_SPACING
    weight = tf.cast(place % JITTER_SPACING, tf.float32)[None, :, None] / JITTER_SPACING
    noise = tf.gather(knots, knot, axis=1) * (1 - weight)
    noise += tf.gather(knots, knot + 1, axis=1) * weight
    if representation == "delta":
        # The first step starts at the origin, which does not move.
        noise = noise - tf.pad(noise, [[0, 0], [1, 0], [0, 0]])[:, :-1]
    inside = tf.sequence_mask(lengths, shape[1], tf.float32)[:, :, None]
    return points + tf.pad(noise * inside, [[0, 0], [0, 0], [0, 1]])


def _check_jitter(amount) -> None:
    if not (amount >= 0 and np.isfinite(amount)):
        raise ValueError(f"jitter={amount!r} must be a number, 0 or more")


def eval_batches(
    arrays: SketchArrays, batch_size: int, length_multiple: int = 1
) -> tf.data.Dataset:
    """Return batches of all sketches, each once, in a fixed order from the shortest to the longest.

    Args:
        arrays: the sketches, at least one.
        batch_size: sketches per batch, at least 1; the last batch may hold fewer.
        length_multiple: as in `train_batches`.

    Returns:
        A finite `tf.data.Dataset` of known cardinality, with the elements of `train_batches`.

    Raises:
        ValueError: if `batch_size` or `length_multiple` is below 1, or there is no sketch.

    Example:

    >>> arrays = SketchArrays.from_list([np.ones((n, 3)) for n in (5, 7, 9, 11)])
    >>> [batch["lengths"].numpy().tolist() for batch in eval_batches(arrays, batch_size=3)]
    [[5, 7, 9], [11]]
    """
    batch_size = _check_batch_size(batch_size)
    check_whole("length_multiple", length_multiple, 1, 2**31)
    if len(arrays) == 0:
        raise ValueError("arrays holds no sketch; evaluation needs at least one")
    order = np.argsort(arrays.lengths, kind="stable").astype(np.int32)
    batches = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
    return _gather_batches(batches.map(lambda numbers: (numbers, ())), arrays, length_multiple)


def padding_waste(arrays: SketchArrays, batch_size: int, seed: int = 0, epochs: int = 1) -> float:
    """Return the share of padding among the points of training batches.

    Args:
        arrays: the training sketches.
        batch_size: sketches per batch, from 1 to `len(arrays)`.
        seed: the seed given to `train_batches`.
        epochs: number of epochs to count, from epoch 0.

    Returns:
        A fraction in `[0, 1)`: padding over all points, summed over the batches.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> arrays = SketchArrays.from_list([np.ones((n, 3)) for n in (5, 7, 9, 11)])
    >>> padding_waste(arrays, batch_size=4)
    0.2727272727272727
    """
    steps = steps_per_epoch(arrays, batch_size)
    check_whole("seed", seed, 0, 2**63)
    check_whole("epochs", epochs, 1, 2**31)
    used = total = 0
    for epoch in range(epochs):
        order = _epoch_order(arrays.lengths, batch_size, seed, epoch).numpy()
        lengths = arrays.lengths[order].reshape(steps, batch_size).astype(np.int64)
        used += lengths.sum()
        total += lengths.max(axis=1).sum() * batch_size
    return float(1 - used / total)


def sample_lengths(arrays: SketchArrays, n: int, seed: int) -> np.ndarray:
    """Draw lengths for new sketches from those of the training sketches, as the original does.

    Args:
        arrays: the training sketches, at least one.
        n: number of lengths, at least 0.
        seed: integer, 0 or more; equal seeds give equal lengths.

    Returns:
        int32 array of shape `(n,)`.

    Raises:
        ValueError: if there is no sketch, or `n` or `seed` is negative.
    """
    if len(arrays) == 0:
        raise ValueError("arrays holds no sketch to take lengths from")
    check_whole("n", n, 0, 2**63)
    check_whole("seed", seed, 0, 2**63)
    # Sorted, so that the result depends only on how often each length occurs.
    return np.random.default_rng(seed).choice(np.sort(arrays.lengths), size=n)


def _epoch_order(lengths, batch_size: int, seed: int, epoch) -> tf.Tensor:
    """Return the indices of an epoch's sketches, batch by batch: int32 `(steps * batch_size,)`.

    A pure function of its arguments in stateless TensorFlow operations; no Python at run time.
    """
    shuffle = tf.random.experimental.stateless_shuffle
    steps = len(lengths) // batch_size
    used = steps * batch_size
    epoch_seed = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    # "philox" explicitly: the automatic choice depends on the device.
    order = shuffle(tf.range(len(lengths)), seed=epoch_seed, alg="philox")[:used]
    # One stable sort by (pool, length) sorts all pools at once.
    pool = tf.range(used, dtype=tf.int64) // (POOL_BATCHES * batch_size)
    key = pool * 2**31 + tf.cast(tf.gather(lengths, order), tf.int64)
    order = tf.gather(order, tf.argsort(key, stable=True))
    batch_seed = tf.random.fold_in(epoch_seed, 1, alg="philox")
    batches = shuffle(tf.range(steps), seed=batch_seed, alg="philox")
    return tf.reshape(tf.gather(tf.reshape(order, [steps, batch_size]), batches), [used])


def _gather_batches(
    batches: tf.data.Dataset, arrays: SketchArrays, length_multiple: int, augment=None
):
    """Turn a stream of `(sketch numbers, second argument of augment)` into batches."""
    # On the CPU, where tf.data runs; otherwise TensorFlow would place them on the GPU.
    with tf.device("CPU"):
        sketches = tf.RaggedTensor.from_row_lengths(arrays.points, arrays.lengths)

    def gather(numbers, place):
        chosen = tf.gather(sketches, numbers)
        # With a static batch size, training is a sixth faster.
        batch_size = numbers.shape[0]
        lengths = tf.cast(chosen.row_lengths(), tf.int32)
        batch = {
            "points": tf.ensure_shape(chosen.to_tensor(), [batch_size, None, 3]),
            "lengths": tf.ensure_shape(lengths, [batch_size]),
        }
        if augment is not None:
            batch = augment(batch, place)
        if length_multiple > 1:
            more = -tf.shape(batch["points"])[1] % length_multiple
            batch |= {"points": tf.pad(batch["points"], [[0, 0], [0, more], [0, 0]])}
        return batch

    dataset = batches.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _check_batch_size(batch_size: int) -> int:
    check_whole("batch_size", batch_size, 1, 2**31)
    return int(batch_size)
