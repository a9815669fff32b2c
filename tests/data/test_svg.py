"""SVG drawings: reader and writer."""

import numpy as np
import pytest
from sketch_files import failure, peak_of

from keras_sparse_dm.data import Sketch
from keras_sparse_dm.data.formats import svg
from keras_sparse_dm.data.reading import (
    read_svg,
    write_svg,
)


def draw(path, inside, attributes=""):
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>{inside}</svg>')
    return path


def bounds(stroke):
    return [*stroke[:, :2].min(axis=0), *stroke[:, :2].max(axis=0)]


def test_shapes_are_strokes_of_their_outline(tmp_path):
    path = draw(
        tmp_path / "a.svg",
        '<line x1="1" y1="2" x2="4px" y2="6"/>'
        '<polyline points="0,0 10,0,10 10"/>'
        '<polygon points="0 0 3-0 3 4"/>'
        '<rect x="1" y="2" width="3" height="4"/>'
        '<circle cx="10" cy="20" r="5"/>'
        '<ellipse cx="10" cy="20" rx="5" ry="2"/>'
        '<rect x="1" y="2" width="30" height="40" rx="5"/>'
        '<rect width="0" height="4"/><circle/><polyline points=""/><text>t</text>',
    )
    line, polyline, polygon, rect, circle, ellipse, rounded = read_svg(path)
    assert line[:, :2].tolist() == [[1, 2], [4, 6]]
    assert polyline[:, :2].tolist() == [[0, 0], [10, 0], [10, 10]]
    assert polygon[:, :2].tolist() == [[0, 0], [3, 0], [3, 4], [0, 0]]
    assert rect[:, :2].tolist() == [[1, 2], [4, 2], [4, 6], [1, 6], [1, 2]]
    np.testing.assert_allclose(np.hypot(*(circle[:, :2] - [10, 20]).T), 5)
    np.testing.assert_allclose(circle[[0, -1], :2], [[15, 20], [15, 20]], atol=1e-12)
    # SVG's direction is clockwise on the screen, so downwards first.
    assert circle[1, 1] > 20
    np.testing.assert_allclose(bounds(ellipse), [5, 18, 15, 22])
    np.testing.assert_allclose(bounds(rounded), [1, 2, 31, 42], atol=1e-9)
    # Four sides and four quarters of a circle.
    length = np.hypot(*np.diff(rounded[:, :2], axis=0).T).sum()
    assert length == pytest.approx(2 * 20 + 2 * 30 + 10 * np.pi, rel=1e-4)


# Images of (x, y) = (3, 4) by the definitions of the SVG specification.
TRANSFORMS = [
    ("translate(10)", (13, 4)),
    ("translate(10, 20)", (13, 24)),
    ("translate(10-20)", (13, -16)),
    ("scale(2)", (6, 8)),
    ("scale(2 .5)", (6, 2)),
    ("rotate(90)", (-4, 3)),
    ("rotate(90, 3, 4)", (3, 4)),
    ("rotate(180 1 1)", (-1, -2)),
    ("skewX(45)", (7, 4)),
    ("skewY(45)", (3, 7)),
    ("matrix(1 2 3 4 5 6)", (1 * 3 + 3 * 4 + 5, 2 * 3 + 4 * 4 + 6)),
    ("translate(10) scale(2)", (16, 8)),
    ("scale(2),translate(1e1)", (26, 8)),
    ("", (3, 4)),
]


@pytest.mark.parametrize(("transform", "expected"), TRANSFORMS)
def test_transforms_move_points_as_the_specification_says(tmp_path, transform, expected):
    path = draw(tmp_path / "a.svg", f'<path transform="{transform}" d="M3 4 L3 4"/>')
    np.testing.assert_allclose(read_svg(path).strokes[0][0, :2], expected, atol=1e-12)


def test_transforms_of_groups_apply_to_what_is_in_them(tmp_path):
    path = draw(
        tmp_path / "a.svg",
        '<g transform="translate(100)"><g transform="scale(2)"><path d="M3 4 L5 4"/></g>'
        '<path d="M3 4 L5 4"/></g><path d="M3 4 L5 4"/>',
    )
    starts = [s[0, :2].tolist() for s in read_svg(path)]
    assert starts == [[106, 8], [103, 4], [3, 4]]
    # A rotated and stretched circle equals the resulting ellipse.
    circle = '<g transform="rotate(90) scale(2,1)"><circle r="3"/></g>'
    np.testing.assert_allclose(
        bounds(read_svg(draw(tmp_path / "b.svg", circle)).strokes[0]), [-3, -6, 3, 6], rtol=1e-3
    )


@pytest.mark.parametrize(
    ("d", "ends"),
    [
        ("m1e1-2.5l.5-.5,3 3z", [[10, -2.5], [10, -2.5]]),
        ("M0,0H10V10h-5 v-5 , ", [[0, 0], [5, 5]]),
        (" M 0 0\nC1 1 2 2 3 3S5 5 6 6Q7 7 8 8T10 10 ", [[0, 0], [10, 10]]),
        ("M10 10a5 5 0 0110 0 5 5 0 1 0 1 1", [[10, 10], [21, 11]]),
        ("M+1.-1.L2.,2.", [[1, -1], [2, 2]]),
    ],
)
def test_paths_may_be_written_tersely(tmp_path, d, ends):
    (stroke,) = read_svg(draw(tmp_path / "a.svg", f'<path d="{d}"/>'))
    np.testing.assert_allclose(stroke[[0, -1], :2], ends, atol=1e-12)


def test_what_is_not_drawn_is_left_out(tmp_path):
    path = draw(
        tmp_path / "a.svg",
        '<defs><line x2="1"/></defs><g display="none"><line x2="2"/></g><line x2="3"/>'
        '<clipPath><rect width="4" height="4"/></clipPath>'
        '<g style="fill:none; display : none"><path d="M0 0H5"/></g>',
    )
    assert [s[-1, 0] for s in read_svg(path)] == [3]


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        ('<path transform="turn(3)" d="M0 0 L1 1"/>', "transform turn with 1 numbers"),
        ('<path transform="rotate(1 2)" d="M0 0 L1 1"/>', "transform rotate with 2 numbers"),
        ('<path transform="scale(a)" d="M0 0 L1 1"/>', "'a' for the transform scale"),
        ('<path transform="scale" d="M0 0 L1 1"/>', "the invalid transform 'scale'"),
        ('<path transform="scale(1e400)" d="M0 0 L1 1"/>', "infinite or too large|NaN"),
        ('<path d="M0 0 L1 1 2"/>', "the path 'M0 0 L1 1 2', which is invalid"),
        ('<path d="M0 0 L1 1 X 3 3 L5 5"/>', "path .* which is invalid"),
        ('<path d="M0 0 L1..5 1 L5 5"/>', "path .* which is invalid"),
        ('<path d="M0 0 A1 1 0 2 0 3 3"/>', "path .* which is invalid"),
        ('<path d="L3 3"/>', "path .* which is invalid"),
        ('<line x1="50%"/>', "'50%' for x1 of a <line>"),
        ('<line x1="1 2"/>', "'1 2' for x1 of a <line>"),
        ('<polyline points="1 2 3"/>', "<polyline> with 3 numbers"),
        ('<polyline points="1 2 x"/>', "must be numbers"),
        ('<rect width="-1" height="2"/>', "negative size"),
        ('<circle r="-1"/>', "negative radius"),
        ('<path id="a" d="M0 0 L1 1"/><use href="#a"/>', "<use>"),
        ("<g>" * 1001, "nested more than 1000 deep"),
    ],
)
def test_shapes_and_transforms_that_are_none_are_refused(tmp_path, inside, reason):
    with pytest.raises(ValueError, match=rf"^a\.svg: .*({reason})"):
        read_svg(draw(tmp_path / "a.svg", inside))


def test_entities_are_refused_before_they_swell(tmp_path):
    entities = "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(20))
    path = tmp_path / "bomb.svg"
    path.write_text(f'<!DOCTYPE svg [<!ENTITY a "ha">{entities}]><svg><path d="&u;"/></svg>')
    text, peak = peak_of(lambda: failure(lambda: read_svg(path)))
    assert text.startswith("bomb.svg: declares the entity 'a'")
    assert peak < 2**20
    path.write_text('<!DOCTYPE svg [<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;]><svg/>')
    assert "declares the entity 'a'" in failure(lambda: read_svg(path))


def test_a_document_type_without_entities_is_no_harm(tmp_path):
    path = tmp_path / "a.svg"
    path.write_text(
        '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "http://nowhere.invalid/svg10.dtd" '
        '[<!ATTLIST path d CDATA "M0 0 L1 2">]><svg><path/></svg>'
    )
    assert read_svg(path).strokes[0][:, :2].tolist() == [[0, 0], [1, 2]]


@pytest.mark.slow
def test_large_drawings_are_bounded(tmp_path, monkeypatch):
    path = draw(tmp_path / "a.svg", f'<path d="M0 0 {"h1" * 600_000}"/>')
    assert "path of 1,200,005 characters" in failure(lambda: read_svg(path))
    draw(path, f'<path d="M0 0 {"a1 1 0 001 1" * 5000}"/>')
    assert "more than 1,000,000 line segments" in failure(lambda: read_svg(path))
    monkeypatch.setattr(svg, "MAX_BYTES", 100)
    assert "has more than 100 bytes" in failure(lambda: read_svg(path))


@pytest.mark.parametrize("scale", [1e-12, 1, 123.456, 1e12])
def test_a_written_svg_reads_back_to_the_same_points(tmp_path, scale):
    rng = np.random.default_rng(1)
    sketch = Sketch(
        [np.column_stack([rng.normal(3, scale, (n, 2)), np.arange(n)]) for n in (2, 9, 40)]
    )
    write_svg(tmp_path / "a.svg", sketch)
    back = read_svg(tmp_path / "a.svg")
    assert [len(s) for s in back] == [2, 9, 40]
    for a, b in zip(back, sketch, strict=True):
        np.testing.assert_allclose(a[:, :2], b[:, :2], rtol=1e-12)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.svg"]


def test_a_written_svg_shows_the_whole_sketch(tmp_path):
    write_svg(tmp_path / "a.svg", Sketch([[[10, 20, 0], [110, 70, 1]], [[30, 30, 2]]], "<&\ud800"))
    text = (tmp_path / "a.svg").read_text()
    assert 'viewBox="5.0 15.0 110.0 60.0"' in text
    line, dot = read_svg(tmp_path / "a.svg")
    assert dot[:, :2].tolist() == [[30, 30]] * 2
    write_svg(tmp_path / "dot.svg", Sketch([[[1, 1, 0]]]))
    assert 'viewBox="0.95 0.95 0.1 0.1"' in (tmp_path / "dot.svg").read_text()
    with pytest.raises(ValueError, match="sketch 'none' has no stroke"):
        write_svg(tmp_path / "b.svg", Sketch([], "none"))
    with pytest.raises(ValueError, match="sketch 'huge' is too large"):
        write_svg(tmp_path / "b.svg", Sketch([[[-1e308, 0, 0], [1e308, 0, 0]]], "huge"))
    assert not (tmp_path / "b.svg").exists()
