"""Images of data sets that tensorflow-datasets has prepared."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_sparse_dm.data.cache import state_of
from keras_sparse_dm.data.images.decoding import decode_images
from keras_sparse_dm.data.images.plan import Plan, too_few
from keras_sparse_dm.lazy import lazy_module

tfds = lazy_module("tensorflow_datasets")

if TYPE_CHECKING:
    import tensorflow as tf


def plan_tfds(published, data_dir, counts, seed, download) -> Plan:
    """Plan the images of a data set that tensorflow-datasets has prepared or may download."""
    candidates = published.tfds_names[:1] if download else published.tfds_names
    builders = [tfds.builder(name, data_dir=data_dir) for name in candidates]
    builder = next((b for b in builders if b.data_path.exists()), builders[0])
    if download:
        builder.download_and_prepare()

    splits = ["train", published.validation_split or "train"]
    sizes = [_tfds_size(published, builder, split, data_dir) for split in splits]
    rng = np.random.default_rng(seed)
    if published.validation_split is None:
        # tensorflow-datasets has shuffled the examples by a hash of their keys, so any run of them
        # is a random choice, and only that run needs to be read.
        if sum(counts) > sizes[0]:
            raise ValueError(too_few(builder.info.full_name, sizes[0], *counts))
        start = int(rng.integers(sizes[0] - sum(counts) + 1))
        runs = [("train", start, start + sum(counts))]
        available = sizes[0]
    else:
        runs = []
        for i, argument in enumerate(("train_images", "validation_images")):
            counts[i] = sizes[i] if counts[i] is None else counts[i]
            if counts[i] > sizes[i]:
                raise ValueError(
                    f"{argument}={counts[i]} is more than the {sizes[i]:,} images of "
                    f"{builder.info.full_name} there"
                )
            start = int(rng.integers(sizes[i] - counts[i] + 1))
            runs.append((splits[i], start, start + counts[i]))
        available = sum(sizes)
    folder = Path(builder.data_path)
    files = sorted(f for f in folder.iterdir() if f.is_file()) if folder.is_dir() else []
    return Plan(
        title=published.title,
        train=counts[0],
        validation=counts[1],
        items=_tfds_items(builder, runs),
        state=[builder.info.full_name, runs, state_of(files)],
        flip=published.flip,
        available=available if available > sum(counts) else None,
        decode=decode_images,
    )


def _tfds_dataset(builder, split: str) -> tf.data.Dataset:
    """Return the examples of a split in the order of its files, with images as file contents."""
    return builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(
            interleave_cycle_length=1, add_tfds_id=True, try_autocache=False
        ),
    )


def _tfds_size(published, builder, split: str, data_dir) -> int:
    try:
        return int(_tfds_dataset(builder, split).cardinality())
    except AssertionError:  # raised by tensorflow-datasets if the data are missing
        here = "" if data_dir is None else f"data_dir={str(data_dir)!r} holds no image file, and "
        raise FileNotFoundError(
            f"{published.title} is not there: {here}tensorflow-datasets has no "
            f"{builder.info.full_name} in {str(builder.data_path)!r}; {published.how_to_get}"
        ) from None


def _tfds_items(builder, runs) -> Iterator[tuple[str, bytes]]:
    for split, start, end in runs:
        dataset = _tfds_dataset(builder, f"{split}[{start}:{end}]")
        for example in itertools.islice(dataset.as_numpy_iterator(), end - start):
            # The name of the file if the data set keeps it, else the place of the example.
            name = example.get("image/filename", example.get("id", example["tfds_id"]))
            yield name.decode("utf-8", "replace"), example["image"]
