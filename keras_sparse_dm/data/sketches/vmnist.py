"""VMNIST: digits as pen strokes, traced from pictures of handwritten digits.

The vector MNIST of the paper is no longer available, so this module makes one: it thins each digit
and traces its strokes (see `tracing`). With MNIST's test set that gives 10,000 digits, as in the
paper. The strokes differ from those of the lost data set: a picture does not show the order of
strokes or where the pen lifts, so both are inferred.
"""

from __future__ import annotations

import hashlib

from keras_sparse_dm.data.cache import state_of
from keras_sparse_dm.data.sketch_arrays import SketchArrays
from keras_sparse_dm.data.sketches.digits import load_digits
from keras_sparse_dm.data.sketches.preparation import prepare_source
from keras_sparse_dm.data.sketches.source import Item, SketchSource
from keras_sparse_dm.data.sketches.tracing import trace

# Increase it with every change of the traced strokes.
TRACING_VERSION = 2


def load_vmnist(
    folder=None, part: str = "test", **preparation
) -> tuple[SketchArrays, SketchArrays]:
    """Load digits as strokes, prepared as the original ChiroDiff does, and split in two.

    Args:
        folder: MNIST's IDX files (`t10k-images-idx3-ubyte.gz` and
            `t10k-labels-idx1-ubyte.gz`), or a folder of tensorflow-datasets. By default
            tensorflow-datasets' usual folder, or, if it has no MNIST, the 1,797 digits of 8 x 8
            pixels that come with scikit-learn; see `load_digits`.
        part: MNIST's `"test"` digits, 10,000 as in the paper, `"train"`, or `"all"`.
        **preparation: cache, sizes, split and other arguments of `prepare_source`. `max_sketches`
            counts all digits together.

    Returns:
        `(train, validation)`, whose `labels` are the digits, `"0"` to `"9"`.

    Raises:
        FileNotFoundError: if the folder does not exist or holds no digits.
        ValueError: if an argument is out of its range, a file is damaged, or `prepare_source`
            raises one.

    Example:

    >>> train, validation = load_vmnist(max_sketches=20, workers=1, progress=False)
    >>> len(train), len(validation), train[0].shape[1]
    (17, 3, 3)
    """
    digits = load_digits(folder, part=part)
    # Digits that come with a package have no files; their pixels identify them.
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
        read=_trace_digit,
        total=len(digits.images),
        unit="digits",
    )
    return prepare_source(source, **preparation)


def _trace_digit(content):
    return trace(*content)
