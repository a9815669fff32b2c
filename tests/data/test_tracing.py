import subprocess
import sys

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.morphology import skeletonize
from support import shared_folder

from keras_sparse_dm.data import Sketch, kanjivg_folder, prepare_sketch, rasterize, read_svg
from keras_sparse_dm.data.sketches.digits import load_digits
from keras_sparse_dm.data.sketches.tracing import ink_of, trace

SIZE = 28


def picture(*lines, width=3.0, size=SIZE):
    """Return the picture of a round pen that follows the lines, `(n, 2)` each, bright on dark."""
    sketch = Sketch([np.column_stack([line, np.arange(len(line))]) for line in lines])
    return 255 - rasterize(sketch, size, line_width=width, box=(0, 0, size, size))


def arc(x, y, radius, start=0.0, end=360.0):
    """Return points of a circle; angles in degrees, 0 to the right, 90 downwards."""
    angle = np.radians(np.linspace(start, end, 60))
    return np.column_stack([x + radius * np.cos(angle), y + radius * np.sin(angle)])


def gaps(points, lines):
    """Return the distance of each point to the nearest line."""
    return shapely.distance(shapely.points(points), shapely.MultiLineString(list(lines)))


def every_half_pixel(lines):
    return shapely.get_coordinates(shapely.MultiLineString(list(lines)).segmentize(0.5))


def assert_follows(sketch, *lines, off=0.75, short=1.6):
    """Check that the sketch follows the lines and omits only a bit at free ends."""
    traced = [s[:, :2] for s in sketch]
    assert gaps(np.concatenate(traced), lines).max() <= off
    assert gaps(every_half_pixel(lines), traced).max() <= short


def coverage(image, sketch):
    """Return the share of the skeleton's pixels within a pixel of a stroke."""
    rows, columns = np.nonzero(skeletonize(ink_of(image)))
    strokes = [s[:, :2] if len(s) > 1 else np.repeat(s[:, :2], 2, axis=0) for s in sketch]
    return np.mean(gaps(np.column_stack([columns, rows]) + 0.5, strokes) <= 1)


def is_closed(stroke):
    return len(stroke) > 3 and (stroke[0, :2] == stroke[-1, :2]).all()


def turns_left(stroke):
    """Return True if a closed stroke looks counter-clockwise, with y downwards."""
    x, y = stroke[:, 0], stroke[:, 1]
    return np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) < 0


# Single strokes


@pytest.mark.parametrize("width", [1.5, 3, 5])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        ((14, 5), (14, 23)),
        ((20, 5), (8, 22)),
        ((8, 5), (20, 22)),
        ((5, 14), (23, 14)),
        ((5, 16), (23, 11)),
    ],
)
def test_a_line_is_one_stroke_from_the_top_or_the_left(start, end, width):
    # The direction of drawing does not matter.
    for line in ([start, end], [end, start]):
        sketch = trace(picture(np.array(line, float), width=width))
        assert len(sketch) == 1
        assert_follows(sketch, [start, end], off=1.1, short=width / 2 + 1)
        first, last = sketch.strokes[0][[0, -1], :2]
        assert np.hypot(*(first - start)) < np.hypot(*(last - start))


def test_a_circle_is_one_loop_from_its_top_counter_clockwise():
    sketch = trace(picture(arc(14, 13, 8)))
    (stroke,) = sketch
    assert is_closed(stroke) and turns_left(stroke)
    assert stroke[:, 1].argmin() == 0
    np.testing.assert_allclose(np.hypot(stroke[:, 0] - 14, stroke[:, 1] - 13), 8, atol=0.5)


@pytest.mark.parametrize("corner", [(7, 21), (21, 21), (7, 7), (21, 7)])
def test_sharp_corners_are_not_cut(corner):
    across, down = (28 - corner[0], corner[1]), (corner[0], 28 - corner[1])
    sketch = trace(picture(np.array([across, corner, down], float)))
    assert len(sketch) == 1
    assert_follows(sketch, [across, corner, down], off=0.8)
    assert gaps(np.array([corner], float), [s[:, :2] for s in sketch])[0] <= 1.6


def test_a_spiral_keeps_to_its_line():
    angle = np.linspace(0, 3.5 * np.pi, 200)
    line = np.column_stack([14 + angle * np.cos(angle), 14 + angle * np.sin(angle)])
    sketch = trace(picture(line, width=2))
    assert len(sketch) == 1
    assert_follows(sketch, line, off=1.25)


@pytest.mark.parametrize("radius", [0.5, 1, 2, 4])
def test_a_dot_is_one_short_stroke(radius):
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    image = ((np.hypot(x - 9.5, y - 12.5) <= radius) * 200).astype(np.uint8)
    (stroke,) = trace(image)
    assert np.hypot(*(stroke[:, :2] - (9.5, 12.5)).T).max() <= 1
    assert len(stroke) <= 3 and np.isfinite(stroke).all()


# Junctions


@pytest.mark.parametrize("angle", [50, 60, 70, 80, 90, 100, 110, 120])
@pytest.mark.parametrize("tilt", [0, 20, 45])
def test_crossing_lines_go_straight_on(angle, tilt):
    lines = []
    for degrees in (tilt, tilt + angle):
        step = 11 * np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
        lines.append(np.array([14 - step, 14 + step]))
    sketch = trace(picture(*lines))
    assert len(sketch) == 2
    # Each stroke follows one of the lines from end to end.
    for stroke in sketch:
        offs = [gaps(stroke[:, :2], [line]).max() for line in lines]
        assert min(offs) <= 1.6
        assert np.hypot(*(stroke[-1] - stroke[0])[:2]) > 17


def test_a_t_is_its_bar_and_its_stem():
    bar, stem = np.array([[4, 6], [24, 6.0]]), np.array([[14, 6], [14, 20.0]])
    sketch = trace(picture(bar, stem))
    assert len(sketch) == 2
    assert_follows(Sketch(sketch.strokes[:1]), bar, off=1)
    assert_follows(Sketch(sketch.strokes[1:]), stem, off=1)
    assert sketch.strokes[1][0, 1] < sketch.strokes[1][-1, 1]


def test_a_figure_eight_is_one_closed_stroke():
    t = np.linspace(0, 2 * np.pi, 200)
    line = np.column_stack([14 + 6 * np.sin(2 * t), 14 - 10 * np.cos(t)])
    (stroke,) = sketch = trace(picture(line, width=2.5))
    assert is_closed(stroke)
    assert_follows(sketch, line, off=1)
    assert stroke[0, 1] < 5
    # In the order of writing: from the top to the left, through the middle, back up on the right.
    assert stroke[5, 0] < 13
    middle = stroke[np.abs(stroke[:, 1] - 14) < 1.5]
    assert len(middle) >= 4 and np.abs(middle[:, 0] - 14).max() < 3
    down = len(stroke) // 2
    upper = stroke[:down, 1].argmax()
    assert stroke[upper, 1] > 22


def test_loops_with_tails_are_one_stroke():
    six = np.concatenate([[[19, 3], [12, 10]], arc(14, 18, 5.5, 200, -160)])
    nine = np.concatenate([arc(13, 9, 5, 0, -360), [[18, 9], [16, 25]]])
    for line, top in ((six, 3), (nine, None)):
        sketch = trace(picture(line.astype(float), width=2.5))
        assert len(sketch) == 1
        assert_follows(sketch, line, off=1.1)
        if top is not None:
            assert sketch.strokes[0][0, 1] < top + 2


def test_the_pen_goes_into_a_point_and_back():
    three = np.concatenate([arc(12, 9, 5, 200, 450), arc(12, 19, 5, 270, 520)])
    three = np.insert(three, 60, [[8, 14]], axis=0)
    (stroke,) = sketch = trace(picture(three, width=2.5))
    assert_follows(sketch, three, off=1.5, short=2.5)
    assert stroke[0, 1] < 14 < stroke[-1, 1]


def test_a_four_is_two_strokes():
    elbow = np.array([[12, 4], [6, 15], [22, 15.0]])
    stem = np.array([[17, 8], [17, 25.0]])
    sketch = trace(picture(elbow, stem, width=2.5))
    assert len(sketch) == 2
    # Thinning cuts an acute corner, which the ink fills.
    assert_follows(Sketch(sketch.strokes[:1]), elbow, off=1.1, short=2.5)
    assert_follows(Sketch(sketch.strokes[1:]), stem, off=1.1)


# Ink


def test_thinnings_artefacts_are_dropped_and_real_branches_are_not():
    stem = np.array([[14, 4], [14, 24.0]])
    for length, strokes in ((1.5, 1), (8, 2)):
        branch = np.array([[14, 14], [14 + length, 14]])
        assert len(trace(picture(stem, branch, width=4))) == strokes


def test_dirt_and_missed_pixels_change_no_stroke():
    image = picture(np.array([[8, 4], [8, 24.0]]), width=5)
    clean = trace(image)
    dirty = image.copy()
    dirty[3:5, 22] = 255
    dirty[14, 8] = 0
    assert len(trace(dirty)) == 1
    assert_follows(trace(dirty), *[s[:, :2] for s in clean])


def test_separate_pieces_are_strokes_the_longest_first_then_downwards():
    lines = [
        np.array([[4, 4], [9, 4.0]]),
        np.array([[18, 4], [24, 4.0]]),
        np.array([[4, 22], [24, 22.0]]),
        np.array([[6, 10], [6, 17.0]]),
    ]
    sketch = trace(picture(*lines, width=2))
    assert len(sketch) == 4
    for stroke, line in zip(sketch, (lines[2], lines[0], lines[1], lines[3]), strict=True):
        assert_follows(Sketch([stroke]), line)


def test_brightness_only_matters_in_proportion():
    image = picture(arc(14, 14, 8, 0, 250)) // 5 * 5
    assert len(trace(image)) == len(trace(image // 5)) == 1
    assert_follows(trace(image // 5), trace(image).strokes[0][:, :2], off=0.3)


def test_times_are_shares_of_the_way_at_constant_speed():
    image = picture(np.array([[4, 6], [24, 6.0]]), np.array([[4, 20], [16, 20.0]]))
    sketch = trace(image, "digit 3", "7")
    assert (sketch.name, sketch.label) == ("digit 3", "7")
    points = np.concatenate(sketch.strokes)
    steps = np.hypot(*np.diff(points[:, :2], axis=0).T)
    assert points[0, 2] == 0 and points[-1, 2] == 1
    np.testing.assert_allclose(np.diff(points[:, 2]), steps / steps.sum(), atol=1e-12)


def test_straight_lines_have_few_points_and_curves_keep_theirs():
    straight = trace(picture(np.array([[14, 4], [14, 24.0]])))
    assert straight.num_points <= 4
    (circle,) = trace(picture(arc(14, 14, 8)))
    chords = np.hypot(*np.diff(circle[:, :2], axis=0).T)
    # A chord within 0.05 of an arc of radius 8 is at most 1.8 long; the traced line is not a
    # perfect circle.
    assert len(circle) > 15 and chords.max() < 4


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3), (20, 31)])
def test_pictures_of_nothing_but_ink_have_a_stroke(shape):
    image = np.full(shape, 7, np.uint8)
    sketch = trace(image)
    assert len(sketch) == 1
    points = np.concatenate(sketch.strokes)[:, :2]
    assert (points >= 0).all() and (points <= shape[::-1]).all()
    assert coverage(image, sketch) == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((28, 28), np.uint8), "image has no ink: all of its pixels are 0"),
        (np.ones((28, 28)), r"shape \(28, 28\) and type float64; it must be uint8"),
        (np.ones((28, 28, 1), np.uint8), r"image has shape \(28, 28, 1\)"),
        (np.ones((0, 28), np.uint8), r"image has shape \(0, 28\)"),
        ([[1, 2]], "type int64"),
    ],
)
def test_what_is_no_picture_of_ink_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        trace(image)


@pytest.mark.slow
def test_tracing_needs_no_tensorflow():
    code = (
        "import sys, numpy as np\n"
        "from keras_sparse_dm.data import trace\n"
        "image = np.zeros((28, 28), 'uint8'); image[4:20, 9:12] = 200\n"
        "trace(image)\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Anything

# The average is 0.98, but a dropped spur may be a third of a small blob's few pixels.
LEAST_COVERAGE = 0.6


@st.composite
def drawings(draw):
    """Draw random pictures of a few lines with corners, by a pen of random width."""
    coordinate = st.floats(3, 25, allow_subnormal=False)
    lines = draw(
        st.lists(
            st.lists(st.tuples(coordinate, coordinate), min_size=2, max_size=5),
            min_size=1,
            max_size=3,
        )
    )
    return picture(*map(np.array, lines), width=draw(st.floats(1, 4)))


@st.composite
def blobs(draw):
    """Draw ink of random shape, possibly with holes or touching the picture's edge."""
    shape = draw(st.tuples(st.integers(8, 40), st.integers(8, 40)))
    noise = np.random.default_rng(draw(st.integers(0, 2**32))).random(shape)
    smooth = gaussian_filter(noise, draw(st.floats(1, 4)), mode="wrap")
    level = np.quantile(smooth, draw(st.floats(0.2, 0.95)))
    return np.clip((smooth - level) / np.ptp(smooth) * 2000, 0, 255).astype(np.uint8)


def assert_sound(image, least):
    sketch = trace(image)
    points = np.concatenate(sketch.strokes)
    assert (points[:, :2] >= 0).all() and (points[:, :2] <= image.shape[::-1]).all()
    assert (np.diff(points[:, 2]) >= 0).all()
    assert points[0, 2] == 0 and points[-1, 2] in (0, 1)
    assert coverage(image, sketch) >= least
    again = trace(image.copy())
    assert all((a == b).all() for a, b in zip(sketch, again, strict=True))
    longest = max(
        range(len(sketch)),
        key=lambda i: np.hypot(*np.diff(sketch.strokes[i][:, :2], axis=0).T).sum(),
    )
    assert longest == 0
    return sketch


@pytest.mark.slow
@given(st.one_of(drawings(), blobs()))
@settings(deadline=None, max_examples=300)
def test_every_picture_gives_sound_strokes(image):
    if image.max() == 0:
        return
    assert_sound(image, LEAST_COVERAGE)


@given(drawings().filter(lambda image: skeletonize(ink_of(image)).sum() >= 40), st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_a_turned_picture_is_covered_as_well(image, turns):
    """Check drawings whose skeleton has 40 pixels or more.

    Thinning depends on the direction: it leaves spurs that it does not leave in the turned picture.
    `trace` drops them, each up to half the ink's width long. In a dot's skeleton of a dozen pixels,
    two spurs are more than a fifth; in one of 40 pixels, the shares differed by at most 0.14.
    """
    turned = np.ascontiguousarray(np.rot90(image, turns))
    covered = [coverage(x, trace(x)) for x in (image, turned)]
    assert abs(covered[0] - covered[1]) < 0.2 and min(covered) > LEAST_COVERAGE


# Digits


def test_the_strokes_of_kanjivgs_digits_are_found():
    """The true strokes are known, and the traced ones follow them."""
    for digit in range(10):
        true = read_svg(kanjivg_folder() / f"{ord(str(digit)):05x}.svg")
        lines = [s[:, :2] * SIZE / 109 for s in true]
        sketch = trace(picture(*lines, width=2.5))
        assert len(sketch) <= 2
        assert_follows(sketch, *lines, off=1.5, short=2.6)


@pytest.fixture(scope="module")
def mnist():
    return load_digits(shared_folder("data") / "mnist")


@pytest.mark.slow
def test_mnists_digits_become_few_strokes_that_cover_them(mnist):
    chosen = np.random.default_rng(7).choice(len(mnist), 300, replace=False)
    sketches = [assert_sound(mnist.images[i], 0.75) for i in chosen]
    covered = [coverage(mnist.images[i], s) for i, s in zip(chosen, sketches, strict=True)]
    assert np.mean(covered) > 0.985
    # Of all 10,000, 0.5% lie below 0.9.
    assert np.mean(np.array(covered) < 0.9) <= 0.01
    strokes = np.array([len(s) for s in sketches])
    assert np.mean(strokes) < 1.35 and np.mean(strokes <= 3) > 0.99
    labels = mnist.labels[chosen]
    for digit in (0, 1, 6, 8, 9):
        assert np.mean(strokes[labels == digit] == 1) > 0.7
    assert np.mean(strokes[labels == 4] == 2) > 0.7
    points = [prepare_sketch(s).num_points for s in sketches]
    assert 35 < np.median(points) < 55 and max(points) < 200


@pytest.mark.slow
def test_scikit_learns_digits_become_strokes(monkeypatch):
    monkeypatch.setattr("keras_sparse_dm.data.sketches.digits._read_tfds", lambda *_: None)
    digits = load_digits()
    sketches = [assert_sound(image, 0.75) for image in digits.images[:200]]
    assert np.mean([len(s) for s in sketches]) < 1.3
    zeros = [s for s, label in zip(sketches, digits.labels, strict=False) if label == 0]
    assert np.mean([len(s) == 1 and is_closed(s.strokes[0]) for s in zeros]) > 0.8
