import os

import numpy as np
import pytest
from sketch_files import sketch

from keras_sparse_dm.data import Sketch
from keras_sparse_dm.data.pictures import animate, draw, draw_images


@pytest.fixture
def cross():
    return sketch([[0, 0], [10, 20]], [[0, 20], [5, 10], [10, 0]])


def lines_of(figure):
    return [axis.get_lines() for axis in figure.axes if axis.get_lines()]


def test_each_stroke_is_a_line_of_its_own(cross):
    ((first, second),) = lines_of(draw([cross]))
    np.testing.assert_array_equal(first.get_xydata(), [[0, 0], [10, 20]])
    np.testing.assert_array_equal(second.get_xydata(), [[0, 20], [5, 10], [10, 0]])
    # Dark to light in the order of drawing.
    luminance = [sum(line.get_color()[:3]) for line in (first, second)]
    assert luminance[0] < luminance[1]


def test_y_grows_downwards_and_shapes_are_not_stretched(cross):
    (axis,) = [axis for axis in draw([cross]).axes if axis.get_lines()]
    bottom, top = axis.get_ylim()
    assert bottom > top
    left, right = axis.get_xlim()
    assert left < 0 and right > 10 and top < 0 and bottom > 20
    assert axis.get_aspect() in (1, "equal")


def test_a_grid_holds_all_sketches_of_all_lists(cross):
    figure = draw([[cross] * 5, [cross] * 2], columns=2, titles=("mine", "theirs"))
    assert len(lines_of(figure)) == 7
    assert [panel.get_suptitle() for panel in figure.subfigs] == ["mine", "theirs"]
    assert [len([a for a in panel.axes if a.get_lines()]) for panel in figure.subfigs] == [5, 2]
    assert not any(axis.axison for axis in figure.axes)


def test_more_sketches_make_a_higher_picture(cross):
    one, three = draw([cross] * 4, columns=4), draw([cross] * 9, columns=4)
    assert one.get_figwidth() == three.get_figwidth()
    assert three.get_figheight() - one.get_figheight() == pytest.approx(2 * 1.1)


def test_strokes_of_one_point_are_drawn_without_failing(cross):
    figure = draw([sketch([[3, 3]]), cross])
    figure.canvas.draw()
    assert len(lines_of(figure)) == 2


@pytest.mark.parametrize(
    "ending, magic", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_saves_in_the_format_of_the_ending(cross, tmp_path, ending, magic):
    path = tmp_path / f"picture.{ending}"
    draw([cross], path)
    assert path.read_bytes().startswith(magic)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_picture_is_not_blank(cross, tmp_path):
    from matplotlib.image import imread

    draw([cross] * 3, str(tmp_path / "picture.png"))
    pixels = imread(tmp_path / "picture.png")[..., :3]
    assert 0.001 < (pixels < 0.9).any(axis=-1).mean() < 0.5


def test_an_old_picture_survives_a_failed_one(cross, tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    draw([cross], path)
    before = path.read_bytes()

    def full(self, target, **arguments):
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space"):
        draw([cross], path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["picture.png"]


@pytest.mark.parametrize("nothing", [[], [[]], [[], []]])
def test_nothing_to_draw_is_refused(nothing, tmp_path):
    with pytest.raises(ValueError, match="sketch"):
        draw(nothing, tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


def test_an_empty_list_beside_a_full_one_is_drawn(cross):
    assert len(lines_of(draw([[cross], []]))) == 1


def test_whatever_gives_sketches_is_drawn(cross, tmp_path):
    assert len(lines_of(draw(cross))) == 1
    assert len(lines_of(draw(iter([cross] * 3)))) == 3
    assert animate(cross, tmp_path / "a.gif", frames=2, size=8).exists()


@pytest.mark.parametrize("wrong", [[np.zeros((4, 3))], [[np.zeros((4, 3))]], ["cat"]])
def test_what_is_no_sketch_is_named(wrong, tmp_path):
    with pytest.raises(ValueError, match="Sketch objects; received (ndarray|str)"):
        draw(wrong, tmp_path / "picture.png")
    with pytest.raises(ValueError, match="Sketch objects"):
        animate(wrong, tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_columns_are_checked(cross):
    for call in (draw, lambda x, columns: draw_images(np.zeros((1, 4, 4, 3)), columns=columns)):
        with pytest.raises(ValueError, match="`columns` must be 1 or more; received 0"):
            call([cross], columns=0)


def test_a_notebook_shows_what_is_drawn(cross):
    assert draw([cross])._repr_png_().startswith(b"\x89PNG")
    formatters = pytest.importorskip("IPython.core.formatters")
    shown, _ = formatters.DisplayFormatter().format(draw([cross]))
    assert shown["image/png"].startswith(b"\x89PNG")
    shown, _ = formatters.DisplayFormatter().format(draw_images(np.zeros((1, 4, 4, 3))))
    assert shown["image/png"].startswith(b"\x89PNG")


def test_figures_do_not_pile_up_in_pyplot(cross):
    import matplotlib.pyplot

    before = matplotlib.pyplot.get_fignums()
    draw([cross])
    assert matplotlib.pyplot.get_fignums() == before


# Animations


def test_an_animation_draws_every_sketch_to_its_end(tmp_path):
    from PIL import Image

    line = np.column_stack([np.arange(20.0), np.zeros(20), np.arange(20.0)])
    sketches = [Sketch((line[:10], line[10:] + [0, 5, 0])), Sketch((line,)), Sketch(())]
    path = animate(sketches, tmp_path / "a.gif", columns=2, frames=10, size=40)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size) == (10, (80, 80))
        ink = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            ink.append(
                (255 - np.asarray(gif.convert("L"), float)).reshape(2, 40, 2, 40).sum((1, 3))
            )
    ink = np.array(ink)
    assert (np.diff(ink, axis=0) >= -1).all()
    assert (ink[0] < ink[-1] / 2 + 1).all()
    # The last frame shows the complete sketch, and nothing of the empty one.
    assert ink[-1, 0, 0] > 0 and ink[-1, 0, 1] > 0
    assert not ink[:, 1].any()


def test_bad_animations_are_refused(tmp_path):
    line = Sketch(([[0, 0, 0], [1, 1, 1]],))
    for sketches, options in (([], {}), ([line], {"frames": 1}), ([line], {"seconds": 0})):
        with pytest.raises(ValueError, match="must"):
            animate(sketches, tmp_path / "a.gif", **options)
    with pytest.raises(ValueError, match=r"`path` must end in .gif; received '.*a.png'"):
        animate([line], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_lists_stand_below_each_other_where_asked(cross):
    beside = draw([[cross] * 4, [cross] * 2], columns=2, titles=("one", "two"))
    below = draw([[cross] * 4, [cross] * 2], columns=2, titles=("one", "two"), stacked=True)
    (width, height), (low, high) = beside.get_size_inches(), below.get_size_inches()
    assert (low, high) == (width / 2, height * 2)
    tops = [panel.bbox.y0 for panel in below.subfigs]
    assert tops[0] > tops[1]
    assert [panel.get_suptitle() for panel in below.subfigs] == ["one", "two"]


def test_images_stand_below_each_other_where_asked():
    black, white = np.full((2, 8, 8, 3), -1.0), np.ones((2, 8, 8, 3))
    figure = draw_images([black, white], columns=2, titles=("one", "two"), stacked=True)
    one, two = figure.axes
    assert one.get_position().y0 >= two.get_position().y1
    assert one.get_position().x0 == two.get_position().x0
    assert (one.get_title(), two.get_title()) == ("one", "two")
