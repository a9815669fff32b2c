"""Pictures of sketches: strokes with pen lifts."""

import numpy as np

from keras_sparse_dm.files import whole_file


def draw(sketches, path=None, columns=8, titles=(), cell=1.1):
    """Draws sketches in a grid, each stroke a line, dark to light in the order of drawing.

    Args:
        sketches: One list of `Sketch`, or several, which stand side by side with a gap between
            them. Coordinates grow to the right and down.
        path: Where to save the picture (the ending says the format: .png, .svg, .pdf), written
            under a temporary name and renamed; None to save nothing.
        columns: Sketches in a row, of each list.
        titles: A title for each list.
        cell: Width and height of a sketch in inches.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ValueError: if there is nothing to draw.
    """
    from matplotlib.figure import Figure

    groups = sketches if sketches and isinstance(sketches[0], (list, tuple)) else [sketches]
    if not any(len(group) for group in groups):
        raise ValueError("`sketches` must hold at least one sketch; received none.")
    rows = max(-(-len(group) // columns) for group in groups)
    figure = Figure(figsize=(cell * (columns + 0.4) * len(groups), cell * rows + 0.4))
    for panel, group in zip(np.atleast_1d(figure.subfigures(1, len(groups))), groups, strict=True):
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
    if path is not None:
        with whole_file(path) as temporary:
            figure.savefig(temporary, dpi=100)
    return figure


def _draw_sketch(axis, sketch):
    from matplotlib import colormaps

    total = max(1, len(sketch.strokes) - 1)
    for i, stroke in enumerate(sketch.strokes):
        color = colormaps["copper"](0.75 * i / total)
        axis.plot(stroke[:, 0], stroke[:, 1], color=color, linewidth=1.4, solid_capstyle="round")
    axis.set_aspect("equal")
    axis.margins(0.1)
    axis.invert_yaxis()
