"""Pictures of handwritten digits: MNIST if available, else those that come with scikit-learn.

Nothing is ever downloaded. MNIST (Yann LeCun, Corinna Cortes and Christopher Burges) is read from
its published files, or as tensorflow-datasets has prepared it. Without it, the 1,797 digits of
8 x 8 pixels that scikit-learn includes (E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", CC BY 4.0) are enlarged to the size of MNIST's.
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
import scipy

from keras_sparse_dm.datasets import DIGITS
from keras_sparse_dm.lazy import lazy_module

tf = lazy_module("tensorflow")
tfds = lazy_module("tensorflow_datasets")
sklearn_datasets = lazy_module("sklearn.datasets")

# Greatest number of pixels that a file may announce; MNIST has 47 million.
MAX_PIXELS = 2**29

HOW_TO_GET = (
    "for MNIST, run `tfds build mnist` and leave folder out; or download t10k-images-idx3-ubyte.gz "
    "and t10k-labels-idx1-ubyte.gz (for the larger part train-...) from "
    "https://storage.googleapis.com/cvdf-datasets/mnist/ into a folder and pass it as folder"
)

# "t10k-images-idx3-ubyte" or "t10k-images.idx3-ubyte", optionally with ".gz".
_IMAGES_NAME = re.compile(r"(.*)images([-.])idx3([-.])ubyte(\.gz)?")
_IMAGES_MAGIC, _LABELS_MAGIC = 2051, 2049

# Size of MNIST's pictures.
_SIZE = 28
# Enlarged edges are wide, so pixels below this share of full brightness become dark. With this
# value, the most digits of scikit-learn keep their loops and stay in one piece when traced.
_DARK = 1 / 6


@dataclass(frozen=True, eq=False)
class DigitImages:
    """Pictures of digits with labels.

    Args:
        images: uint8 array of shape `(n, height, width)`, ink bright on 0.
        labels: uint8 array of shape `(n,)`, from 0 to 9.
        source: origin of the pictures, for messages.
        files: files from which they were read; empty for digits that come with a package.

    Raises:
        ValueError: if types, shapes or labels are inconsistent.
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
                f"{self.source}: {len(self.images)} images but {len(self.labels)} labels; the "
                "numbers must be equal"
            )
        if (self.labels > 9).any():
            i = int(np.argmax(self.labels > 9))
            raise ValueError(
                f"{self.source}: label {i} is {self.labels[i]}; labels must be from 0 to 9"
            )

    def __len__(self) -> int:
        return len(self.images)


def load_digits(folder=None, part: str = "test") -> DigitImages:
    """Load pictures of handwritten digits; nothing is downloaded.

    Args:
        folder: one of

            - a folder with MNIST's IDX files, compressed or not: `*images-idx3-ubyte` or
              `*images.idx3-ubyte`, with the labels beside them;
            - one such file of images, of any part;
            - a folder in which tensorflow-datasets has prepared `mnist`;
            - None for tensorflow-datasets' usual folder, or, if it has no `mnist`, for the digits
              of scikit-learn, smoothly enlarged to 28 x 28 pixels. `source` names the origin.

        part: `"test"` for MNIST's 10,000 test digits, `"train"` for the 60,000 others, `"all"` for
            both, starting with those for training. The digits of scikit-learn have no parts; all
            1,797 are loaded.

    Returns:
        Images and labels in the source's order.

    Raises:
        FileNotFoundError: if `folder` does not exist or does not hold MNIST or that part of
            it; the message explains how to get it.
        ValueError: if `part` is unknown or a file is broken; the message names it.
    """
    if part not in DIGITS:
        raise ValueError(
            f"part={part!r} is unknown; it must be one of " + ", ".join(map(repr, DIGITS))
        )
    if folder is None:
        digits = _read_tfds(None, part)
        return _embedded_digits() if digits is None else digits

    path = Path(folder).expanduser()
    if path.is_file():
        match = _IMAGES_NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(
                f"folder={str(path)!r} is a file, but its name is not like those of MNIST's images "
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
            f"nor mnist as prepared by tensorflow-datasets; {HOW_TO_GET}"
        )
    return digits


# IDX files ---------------------------------------------------------------------------------


def _idx_files(folder: Path) -> dict[str, Path]:
    """Return the files of images by the first part of their names; uncompressed ones win."""
    found = {}
    for file in sorted(folder.iterdir(), key=lambda file: (file.suffix == ".gz", file.name)):
        match = _IMAGES_NAME.fullmatch(file.name)
        if match is not None and file.is_file():
            found.setdefault(match[1], file)
    return found


def _select(sets: dict[str, Path], part: str, folder: Path) -> list[Path]:
    """Return the files of images that hold a part, or all parts."""
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
        # Check each file by itself, so that the message names it.
        DigitImages(images[-1], labels[-1], str(file))
    if len({array.shape[1:] for array in images}) > 1:
        sizes = " and ".join(
            f"{width} x {height} in {file.name}"
            for file, (_, height, width) in zip(files, (a.shape for a in images), strict=True)
        )
        raise ValueError(f"{files[0].parent}: images must have one size; received {sizes}")
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
        f"{images} has no file of labels beside it; {images.with_name(names[0]).name} is missing"
    )


def _read_array(file: Path, magic: int, axes: int) -> np.ndarray:
    """Return the uint8 array of an IDX file; unpacks no more than its header announces."""
    what = {_IMAGES_MAGIC: "images", _LABELS_MAGIC: "labels"}
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(file) if packed else file.open("rb") as stream:
            header = stream.read(4 + 4 * axes)
            found = int.from_bytes(header[:4], "big")
            if len(header) >= 4 and found != magic:
                hint = f", as a file of {what[found]}" if found in what else ""
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
    """Read the digits that tensorflow-datasets has prepared; None if there are none."""
    builder = tfds.builder("mnist", data_dir=folder)
    try:
        dataset = builder.as_dataset(
            split="train+test" if part == "all" else part,
            shuffle_files=False,
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
    except AssertionError:  # raised by tensorflow-datasets if the data are missing
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
    digits = sklearn_datasets.load_digits()
    # Each pixel counts the ink of 4 x 4 pixels, from 0 to 16. The border lets lines at the edge end
    # as they do inside.
    small = np.pad(digits.images / 16, ((0, 0), (1, 1), (1, 1)))
    factor = _SIZE / small.shape[1]
    large = scipy.ndimage.zoom(
        small, (1, factor, factor), order=3, mode="grid-constant", grid_mode=True
    )
    large = np.clip((large - _DARK) / (1 - _DARK), 0, 1)
    return DigitImages(
        np.round(large * 255).astype(np.uint8),
        digits.target.astype(np.uint8),
        f"scikit-learn's digits (8 x 8 pixels, enlarged to {_SIZE} x {_SIZE})",
    )
