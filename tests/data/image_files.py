"""Image files, shared by the tests of image data sets."""

import io

import numpy as np
from PIL import Image


def smooth(width, height, seed=0):
    """Return a picture without fine detail, which all good filters resize alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3, 3, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_images(folder, count, width=40, height=30, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        smooth(width, height, i).save(folder / f"{i:03d}{suffix}")
    return folder


def encoded(image, format, **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def assert_same(a, b):
    np.testing.assert_array_equal(np.stack(list(a)), np.stack(list(b)))
    assert (a.names, a.flip, a.summary, a.fingerprint) == (
        b.names,
        b.flip,
        b.summary,
        b.fingerprint,
    )
