import numpy as np
import pytest
import shapely
from sketch_files import sketch

from keras_sparse_dm import data
from keras_sparse_dm.data import Sketch, kanjivg_folder, rasterize, read_svg
from keras_sparse_dm.data.rasterization import KANJIVG_BOX

BOX = (0, 0, 10, 10)


def exact(drawing, size, line_width, box, fine=8):
    """Return the same picture by geometry: the covered share of each pixel."""
    left, top, right, bottom = box
    scale = size / max(right - left, bottom - top)
    lines = [
        shapely.LineString((s[:, :2] - [left, top]) * scale)
        if len(s) > 1
        else shapely.Point((s[0, :2] - [left, top]) * scale)
        for s in drawing
    ]
    shape = shapely.union_all([line.buffer(line_width / 2, quad_segs=32) for line in lines])
    shapely.prepare(shape)
    centres = (np.arange(size * fine) + 0.5) / fine
    covered = shapely.contains_xy(shape, *np.meshgrid(centres, centres))
    return 255 * (1 - covered.reshape(size, fine, size, fine).mean(axis=(1, 3)))


def random_sketch(seed):
    rng = np.random.default_rng(seed)
    return sketch(*(rng.uniform(1, 9, (rng.integers(1, 6), 2)) for _ in range(4)))


@pytest.mark.parametrize(
    ("seed", "size", "line_width"), [(0, 28, 1.0), (1, 28, 2.5), (2, 64, 4.0), (3, 200, 5.0)]
)
def test_polylines_with_sharp_corners_cover_what_geometry_says(seed, size, line_width):
    drawing = random_sketch(seed)
    expected = exact(drawing, size, line_width, BOX)
    difference = rasterize(drawing, size, line_width, BOX) - expected
    ink = (255 - expected).mean()
    # At most half a subpixel off at each edge, and on average exact.
    assert np.abs(difference).max() < 90
    assert abs(difference.mean()) < 0.05 * ink
    assert np.abs(difference).mean() < 0.12 * ink


@pytest.mark.parametrize("name", ["06c34", "09f8d", "04e00"])
def test_kanji_look_as_geometry_says(name):
    kanji = read_svg(kanjivg_folder() / f"{name}.svg")
    for size in (28, 64):
        picture = rasterize(kanji, size, box=KANJIVG_BOX)
        expected = exact(kanji, size, size * 3 / 109, KANJIVG_BOX)
        difference = picture - expected
        assert np.abs(difference).max() < 100
        assert np.abs(difference).mean() < 0.15 * (255 - expected).mean()
        assert abs(difference.mean()) < 0.05 * (255 - expected).mean()


def test_form_values_and_sameness():
    drawing = random_sketch(0)
    picture = rasterize(drawing, np.int64(40))
    assert (picture.dtype, picture.shape) == (np.uint8, (40, 40))
    assert picture.max() == 255 and picture.min() == 0
    # Smooth edges have many levels of grey.
    assert len(np.unique(picture)) > 20
    assert picture.tobytes() == rasterize(random_sketch(0), 40).tobytes()
    assert rasterize(drawing, 1).shape == (1, 1)


def test_y_grows_downwards_and_x_to_the_right():
    picture = rasterize(sketch([[1, 2], [9, 2]]), 100, 4, BOX)
    rows, columns = np.nonzero(picture < 128)
    assert 17 <= rows.min() <= 18 and 21 <= rows.max() <= 22
    # Round caps extend half a width beyond the ends.
    assert 7 <= columns.min() <= 9 and 90 <= columns.max() <= 92
    assert picture[20, 8] < 128 and picture[18, 8] > 128


def test_without_a_box_the_lines_fill_the_picture_but_the_margin():
    for strokes in ([[5, 5], [5.4, 5.2]], [[-3e6, 0], [1e6, 9e5]], [[1e-9, 0], [3e-9, 2e-9]]):
        picture = rasterize(sketch(strokes), 100, 4, margin=0.1)
        rows, columns = np.nonzero(picture < 200)
        assert 9 <= columns.min() <= 11 and 88 <= columns.max() <= 90
        assert rows.min() + rows.max() == pytest.approx(99, abs=2)
        np.testing.assert_array_equal(
            picture, rasterize(sketch(np.multiply(strokes, 8)), 100, 4, margin=0.1)
        )
    rows, columns = np.nonzero(rasterize(sketch([[0, 0], [0, 1]]), 100, 4, margin=0) < 200)
    assert (rows.min(), rows.max()) == (0, 99)


def test_a_box_that_is_no_square_is_shown_whole_and_in_the_middle():
    picture = rasterize(sketch([[0, 0], [20, 10]]), 100, 2, (0, 0, 20, 10))
    rows, columns = np.nonzero(picture < 128)
    assert rows.min() == pytest.approx(25, abs=1) and rows.max() == pytest.approx(75, abs=1)
    assert columns.min() == pytest.approx(0, abs=1) and columns.max() == pytest.approx(99, abs=1)


def test_a_dot_is_a_disc_of_the_lines_width():
    for dot in (sketch([[3, 3]]), sketch([[3, 3], [3, 3]])):
        picture = rasterize(dot, 50, 10)
        ink = (255 - picture.astype(float)).sum() / 255
        assert ink == pytest.approx(np.pi * 25, rel=0.05)
        rows, columns = np.nonzero(picture < 128)
        assert rows.mean() == pytest.approx(24.5, abs=0.2) == columns.mean()


def test_nothing_to_draw_is_white():
    assert (rasterize(Sketch(()), 16) == 255).all()
    assert (rasterize(Sketch(()), 16, box=BOX) == 255).all()
    assert (rasterize(sketch([[20, 20], [30, 40]]), 16, box=BOX) == 255).all()


def test_lines_that_leave_the_box_are_cut_off_not_bent():
    inside = rasterize(sketch([[5, 5], [25, 15]]), 64, 3, BOX)
    for far in (1e2, 1e4, 1e6):
        np.testing.assert_array_equal(
            rasterize(sketch([[5, 5], [5 + 2 * far, 5 + far]]), 64, 3, BOX) < 128, inside < 128
        )
    for far in (1e12, 1e300):
        picture = rasterize(sketch([[5, 5], [far, 5], [far, far], [5, far], [5, 6]]), 64, 3, BOX)
        corner = rasterize(sketch([[20, 5], [5, 5]], [[5, 20], [5, 6]]), 64, 3, BOX)
        np.testing.assert_array_equal(picture, corner)
    rasterize(sketch([[-1.7e308, 0], [1.7e308, 1.7e308]]), 64)


def test_wide_and_thin_pens():
    line = sketch([[2, 5], [8, 5]])
    for width in (0.2, 1, 5, 30):
        ink = (255.0 - rasterize(line, 64, width, BOX)).sum() / 255
        area = width * 0.6 * 64 + np.pi * width**2 / 4
        assert ink == pytest.approx(area, rel=0.6 if width < 1 else 0.12)
    assert (rasterize(line, 64, 500, BOX) == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size=0 must be a whole number"),
        ({"size": 6.5}, "size=6.5"),
        ({"line_width": 0}, "line_width=0"),
        ({"line_width": float("nan")}, "line_width=nan"),
        ({"margin": 0.5}, "margin=0.5"),
        ({"margin": -0.1}, "margin=-0.1"),
        ({"margin": 0.45, "line_width": 9}, "leave no room to draw in 64 pixels"),
        ({"box": (0, 0, 0, 5)}, r"box=\[0.0, 0.0, 0.0, 5.0\] must be \(left, top"),
        ({"box": (0, 0, 5)}, "box="),
        ({"box": (0, 0, 5, float("inf"))}, "box="),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        rasterize(sketch([[0, 0], [1, 1]]), **{"size": 64} | arguments)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("render", "rasterize"),
        ("rendering", "rasterization"),
        ("drawing", "pictures"),
        ("prepare", "prepare_sketch"),
    ],
)
def test_old_names_work_and_warn(old, new):
    with pytest.warns(DeprecationWarning, match=rf"data\.{old} is now keras_sparse_dm\.data\."):
        assert getattr(data, old) is getattr(data, new)
