"""`sparse-dm export`: how its options are read."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.commands.evaluate import (
    check_folder_of_run,
    load_for,
    run_command,
)
from keras_sparse_dm.lazy import lazy_module

exports = lazy_module("keras_sparse_dm.runs.export")
tyro = lazy_module("tyro")

# Which types of weights each format can have.
QUANTIZATIONS = {
    "sparse": ("none", "float16", "bfloat16"),
    "tflite": ("none", "float16", "int8_dynamic", "int8"),
    "saved_model": ("none",),
}
PARTS = ("denoiser", "sampler_step", "sampler")


@dataclass(frozen=True)
class ExportSettings:
    """Writes a run's model as files for elsewhere, small where it is sparse."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, finished or not: without its model.keras, its last checkpoint serves."""
    format: tuple[str, ...] = ("sparse", "tflite", "saved_model")
    """One or more of sparse (a checkpoint of what is not pruned), tflite (for LiteRT) and
    saved_model (for TensorFlow)."""
    quantize: str = "none"
    """Type of the weights: none (float32), float16 (sparse, tflite), bfloat16 (sparse),
    int8_dynamic or int8 (tflite; int8 has integer activations too)."""
    output_dir: Path | None = None
    """Folder to write to; by default `export` in the run's."""
    part: str = "denoiser"
    """What a .tflite file computes: denoiser, sampler_step (one step of ddim), or sampler (all)."""
    length: int | None = None
    """Points of the longest sketch that a .tflite file takes; by default of the longest one that
    was trained on."""
    batch_size: int = 1
    """Examples in a call of a .tflite file."""
    with_optimizer: bool = False
    """Whether the sparse checkpoint holds the optimizer too, for training to go on."""
    remove_dead_units: bool = False
    """Whether units that pruning left without use are cut out, of a ChiroDiff."""
    rounds: int = 20
    """How often calls are timed; 0 for not at all."""
    data_dir: Path | None = None
    """Folder of the data set's files, where they are no longer where the run read them."""
    cache_dir: Path | None = None
    """Folder for prepared data; by default the user's cache folder."""
    verbose: int = 1
    """0 for no progress bars."""

    def check(self):
        """Checks everything that can be checked without loading anything.

        Raises:
            SettingsError: naming the option, what was received and what would be right.
        """
        check_folder_of_run(self.run)
        for name in self.format:
            if name not in QUANTIZATIONS:
                raise SettingsError(
                    f"--format must be of {', '.join(QUANTIZATIONS)}; received {name}."
                )
            if self.quantize not in QUANTIZATIONS[name]:
                raise SettingsError(
                    f"--quantize must be one of {', '.join(QUANTIZATIONS[name])} for --format "
                    f"{name}; received {self.quantize}."
                )
        if not self.format:
            raise SettingsError(f"--format must be of {', '.join(QUANTIZATIONS)}; received none.")
        if self.part not in PARTS:
            raise SettingsError(f"--part must be one of {', '.join(PARTS)}; received {self.part}.")
        if self.with_optimizer and (self.quantize != "none" or "sparse" not in self.format):
            raise SettingsError(
                "--with-optimizer is for --format sparse and --quantize none; received "
                f"{' '.join(self.format)} and {self.quantize}."
            )
        if self.with_optimizer and self.remove_dead_units:
            raise SettingsError(
                "--with-optimizer and --remove-dead-units exclude each other: the optimizer's "
                "state is of all units."
            )
        for option, value, least in (
            ("--length", 1 if self.length is None else self.length, 1),
            ("--batch-size", self.batch_size, 1),
            ("--rounds", self.rounds, 0),
        ):
            if value < least:
                raise SettingsError(f"{option} must be {least} or more; received {value}.")
        folder = self.output_dir
        if folder is not None and folder.exists() and not folder.is_dir():
            raise SettingsError(f"--output-dir must be a folder; {folder} is a file.")


def export_command(argv, prog="sparse-dm export"):
    """Parses the options of `export`, exports, and returns the exit code."""

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

    return run_command(argv, prog, ExportSettings, work, "Files that are whole are kept.")
