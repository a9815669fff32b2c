"""Plans of the images to prepare, which each kind of data set makes in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Plan:
    """Images to prepare: first those for training, then those for validation."""

    title: str
    train: int
    validation: int
    # Pairs of a name and an input of `decode`; `train + validation` in all.
    items: Iterable[tuple[str, object]] = field(repr=False)
    # Value on which the cache's name depends, besides size and version.
    state: object = field(repr=False)
    flip: bool = False
    available: int | None = None
    # Function of a list of items and the size, which runs in worker processes.
    decode: Callable | None = field(default=None, repr=False)


def split_files(files, counts, seed: int, share: float, what: str):
    """Return two lists in random order: the files for training and those for validation."""
    train, validation = counts
    if validation is None:
        validation = max(1, int(len(files) * share))
    if train is None:
        train = max(1, len(files) - validation)
    if train + validation > len(files):
        raise ValueError(too_few(what, len(files), train, validation))
    order = np.random.default_rng(seed).permutation(len(files))
    return (
        [files[i] for i in order[:train]],
        [files[i] for i in order[train : train + validation]],
    )


def too_few(what: str, there: int, train: int, validation: int) -> str:
    """Return the message that `what` holds fewer images than requested."""
    return (
        f"{what} holds {there:,} images, but {train:,} for training and {validation:,} for "
        "validation were requested; set train_images and validation_images to lower numbers"
    )
