import subprocess
import sys

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_sparse_dm.data import (
    Sketch,
    drop_short_strokes,
    from_absolute,
    from_delta,
    from_points,
    move_to_origin,
    normalize_time,
    prepare_sketch,
    resample,
    scale_to_circle,
    to_absolute,
    to_delta,
    to_points,
)

coordinates = st.floats(-100, 100, allow_subnormal=False)


@st.composite
def sketches(draw, min_points=1, max_strokes=5):
    """Draw sketches with at least one stroke of two points, and increasing times."""
    lengths = draw(st.lists(st.integers(min_points, 8), min_size=1, max_size=max_strokes))
    lengths[draw(st.integers(0, len(lengths) - 1))] = draw(st.integers(2, 8))
    positions = draw(
        hnp.arrays(np.float64, (sum(lengths), 2), elements=coordinates, fill=st.nothing())
    )
    times = np.cumsum(
        draw(hnp.arrays(np.float64, sum(lengths), elements=st.floats(0.1, 5), fill=st.nothing()))
    )
    timed = np.column_stack([positions, times])
    sketch = Sketch(tuple(np.split(timed, np.cumsum(lengths)[:-1])), "drawn")
    kept = np.concatenate([s[:, :2] for s in sketch.strokes if len(s) > 1])
    if np.ptp(kept, axis=0).max() < 1:  # practically one place
        sketch = Sketch((*sketch.strokes, [[0, 0, 1e6], [50, 0, 1e6 + 1]]), "drawn")
    return sketch


def zigzag():
    return Sketch(
        (
            np.array([[3, 4, 10], [6, 8, 11], [6, 0, 13.0]]),
            np.array([[1, 1, 14.0]]),
            np.array([[0, 0, 15], [0, 12, 20.0]]),
        ),
        "zigzag",
    )


# Sketch


def test_sketch_keeps_float64_copies_that_cannot_be_written():
    source = np.arange(6, dtype=np.float32).reshape(2, 3)
    sketch = Sketch([source], "a")
    source[:] = 99
    np.testing.assert_array_equal(sketch.strokes[0], np.arange(6).reshape(2, 3))
    assert sketch.strokes[0].dtype == np.float64
    assert (len(sketch), sketch.num_points) == (1, 2)
    with pytest.raises(ValueError):
        sketch.strokes[0][0, 0] = 1
    with pytest.raises(AttributeError):
        sketch.name = "b"


@pytest.mark.parametrize(
    ("stroke", "message"),
    [
        (np.zeros((4, 2)), r"shape \(4, 2\)"),
        (np.zeros(3), r"shape \(3,\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        ([[0, np.nan, 0]], "NaN or infinite"),
        ([[np.inf, 0, 0]], "NaN or infinite"),
        ([["x", 0, 0]], "not an array"),
    ],
)
def test_sketch_refuses_bad_strokes_by_name(stroke, message):
    with pytest.raises(ValueError, match=f"sketch 'bad': stroke 1 .*{message}"):
        Sketch((np.zeros((2, 3)), stroke), "bad")


# The steps


def test_drop_short_strokes_drops_only_single_points():
    kept = drop_short_strokes(zigzag())
    assert [len(s) for s in kept] == [3, 2]
    assert kept.name == "zigzag"


def test_move_to_origin_shifts_all_strokes_alike_and_leaves_time():
    moved = move_to_origin(zigzag())
    for before, after in zip(zigzag(), moved, strict=True):
        np.testing.assert_array_equal(before - after, np.tile([3.0, 4.0, 0.0], (len(before), 1)))


def test_scale_to_circle_is_about_the_origin():
    # The farthest point of the zigzag is (0, 12).
    scaled = scale_to_circle(zigzag(), 3)
    np.testing.assert_allclose(scaled.strokes[0][1], [1.5, 2.0, 11])
    np.testing.assert_allclose(scaled.strokes[2][1], [0, 3, 20])


@given(sketches(), st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_scale_to_circle_reaches_the_radius(sketch, radius):
    scaled = scale_to_circle(sketch, radius)
    reach = max(np.linalg.norm(s[:, :2], axis=1).max() for s in scaled)
    assert reach == pytest.approx(radius, rel=1e-12)


@pytest.mark.parametrize("unit", [1e-310, 1e150])
def test_scale_to_circle_survives_extreme_units(unit):
    scaled = scale_to_circle(Sketch(([[0, 0, 0], [3 * unit, 4 * unit, 1]],)), 10)
    np.testing.assert_allclose(scaled.strokes[0][1, :2], [6, 8], rtol=1e-6)


@given(sketches(min_points=2), st.floats(0.5, 20))
@settings(max_examples=50, deadline=None)
def test_resample_agrees_with_shapely(sketch, spacing):
    for before, after in zip(sketch, resample(sketch, spacing), strict=True):
        line = shapely.LineString(before[:, :2])
        count = max(2, int(line.length / spacing))
        # The count may differ by one if the length is within a rounding error of a multiple.
        if abs(line.length / spacing - round(line.length / spacing)) > 1e-9:
            assert len(after) == count
        distances = np.linspace(0, line.length, len(after))
        expected = shapely.get_coordinates(shapely.line_interpolate_point(line, distances))
        np.testing.assert_allclose(after[:, :2], expected, atol=1e-9)
        np.testing.assert_array_equal(after[[0, -1]], before[[0, -1]])
        np.testing.assert_allclose(np.diff(after[:, 2], 2), 0, atol=1e-9)


def test_resample_of_a_corner_by_hand():
    # 6 long in an L: int(6 / 1.1) = 5 points, 1.5 apart.
    even = resample(Sketch(([[0, 0, 0], [3, 0, 9], [3, 3, 10]],)), 1.1).strokes[0]
    np.testing.assert_allclose(even[:, 0], [0, 1.5, 3, 3, 3])
    np.testing.assert_allclose(even[:, 1], [0, 0, 0, 1.5, 3])
    np.testing.assert_allclose(even[:, 2], [0, 2.5, 5, 7.5, 10])


def test_resample_keeps_a_stroke_without_length_as_two_points():
    dot = resample(Sketch(([[2, 3, 0], [2, 3, 1], [2, 3, 4]],)), 0.1).strokes[0]
    np.testing.assert_array_equal(dot, [[2, 3, 0], [2, 3, 4]])


def test_normalize_time_by_hand():
    times = [s[:, 2] for s in normalize_time(zigzag())]
    np.testing.assert_allclose(np.concatenate(times), [0, 0.1, 0.3, 0.4, 0.5, 1.0])


@given(sketches())
@settings(max_examples=50, deadline=None)
def test_prepared_sketches_have_the_promised_shape(sketch):
    prepared = prepare_sketch(sketch, spacing=0.05, scale=10)
    assert len(prepared) == sum(len(s) > 1 for s in sketch)
    np.testing.assert_array_equal(prepared.strokes[0][0], 0)
    assert prepared.strokes[-1][-1, 2] == 1
    points = np.concatenate(prepared.strokes)
    assert np.linalg.norm(points[:, :2], axis=1).max() == pytest.approx(10)
    assert (np.diff(points[:, 2]) >= 0).all()
    # n = int(l / 0.05) points leave n - 1 gaps of less than 0.05 (n + 1) / (n - 1) of the unit
    # circle: 0.15 for two points, the worst case. The last scaling undoes the cut corners.
    shrink = max(
        np.linalg.norm(s[:, :2], axis=1).max()
        for s in scale_to_circle(move_to_origin(drop_short_strokes(sketch)), 1)
    ) / max(
        np.linalg.norm(s[:, :2], axis=1).max()
        for s in resample(scale_to_circle(move_to_origin(drop_short_strokes(sketch)), 1), 0.05)
    )
    for stroke in prepared:
        gaps = np.linalg.norm(np.diff(stroke[:, :2], axis=0), axis=1)
        assert gaps.max() <= 10 * 0.15 * shrink + 1e-9


@given(sketches(), coordinates, coordinates, st.sampled_from([0.125, 0.5, 4.0, 64.0]))
@settings(max_examples=50, deadline=None)
def test_prepare_does_not_depend_on_place_and_size(sketch, dx, dy, factor):
    # Powers of two scale without rounding, so no point count changes at a multiple.
    scaled = Sketch(tuple(s * [factor, factor, 1] for s in sketch), "scaled")
    for a, b in zip(prepare_sketch(sketch), prepare_sketch(scaled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    moved = Sketch(tuple(s + [dx, dy, 7] for s in sketch), "moved")
    for a, b in zip(prepare_sketch(sketch), prepare_sketch(moved), strict=True):
        assert abs(len(a) - len(b)) <= 1
        np.testing.assert_allclose(a[[0, -1]], b[[0, -1]], atol=0.2)


def test_prepare_follows_the_original_step_by_step():
    # First stroke from (3, 4): 5 + 8 long; second 12 long; origin-centred reach is
    # |(0, 12) - (3, 4)| = sqrt(73). The one-point stroke is dropped.
    prepared = prepare_sketch(zigzag(), spacing=0.05, scale=10)
    unit = np.sqrt(73)
    counts = [int(13 / unit / 0.05), int(12 / unit / 0.05)]
    assert [len(s) for s in prepared] == counts
    np.testing.assert_allclose(prepared.strokes[1][-1], [-30 / unit, 80 / unit, 1])
    np.testing.assert_allclose(prepared.strokes[0][-1], [30 / unit, -40 / unit, 0.3])
    gaps = np.linalg.norm(np.diff(prepared.strokes[1][:, :2], axis=0), axis=1)
    np.testing.assert_allclose(gaps, 120 / unit / (counts[1] - 1))


@pytest.mark.parametrize(
    ("strokes", "reason"),
    [
        ((), "no stroke has two points"),
        (([[1, 2, 3]], [[4, 5, 6]]), "no stroke has two points"),
        (([[1, 2, 3], [1, 2, 4]], [[1, 2, 5], [1, 2, 6]]), "all points lie at one place"),
        (([[1, 2, 3], [4, 5, 3]],), "time runs from 3 to 3"),
        (([[1, 2, 3], [4, 5, 1]],), "time goes back from 3 to 1"),
        (([[1, 2, 3], [4, 5, 1], [1, 1, 9]],), "time goes back from 3 to 1"),
        (([[1, 2, 0], [4, 5, 5]], [[1, 1, 4], [2, 2, 9]]), "time goes back from 5 to 4"),
    ],
)
def test_prepare_refuses_degenerate_sketches_by_name(strokes, reason):
    with pytest.raises(ValueError, match=f"sketch 'dot': {reason}"):
        prepare_sketch(Sketch(strokes, "dot"))


@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
def test_steps_refuse_lengths_that_are_not_positive(value):
    with pytest.raises(ValueError, match="spacing="):
        resample(zigzag(), value)
    with pytest.raises(ValueError, match="radius="):
        scale_to_circle(zigzag(), value)


def test_steps_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="one point cannot be resampled"):
        resample(zigzag(), 1)
    for step in (move_to_origin, scale_to_circle, normalize_time, to_absolute, to_delta):
        with pytest.raises(ValueError, match="sketch 'none': has no stroke"):
            step(Sketch((), "none"))


# Representations


def small():
    """Return a sketch from the origin with two strokes, of two points and of three."""
    return Sketch(([[0, 0, 0], [1, 2, 1]], [[3, 3, 2], [4, 5, 3], [4, 7, 4]]), "small")


def test_absolute_by_hand():
    expected = [[1, 2, 1], [3, 3, 0], [4, 5, 0], [4, 7, 1]]
    points = to_absolute(small())
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, expected)


def test_delta_by_hand():
    # The original's counter over the five points is 0 1 | 1 1 2.
    expected = [[1, 2, 1], [2, 1, 0], [1, 2, 0], [0, 2, 1]]
    points = to_delta(small())
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, expected)


@given(sketches())
@settings(max_examples=50, deadline=None)
def test_representations_agree_with_a_loop_over_the_definition(sketch):
    sketch = prepare_sketch(sketch)
    absolute, counter = [], []
    for i, stroke in enumerate(sketch):
        for j, (x, y, _) in enumerate(stroke):
            last = j == len(stroke) - 1
            absolute.append([x, y, 1 if last else 0])
            counter.append([x, y, i + 1 if last else i])
    np.testing.assert_allclose(to_absolute(sketch), absolute[1:], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(to_delta(sketch), np.diff(counter, axis=0), atol=1e-5)
    np.testing.assert_array_equal(to_delta(sketch)[:, 2], np.diff(counter, axis=0)[:, 2])


@pytest.mark.slow
@given(sketches(), st.sampled_from(["absolute", "delta"]), st.sampled_from([1.0, 10.0, 1e6]))
@settings(deadline=None)
def test_round_trip_of_representations(sketch, representation, scale):
    sketch = prepare_sketch(sketch, scale=scale)
    back = from_points(to_points(sketch, representation), representation, name=sketch.name)
    assert back.name == sketch.name
    assert [len(s) for s in back] == [len(s) for s in sketch]
    for a, b in zip(sketch, back, strict=True):
        np.testing.assert_allclose(a[:, :2], b[:, :2], rtol=0, atol=2e-7 * scale)
    again = to_points(back, representation)
    np.testing.assert_allclose(again, to_points(sketch, representation), rtol=0, atol=5e-7 * scale)


def test_delta_does_not_drift_on_long_sketches():
    angle = np.linspace(0, 300, 20_000)
    x, y = angle * np.cos(angle), angle * np.sin(angle)
    spiral = scale_to_circle(Sketch((np.column_stack([x, y, angle]),)), 10)
    back = from_delta(to_delta(spiral))
    np.testing.assert_allclose(back.strokes[0][:, :2], spiral.strokes[0][:, :2], atol=1e-5)


points_arrays = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 30), st.just(3)),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
)


@given(points_arrays, st.sampled_from([from_absolute, from_delta]))
@settings(deadline=None)
def test_any_finite_points_make_a_sketch(points, decode):
    sketch = decode(points)
    assert all(len(s) > 1 for s in sketch)
    assert sketch.num_points <= len(points) + 1
    lifts = int((points[:, 2] > 0.5).sum())
    assert len(sketch) <= lifts + 1


def test_from_absolute_drops_single_points_and_keeps_an_unfinished_stroke():
    points = [[1, 0, 0.9], [5, 5, 0.6], [7, 7, 0.4], [8, 7, 0.5], [9, 7, 0.1]]
    sketch = from_absolute(points)
    assert [s[:, :2].tolist() for s in sketch] == [
        [[0, 0], [1, 0]],
        [[7, 7], [8, 7], [9, 7]],
    ]
    assert len(from_absolute(points, threshold=0.45).strokes[1]) == 2
    np.testing.assert_allclose(sketch.strokes[1][:, 2], [0.6, 0.8, 1.0])
    assert len(from_absolute(np.zeros((0, 3)))) == 0


@pytest.mark.parametrize("decode", [from_absolute, from_delta])
def test_decoding_refuses_bad_points(decode):
    with pytest.raises(ValueError, match=r"points has shape \(2, 4\)"):
        decode(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        decode([[0, 0, np.nan]])


def test_encoding_refuses_what_it_would_lose():
    with pytest.raises(ValueError, match="sketch 'zigzag': .*single point"):
        to_delta(zigzag())
    with pytest.raises(ValueError, match=r"starts at \(3, 4\)"):
        to_absolute(drop_short_strokes(zigzag()))
    with pytest.raises(ValueError, match="overflow float32"):
        to_absolute(Sketch(([[0, 0, 0], [1e39, 0, 1]],)))
    with pytest.raises(ValueError, match="representation='polar' .*'absolute', 'delta'"):
        to_points(small(), "polar")
    with pytest.raises(ValueError, match="representation='polar' .*'absolute', 'delta'"):
        from_points(np.zeros((1, 3)), "polar")


@pytest.mark.slow
def test_importing_the_data_package_is_light():
    script = (
        "import sys, keras_sparse_dm.data as data\n"
        "heavy = {'tensorflow', 'keras', 'shapely', 'svg', 'loky', 'platformdirs'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "data.Sketch, data.prepare_sketch, data.load_kanjivg, data.train_batches, data.read_svg\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "missing = [name for name in data.__all__ if not hasattr(data, name)]\n"
        "print(missing)\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.split("\n")[:3] == ["[]", "[]", "[]"]
