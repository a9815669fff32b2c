"""Options of `sparse-dm export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from keras_sparse_dm.checks import SettingsError, at_least, check_choices
from keras_sparse_dm.commands.evaluate import (
    CacheDir,
    DataDir,
    Verbose,
    check_folder_of_run,
    load_for,
    run_command,
)
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.runs.formats import FORMATS

exports = lazy_module("keras_sparse_dm.runs.export")
tyro = lazy_module("tyro")

QUANTIZATIONS = tuple(dict.fromkeys(q for facts in FORMATS.values() for q in facts.quantizations))


@dataclass(frozen=True)
class ExportSettings:
    """Export a run's model to formats for other programs; sparse kernels are stored sparse."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; of an unfinished run, the last checkpoint is used."""
    format: tuple[Literal[tuple(FORMATS)], ...] = tuple(FORMATS)
    """One or more formats: sparse is a checkpoint of the weights that are not pruned, tflite is for
    LiteRT, and saved_model for TensorFlow."""
    quantize: Literal[QUANTIZATIONS] = "none"
    """Type of the weights: none (float32), float16 (sparse, tflite), bfloat16 (sparse),
    int8_dynamic or int8 (tflite; int8 also has integer activations)."""
    output_dir: Path | None = None
    """Folder to write to; by default `export` in the run's folder."""
    part: Literal["denoiser", "sampler_step", "sampler"] = "denoiser"
    """Part of the model in a .tflite file; sampler_step is one step of ddim, sampler all steps."""
    length: int | None = None
    """Number of points of the longest sketch that a .tflite file accepts; by default, of the
    longest training sketch."""
    batch_size: int = 1
    """Number of examples per call of a .tflite file."""
    with_optimizer: bool = False
    """Store the optimizer in the sparse checkpoint, to resume training."""
    remove_dead_units: bool = False
    """Remove the units of a ChiroDiff that pruning left without use."""
    rounds: int = 20
    """Number of timed calls; 0 for no timing."""
    data_dir: DataDir = None
    cache_dir: CacheDir = None
    verbose: Verbose = 1

    def check(self):
        """Check all that can be checked without loading Keras or data.

        Raises:
            SettingsError: naming the option, what was received and what would be right.
        """
        check_folder_of_run(self.run)
        check_choices(self)
        for name in self.format:
            if self.quantize not in FORMATS[name].quantizations:
                raise SettingsError(
                    f"--quantize must be one of {', '.join(FORMATS[name].quantizations)} for "
                    f"--format {name}; received {self.quantize}."
                )
        if not self.format:
            raise SettingsError(
                f"--format must be one or more of {', '.join(FORMATS)}; received none."
            )
        if self.with_optimizer and (self.quantize != "none" or "sparse" not in self.format):
            raise SettingsError(
                "--with-optimizer needs --format sparse and --quantize none; received "
                f"{' '.join(self.format)} and {self.quantize}."
            )
        if self.with_optimizer and self.remove_dead_units:
            raise SettingsError(
                "--with-optimizer and --remove-dead-units exclude each other: the optimizer's "
                "state is of all units."
            )
        at_least(
            ("--length", self.length, 1),
            ("--batch-size", self.batch_size, 1),
            ("--rounds", self.rounds, 0),
            error=SettingsError,
        )
        folder = self.output_dir
        if folder is not None and folder.exists() and not folder.is_dir():
            raise SettingsError(f"--output-dir must be a folder; {folder} is a file.")


def export_command(argv, prog="sparse-dm export"):
    """Parse the options of `export`, export, and return the exit code."""

    def work(settings):
        run = load_for(settings)
        print(f"Exporting {run.file}, after {int(run.model.optimizer.iterations):,} steps.")
        folder = settings.output_dir or run.folder / "export"
        written, removed = exports.export_run(
            run,
            folder,
            settings.format,
            settings.quantize,
            settings.part,
            settings.length,
            settings.batch_size,
            settings.with_optimizer,
            not settings.remove_dead_units,
            settings.rounds,
        )
        if removed is not None:
            print(removed)
        table = Table()
        columns = exports.table_rows(written)
        for i, (header, _) in enumerate(columns):
            table.add_column(header, justify="right" if i else "left", overflow="fold")
        for row in zip(*(cells for _, cells in columns), strict=True):
            table.add_row(*row)
        Console(width=120).print(table)
        print(f"Files: {folder}   How to load them: {folder / exports.README}")

    return run_command(argv, prog, ExportSettings, work, "Complete files are kept.")
