"""The command `sparse-dm data`: counts, lengths and a picture of a data set of sketches."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from keras_sparse_dm import data as data_sets
from keras_sparse_dm.checks import SettingsError, UsageError, at_least
from keras_sparse_dm.commands.options import fail, load_quietly, parse_options
from keras_sparse_dm.datasets import SKETCH_DATASETS
from keras_sparse_dm.files import os_error_text
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.presets import SketchSettings
from keras_sparse_dm.runs.setting_checks import check_sketch_settings

sketch_data = lazy_module("keras_sparse_dm.runs.sketch_data")
tyro = lazy_module("tyro")

PICTURES = 12
BINS = 12
BAR = 40


@dataclass(frozen=True)
class DataSettings:
    """Show counts, lengths, padding and a picture of a data set of sketches."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Data set: kanjivg, quickdraw, vmnist, or files (sketches of your own)."""
    data_dir: Path | None = None
    """Folder of the data set's files; see train --help for the default."""
    cache_dir: Path | None = None
    """Folder for prepared data; by default the user's cache folder."""
    batch_size: int = 128
    """Sketches per training batch, for the share of padding."""
    seed: int = 0
    """Seed that chooses the sketches in the picture."""
    picture: Path | None = None
    """File for a picture of twelve sketches (.png, .svg, .pdf, or .gif, drawn point by point); by
    default NAME.png in the working folder."""
    data: tyro.conf.OmitArgPrefixes[SketchSettings] = field(
        default_factory=lambda: SketchSettings("")
    )

    def check(self):
        """Check all that can be checked without loading Keras or data.

        Raises:
            SettingsError: naming the option, what was received and what would be right.
        """
        if self.name not in SKETCH_DATASETS or self.data.dataset not in ("", self.name):
            received = self.data.dataset if self.name in SKETCH_DATASETS else self.name
            raise SettingsError(
                f"the data set must be one of {', '.join(SKETCH_DATASETS)}; received {received!r}."
            )
        check_sketch_settings(replace(self.data, dataset=self.name), self.data_dir)
        at_least(
            ("--batch-size", self.batch_size, 1), ("--seed", self.seed, 0), error=SettingsError
        )
        folder = self.picture_path.parent
        if not folder.is_dir():
            raise SettingsError(f"--picture: the folder {folder} does not exist.")
        if self.picture_path.suffix.lower() not in (".png", ".svg", ".pdf", ".gif"):
            raise SettingsError(
                f"--picture must end in .png, .svg, .pdf or .gif; received {self.picture_path}."
            )

    @property
    def picture_path(self):
        return self.picture if self.picture is not None else Path(f"{self.name}.png")


def data_command(argv, prog="sparse-dm data"):
    """Parse the options of `data`, print the report, and return the exit code."""
    try:
        settings = parse_options(DataSettings, argv, prog)
        settings.check()
        load_quietly(sketch_data)
        data = replace(settings.data, dataset=settings.name)
        train, validation = sketch_data.load_sketch_data(
            data, settings.data_dir, settings.cache_dir
        )
        print(describe(train, validation, settings.batch_size))
        draw_some(train, settings.picture_path, settings.seed)
    except UsageError as error:
        return fail(prog, error, 2)
    except OSError as error:
        return fail(prog, os_error_text(error), 1)
    print(f"Picture: {settings.picture_path}")
    return 0


def describe(train, validation, batch_size):
    """Return a description of a data set of sketches, in several lines.

    Args:
        train, validation: `SketchArrays`.
        batch_size: Number of sketches per training batch.
    """
    lengths = np.concatenate([train.lengths, validation.lengths]) + 1
    strokes = np.concatenate([_strokes(train), _strokes(validation)])
    batch_size = min(batch_size, len(train))
    steps = data_sets.steps_per_epoch(train, batch_size)
    waste = data_sets.padding_waste(train, batch_size)
    lines = [
        str(train.summary),
        "",
        f"training      {len(train):,} sketches, {steps:,} batches of {batch_size} an "
        f"epoch, {waste:.1%} of their points padding",
        f"validation    {len(validation):,} sketches",
        f"points        {_spread(lengths)}",
        f"strokes       {_spread(strokes)}",
    ]
    # The width of the bins is a whole number.
    width = -(-(int(np.ptp(lengths)) + 1) // BINS)
    counts = np.bincount((lengths - lengths.min()) // width)
    lines += ["", "points a sketch"]
    for low, count in zip(range(lengths.min(), lengths.max() + 1, width), counts, strict=True):
        bar = "#" * round(BAR * count / counts.max())
        lines.append(f"{low:6} to {low + width - 1:4}  {count:8,}  {bar}".rstrip())
    return "\n".join(lines)


def _strokes(arrays):
    """Return the number of strokes of each sketch; a pen bit of 1 ends a stroke."""
    ends = np.cumsum(arrays.lengths, dtype=np.int64)
    lifts = np.concatenate([[0], np.cumsum(arrays.points[:, 2] > 0.5)])
    return lifts[ends] - lifts[ends - arrays.lengths]


def _spread(values):
    middle = np.median(values)
    return (
        f"{values.mean():.1f} a sketch on average; minimum {values.min()}, median {middle:g}, "
        f"maximum {values.max()}"
    )


def draw_some(arrays, path, seed):
    """Draw twelve sketches that a seed chooses."""
    chosen = np.random.default_rng(seed).permutation(len(arrays))[:PICTURES]
    sketches = [data_sets.from_points(arrays[i], arrays.representation) for i in chosen]
    (data_sets.animate if path.suffix.lower() == ".gif" else data_sets.draw)(
        sketches, path, columns=6
    )
