"""Pictures of handwritten digits: MNIST where it is there, else what scikit-learn brings along.

Nothing is ever downloaded. MNIST (Yann LeCun, Corinna Cortes and Christopher Burges) is read from
the files in which it is published, or from what tensorflow-datasets has prepared. Without it the
1,797 digits that every scikit-learn holds (E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", CC BY 4.0), 8 x 8 pixels each, are enlarged to the size of MNIST's.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PARTS = ("train", "test", "all")

# Files that claim to hold more pixels are refused; MNIST has 47 million.
MAX_PIXELS = 2**29

HOW_TO_GET = (
    "for MNIST, run `tfds build mnist` and leave folder out; or put t10k-images-idx3-ubyte.gz "
    "and t10k-labels-idx1-ubyte.gz (for the larger part train-...), from "
    "https://storage.googleapis.com/cvdf-datasets/mnist/, into a folder and name it as folder"
)

# "t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte", each perhaps with ".gz".
_IMAGES_NAME = re.compile(r"(.*)images([-.])idx3([-.])ubyte(\.gz)?")
_IMAGES_MAGIC, _LABELS_MAGIC = 2051, 2049

# MNIST's.
_SIZE = 28
# Enlarged edges are wide: less than this share of full brightness becomes dark. Of the digits of
# scikit-learn the most then keep their loops and are of one piece when they are traced.
_DARK = 1 / 6


@dataclass(frozen=True, eq=False)
class DigitImages:
    """Pictures of digits and what they show.

    Args:
        images: uint8 array of shape `(n, height, width)`, ink bright on 0.
        labels: uint8 array of shape `(n,)`, from 0 to 9.
        source: where they come from, for messages.
        files: the files they were read from; empty for digits that come with a package.

    Raises:
        ValueError: if type, shapes or labels do not fit.
    """

    images: np.ndarray
    labels: np.ndarray
    source: str
    files: tuple[Path, ...] = ()

    def __post_init__(self):
        for argument, value, axes in (
            ("images", self.images, "(n, height, width)"),
            ("labels", self.labels, "(n,)"),
        ):
            if value.dtype != np.uint8 or value.ndim != axes.count(",") + (axes != "(n,)"):
                raise ValueError(
                    f"{argument} has shape {value.shape} and type {value.dtype}; it must be uint8 "
                    f"of shape {axes}"
                )
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"{self.source}: {len(self.images)} images but {len(self.labels)} labels; there "
                "must be as many"
            )
        if (self.labels > 9).any():
            i = int(np.argmax(self.labels > 9))
            raise ValueError(
                f"{self.source}: label {i} is {self.labels[i]}; labels must be from 0 to 9"
            )

    def __len__(self) -> int:
        return len(self.images)


def load_digits(folder=None, part: str = "test") -> DigitImages:
    """Pictures of handwritten digits from where they are; nothing is downloaded.

    Args:
        folder: one of

            - a folder with MNIST's IDX files, as they are published or unpacked:
              `*images-idx3-ubyte` or `*images.idx3-ubyte`, the labels beside them;
            - one such file of images, whichever part it holds;
            - a folder in which tensorflow-datasets has prepared `mnist`;
            - None for tensorflow-datasets' usual folder, and, where that has no `mnist`, for the
              digits of scikit-learn, smoothly enlarged to 28 x 28 pixels. `source` says which.

        part: `"test"` for MNIST's 10,000 digits for testing, `"train"` for the 60,000 others,
            `"all"` for both, those for training first. The digits of scikit-learn have no parts:
            it is always all 1,797.

    Returns:
        Images and labels in the source's order.

    Raises:
        FileNotFoundError: if `folder` does not exist or does not hold MNIST or that part of
            it; the message says how to get it.
        ValueError: if `part` is unknown, or a file is broken; the message names it.
    """
    if part not in PARTS:
        raise ValueError(
            f"part={part!r} is unknown; it must be one of " + ", ".join(map(repr, PARTS))
        )
    if folder is None:
        digits = _read_tfds(None, part)
        return _embedded_digits() if digits is None else digits

    path = Path(folder).expanduser()
    if path.is_file():
        match = _IMAGES_NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(
                f"folder={str(path)!r} is a file, but not named as MNIST's images are "
                "(t10k-images-idx3-ubyte.gz); give such a file or its folder"
            )
        return _read_idx([path])
    if not path.is_dir():
        raise FileNotFoundError(f"folder={str(path)!r} does not exist; {HOW_TO_GET}")
    sets = _idx_files(path)
    if sets:
        return _read_idx(_select(sets, part, path))
    digits = _read_tfds(path, part)
    if digits is None:
        raise FileNotFoundError(
            f"folder={str(path)!r} holds neither IDX files of images (t10k-images-idx3-ubyte.gz) "
            f"nor a mnist that tensorflow-datasets has prepared; {HOW_TO_GET}"
        )
    return digits


# IDX files ---------------------------------------------------------------------------------


def _idx_files(folder: Path) -> dict[str, Path]:
    """The files of images by what their names begin with; unpacked ones before packed."""
    found = {}
    for file in sorted(folder.iterdir(), key=lambda file: (file.suffix == ".gz", file.name)):
        match = _IMAGES_NAME.fullmatch(file.name)
        if match is not None and file.is_file():
            found.setdefault(match[1], file)
    return found


def _select(sets: dict[str, Path], part: str, folder: Path) -> list[Path]:
    """The file of images that holds a part, or of all parts."""
    by_part = {"train": [], "test": []}
    for start, file in sorted(sets.items()):
        if "train" in start:
            by_part["train"].append(file)
        elif "t10k" in start or "test" in start:
            by_part["test"].append(file)
    names = ", ".join(file.name for file in sets.values())
    chosen = []
    for which in ("train", "test") if part == "all" else (part,):
        files = by_part[which]
        if not files:
            raise FileNotFoundError(
                f"folder={str(folder)!r} holds no IDX file of images for part={part!r}, "
                f"'{'train' if which == 'train' else 't10k'}-images-idx3-ubyte', but {names}; "
                "give another part, or such a file itself"
            )
        if len(files) > 1:
            raise ValueError(
                f"folder={str(folder)!r} holds more than one IDX file of images for "
                f"part={part!r}: {', '.join(file.name for file in files)}; give the file itself"
            )
        chosen += files
    return chosen


def _read_idx(files: list[Path]) -> DigitImages:
    images, labels, sources = [], [], []
    for file in files:
        sources.append((file, _labels_file(file)))
        images.append(_read_array(file, _IMAGES_MAGIC, 3))
        labels.append(_read_array(sources[-1][1], _LABELS_MAGIC, 1))
        # Checks each by itself, so that the message names the file.
        DigitImages(images[-1], labels[-1], str(file))
    if len({array.shape[1:] for array in images}) > 1:
        sizes = " and ".join(
            f"{width} x {height} in {file.name}"
            for file, (_, height, width) in zip(files, (a.shape for a in images), strict=True)
        )
        raise ValueError(f"{files[0].parent}: images of one size are needed; received {sizes}")
    return DigitImages(
        np.concatenate(images),
        np.concatenate(labels),
        f"MNIST ({', '.join(file.name for file in files)})",
        tuple(file for pair in sources for file in pair),
    )


def _labels_file(images: Path) -> Path:
    start, dash, second, packed = _IMAGES_NAME.fullmatch(images.name).groups()
    names = [
        f"{start}labels{a}idx1{b}ubyte{suffix}"
        for a, b in ((dash, second), ("-", "-"), (".", "-"))
        for suffix in (packed or "", ".gz", "")
    ]
    for name in names:
        if images.with_name(name).is_file():
            return images.with_name(name)
    raise FileNotFoundError(
        f"{images} has no file of labels beside it; there must be {images.with_name(names[0]).name}"
    )


def _read_array(file: Path, magic: int, axes: int) -> np.ndarray:
    """The uint8 array of an IDX file, of which no more is unpacked than its header announces."""
    what = {_IMAGES_MAGIC: "images", _LABELS_MAGIC: "labels"}
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(file) if packed else file.open("rb") as stream:
            header = stream.read(4 + 4 * axes)
            found = int.from_bytes(header[:4], "big")
            if len(header) >= 4 and found != magic:
                hint = f", that of {what[found]}" if found in what else ""
                raise ValueError(
                    f"{file}: begins with the number {found}{hint}; an IDX file of {what[magic]} "
                    f"begins with {magic}"
                )
            if len(header) < 4 + 4 * axes:
                raise ValueError(f"{file}: ends within the header of an IDX file")
            shape = struct.unpack(f">{axes}I", header[4:])
            size = math.prod(shape)
            if size == 0:
                raise ValueError(f"{file}: its header announces shape {shape}, which is empty")
            if size > MAX_PIXELS:
                raise ValueError(
                    f"{file}: its header announces shape {shape}, more than {MAX_PIXELS:,} bytes"
                )
            content = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        raise ValueError(f"{file}: cannot be unpacked: {error}") from error
    if len(content) != size:
        there = f"only {len(content):,}" if len(content) < size else "more"
        raise ValueError(
            f"{file}: its header announces shape {shape}, {size:,} bytes, but {there} follow"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


# tensorflow-datasets -----------------------------------------------------------------------


def _read_tfds(folder: Path | None, part: str) -> DigitImages | None:
    """What tensorflow-datasets has prepared, or None where it has nothing there."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder("mnist", data_dir=folder)
    try:
        dataset = builder.as_dataset(
            split="train+test" if part == "all" else part,
            shuffle_files=False,
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
    except AssertionError:  # what tensorflow-datasets raises for data that are not there
        return None
    folder = Path(builder.data_path)
    try:
        batches = list(dataset.batch(1000).as_numpy_iterator())
    except tf.errors.OpError as error:
        reason = " ".join(str(error.message).split())
        raise ValueError(
            f"{folder} cannot be read ({reason}); remove it and run `tfds build mnist`"
        ) from error
    return DigitImages(
        np.concatenate([batch["image"][..., 0] for batch in batches]),
        np.concatenate([batch["label"] for batch in batches]).astype(np.uint8),
        f"MNIST (tensorflow-datasets' {builder.info.full_name}, {part})",
        tuple(sorted(f for f in folder.iterdir() if f.is_file())) if folder.is_dir() else (),
    )


# The digits of scikit-learn ----------------------------------------------------------------


def _embedded_digits() -> DigitImages:
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Each pixel counts the ink of 4 x 4, from 0 to 16. With a border lines end as they do inside.
    small = np.pad(digits.images / 16, ((0, 0), (1, 1), (1, 1)))
    factor = _SIZE / small.shape[1]
    large = zoom(small, (1, factor, factor), order=3, mode="grid-constant", grid_mode=True)
    large = np.clip((large - _DARK) / (1 - _DARK), 0, 1)
    return DigitImages(
        np.round(large * 255).astype(np.uint8),
        digits.target.astype(np.uint8),
        f"scikit-learn's digits (8 x 8 pixels, enlarged to {_SIZE} x {_SIZE})",
    )
