"""Images of sketches: equality to the rasterizer, formats, workers, position, errors."""

import time

import numpy as np
import pytest

from keras_sparse_dm.data import (
    Sketch,
    SketchArrays,
    from_points,
    prepare_sketch,
    rasterize,
    to_points,
)
from keras_sparse_dm.metrics.features import sketch_images as module
from keras_sparse_dm.metrics.features.sketch_images import render_sketches


def drawing(seed):
    """Return a sketch of three curved strokes, prepared as for models."""
    rng = np.random.default_rng(seed)
    strokes = []
    for i in range(3):
        t = np.linspace(0, 1, 30)[:, None]
        corners = rng.uniform(0, 100, (3, 2))
        xy = corners[0] * (1 - t) ** 2 + 2 * corners[1] * t * (1 - t) + corners[2] * t**2
        strokes.append(np.column_stack([xy, i + t]))
    return prepare_sketch(Sketch(strokes))


DRAWINGS = [drawing(seed) for seed in range(20)]


def arrays(representation="absolute"):
    return SketchArrays.from_list(
        [to_points(d, representation) for d in DRAWINGS], representation=representation
    )


def test_pixels_are_those_of_the_rasterizer():
    pictures = render_sketches(DRAWINGS, 40, line_width=3, margin=0.1, progress=False)
    assert pictures.dtype == np.uint8 and pictures.shape == (20, 40, 40)
    for picture, one in zip(pictures, DRAWINGS, strict=True):
        np.testing.assert_array_equal(picture, rasterize(one, 40, 3, margin=0.1))
    pictures = render_sketches(DRAWINGS, 40, box=(-5, -5, 5, 5), progress=False)
    np.testing.assert_array_equal(pictures[7], rasterize(DRAWINGS[7], 40, box=(-5, -5, 5, 5)))
    assert render_sketches(DRAWINGS[:1], progress=False).shape == (1, 128, 128)


def test_any_form_of_the_same_sketches_gives_the_same_pictures():
    expected = render_sketches([from_points(p) for p in arrays()], 48, progress=False)
    for given in (
        arrays(),
        list(arrays()),
        iter(arrays()),
        tuple(points.tolist() for points in arrays()),
        [from_points(arrays()[0]), *list(arrays())[1:]],
    ):
        np.testing.assert_array_equal(render_sketches(given, 48, progress=False), expected)
    delta = arrays("delta")
    for pictures in (
        render_sketches(delta, 48, progress=False),
        render_sketches(delta, 48, "delta", progress=False),
        render_sketches(list(delta), 48, "delta", progress=False),
    ):
        # Sums of float32 steps may move a line by less than a pixel.
        assert np.abs(pictures.astype(int) - expected).mean() < 0.2


@pytest.mark.slow
def test_workers_change_no_pixel(monkeypatch):
    monkeypatch.setattr(module, "_SERIAL", 10)
    monkeypatch.setattr(module, "_CHUNK", 3)
    alone = render_sketches(arrays(), 32, workers=1, progress=False)
    np.testing.assert_array_equal(alone, render_sketches(arrays(), 32, workers=2, progress=False))
    np.testing.assert_array_equal(alone, render_sketches(arrays(), 32, workers=4, progress=False))


def test_place_and_size_of_a_sketch_do_not_show():
    moved = [
        Sketch([s * (8, 8, 1) + (4096, -512, 3) for s in sketch.strokes]) for sketch in DRAWINGS
    ]
    np.testing.assert_array_equal(
        render_sketches(moved, 64, progress=False), render_sketches(DRAWINGS, 64, progress=False)
    )
    # The lines fill the image in one direction, up to the margin.
    ink = render_sketches(DRAWINGS, 100, progress=False) < 128
    for picture in ink:
        extent = max(np.ptp(np.nonzero(picture)[axis]) + 1 for axis in (0, 1))
        assert extent == pytest.approx(90, abs=1)


def test_no_sketch_and_sketches_without_strokes():
    assert render_sketches([], 16, progress=False).shape == (0, 16, 16)
    empty = render_sketches([Sketch(()), np.zeros((0, 3)), [[1, 1, 1]]], 16, progress=False)
    assert (empty[:2] == 255).all()
    assert (empty[2] < 255).any()


def test_fast_enough():
    """Drawing takes at most 4 ms per sketch, so 10,000 take 20 seconds on two cores."""
    many = [DRAWINGS[i % 20] for i in range(400)]
    begin = time.process_time()
    render_sketches(many, workers=1, progress=False)
    assert (time.process_time() - begin) / 400 < 4e-3


def test_progress(capsys):
    render_sketches(DRAWINGS, 16)
    assert "Rendering" in (error := capsys.readouterr().err) and "20/20" in error
    render_sketches(DRAWINGS, 16, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("sketches", "arguments", "message"),
    [
        (DRAWINGS[0], {}, r"is one Sketch; give a list of them"),
        (DRAWINGS, {"size": 0}, "size=0 must be a whole number"),
        (DRAWINGS, {"size": 6.5}, "size=6.5"),
        (DRAWINGS, {"line_width": -1}, "line_width=-1"),
        (DRAWINGS, {"margin": 0.5}, "margin=0.5"),
        (DRAWINGS, {"margin": 0.49, "line_width": 9}, "leave no room"),
        (DRAWINGS, {"box": (0, 0, 0, 1)}, "box="),
        (DRAWINGS, {"workers": 0}, "workers=0"),
        (DRAWINGS, {"representation": "steps"}, "representation='steps' is unknown"),
        (arrays(), {"representation": "delta"}, "but the SketchArrays are 'absolute'"),
        ([DRAWINGS[0], np.zeros((4, 2))], {}, r"sketches\[1\] .*shape \(4, 2\)"),
        ([DRAWINGS[0], [[0, 0, float("nan")]]], {}, r"sketches\[1\] .*NaN"),
        ([DRAWINGS[0], None], {}, r"sketches\[1\] cannot be drawn"),
        ([[[1, 2, 3], [4, 5]]], {}, r"sketches\[0\] cannot be drawn"),
    ],
)
def test_refuses(sketches, arguments, message):
    with pytest.raises(ValueError, match=message):
        render_sketches(sketches, **{"progress": False} | arguments)


def test_workers_refuse_sketches_too(monkeypatch):
    monkeypatch.setattr(module, "_SERIAL", 2)
    monkeypatch.setattr(module, "_CHUNK", 4)
    with pytest.raises(ValueError, match=r"sketches\[17\] .*NaN"):
        render_sketches(
            [*DRAWINGS[:17], np.full((3, 3), np.nan), DRAWINGS[0]], workers=2, progress=False
        )
