"""The command `sparse-dm convert-sketches`: sketch files of any format to JSON or SVG."""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tqdm import tqdm

from keras_sparse_dm.checks import UsageError, at_least
from keras_sparse_dm.commands.options import fail, parse_options
from keras_sparse_dm.files import os_error_text, whole_directory
from keras_sparse_dm.lazy import lazy_module

tyro = lazy_module("tyro")
reading = lazy_module("keras_sparse_dm.data.reading")
sketch_json = lazy_module("keras_sparse_dm.data.formats.sketch_json")
summary = lazy_module("keras_sparse_dm.data.summary")
svg = lazy_module("keras_sparse_dm.data.formats.svg")

JSON = ".json"
SVG = ".svg"

# Number of unreadable sketches to list.
_LISTED = 5


@dataclass(frozen=True)
class ConvertSketchesSettings:
    """Convert sketch files of any known format to one .json file or to .svg files.

    Unreadable sketches are skipped and listed; if they exceed 5%, nothing is written. No code in a
    file is ever run, not even in pickles.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A file (.svg, .ndjson, .ndjson.gz, .npz, .json, .pkl, sketch_0), a folder of such files,
    or a pattern in quotes, such as 'drawings/*.svg'."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TARGET")]
    """A .json file for all sketches, an .svg file for a single one, or a folder for one .svg file
    per sketch, named after the sketch."""
    max_sketches: int | None = None
    """Number of sketches to convert, the first ones; by default all."""
    recognized: bool = False
    """Take only those of QuickDraw's drawings that the game recognized."""
    splits: tuple[Literal["train", "valid", "test"], ...] = ("train", "valid", "test")
    """Parts of sketch-rnn's files to take."""
    overwrite: bool = False
    """Replace an existing target; in a folder, replace files of the same names."""


class _TooManyBroken(ValueError):
    """Error if more than 5% of the sketches cannot be read."""


@dataclass
class _Counts:
    """Numbers of sketches read and skipped so far, and reasons of the first skipped ones."""

    good: int = 0
    broken: int = 0
    first: list[str] = field(default_factory=list)

    def add_broken(self, where, error):
        self.broken += 1
        if len(self.first) < _LISTED:
            reason = " ".join(str(error).split())
            self.first.append(reason if where in reason else f"{where}: {reason}")


def convert_sketches_command(argv, prog="sparse-dm convert-sketches"):
    """Parse the options of `convert-sketches`, convert, and return the exit code.

    Returns:
        0 for success, 1 for a source that cannot be converted, 2 for wrong options.
    """
    try:
        settings = parse_options(ConvertSketchesSettings, argv, prog)
        _check(settings)
    except UsageError as error:
        return fail(prog, error, 2)

    counts = _Counts()
    try:
        try:
            sketches = reading.read_sketches(
                settings.source,
                counts.add_broken,
                recognized=settings.recognized,
                splits=settings.splits,
            )
        except (FileNotFoundError, ValueError) as error:
            message = str(error).replace("path=", "SOURCE ", 1).replace("splits=", "--splits ", 1)
            return fail(prog, message, 2)
        with contextlib.closing(_checked(sketches, settings, counts)) as sketches:
            _write(settings, sketches)
    except _TooManyBroken as error:
        return fail(prog, error, 1)
    except ValueError as error:
        _list_broken(counts)
        return fail(prog, error, 1)
    except OSError as error:
        return fail(prog, os_error_text(error), 1)
    except KeyboardInterrupt:
        return fail(prog, f"interrupted; nothing was written to {settings.target}.", 130)
    _list_broken(counts)
    print(f"Wrote {counts.good:,} sketch{'es' * (counts.good != 1)} to {settings.target}")
    return 0


def _check(settings):
    target = settings.target
    at_least(("--max-sketches", settings.max_sketches, 1), error=UsageError)
    if target.suffix.lower() not in (JSON, SVG, ""):
        raise UsageError(
            f"TARGET must be a .json file, an .svg file or a folder; received {target}."
        )
    if target.suffix and target.is_dir():
        raise UsageError(f"TARGET {target} is a folder; give a file that ends in {target.suffix}.")
    if not target.suffix and target.exists() and not target.is_dir():
        raise UsageError(
            f"TARGET {target} is not a folder; give a folder, a .json or an .svg file."
        )
    if target.is_file() and not settings.overwrite:
        raise UsageError(f"TARGET {target} exists; --overwrite replaces it.")
    if target.is_dir() and any(target.iterdir()) and not settings.overwrite:
        raise UsageError(
            f"TARGET {target} holds files; --overwrite replaces files of the same names."
        )
    if not target.absolute().parent.is_dir():
        raise UsageError(f"The folder of TARGET must exist; received {target}.")


def _checked(sketches, settings, counts):
    """Yield the sketches, count them in a progress bar, and raise an error if many are broken."""
    with tqdm(desc="Converting", unit=" sketches", total=settings.max_sketches) as bar:
        for sketch in itertools.islice(sketches, settings.max_sketches):
            counts.good += 1
            bar.update()
            yield sketch
    total = counts.good + counts.broken
    if counts.broken > summary.MAX_BROKEN * total:
        raise _TooManyBroken(
            f"{counts.broken:,} of {total:,} sketches of {settings.source} cannot be read, more "
            f"than {summary.MAX_BROKEN:.0%}; nothing was written. The first are "
            + "; ".join(counts.first[:3])
        )
    if counts.good == 0:
        raise ValueError(f"{settings.source} holds none of the requested sketches.")


def _list_broken(counts):
    if counts.broken:
        print(
            f"{counts.broken:,} of {counts.good + counts.broken:,} sketches cannot be read and "
            "are skipped:",
            file=sys.stderr,
        )
        for reason in counts.first:
            print(f"  {reason}", file=sys.stderr)
        if counts.broken > len(counts.first):
            print(f"  and {counts.broken - len(counts.first):,} more", file=sys.stderr)


# Writing -----------------------------------------------------------------------------------


def _write(settings, sketches):
    suffix = settings.target.suffix.lower()
    if suffix == JSON:
        sketch_json.write_sketch_json(settings.target, sketches)
    elif suffix == SVG:
        two = list(itertools.islice(sketches, 2))
        if len(two) == 2:
            raise ValueError(
                f"{settings.source} holds several sketches, and {settings.target} is a file for "
                "one; give a folder, or --max-sketches 1."
            )
        svg.write_svg(settings.target, two[0])
    else:
        with whole_directory(settings.target, keep_others=True) as folder:
            names = _Names()
            for sketch in sketches:
                svg.write_svg(folder / f"{names.of(sketch.name)}{SVG}", sketch)


class _Names:
    """Unique file names of characters that every file system allows."""

    def __init__(self):
        self.taken = set()
        self.counts = {}

    def of(self, name):
        safe = re.sub(r"[^\w.-]+", "_", name).strip("._-").encode()[:120].decode("utf-8", "ignore")
        safe = safe or "sketch"
        # Some file systems do not distinguish upper and lower case.
        key = safe.casefold()
        unique = safe
        while unique.casefold() in self.taken:
            self.counts[key] = self.counts.get(key, 1) + 1
            unique = f"{safe}-{self.counts[key]}"
        self.taken.add(unique.casefold())
        return unique
