"""Pictures of many sketches at once, as the Fréchet distance between sets of sketches needs them.

The paper plots the sketches, saves them as images and compares those. The original ChiroDiff
plots each in a figure of one square inch, about 100 pixels wide, fitted to the axes; here each
is drawn on `size` pixels, fitted to its bounds without changing its proportions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import partial

import numpy as np

from keras_sparse_dm.data.batches import SketchArrays, check_whole
from keras_sparse_dm.data.cache import map_chunks
from keras_sparse_dm.data.rendering import render
from keras_sparse_dm.data.sketch import Sketch, check_representation, from_points

# Below this number of sketches starting processes costs more time than it saves.
_SERIAL = 2000
_CHUNK = 128


def render_sketches(
    sketches: SketchArrays | Iterable,
    size: int = 128,
    representation: str | None = None,
    line_width: float | None = None,
    box: tuple[float, float, float, float] | None = None,
    margin: float = 0.05,
    workers: int | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Draws sketches with a round pen, black on white, with smooth edges, in parallel.

    By default the picture depends on neither the place nor the size at which a sketch is drawn:
    the lines fill it but for the margin, and the pen is always as wide. The pixels are the same
    on every run and with any number of workers.

    Args:
        sketches: `SketchArrays`, or an iterable of `Sketch`es, of point arrays of shape
            `(length, 3)`, such as a model generates, or of both. One without strokes gives a
            white picture.
        size: width and height of the pictures in pixels, at least 1.
        representation: what the columns of point arrays are, `"absolute"` (the default) or
            `"delta"`. `SketchArrays` know their own.
        line_width: width of the pen in pixels; by default KanjiVG's, 3/109 of the picture.
        box: `(left, top, right, bottom)`, in the sketches' unit, of what all pictures show, cut
            off outside; by default each sketch's own bounds.
        margin: without a `box`, the free space on each side of the lines, as a share of the
            picture, from 0 to below 0.5.
        workers: processes; by default one per available core. Fewer than 2,000 sketches are
            drawn in this process.
        progress: whether to show a progress bar (on standard error).

    Returns:
        uint8 array of shape `(n, size, size)`, 0 black and 255 white, in the order of `sketches`.

    Raises:
        ValueError: if an argument is out of its range, or a sketch is of another type or shape
            or not finite; the message gives its number, from 0.
    """
    if isinstance(sketches, Sketch):
        raise ValueError("sketches is one Sketch; give a list of them, for example [sketch]")
    own = sketches.representation if isinstance(sketches, SketchArrays) else None
    if representation is not None:
        check_representation(representation)
        if own is not None and own != representation:
            raise ValueError(
                f"representation={representation!r}, but the SketchArrays are {own!r}; leave "
                "representation out, they know their own"
            )
    if workers is not None:
        check_whole("workers", workers, 1, 2**31)
    settings = {"size": size, "line_width": line_width, "box": box, "margin": margin}
    # Refuses settings that are out of range before any worker starts.
    render(Sketch([[[0.0, 0.0, 0.0]]]), **settings)

    sketches = list(sketches)
    pictures = np.empty((len(sketches), size, size), np.uint8)
    results = map_chunks(
        partial(
            _render_chunk, representation=own or representation or "absolute", settings=settings
        ),
        enumerate(sketches),
        total=len(sketches),
        chunk=_CHUNK,
        workers=1 if len(sketches) < _SERIAL else workers,
        progress=progress,
        title="Rendering",
        unit="sketches",
    )
    with contextlib.closing(results):
        for picture, result in zip(pictures, results, strict=True):
            if isinstance(result, str):
                raise ValueError(result)
            picture[...] = result
    return pictures


def _render_chunk(items, representation: str, settings: dict) -> list[np.ndarray | str]:
    """The picture of each `(number, sketch)`, or what is wrong; runs in worker processes."""
    return [_render_one(number, sketch, representation, settings) for number, sketch in items]


def _render_one(number: int, sketch, representation: str, settings: dict) -> np.ndarray | str:
    try:
        if not isinstance(sketch, Sketch):
            sketch = from_points(sketch, representation)
        return render(sketch, **settings)
    except (TypeError, ValueError) as error:
        return (
            f"sketches[{number}] cannot be drawn: {error}; give Sketches, SketchArrays, or arrays "
            "of shape (length, 3) of finite numbers"
        )
