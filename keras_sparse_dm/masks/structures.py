"""Structures of masks: single weights, blocks, and N:M groups.

A unit is the smallest part of a kernel that is dropped or grown: a single weight, or a block of
weights along the input axis, for runtimes that skip blocks of zeros. A structure defines the units
of a kernel and, for N:M, the allowed positions of a mask's ones.
"""

import math
from dataclasses import dataclass

from keras import ops, random

from keras_sparse_dm.masks.top_k import top_k_mask


@dataclass(frozen=True)
class Unstructured:
    """Structure of single weights, as in the paper."""

    code = (0, 0, 0)
    # Number of weights in a unit.
    unit = 1

    def __str__(self):
        return ""

    def misfit(self, shape, axis):
        """Return the reason why a kernel cannot have the structure, or None.

        Args:
            shape: Shape of the kernel.
            axis: Input axis of the kernel, counted from the end; None without a pure input axis.
        """
        return None

    def ones(self, shape, density):
        """Return the number of ones of a mask with this shape and density."""
        return round(density * math.prod(shape))

    def to_units(self, values, axis, reduce):
        """Reduce values to one per unit, by `ops.sum` for scores or `ops.any` for masks."""
        return values

    def to_weights(self, units, shape, axis):
        """Return the mask of weights for a mask of units."""
        return units

    def unit_shape(self, shape, axis):
        """Return the shape of the units of a kernel of this shape."""
        return tuple(shape)

    def random_mask(self, shape, density, seed, axis):
        """Draw a mask with `ones(shape, density)` ones, placed uniformly at random."""
        score = random.uniform(self.unit_shape(shape, axis), seed=seed)
        return self.to_weights(self.best(score, shape, self.ones(shape, density)), shape, axis)

    def mask_of_largest(self, score, axis, ones):
        """Return the mask of the units with the largest total score.

        Args:
            score: Float array of the kernel's shape, not negative.
            axis: The kernel's input axis, counted from the end.
            ones: Number of ones, a multiple of `unit`, from `ones(shape, density)`. N:M fixes the
                number and ignores this argument.
        """
        shape = tuple(score.shape)
        units = self.best(self.to_units(score, axis, ops.sum), shape, ones)
        return self.to_weights(units, shape, axis)

    def best(self, score, shape, ones):
        """Mark the units with the largest scores, `ones` weights in total."""
        return top_k_mask(score, ones // self.unit)

    def grow(self, kept, score, count):
        """Mark the `count` units with the largest scores among those not kept.

        Args:
            kept: Boolean array, the units that stay active.
            score: Float array of the same shape, not negative.
            count: Integer, the number of units to mark.

        Returns:
            Boolean array, disjoint from `kept`.
        """
        return top_k_mask(score, count, eligible=ops.logical_not(kept))


@dataclass(frozen=True)
class Blocks(Unstructured):
    """Structure of blocks along the input axis, each active or pruned as a whole.

    The score of a block is the sum of its weights' scores.

    Args:
        size: Number of weights in a block; must divide the input axis. XNNPACK uses blocks of 4.

    Raises:
        ValueError: for a size that is not a whole number of at least 2.
    """

    size: int = 4

    def __post_init__(self):
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 2:
            raise ValueError(f"`size` must be a whole number of at least 2; received {self.size}.")

    @property
    def code(self):
        return (1, self.size, 0)

    @property
    def unit(self):
        return self.size

    def __str__(self):
        return f"blocks of {self.size}"

    def misfit(self, shape, axis):
        return _misfit(shape, axis, self.size, f"blocks of {self.size}")

    def ones(self, shape, density):
        return round(density * math.prod(shape) / self.size) * self.size

    def to_units(self, values, axis, reduce):
        return reduce(_grouped(values, axis, self.size), axis=-1)

    def to_weights(self, units, shape, axis):
        groups = ops.repeat(ops.expand_dims(units, -1), self.size, axis=-1)
        return _ungrouped(groups, shape, axis)

    def unit_shape(self, shape, axis):
        moved = _moved(shape, axis)
        return (*moved[:-1], moved[-1] // self.size)


@dataclass(frozen=True)
class NM(Unstructured):
    """Structure with exactly `n` active weights of every `m` neighbours on the input axis (2:4).

    Every kernel has density n / m. The weakest weights of the whole kernel are dropped, and each
    group grows as many weights as it lost.

    Args:
        n: Number of active weights in a group, from 1 to `m` - 1.
        m: Number of weights in a group; must divide the input axis.

    Raises:
        ValueError: for values outside these ranges.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self):
        if not (isinstance(self.n, int) and isinstance(self.m, int) and 1 <= self.n < self.m):
            raise ValueError(
                f"`n` and `m` must be whole numbers with 1 <= n < m; received {self.n}, {self.m}."
            )

    @property
    def code(self):
        return (2, self.n, self.m)

    def __str__(self):
        return f"{self.n}:{self.m}"

    def misfit(self, shape, axis):
        return _misfit(shape, axis, self.m, f"groups of {self.m}")

    def ones(self, shape, density):
        return math.prod(shape) // self.m * self.n

    def to_units(self, values, axis, reduce):
        # Units are single weights, arranged in groups.
        return _grouped(values, axis, self.m)

    def to_weights(self, units, shape, axis):
        return _ungrouped(units, shape, axis)

    def random_mask(self, shape, density, seed, axis):
        # The scores are drawn in the order of the kernel's weights, then grouped.
        return self.mask_of_largest(random.uniform(shape, seed=seed), axis, None)

    def best(self, score, shape, ones):
        return _rank(score) < self.n

    def grow(self, kept, score, count):
        lost = self.n - ops.sum(ops.cast(kept, "int32"), axis=-1, keepdims=True)
        score = ops.cast(score, "float32")
        score = ops.where(ops.isnan(score), float("inf"), score)
        # Kept weights rank behind all others.
        rank = _rank(ops.where(kept, -1.0, score))
        return ops.logical_and(rank < lost, ops.logical_not(kept))


def structure_from_code(code):
    """Return the structure of a `code`, the three numbers in weights files."""
    kind, a, b = (int(number) for number in code)
    return (Unstructured, Blocks, NM)[kind](*(a, b)[:kind])


def _misfit(shape, axis, size, what):
    if axis is None:
        return f"no input axis for {what}"
    if shape[axis] % size:
        return f"input axis of {shape[axis]} is not a multiple of {what}"
    return None


def _moved(shape, axis):
    moved = list(shape)
    last = moved.pop(axis)
    return (*moved, last)


def _grouped(values, axis, size):
    """Move the input axis last and split it into groups."""
    values = ops.moveaxis(values, axis, -1)
    return ops.reshape(values, (*values.shape[:-1], -1, size))


def _ungrouped(groups, shape, axis):
    moved = _moved(shape, axis)
    return ops.moveaxis(ops.reshape(groups, moved), -1, axis)


def _rank(score):
    """Return the rank of each entry along the last axis, 0 for the largest or the first of ties."""
    size = score.shape[-1]
    position = ops.arange(size)
    rank = ops.zeros(ops.shape(score), "int32")
    for i in range(size):
        other = score[..., i : i + 1]
        before = ops.logical_or(other > score, ops.logical_and(other == score, i < position))
        rank = rank + ops.cast(before, "int32")
    return rank
