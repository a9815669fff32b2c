"""KanjiVG's SVG files as sketches."""

import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sketch_files import write_paths

import keras_sparse_dm.data.sketches.kanjivg as kanjivg
from keras_sparse_dm.data import (
    read_sketches,
    read_svg,
)

SOURCE = kanjivg.kanjivg_folder()


def length(stroke) -> float:
    return float(np.linalg.norm(np.diff(stroke[:, :2], axis=0), axis=1).sum())


def test_one_is_a_single_line_from_left_to_right():
    sketch = read_svg(SOURCE / "04e00.svg")
    assert (sketch.name, len(sketch)) == ("04e00", 1)
    stroke = sketch.strokes[0]
    np.testing.assert_allclose(stroke[0, :2], [11, 54.25])  # "M11,54.25"
    assert (np.diff(stroke[:, 0]) > 0).all()
    assert np.ptp(stroke[:, 0]) > 10 * np.ptp(stroke[:, 1])
    np.testing.assert_allclose(stroke[[0, -1], 2], [0, 1])


def test_water_has_four_strokes_that_start_where_the_file_says():
    sketch = read_svg(SOURCE / "06c34.svg")
    starts = [stroke[0, :2].tolist() for stroke in sketch]
    assert starts == [[52.77, 15.08], [17.5, 45.75], [81.22, 27.5], [57, 46]]
    # The last stroke's end: 57 + 8.82..., summed by hand over "c19.23 ... 92.5,77".
    np.testing.assert_allclose(sketch.strokes[3][-1, :2], [92.5, 77.0])


def test_every_stroke_path_is_a_stroke_of_the_right_length(kanji_files):
    from svg.path import parse_path

    for file in kanji_files:
        data = re.findall(r'<path [^>]*\bd="([^"]+)"', file.read_text(encoding="utf-8"))
        sketch = read_svg(file)
        assert len(sketch) == len(data)
        for stroke, d in zip(sketch, data, strict=True):
            # The library's own arc length uses another method (adaptive bisection).
            assert length(stroke) == pytest.approx(parse_path(d).length(error=1e-4), rel=1e-3)


def test_kinds_of_curves_have_their_known_lengths(tmp_path):
    file = write_paths(
        tmp_path / "curves.svg",
        "M 0 0 L 3 4",
        "M 0 0 h 3 v 4 z",
        "M 50 0 A 50 50 0 0 1 -50 0",
        "M 0 0 Q 1 1 2 2 T 4 4",
        "M 0 0 C 1 1 2 2 3 3 S 5 5 6 6",
    )
    lengths = [length(s) for s in read_svg(file)]
    expected = [5, 12, 50 * np.pi, 4 * np.sqrt(2), 6 * np.sqrt(2)]
    np.testing.assert_allclose(lengths, expected, rtol=1e-4)
    # y^2 = x as a quadratic curve from (1, -1) by way of (-1, 0) to (1, 1).
    (parabola,) = read_svg(write_paths(tmp_path / "parabola.svg", "M1,-1 Q-1,0 1,1"))
    np.testing.assert_allclose(parabola[:, 1] ** 2, parabola[:, 0], atol=1e-12)


def test_sampling_is_finer_than_the_later_resampling(kanji_files):
    for file in kanji_files:
        raw = read_svg(file)
        reach = max(np.linalg.norm(s[:, :2] - raw.strokes[0][0, :2], axis=1).max() for s in raw)
        gaps = [np.linalg.norm(np.diff(s[:, :2], axis=0), axis=1).max() for s in raw]
        assert max(gaps) / reach < 0.05 / 2


def test_time_is_the_distance_travelled_with_the_pen_up_too(tmp_path):
    file = write_paths(tmp_path / "two.svg", "M0 0 L 3 0", "M 3 4 L 3 5")  # 3 down, 4 up, 1 down
    first, second = read_svg(file)
    np.testing.assert_allclose(first[[0, -1], 2], [0, 3 / 8])
    np.testing.assert_allclose(second[[0, -1], 2], [7 / 8, 1])
    np.testing.assert_allclose(first[:, 0], first[:, 2] * 8)


def test_subpaths_are_strokes_and_undrawn_parts_are_not(tmp_path):
    file = write_paths(
        tmp_path / "parts.svg",
        "M0 0 L1 0 M5 5 l1 1 M 9 9",
        "",
        inside='<defs><path d="M0 0 L9 9"/></defs>'
        '<g id="kvg:StrokeNumbers_x"><path d="M0 0 L9 9"/></g>',
    )
    ends = [s[[0, -1], :2].tolist() for s in read_svg(file)]
    assert ends == [[[0, 0], [1, 0]], [[5, 5], [6, 6]]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no element"),
        ("not XML", "syntax error"),
        ("<svg><path d='M0 0 L1 1'>", "no element|mismatched"),
        ("<html></html>", "is not SVG"),
        ("<svg></svg>", "no stroke"),
        ("<svg><path d=''/></svg>", "no stroke"),
        ("<svg><path d='M 1 1'/></svg>", "no stroke"),
        ("<svg><path d='M 0 0 L 1 one'/></svg>", "."),
        ("<svg><path d='M 0 0 C 1 2'/></svg>", "."),
        ("<svg><path d='M 0 0 L 1e999 3'/></svg>", "infinite or too large"),
        ("<svg><path d='M -1e308 0 L 1e308 3'/></svg>", "infinite or too large"),
        ("<svg><g transform='turn(2)'><path d='M0 0 L1 1'/></g></svg>", "transform"),
        ("<?xml version='1.0' encoding='klingon'?><svg/>", "."),
    ],
)
def test_a_bad_svg_is_named_with_the_reason(tmp_path, content, reason):
    file = tmp_path / "bad.svg"
    file.write_text(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(ValueError, match=rf"bad\.svg: .*({reason})") as caught:
            read_svg(file)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "bad.svg"
    file.write_bytes(b"<svg><path d='M0 0 L1 1' id='\xff\xfe'/></svg>")
    with pytest.raises(ValueError, match="bad.svg: not well-formed"):
        read_svg(file)


@given(st.text("MmLlHhVvCcSsQqTtAaZz 0123456789.,-+eE", max_size=40))
@settings(max_examples=200, deadline=None)
def test_path_data_of_any_kind_gives_a_sketch_or_a_value_error(tmp_path_factory, d):
    file = write_paths(tmp_path_factory.getbasetemp() / "fuzzed.svg", d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            sketch = read_svg(file)
        except ValueError as error:
            assert "fuzzed.svg" in str(error)
        else:
            assert sketch.num_points >= 2


def test_read_sketches_of_a_file_a_folder_and_nothing(tmp_path):
    write_paths(tmp_path / "b.svg", "M0 0 L1 1")
    write_paths(tmp_path / "a.svg", "M0 0 L1 1")
    (tmp_path / "notes.txt").write_text("not a sketch")
    assert [s.name for s in read_sketches(tmp_path)] == ["a", "b"]
    assert [s.name for s in read_sketches(str(tmp_path / "b.svg"))] == ["b"]
    (tmp_path / "aa.svg").write_text("broken")
    with pytest.raises(ValueError, match="aa.svg"):
        list(read_sketches(tmp_path))
    broken = []
    sketches = read_sketches(tmp_path, on_broken=lambda where, error: broken.append(where))
    assert [s.name for s in sketches] == ["a", "b"]
    assert broken == ["aa.svg"]
    with pytest.raises(ValueError, match="notes.txt.*unknown format; known are .svg"):
        read_sketches(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="path='.*nowhere' does not exist"):
        read_sketches(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="path='.*empty' holds no sketch file"):
        read_sketches(tmp_path / "empty")
