"""A data set of prepared sketches, packed in one array."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from keras_sparse_dm.data.summary import PreparationSummary


@dataclass(frozen=True, eq=False)
class SketchArrays:
    """Sketches in the model's representation, packed end to end in one array.

    `len(arrays)` is the number of sketches and `arrays[i]` holds the points of sketch i.

    Args:
        points: float32 array of shape `(sum of lengths, 3)`.
        lengths: int32 array of shape `(n,)`, the number of points of each sketch, at least 1.
        names: names of the sketches, n strings.
        representation: meaning of the three columns, `"absolute"` or `"delta"`.
        summary: counts of the data set's preparation, or None.
        labels: categories of the sketches, n strings; by default empty.

    Raises:
        ValueError: if shapes or sizes do not fit together, or a point is not finite.

    Example:

    >>> arrays = SketchArrays.from_list([np.zeros((5, 3)), np.ones((7, 3))])
    >>> len(arrays), arrays[1].shape
    (2, (7, 3))
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
            raise ValueError(
                "lengths must be a one-dimensional array of numbers of points, each at least 1"
            )
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
        """Pack arrays of shape `(length, 3)`, one per sketch.

        Args:
            sketches: the arrays, for example from `to_absolute`.
            names: one name per sketch; by default its number.
            representation: meaning of the columns, `"absolute"` or `"delta"`.
            summary: counts of the preparation, or None.
            labels: one category per sketch; by default empty.

        Returns:
            The packed arrays, in the same order.

        Raises:
            ValueError: if an array has another shape, or no point.
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
        """Number of points of the longest sketch; 0 if there is no sketch."""
        return int(self.lengths.max(initial=0))

    def subset(self, indices) -> SketchArrays:
        """Return the sketches at `indices`, in that order.

        Args:
            indices: integers in `[0, len(self))`.

        Returns:
            A copy of these sketches, with the same representation and summary.
        """
        indices = np.asarray(indices, np.int64)
        lengths = self.lengths[indices]
        starts = (self._ends - self.lengths)[indices]
        # Rows of the chosen sketches: each sketch's start plus 0, 1, ... length - 1.
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
        """Return the first `n` sketches, or all if there are fewer.

        Args:
            n: number of sketches, at least 0.

        Returns:
            A copy of these sketches.

        Raises:
            ValueError: if `n` is negative.
        """
        if n < 0:
            raise ValueError(f"n={n} must be 0 or more sketches")
        return self.subset(np.arange(min(n, len(self))))
