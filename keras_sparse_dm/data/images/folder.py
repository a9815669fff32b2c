"""Images of any folder and its subfolders."""

from __future__ import annotations

import os
from pathlib import Path

from keras_sparse_dm.data.cache import state_of
from keras_sparse_dm.data.images.decoding import decode_images
from keras_sparse_dm.data.images.plan import Plan, split_files

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")


def list_images(data_dir, hint: str = "") -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted, without hidden ones."""
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"data_dir={str(folder)!r} {what}; " + (hint or "give a folder of image files")
        )
    files = []
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        # A link to a parent folder would never end.
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files.extend(
            Path(parent, name)
            for name in sorted(names)
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        )
    return files


def plan_own_folder(dataset, data_dir, counts, seed, *, validation, **others) -> Plan:
    """Plan the images of a user's folder; the arguments are those of `load_images`."""
    if data_dir is None:
        raise ValueError(f"data_dir=None: dataset={dataset!r} needs data_dir, a folder of images")
    files = list_images(data_dir)
    title = Path(data_dir).expanduser().resolve().name
    return plan_folder(title, files, data_dir, counts, seed, validation)


def plan_folder(title, files, data_dir, counts, seed, share=0.5, flip=False) -> Plan:
    """Plan the images of `files` in a folder; `share` of them are for validation by default."""
    folder = Path(data_dir).expanduser()
    what = f"data_dir={str(folder)!r}"
    if not files:
        raise ValueError(
            f"{what} holds no image file; give a folder with files of a known format "
            f"({', '.join(IMAGE_SUFFIXES)})"
        )
    train, validation = split_files(files, counts, seed, share, what)
    return plan_files(title, folder, train, validation, len(files), flip)


def plan_files(title, folder, train, validation, available, flip) -> Plan:
    """Plan the images of two lists of files below a folder."""
    files = train + validation
    state = state_of(files, folder)
    return Plan(
        title=title,
        train=len(train),
        validation=len(validation),
        items=[(name, file) for (name, *_), file in zip(state, files, strict=True)],
        state=state,
        flip=flip,
        available=available if available > len(files) else None,
        decode=decode_images,
    )
