"""Prepared sketches as packed arrays, and batches of them for training and evaluation."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from keras_sparse_dm.data.cache import PreparationSummary
from keras_sparse_dm.data.sketch import check_representation

if TYPE_CHECKING:
    import tensorflow as tf

# Batches are cut from pools of this many batches' worth of sketches, sorted by length. Larger
# pools waste less padding; smaller ones mix sketches of different lengths better.
POOL_BATCHES = 16
# Points between those at which the noise of augmentation is drawn.
JITTER_SPACING = 8


@dataclass(frozen=True, eq=False)
class SketchArrays:
    """Sketches in the model's representation, packed end to end in one array.

    `len(arrays)` is the number of sketches, `arrays[i]` the points of sketch i.

    Args:
        points: float32 array of shape `(sum of lengths, 3)`.
        lengths: int32 array of shape `(n,)`, the number of points of each sketch, at least 1.
        names: the sketches' names, n strings.
        representation: what the three columns are, see `sketch.REPRESENTATIONS`.
        summary: how the data set was prepared, or None.
        labels: what the sketches show, n strings; by default none is known.

    Raises:
        ValueError: if shapes or sizes do not fit together, or a point is not finite.
    """

    points: np.ndarray
    lengths: np.ndarray
    names: tuple[str, ...]
    representation: str = "absolute"
    summary: PreparationSummary | None = None
    labels: tuple[str, ...] = ()

    def __post_init__(self):
        points = np.ascontiguousarray(self.points, np.float32)
        lengths = np.asarray(self.lengths, np.int32)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"points has shape {points.shape}; it must be (sum of lengths, 3)")
        if lengths.ndim != 1 or (lengths < 1).any():
            raise ValueError("lengths must be a row of numbers of points, each at least 1")
        if lengths.sum(dtype=np.int64) != len(points):
            raise ValueError(
                f"lengths add up to {lengths.sum(dtype=np.int64)}, but points has {len(points)}"
            )
        if len(self.names) != len(lengths):
            raise ValueError(f"names holds {len(self.names)} names for {len(lengths)} sketches")
        labels = self.labels if len(self.labels) else ("",) * len(lengths)
        if len(labels) != len(lengths):
            raise ValueError(f"labels holds {len(labels)} labels for {len(lengths)} sketches")
        if not np.isfinite(points).all():
            raise ValueError("points holds a NaN or infinite value; all values must be finite")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "names", tuple(map(str, self.names)))
        object.__setattr__(self, "labels", tuple(map(str, labels)))

    @classmethod
    def from_list(
        cls,
        sketches: Iterable[np.ndarray],
        names: Sequence[str] | None = None,
        representation: str = "absolute",
        summary: PreparationSummary | None = None,
        labels: Sequence[str] = (),
    ) -> SketchArrays:
        """Packs arrays of shape `(length, 3)`, one per sketch.

        Args:
            sketches: the arrays, for example from `to_absolute`.
            names: one name per sketch; by default their numbers.
            representation: what the columns are.
            summary: how they were prepared.
            labels: what they show, one each; by default none is known.

        Returns:
            The packed arrays, in the same order.

        Raises:
            ValueError: if an array has another shape or no point.
        """
        sketches = [np.asarray(s, np.float32) for s in sketches]
        for i, points in enumerate(sketches):
            if points.ndim != 2 or points.shape[1] != 3:
                raise ValueError(f"sketch {i} has shape {points.shape}; it must be (length, 3)")
        lengths = np.array([len(s) for s in sketches], np.int32)
        if names is None:
            names = tuple(map(str, range(len(sketches))))
        packed = np.concatenate([np.zeros((0, 3), np.float32), *sketches])
        return cls(packed, lengths, tuple(names), representation, summary, tuple(labels))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> np.ndarray:
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"sketch {i} of {len(self)}")
        end = self._ends[i]
        return self.points[end - self.lengths[i] : end]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return (
            f"SketchArrays({len(self)} sketches, {len(self.points)} points, "
            f"representation={self.representation!r})"
        )

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.lengths, dtype=np.int64)

    @property
    def max_length(self) -> int:
        """Number of points of the longest sketch, 0 without sketches."""
        return int(self.lengths.max(initial=0))

    def subset(self, indices) -> SketchArrays:
        """The sketches at `indices`, in that order.

        Args:
            indices: integers in `[0, len(self))`.

        Returns:
            Arrays of their own, with the same representation and summary.
        """
        indices = np.asarray(indices, np.int64)
        lengths = self.lengths[indices]
        starts = (self._ends - self.lengths)[indices]
        # The packed rows of the chosen sketches: each sketch's start plus 0, 1, ... length - 1.
        offsets = np.cumsum(lengths, dtype=np.int64) - lengths
        rows = np.repeat(starts - offsets, lengths) + np.arange(lengths.sum(dtype=np.int64))
        return replace(
            self,
            points=self.points[rows],
            lengths=lengths,
            names=tuple(self.names[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
        )

    def take(self, n: int) -> SketchArrays:
        """The first `n` sketches, or all where there are fewer.

        Args:
            n: number of sketches, at least 0.

        Returns:
            Arrays of their own.

        Raises:
            ValueError: if `n` is negative.
        """
        if n < 0:
            raise ValueError(f"n={n} must be 0 or more sketches")
        return self.subset(np.arange(min(n, len(self))))


def steps_per_epoch(arrays: SketchArrays, batch_size: int) -> int:
    """Number of training batches in an epoch: only full ones, so `len(arrays) // batch_size`.

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
            f"batch_size={batch_size} is more than the {len(arrays)} sketches there are; "
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
) -> tf.data.Dataset:
    """An endless stream of shuffled training batches of sketches of similar length.

    Each epoch permutes all sketches, cuts the permutation in pools of `POOL_BATCHES` batches,
    sorts each pool by length, cuts it into batches of exactly `batch_size`, and shuffles the
    batches; the last `len(arrays) % batch_size` sketches of the permutation sit the epoch out.

    The order of epoch e depends on `seed` and e alone. So the stream begun at
    `initial_epoch=k` is, bit for bit, what an unbroken stream gives from epoch k on: a resumed
    run sees the batches that it would have seen.

    Args:
        arrays: the training sketches, held once in memory.
        batch_size: sketches per batch, from 1 to `len(arrays)`.
        seed: integer in `[0, 2**63)`.
        initial_epoch: number of the first epoch, from 0 on.
        epochs: how many epochs the stream holds, counted from `initial_epoch`; endless if None.
        jitter: amount of augmentation, see `jitter_points`, other in each epoch; 0 for none.
        num_shards: number of workers that share the batches of each epoch, every one with its
            own. They all give the same `seed`.
        shard: which of them this is, from 0 on.

    Returns:
        A `tf.data.Dataset` of dictionaries: `"points"`, float32 `(batch, length, 3)`, zero after
        each sketch's own length, where `length` is that of the batch's longest sketch; and
        `"lengths"`, int32 `(batch,)`. `steps_per_epoch` batches make an epoch, of which each of
        several workers gets the same number, and no one those that are over.

    Raises:
        ValueError: if an argument is out of its range.
    """
    import tensorflow as tf

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
            # Another stream than the order's, which folds other numbers into the same seed.
            noise_seed = run_seed
            for number in tf.unstack(place):
                noise_seed = tf.random.fold_in(noise_seed, number, alg="philox")
            points = jitter_points(
                batch["points"], batch["lengths"], jitter, noise_seed, arrays.representation
            )
            return batch | {"points": points}

    dataset = _gather_batches(dataset, arrays, augment)
    return dataset.apply(
        tf.data.experimental.assert_cardinality(
            tf.data.INFINITE_CARDINALITY if epochs is None else steps * epochs
        )
    )


def jitter_points(
    points, lengths, amount: float, seed, representation: str = "absolute"
) -> tf.Tensor:
    """Bends sketches a little, as another hand would draw them: augmentation.

    Each point moves by noise that changes smoothly along the sketch: drawn every
    `JITTER_SPACING` points and interpolated in between. Pen bits and padding stay. (The original
    ChiroDiff offers smooth noise too, drawn once when a sketch is read.)

    Args:
        points: float tensor `(batch, length, 3)` in the model's representation.
        lengths: integers `(batch,)`, the number of points of each sketch.
        amount: standard deviation of the noise where it is drawn, in the unit of `points`: with
            sketches of radius 10, 0.1 is a hundredth of that radius.
        seed: two integers; equal seeds give equal noise.
        representation: what the columns are; steps change by the noise's differences.

    Returns:
        float32 tensor of the shape of `points`.

    Raises:
        ValueError: if `amount` is negative or not finite, or `representation` is unknown.
    """
    import tensorflow as tf

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
        # The first step starts at the origin, which stays.
        noise = noise - tf.pad(noise, [[0, 0], [1, 0], [0, 0]])[:, :-1]
    inside = tf.sequence_mask(lengths, shape[1], tf.float32)[:, :, None]
    return points + tf.pad(noise * inside, [[0, 0], [0, 0], [0, 1]])


def _check_jitter(amount) -> None:
    if not (amount >= 0 and np.isfinite(amount)):
        raise ValueError(f"jitter={amount!r} must be a number, 0 or more")


def eval_batches(arrays: SketchArrays, batch_size: int) -> tf.data.Dataset:
    """All sketches once, in one fixed order: by length, the shortest first.

    Args:
        arrays: the sketches, at least one.
        batch_size: sketches per batch, at least 1; the last batch may hold fewer.

    Returns:
        A finite `tf.data.Dataset` of known cardinality, with elements as `train_batches` has.

    Raises:
        ValueError: if `batch_size` is below 1, or there is no sketch.
    """
    import tensorflow as tf

    batch_size = _check_batch_size(batch_size)
    if len(arrays) == 0:
        raise ValueError("arrays holds no sketch; there must be at least one to evaluate on")
    order = np.argsort(arrays.lengths, kind="stable").astype(np.int32)
    batches = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
    return _gather_batches(batches.map(lambda numbers: (numbers, ())), arrays)


def padding_waste(arrays: SketchArrays, batch_size: int, seed: int = 0, epochs: int = 1) -> float:
    """Share of the points in training batches that are padding.

    Args:
        arrays: the training sketches.
        batch_size: sketches per batch, from 1 to `len(arrays)`.
        seed: the seed given to `train_batches`.
        epochs: how many epochs to count, from epoch 0 on.

    Returns:
        A fraction in `[0, 1)`: padded points over all points, summed over the batches.

    Raises:
        ValueError: if an argument is out of its range.
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
    """Draws lengths for new sketches from those of the training sketches, as the original does.

    Args:
        arrays: the training sketches, at least one.
        n: how many lengths, at least 0.
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
    # Sorted, so that they depend on how often each length occurs and on nothing else.
    return np.random.default_rng(seed).choice(np.sort(arrays.lengths), size=n)


def _epoch_order(lengths, batch_size: int, seed: int, epoch) -> tf.Tensor:
    """Indices of the epoch's sketches, batch after batch: int32 `(steps * batch_size,)`.

    Stateless TensorFlow operations throughout: a pure function of its arguments, and no Python
    at run time.
    """
    import tensorflow as tf

    shuffle = tf.random.experimental.stateless_shuffle
    steps = len(lengths) // batch_size
    used = steps * batch_size
    epoch_seed = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    # "philox" by name, since the automatic choice depends on the device.
    order = shuffle(tf.range(len(lengths)), seed=epoch_seed, alg="philox")[:used]
    # One stable sort by (pool, length) sorts all pools at once.
    pool = tf.range(used, dtype=tf.int64) // (POOL_BATCHES * batch_size)
    key = pool * 2**31 + tf.cast(tf.gather(lengths, order), tf.int64)
    order = tf.gather(order, tf.argsort(key, stable=True))
    batch_seed = tf.random.fold_in(epoch_seed, 1, alg="philox")
    batches = shuffle(tf.range(steps), seed=batch_seed, alg="philox")
    return tf.reshape(tf.gather(tf.reshape(order, [steps, batch_size]), batches), [used])


def _gather_batches(batches: tf.data.Dataset, arrays: SketchArrays, augment=None):
    """Turns a stream of `(sketch numbers, what `augment` takes beside a batch)` into batches."""
    import tensorflow as tf

    # On the CPU, where tf.data runs: on a GPU machine TensorFlow would put them on the GPU.
    with tf.device("CPU"):
        sketches = tf.RaggedTensor.from_row_lengths(arrays.points, arrays.lengths)

    def gather(numbers, place):
        chosen = tf.gather(sketches, numbers)
        # A graph that knows the batch size trains a sixth faster than one that does not.
        batch_size = numbers.shape[0]
        lengths = tf.cast(chosen.row_lengths(), tf.int32)
        batch = {
            "points": tf.ensure_shape(chosen.to_tensor(), [batch_size, None, 3]),
            "lengths": tf.ensure_shape(lengths, [batch_size]),
        }
        return batch if augment is None else augment(batch, place)

    dataset = batches.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _check_batch_size(batch_size: int) -> int:
    check_whole("batch_size", batch_size, 1, 2**31)
    return int(batch_size)


def check_whole(argument: str, value, low: int, high: int) -> None:
    """Raises the ValueError that names the argument, unless `value` is whole, in [low, high)."""
    try:
        whole = operator.index(value)
    except TypeError:
        raise ValueError(f"{argument}={value!r} must be a whole number, {low} or more") from None
    if not low <= whole < high:
        raise ValueError(f"{argument}={value!r} must be from {low} to {high - 1}")
