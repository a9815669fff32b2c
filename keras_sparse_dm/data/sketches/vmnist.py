"""VMNIST: digits as pen strokes, traced from pictures of handwritten ones.

The vector MNIST on which the paper trained is not for download any more, so it is made: each
digit is thinned and traced into strokes (see `tracing`), 10,000 of them where MNIST's test digits
are at hand, as in the paper. The strokes are not those of the lost data set: their order and the
places where the pen lifts are inferred, for a picture does not tell them.
"""

from __future__ import annotations

import hashlib

from keras_sparse_dm.data.batches import SketchArrays
from keras_sparse_dm.data.cache import state_of
from keras_sparse_dm.data.sketches.digits import load_digits
from keras_sparse_dm.data.sketches.source import Item, SketchSource, prepare_source
from keras_sparse_dm.data.sketches.tracing import trace

# Raise it with every change of the strokes that tracing gives.
TRACING_VERSION = 2


def load_vmnist(
    folder=None, part: str = "test", **preparation
) -> tuple[SketchArrays, SketchArrays]:
    """Digits as strokes, prepared as the original ChiroDiff does, split in two.

    Args:
        folder: MNIST's IDX files (`t10k-images-idx3-ubyte.gz` and
            `t10k-labels-idx1-ubyte.gz`), or tensorflow-datasets' folder. By default
            tensorflow-datasets' own, and without MNIST there scikit-learn's 1,797 digits of 8 x 8
            pixels, which come with that package; see `load_digits`.
        part: MNIST's `"test"` digits, 10,000 as in the paper, `"train"`, or `"all"`.
        **preparation: cache, sizes, split and more, as `prepare_source` takes. `max_sketches`
            counts all digits together.

    Returns:
        `(train, validation)`, whose `labels` are the digits, `"0"` to `"9"`.

    Raises:
        FileNotFoundError: if there is no such folder or no digit in it.
        ValueError: if an argument is out of its range, a file is damaged, or as
            `prepare_source`.
    """
    digits = load_digits(folder, part=part)
    # The pictures themselves where no file tells of them.
    state = state_of(digits.files) or hashlib.sha256(digits.images.tobytes()).hexdigest()

    def items(complete):
        for i, (image, label) in enumerate(zip(digits.images, digits.labels, strict=True)):
            if complete:
                return
            name = f"digit {i}"
            yield Item(name, (image, name, str(label)))

    source = SketchSource(
        title=f"VMNIST, traced from {digits.source}",
        key="vmnist",
        argument="VMNIST" if folder is None else f"folder={str(folder)!r}",
        state=[TRACING_VERSION, part, state],
        items=items,
        read=_read,
        total=len(digits.images),
        unit="digits",
    )
    return prepare_source(source, **preparation)


def _read(content):
    return trace(*content)
