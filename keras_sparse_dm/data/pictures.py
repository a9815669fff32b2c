"""Pictures for people: grids of sketches or images, and animated sketches."""

import io
from pathlib import Path

import numpy as np

from keras_sparse_dm.data.rasterization import rasterize
from keras_sparse_dm.data.sketch import Sketch
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.lazy import lazy_module

matplotlib = lazy_module("matplotlib")
matplotlib_figure = lazy_module("matplotlib.figure")
Image = lazy_module("PIL.Image")


class _Picture(matplotlib_figure.Figure):
    """Figure that a notebook shows as the value of a cell.

    By themselves, notebooks show only figures of pyplot, which keeps every figure in memory.
    """

    def _repr_png_(self):
        file = io.BytesIO()
        self.savefig(file, dpi=100)
        return file.getvalue()


def draw(sketches, path=None, columns=8, titles=(), cell=1.1, stacked=False):
    """Draw sketches in a grid, with strokes from dark to light in the order of drawing.

    Args:
        sketches: One iterable of `Sketch`es, such as a list or `read_sketches`; or a list of
            several lists, drawn side by side with a gap between them. Coordinates grow to the
            right and downwards.
        path: File to save (.png, .svg or .pdf), which is replaced only when complete; None to
            save nothing.
        columns: Number of sketches per row in each list, at least 1.
        titles: One title per list.
        cell: Width and height of a sketch in inches.
        stacked: Whether to draw the lists below each other instead of side by side.

    Returns:
        The `matplotlib.figure.Figure`, which a notebook shows.

    Raises:
        ValueError: if there is no sketch, a value is not a `Sketch`, or `columns` is out of its
            range.

    Example:

    >>> sketch = Sketch([[(0, 0, 0), (3, 4, 1)]])
    >>> figure = draw([[sketch], [sketch]], "two.png", columns=1, titles=("drawn", "generated"))
    """
    sketches = [sketches] if isinstance(sketches, Sketch) else list(sketches)
    several = bool(sketches) and isinstance(sketches[0], (list, tuple))
    groups = [_list_of(group) for group in (sketches if several else [sketches])]
    if not any(groups):
        raise ValueError("`sketches` must hold at least one sketch; received none.")
    _check_columns(columns)
    rows = max(-(-len(group) // columns) for group in groups)
    down, across = (len(groups), 1) if stacked else (1, len(groups))
    figure = _Picture(figsize=(cell * (columns + 0.4) * across, (cell * rows + 0.4) * down))
    for panel, group in zip(np.ravel(figure.subfigures(down, across)), groups, strict=True):
        axes = panel.subplots(
            rows,
            columns,
            squeeze=False,
            gridspec_kw={
                "left": 0.03,
                "right": 0.97,
                "bottom": 0.01,
                "top": 1 - 0.4 / (cell * rows + 0.4),
            },
        )
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, sketch in zip(axes.flat, group, strict=False):
            _draw_sketch(axis, sketch)
    for panel, title in zip(figure.subfigs, titles, strict=False):
        panel.suptitle(title, fontsize=11)
    _save(figure, path)
    return figure


def animate(sketches, path, columns=8, frames=60, seconds=4.0, size=96):
    """Write a GIF that draws sketches point by point, all at once over the whole time.

    Args:
        sketches: `Sketch`es, which are all drawn at once, in the order of their points.
            Coordinates grow to the right and downwards.
        path: The `.gif` file, which is replaced only when complete.
        columns: Number of sketches per row, at least 1.
        frames: Number of frames, at least 2.
        seconds: Duration of the drawing; the result stays for a second before the loop restarts.
        size: Width and height of a sketch in pixels.

    Returns:
        The path.

    Raises:
        ValueError: if there is no sketch, a value is not a `Sketch`, or an argument is out of its
            range.

    Example:

    >>> sketch = Sketch([[(0, 0, 0), (3, 4, 1)]])
    >>> animate([sketch, sketch], "two.gif", frames=10, seconds=1.0)
    'two.gif'
    """
    sketches = _list_of(sketches)
    if not sketches:
        raise ValueError("`sketches` must hold at least one sketch; received none.")
    if Path(path).suffix.lower() != ".gif":
        raise ValueError(f"`path` must end in .gif; received {str(path)!r}.")
    _check_columns(columns)
    if frames < 2 or size < 8 or not seconds > 0:
        raise ValueError(
            "`frames` must be 2 or more, `size` 8 or more and `seconds` positive; received "
            f"{frames}, {size} and {seconds}."
        )
    columns = min(columns, len(sketches))
    rows = -(-len(sketches) // columns)
    pictures = []
    for frame in range(1, frames + 1):
        sheet = Image.new("L", (columns * size, rows * size), 255)
        for i, sketch in enumerate(sketches):
            drawn = _first_points(sketch, round(sketch.num_points * frame / frames))
            picture = rasterize(drawn, size, line_width=size / 48, box=_bounds(sketch))
            sheet.paste(Image.fromarray(picture), (i % columns * size, i // columns * size))
        pictures.append(sheet)
    duration = [round(1000 * seconds / frames)] * (frames - 1) + [1000]
    with whole_file(path) as temporary:
        pictures[0].save(
            temporary, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0
        )
    return path


def _list_of(sketches):
    """Return a list of the given sketches."""
    sketches = [sketches] if isinstance(sketches, Sketch) else list(sketches)
    for sketch in sketches:
        if not isinstance(sketch, Sketch):
            raise ValueError(
                f"`sketches` must hold Sketch objects; received {type(sketch).__name__}. "
                "ksd.data.from_points converts a model's points to a Sketch."
            )
    return sketches


def _check_columns(columns):
    if columns < 1:
        raise ValueError(f"`columns` must be 1 or more; received {columns}.")


def _first_points(sketch, n):
    """Return the sketch of the first `n` points."""
    strokes = []
    for stroke in sketch.strokes:
        if n > 0:
            strokes.append(stroke[:n])
        n -= len(stroke)
    return Sketch(tuple(strokes))


def _bounds(sketch):
    """Return left, top, right and bottom, with some space around, never empty."""
    if not sketch.strokes:
        return (0.0, 0.0, 1.0, 1.0)
    points = np.concatenate(sketch.strokes)[:, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    space = 0.1 * max(*(high - low), 1e-9)
    return (*(low - space), *(high + space))


def draw_images(images, path=None, columns=8, titles=(), cell=1.1, stacked=False):
    """Draw images in a grid.

    Args:
        images: One float array (n, height, width, 3) in [-1, 1], or a list of several, drawn side
            by side with a gap between them.
        path, columns, titles, cell, stacked: As in `draw`.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ValueError: if there is no image or `columns` is out of its range.

    Example:

    >>> figure = draw_images(np.zeros((4, 16, 16, 3)), "grey.png", columns=2)
    """
    groups = images if isinstance(images, (list, tuple)) else [images]
    if not any(len(group) for group in groups):
        raise ValueError("`images` must hold at least one image; received none.")
    _check_columns(columns)
    columns = min(columns, max(len(group) for group in groups))
    rows = max(-(-len(group) // columns) for group in groups)
    title = 0.4 if titles else 0.1
    width, height = cell * (columns + 0.2), cell * rows + title
    down, across = (len(groups), 1) if stacked else (1, len(groups))
    figure = _Picture(figsize=(width * across, height * down))
    for i, group in enumerate(groups):
        left, share = (i % across + 0.01) / across, 0.98 / across
        bottom = (down - 1 - i // across + 0.01) / down
        axis = figure.add_axes((left, bottom, share, (1 - title / height) / down))
        axis.set_axis_off()
        axis.imshow(_grid(np.asarray(group), rows, columns))
        if i < len(titles):
            axis.set_title(titles[i], fontsize=11)
    _save(figure, path)
    return figure


def _grid(images, rows, columns):
    """Arrange images in one uint8 array, white between them and in empty cells."""
    n, height, width, _ = images.shape
    gap = max(1, width // 16)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, "uint8")
    for i, image in enumerate(np.clip(images, -1, 1)):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        grid[top : top + height, left : left + width] = np.round((image + 1) * 127.5)
    return grid


def _save(figure, path):
    if path is not None:
        with whole_file(path) as temporary:
            figure.savefig(temporary, dpi=100)


def _draw_sketch(axis, sketch):
    total = max(1, len(sketch.strokes) - 1)
    for i, stroke in enumerate(sketch.strokes):
        color = matplotlib.colormaps["copper"](0.75 * i / total)
        axis.plot(stroke[:, 0], stroke[:, 1], color=color, linewidth=1.4, solid_capstyle="round")
    axis.set_aspect("equal")
    axis.margins(0.1)
    axis.invert_yaxis()
