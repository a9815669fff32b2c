"""Images of many sketches, for feature networks.

The paper plots sketches, saves them as images and compares the images. The original ChiroDiff plots
each sketch in a figure of one square inch, about 100 pixels wide, stretched to the axes. Here each
sketch is drawn on `size` pixels and scaled to its bounds with its proportions kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import partial

import numpy as np

from keras_sparse_dm.checks import check_whole
from keras_sparse_dm.data.rasterization import rasterize
from keras_sparse_dm.data.representations import check_representation, from_points
from keras_sparse_dm.data.sketch import Sketch
from keras_sparse_dm.data.sketch_arrays import SketchArrays
from keras_sparse_dm.data.worker_processes import map_chunks

# Below this number of sketches, starting processes takes longer than it saves.
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
    """Draw sketches in parallel with a round pen, black on white, with smooth edges.

    By default the image does not depend on the sketch's position and size: the lines fill the
    image up to the margin, and the pen always has the same width. The pixels are the same in every
    run and with any number of workers.

    Args:
        sketches: `SketchArrays`, or an iterable of `Sketch` objects or point arrays of shape
            `(length, 3)`. A sketch without strokes gives a white image.
        size: Width and height of the images in pixels, 1 or more.
        representation: Meaning of the columns of point arrays, `"absolute"` (the default) or
            `"delta"`. `SketchArrays` have their own.
        line_width: Width of the pen in pixels; 3/109 of the image by default, as in KanjiVG.
        box: Region `(left, top, right, bottom)` that all images show, in the sketches' unit; the
            rest is cut off. Each sketch's own bounds by default.
        margin: Free space on each side of the lines, as a share of the image from 0 to below 0.5;
            not used with `box`.
        workers: Number of processes; one per available core by default. Fewer than 2,000 sketches
            are drawn in this process.
        progress: Whether to show a progress bar (on standard error).

    Returns:
        uint8 array (n, size, size), 0 black and 255 white, in the order of `sketches`.

    Raises:
        ValueError: if an argument is out of its range, or if a sketch has another type or shape
            or is not finite; the message gives its number, counted from 0.
    """
    if isinstance(sketches, Sketch):
        raise ValueError("sketches is one Sketch; give a list of them, for example [sketch]")
    own = sketches.representation if isinstance(sketches, SketchArrays) else None
    if representation is not None:
        check_representation(representation)
        if own is not None and own != representation:
            raise ValueError(
                f"representation={representation!r}, but the SketchArrays are {own!r}; omit "
                "representation for SketchArrays"
            )
    if workers is not None:
        check_whole("workers", workers, 1, 2**31)
    settings = {"size": size, "line_width": line_width, "box": box, "margin": margin}
    # Check the settings before any worker starts.
    rasterize(Sketch([[[0.0, 0.0, 0.0]]]), **settings)

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
    """Return the image of each `(number, sketch)`, or an error text; runs in worker processes."""
    return [_render_one(number, sketch, representation, settings) for number, sketch in items]


def _render_one(number: int, sketch, representation: str, settings: dict) -> np.ndarray | str:
    try:
        if not isinstance(sketch, Sketch):
            sketch = from_points(sketch, representation)
        return rasterize(sketch, **settings)
    except (TypeError, ValueError) as error:
        return (
            f"sketches[{number}] cannot be drawn: {error}; give Sketches, SketchArrays, or arrays "
            "of shape (length, 3) of finite numbers"
        )
