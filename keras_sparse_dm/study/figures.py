"""Figures of a study in the style of the paper's Figures 2 to 13."""

import math

import numpy as np

from keras_sparse_dm.data import SketchArrays, draw, draw_images
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.runs.sketches import sketches_of
from keras_sparse_dm.sparsity.registry import facts_of
from keras_sparse_dm.study.scores import dataset_title

matplotlib = lazy_module("matplotlib")
matplotlib_figure = lazy_module("matplotlib.figure")
# Points at the same place are drawn side by side, this share of the axis apart.
_DODGE = 0.012
# Width and height in inches. Two panels are as wide as a page's text, one as wide as a column.
_PANEL = (2.5, 2.2)
_STYLE = {
    "font.size": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.frameon": False,
    # Fixed names of parts, and text as text, so that equal figures give equal files.
    "svg.hashsalt": "keras_sparse_dm",
    "svg.fonttype": "none",
}
SAMPLES = 24


def figures_of(scores):
    """Return the figures that show a study.

    Args:
        scores: `Scores`.

    Returns:
        `{name: (caption, figure)}`, without figures that have no score to show.
    """
    found = {}
    with matplotlib.rc_context(_STYLE):
        if len(scores.study.sampling_steps) > 1:
            found["sampling-steps"] = by_sampling_steps(scores)
        else:
            rates = scores.prune_rates
            if len(scores.sparsities) > 1 and not _one_sparsity_each(scores):
                for rate in rates or [None]:
                    name = "sparsity" if rate is None else f"sparsity-p{rate:g}"
                    found[name] = by_sparsity(scores, rate)
            if len(rates) > 1:
                found["prune-rate"] = by_prune_rate(scores)
    return {name: pair for name, pair in found.items() if pair is not None}


def by_sparsity(scores, prune_rate):
    """Draw Figures 2, 3, 6 and 7: score against sparsity, a panel for each data set."""

    def panel(axis, preset):
        drawn = _dense_line(axis, scores, preset)
        lines = _lines(
            a for a in scores.approaches(preset=preset) if a.prune_rate in (None, prune_rate)
        )
        for i, (title, approaches) in enumerate(lines.items()):
            offset = _DODGE * (i - (len(lines) - 1) / 2)
            points = [(a.sparsity + offset, scores.score(a)) for a in approaches]
            drawn |= _line(axis, points, approaches[0], title)
        axis.set_xticks(scores.sparsities)
        axis.set_xlabel("sparsity S (share of weights pruned)")
        return drawn

    rate = "" if prune_rate is None else f", prune rate p = {prune_rate:g}"
    caption = f"{scores.name} against sparsity{rate}"
    return _panels(scores, {dataset_title(p): p for p in scores.presets}, panel, caption)


def by_prune_rate(scores):
    """Draw Figure 5: score against prune rate, a panel for each data set and sparsity.

    Methods share a panel, as in the paper, if the study has each method at one sparsity only.
    """
    rates = scores.prune_rates
    # Rates are evenly spaced, because no scale separates 0.05, 0.1 and 0.5 well.
    places = {rate: i for i, rate in enumerate(rates)}
    together = _one_sparsity_each(scores)
    titles = {}
    for preset in scores.presets:
        for sparsity in [None] if together else scores.sparsities:
            title = dataset_title(preset)
            titles[title if together else f"{title}, S = {sparsity:g}"] = (preset, sparsity)

    def panel(axis, place):
        preset, sparsity = place
        drawn = _dense_line(axis, scores, preset)
        lines = _lines(
            a for a in scores.approaches(preset=preset) if sparsity in (None, a.sparsity)
        )
        for i, (title, approaches) in enumerate(lines.items()):
            first = approaches[0]
            title = f"{title}, S = {first.sparsity:g}" if together else title
            if first.prune_rate is None:
                drawn |= _level(axis, scores.score(first), first.method, title)
                continue
            offset = len(rates) * _DODGE * (i - (len(lines) - 1) / 2)
            points = [(places[a.prune_rate] + offset, scores.score(a)) for a in approaches]
            drawn |= _line(axis, points, first, title)
        axis.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axis.set_xlim(-0.4, len(rates) - 0.6)
        axis.set_xlabel("prune rate p (share per update)")
        return drawn

    return _panels(scores, titles, panel, f"{scores.name} against prune rate")


def by_sampling_steps(scores):
    """Draw Figure 4: score against the number of sampling steps, a panel for each data set."""
    all_steps = sorted(scores.study.sampling_steps)
    span = all_steps[-1] - all_steps[0]
    several = len(scores.prune_rates) > 1

    def panel(axis, preset):
        drawn = False
        approaches = [a for a in scores.approaches(preset=preset) if not a.full]
        for i, approach in enumerate(approaches):
            offset = span * _DODGE * (i - (len(approaches) - 1) / 2)
            points = [(steps + offset, scores.score(approach, steps)) for steps in all_steps]
            drawn |= _line(axis, points, approach, approach.title(prune_rate=several))
        axis.set_xticks(all_steps)
        axis.set_xlabel("DDIM sampling steps")
        return drawn

    caption = f"{scores.name} against the number of sampling steps"
    return _panels(scores, {dataset_title(p): p for p in scores.presets}, panel, caption)


def _panels(scores, titles, panel, caption):
    """Return `(caption, figure)` with a panel for each title, or None if all panels are empty.

    Args:
        titles: `{title of a panel: argument for panel}`.
        panel: Function of an axis and an argument; it returns True if it has drawn something.
    """
    columns = min(len(titles), 3) if len(titles) != 4 else 2
    rows = -(-len(titles) // columns)
    width, height = _PANEL
    figure = matplotlib_figure.Figure(
        figsize=(max(3.3, width * columns), height * rows + 0.4), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False).flat
    drawn, handles = False, {}
    for axis, (title, place) in zip(axes, titles.items(), strict=False):
        here = panel(axis, place)
        drawn = drawn or here
        axis.set_title(title if here else f"{title}: no runs", fontsize=8)
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    for axis in list(axes):
        axis.set_axis_off()
    for axis in figure.axes[::columns]:
        axis.set_ylabel(f"{scores.name} (lower is better)")
    if not drawn:
        return None
    # Width of the widest entry in inches.
    entry = 0.5 + 0.065 * max(map(len, handles))
    ncols = max(1, min(len(handles), int(figure.get_figwidth() / entry)))
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=ncols)
    several = any(len(cells) > 1 for cells in scores.cells.values())
    error = " Bars and band: sample SD over the runs." if several else ""
    return f"{caption}.{error}", figure


def _lines(approaches):
    """Return `{title: sparse approaches}` for each line: a method, its update interval, options."""
    approaches = [a for a in approaches if a.method != "dense" and not a.full]
    several = len({a.update_every for a in approaches if a.prune_rate is not None}) > 1
    lines = {}
    for approach in approaches:
        title = facts_of(approach.method).title
        if several and approach.update_every is not None:
            title += f", ΔT = {approach.update_every}"
        title = ", ".join([title, *approach.option_texts])
        lines.setdefault(title, []).append(approach)
    return lines


def _line(axis, points, approach, title):
    """Draw the points that have a score, and return True if there is one."""
    points = sorted(((x, score) for x, score in points if score.values), key=lambda pair: pair[0])
    if not points:
        return False
    facts = facts_of(approach.method)
    axis.errorbar(
        [x for x, _ in points],
        [score.mean for _, score in points],
        # A single run has no standard deviation.
        yerr=[math.nan if score.sd is None else score.sd for _, score in points],
        color=facts.colour,
        marker=facts.marker,
        linestyle="--" if approach.method == "dense" else "-",
        capsize=2,
        elinewidth=0.8,
        label=title,
    )
    return True


def _level(axis, score, method, title):
    """Draw a score as a horizontal line with a band, and return True if there is one."""
    if not score.values:
        return False
    color = facts_of(method).colour
    axis.axhline(score.mean, color=color, linestyle="--", linewidth=1, label=title)
    if score.sd:
        low, high = score.mean - score.sd, score.mean + score.sd
        axis.axhspan(low, high, color=color, alpha=0.12, linewidth=0)
    return True


def _dense_line(axis, scores, preset):
    """Draw the dense networks' scores, and the paper's if it uses the same feature network."""
    found = scores.approaches(preset=preset, method="dense", full=False)
    if not found:
        return False
    fid = scores.paper_fid(found[0])
    if fid is not None and scores.is_papers(preset):
        axis.axhline(fid.mean, color="#999999", linestyle=":", linewidth=1, label="Dense, paper")
    levels = [_level(axis, scores.score(a), "dense", a.title()) for a in found]
    return any(levels)


def _one_sparsity_each(scores):
    """Return True if each method of a preset has one sparsity, possibly different ones."""
    pairs = {(a.preset, a.method): set() for a in scores.cells}
    for approach in scores.cells:
        pairs[approach.preset, approach.method].add(approach.sparsity)
    return all(len(sparsities) == 1 for sparsities in pairs.values())


def save_figure(figure, folder, name):
    """Write a figure as `NAME.png` and `NAME.svg`; equal figures give equal bytes."""
    with matplotlib.rc_context(_STYLE):
        for ending, options in ((".png", {"dpi": 200}), (".svg", {"metadata": {"Date": None}})):
            with whole_file(folder / f"{name}{ending}") as temporary:
                figure.savefig(temporary, **options)


def sample_sheet(titles_and_files, path):
    """Draw samples of several runs below each other, as in the paper's Figures 8 to 13.

    Args:
        titles_and_files: List of `(title, path)`; each path is a `samples.npz` of an evaluation.
        path: Path of the picture to write.
    """
    titles, groups = [], []
    for title, file in titles_and_files:
        titles.append(title)
        groups.append(_read_samples(file))
    if isinstance(groups[0], list):
        draw(groups, path, columns=8, titles=titles, cell=0.8, stacked=True)
    else:
        draw_images(groups, path, columns=8, titles=titles, cell=0.8, stacked=True)


def _read_samples(file):
    """Return the first samples of a file: a list of sketches, or images in [-1, 1]."""
    with np.load(file, allow_pickle=False) as stored:
        if "images" in stored:
            return stored["images"][:SAMPLES].astype("float32") / 127.5 - 1
        lengths = stored["lengths"][:SAMPLES]
        names = [f"sample {i}" for i in range(len(lengths))]
        points = stored["points"][: lengths.sum()]
        return sketches_of(SketchArrays(points, lengths, names, str(stored["representation"])))
