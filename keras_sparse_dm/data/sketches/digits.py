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
_NAME = re.compile(r"(.*)(images[-.]idx3|labels[-.]idx1)[-.]ubyte(\.gz)?")
# Name of each part's file, and the pattern of other names by which it is known.
_PARTS = {
    "train": ("train-images-idx3-ubyte", re.compile(".*train")),
    "test": ("t10k-images-idx3-ubyte", re.compile("(?!.*train).*(t10k|test)")),
}

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
    """

    images: np.ndarray
    labels: np.ndarray
    source: str
    files: tuple[Path, ...] = ()

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
        return _read_tfds(None, part) or _embedded_digits()

    path = Path(folder).expanduser()
    if path.is_file():
        match = _NAME.fullmatch(path.name)
        if match is None or not match[2].startswith("images"):
            raise ValueError(
                f"folder={str(path)!r} is a file, but its name is not like those of MNIST's images "
                "(t10k-images-idx3-ubyte.gz); give such a file or its folder"
            )
        return _read_idx({match[1]: path})
    if not path.is_dir():
        raise FileNotFoundError(f"folder={str(path)!r} does not exist; {HOW_TO_GET}")
    found = _idx_files(path, "images")
    digits = _read_idx(_select(found, part, path)) if found else _read_tfds(path, part)
    if digits is None:
        raise FileNotFoundError(
            f"folder={str(path)!r} holds neither IDX files of images (t10k-images-idx3-ubyte.gz) "
            f"nor mnist as prepared by tensorflow-datasets; {HOW_TO_GET}"
        )
    return digits


# IDX files ---------------------------------------------------------------------------------


def _idx_files(folder: Path, kind: str) -> dict[str, Path]:
    """Return the files of images or labels by the start of their names; uncompressed ones win."""
    found = {}
    for file in sorted(folder.iterdir(), key=lambda file: (file.suffix == ".gz", file.name)):
        match = _NAME.fullmatch(file.name)
        if match is not None and match[2].startswith(kind) and file.is_file():
            found.setdefault(match[1], file)
    return found


def _select(found: dict[str, Path], part: str, folder: Path) -> dict[str, Path]:
    """Return those files of images that hold a part, or all parts."""
    chosen = {}
    for which in _PARTS if part == "all" else (part,):
        usual, pattern = _PARTS[which]
        files = {start: file for start, file in found.items() if pattern.match(start)}
        names = ", ".join(sorted(file.name for file in (files or found).values()))
        if not files:
            raise FileNotFoundError(
                f"folder={str(folder)!r} holds no IDX file of images for part={part!r}, {usual!r}, "
                f"but {names}; give another part, or such a file itself"
            )
        if len(files) > 1:
            raise ValueError(
                f"folder={str(folder)!r} holds more than one IDX file of images for "
                f"part={part!r}: {names}; give the file itself"
            )
        chosen |= files
    return chosen


def _read_idx(chosen: dict[str, Path]) -> DigitImages:
    images, labels, files = [], [], []
    for start, file in chosen.items():
        labels_file = _idx_files(file.parent, "labels").get(start)
        if labels_file is None:
            raise FileNotFoundError(
                f"{file} has no file of labels beside it; {start}labels-idx1-ubyte is missing"
            )
        files += [file, labels_file]
        images.append(_read_array(file, "images"))
        labels.append(_read_array(labels_file, "labels"))
        if images[-1].shape[1:] != images[0].shape[1:]:
            raise ValueError(
                f"{file}: images have shape {images[-1].shape[1:]}, but {images[0].shape[1:]} in "
                f"{files[0].name}; all images must have one size"
            )
        if len(images[-1]) != len(labels[-1]):
            raise ValueError(
                f"{file}: {len(images[-1])} images but {len(labels[-1])} labels; the numbers must "
                "be equal"
            )
        if labels[-1].max() > 9:
            raise ValueError(
                f"{labels_file}: label {labels[-1].argmax()} is {labels[-1].max()}; labels must be "
                "from 0 to 9"
            )
    source = f"MNIST ({', '.join(file.name for file in chosen.values())})"
    return DigitImages(np.concatenate(images), np.concatenate(labels), source, tuple(files))


def _read_array(file: Path, kind: str) -> np.ndarray:
    """Return the uint8 array of an IDX file; unpacks no more than its header announces."""
    axes = 3 if kind == "images" else 1
    # Says that bytes follow, and the number of axes.
    magic = 0x800 + axes
    try:
        with file.open("rb") as raw:
            stream = gzip.open(raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            found, *shape = struct.unpack(f">{1 + axes}I", stream.read(4 + 4 * axes))
            size = math.prod(shape)
            if found != magic:
                raise ValueError(
                    f"{file}: begins with the number {found}; an IDX file of {kind} begins with "
                    f"{magic}"
                )
            if not 0 < size <= MAX_PIXELS:
                raise ValueError(
                    f"{file}: its header announces shape {shape}; there must be from 1 to "
                    f"{MAX_PIXELS:,} bytes"
                )
            content = stream.read(size + 1)
    except struct.error as error:
        raise ValueError(f"{file}: ends within the header of an IDX file of {kind}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
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
