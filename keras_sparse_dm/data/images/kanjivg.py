"""KanjiVG's sketches as images, split as `load_kanjivg` splits the sketches."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from keras_sparse_dm.data.cache import state_of
from keras_sparse_dm.data.images.decoding import result_or_reason
from keras_sparse_dm.data.images.plan import Plan
from keras_sparse_dm.data.rasterization import KANJIVG_BOX, rasterize
from keras_sparse_dm.data.reading import read_svg
from keras_sparse_dm.data.sketches.kanjivg import kanjivg_folder, load_kanjivg


def plan_kanjivg(
    dataset, data_dir, counts, seed, *, cache_dir, characters, workers, progress, **others
) -> Plan:
    """Plan images of KanjiVG; the arguments are those of `load_images`."""
    folder = kanjivg_folder() if data_dir is None else Path(data_dir).expanduser()
    # The sketches' names give the same split, without the sketches that are too long.
    sketches = load_kanjivg(
        folder,
        cache_dir,
        split_seed=seed,
        workers=workers,
        progress=progress,
        characters=characters,
    )
    parts = []
    for part, arrays in zip(("train_images", "validation_images"), sketches, strict=True):
        count = counts[len(parts)]
        if count is not None and count > len(arrays):
            raise ValueError(f"{part}={count} is more than the {len(arrays):,} sketches of KanjiVG")
        parts.append([folder / f"{name}.svg" for name in arrays.names[:count]])
    files = sum(parts, [])
    available = sum(map(len, sketches))
    return Plan(
        title="KanjiVG",
        train=len(parts[0]),
        validation=len(parts[1]),
        items=[(file.stem, file) for file in files],
        state=state_of(files),
        available=available if available > len(files) else None,
        decode=rasterize_files,
    )


def rasterize_files(items, size: int) -> list[tuple[str, np.ndarray | None, bool, str | None]]:
    """Draw the sketches of `.svg` files; see `decode_images`."""
    return [result_or_reason(name, partial(_rasterize_file, file, size)) for name, file in items]


def _rasterize_file(file: Path, size: int) -> tuple[np.ndarray, bool]:
    picture = rasterize(read_svg(file), size, box=KANJIVG_BOX)
    return np.repeat(picture[:, :, None], 3, axis=2), False
