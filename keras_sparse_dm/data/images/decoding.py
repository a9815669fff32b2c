"""Square RGB images of one size, decoded from image files."""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from keras_sparse_dm.lazy import lazy_module

Image = lazy_module("PIL.Image")
ImageOps = lazy_module("PIL.ImageOps")
PIL = lazy_module("PIL")


def decode_images(items, size: int) -> list[tuple[str, np.ndarray | None, bool, str | None]]:
    """Decode images in worker processes.

    Args:
        items: pairs of a name and a file or its bytes.
        size: width and height of the images in pixels.

    Returns:
        For each item `(name, image, whether it was enlarged, None)`, or, if it cannot be decoded,
        `(name, None, False, reason)`.
    """
    return [result_or_reason(name, partial(decode_image, image, size)) for name, image in items]


def result_or_reason(name: str, make):
    """Return the result of `make` as `decode_images` does, or the reason of its failure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return name, *make(), None
    except Exception as error:  # decoders raise almost anything on bad input
        reason = " ".join(str(error).split()) or type(error).__name__
        return name, None, False, f"{name}: {reason}"


def decode_image(source: Path | bytes, size: int) -> tuple[np.ndarray, bool]:
    """Return the image of a file, uint8 `(size, size, 3)`, and whether it was smaller."""
    if isinstance(source, Path) and not source.is_file():
        raise ValueError("is not a regular file but a dangling link or a pipe")
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image.load()
    except PIL.UnidentifiedImageError:
        raise ValueError("is not an image of a known format") from None
    # An image with a damaged EXIF block is still usable.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    image = _to_rgb(image.crop((left, top, left + side, top + side)))
    if side != size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image), side < size


def _to_rgb(image):
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("holds integers of more than 16 bits, whose white level is unknown")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("holds floating-point numbers, whose white level is unknown")
    elif "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
