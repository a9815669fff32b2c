"""Differences between the settings of two runs: ours and the paper's, or a new and a stored one.

Loads no Keras, so that the command line answers at once.
"""

from keras_sparse_dm.datasets import SKETCH_DATASETS
from keras_sparse_dm.runs.folder import option_differences
from keras_sparse_dm.runs.settings import RunSettings
from keras_sparse_dm.sparsity.registry import facts_of
from keras_sparse_dm.study.grid import LATENT_DIFFUSION
from keras_sparse_dm.study.scales import PAPER_SAMPLES, as_in_paper

# Settings that a cell chooses, and settings that have lines of their own.
_NOT_COMPARED = ("method", "sparsity", "prune_rate", "categories", "dataset", "kind", "evaluation")


def differences_from_paper(cell, scale, settings, weights=()):
    """Return one line for each setting in which a run differs from the paper's.

    Args:
        cell: The `Cell`.
        scale: Its scale.
        settings: The `RunSettings` that `settings_of` returns for both.
        weights: Paths of the Inception weights that the run is evaluated with.
    """
    paper = as_in_paper(RunSettings.from_preset(cell.preset), cell)
    lines = []
    if settings.data.dataset != paper.data.dataset or scale == "smoke":
        lines.append(f"data set: {_stand_in(settings)} instead of {paper.data.dataset}")
    elif settings.data.dataset == "kanjivg" and (
        settings.data_dir is None or settings.data_dir.suffix != ".npz"
    ):
        lines.append(
            "data set: one drawing of each of KanjiVG's 6,422 kanji instead of sketch-rnn's 10,358"
        )
    elif settings.data.dataset == "vmnist":
        lines.append("data set: strokes traced from MNIST's test digits instead of Vector MNIST")
    ours, theirs = settings.to_dict(), paper.to_dict()
    for part in ("model", "data", "training", "noise", "sampling", "first_stage"):
        for name, value in ours.get(part, {}).items():
            if name in _NOT_COMPARED or value == theirs[part].get(name):
                continue
            if name == "update_every" and not facts_of(cell.method).changes_masks:
                continue
            what = name.replace("_", " ")
            what = f"autoencoder's {what}" if part == "first_stage" else what
            lines.append(f"{what}: {_text(value)} instead of {_text(theirs[part].get(name))}")
    samples = settings.sampling.evaluation
    if samples != PAPER_SAMPLES:
        lines.append(f"samples evaluated: {samples:,} instead of {PAPER_SAMPLES:,}")
    if not weights:
        lines.append("distance: FD-kanji instead of the FID")
    return lines


def _stand_in(settings):
    """Return the name of the data that a run takes in place of the paper's."""
    data = settings.data
    if data.dataset == "kanjivg" and settings.preset in LATENT_DIFFUSION:
        return "rendered kanji"
    where = "" if settings.data_dir is not None else " that come with a package"
    return f"{data.max_sketches} {SKETCH_DATASETS[data.dataset].unit}{where}"


def _text(value):
    if isinstance(value, list):
        return "(" + ", ".join(map(str, value)) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting_clashes(mine, stored):
    """Return one line for each setting in which a run differs from a stored one.

    The places of data and autoencoder may differ, and settings that do not affect training.

    Args:
        mine: `RunSettings`.
        stored: Dictionary, the `settings` of a `config.json`.
    """
    free = ("--samples", "--samples-every", "--data-dir", "--autoencoder", "--sampling.evaluation")
    return [
        f"{name} is {here!r} but was {there!r}"
        for name, here, there in option_differences(mine.to_dict(), stored)
        if name not in free
    ]
