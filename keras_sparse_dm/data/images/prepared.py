"""Prepared images in the cache: written once, then mapped."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

import numpy as np

from keras_sparse_dm.data.cache import check_free_space, fingerprint_of, new_cache_file
from keras_sparse_dm.data.images.arrays import ImageArrays
from keras_sparse_dm.data.images.plan import Plan
from keras_sparse_dm.data.row_files import Rows, write_description
from keras_sparse_dm.data.summary import PreparationSummary, check_broken
from keras_sparse_dm.data.worker_processes import map_chunks

# Part of the cache's file name. Increase it with every change of the file's layout, or of the
# images that preparation makes of the same file.
CACHE_VERSION = 1

# With fewer images, starting processes takes more time than it saves.
_SERIAL_IMAGES = 128
_CHUNK_IMAGES = 16


def write_images(plan: Plan, cache: Path, size: int, workers, progress: bool) -> None:
    """Prepare all images of a plan, and write them and their description to the cache."""
    total = plan.train + plan.validation
    check_free_space(cache.parent, total * size * size * 3 + 2**20)
    leftovers = f"images-v{CACHE_VERSION}-*.tmp"
    names, broken = [], []
    enlarged = train = 0
    results = map_chunks(
        partial(plan.decode, size=size),
        plan.items,
        total=total,
        chunk=_CHUNK_IMAGES,
        workers=1 if total < _SERIAL_IMAGES else workers,
        progress=progress,
        title=f"Preparing images of {plan.title}",
    )
    try:
        with contextlib.closing(results), new_cache_file(cache, leftovers) as file:
            rows = Rows(file, (size, size, 3), np.uint8)
            for i, (name, image, small, reason) in enumerate(results):
                if image is None:
                    broken.append((name, reason))
                    check_broken(broken, total, plan.title)
                    continue
                rows.add(image[None])
                names.append(name)
                enlarged += small
                train += i < plan.train
            if len(names) + len(broken) != total:
                raise ValueError(
                    f"{plan.title}: only {len(names) + len(broken)} of {total} images are there; "
                    "its files are incomplete"
                )
            if not 0 < train < len(names):
                raise ValueError(
                    f"{plan.title}: of {total} images {train} are left for training and "
                    f"{len(names) - train} for validation; both need at least one"
                )
            checksum = rows.finish()
        description = {
            "checksum": checksum,
            "names": names,
            "train": train,
            "read": total,
            "enlarged": enlarged,
            "broken": broken,
        }
        write_description(cache, description, leftovers)
    except OSError as error:
        raise OSError(
            f"the prepared images cannot be written to {cache} ({error}); "
            "cache_dir or KERAS_SPARSE_DM_CACHE sets another folder",
        ) from error


def check_images(rows, description, size: int) -> None:
    """Raise a ValueError if a cache file does not hold images of this size."""
    if rows.dtype != np.uint8 or rows.shape[1:] != (size, size, 3):
        raise ValueError(f"it holds {rows.dtype} of shape {rows.shape}")
    if len(description["names"]) != len(rows) or not 0 < description["train"] < len(rows):
        raise ValueError("its description does not fit")


def image_arrays(plan: Plan, rows: np.ndarray, description) -> tuple[ImageArrays, ImageArrays]:
    """Return a plan's images in the cache as arrays for training and for validation."""
    names = tuple(description["names"])
    train = description["train"]
    summary = PreparationSummary(
        source=plan.title,
        read=description["read"],
        kept=len(rows),
        broken=tuple((name, reason) for name, reason in description["broken"]),
        unit="images",
        available=plan.available,
        enlarged=description["enlarged"],
    )

    def part(chosen: slice, flip: bool) -> ImageArrays:
        content = [description["checksum"], chosen.start, chosen.stop, names[chosen], flip]
        return ImageArrays(rows[chosen], names[chosen], flip, summary, fingerprint_of(content))

    return part(slice(0, train), plan.flip), part(slice(train, len(rows)), False)
