"""`sparse-dm study`: how the options of `run` and `list` are read."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from keras_sparse_dm.checks import SettingsError, UsageError
from keras_sparse_dm.commands.options import fail, parse_options
from keras_sparse_dm.commands.study_report import study_report_command
from keras_sparse_dm.files import os_error_text
from keras_sparse_dm.study.estimates import estimate, print_costs
from keras_sparse_dm.study.grid import (
    CHIRODIFF,
    LATENT_DIFFUSION,
    SCALES,
    STUDIES,
    find_study,
)
from keras_sparse_dm.study.launcher import (
    WORKER,
    Options,
    prepare_folder,
    run_study,
    state_of,
    tasks_of,
)

USAGE = """usage: sparse-dm study {run, report, list} ...

  sparse-dm study run NAME [options]      run what is not finished of a study
  sparse-dm study report NAME [options]   tables and figures of the runs that have ended
  sparse-dm study list                    names of the studies, and how many runs they are
  sparse-dm study run --help              all options; likewise of report
"""


@dataclass(frozen=True)
class StudyRunSettings:
    """Runs what is not finished of a study: a table or figure of the paper, or your own."""

    name: tyro.conf.Positional[str]
    """table1 to table6, figure2 to figure7, sketches, or a .yaml file of your own: lists of
    presets, methods, sparsities, prune_rates, seeds, update_intervals, sampling_steps."""
    scale: str = "smoke"
    """smoke (seconds a run, to see that all works), reduced (minutes a run) or paper."""
    output_dir: Path | None = None
    """Folder of the study, which other studies of the same scale share; by default
    studies/SCALE."""
    data_dir: Path | None = None
    """Folder of the data sets, each in a folder of its own in it: quickdraw, kanjivg, mnist,
    celebahq, lsun_bedrooms, imagenette."""
    cache_dir: Path | None = None
    """Folder for prepared data; by default the user's cache folder."""
    jobs: int = 1
    """Runs at a time; each gets its share of the processor cores."""
    seeds: int | None = None
    """Seeds of each run, from 0; by default the study's, and one at smoke scale."""
    epochs: tuple[str, ...] = ()
    """Epochs in place of the scale's: 8, or of one preset chirodiff_kanjivg=8."""
    samples: int | None = None
    """Samples to evaluate, in place of the scale's; the paper takes 10,000."""
    weights: tuple[Path, ...] = ()
    """Files of Inception weights, each for a distance more, as of evaluate."""
    autoencoder: Path | None = None
    """Trained autoencoder for latent diffusion, as of train; for the paper's scale it is needed."""
    cells: str = "*"
    """Only runs whose names match this pattern, such as '*kanjivg*s0.9*'."""
    yes: bool = False
    """Do not ask before runs at the paper's scale."""
    verbose: bool = False
    """Print a line for each event instead of the table."""

    def check(self):
        """Checks everything that can be checked without loading anything.

        Raises:
            SettingsError: naming the option, what was received and what would be right.
        """
        if self.scale not in SCALES:
            raise SettingsError(
                f"--scale must be one of {', '.join(SCALES)}; received {self.scale!r}."
            )
        for option, value, low in (
            ("--jobs", self.jobs, 1),
            ("--seeds", self.seeds, 1),
            ("--samples", self.samples, 8),
        ):
            if value is not None and value < low:
                raise SettingsError(f"{option} must be {low} or more; received {value}.")
        if self.data_dir is not None and not self.data_dir.is_dir():
            raise SettingsError(f"--data-dir: there is no folder {self.data_dir}.")
        for path in self.weights:
            if not path.is_file():
                raise SettingsError(f"--weights: there is no file {path}.")

    @property
    def folder(self):
        """The study's folder."""
        return Path("studies") / self.scale if self.output_dir is None else self.output_dir

    def epochs_by_preset(self):
        """`{preset: epochs}` of `--epochs`.

        Raises:
            SettingsError: for what is neither a number nor PRESET=NUMBER.
        """
        presets = (*LATENT_DIFFUSION, *CHIRODIFF)
        epochs = {}
        for text in self.epochs:
            preset, _, number = text.rpartition("=")
            if not number.isdecimal() or int(number) < 1 or preset not in ("", *presets):
                raise SettingsError(
                    "--epochs must be a number, or PRESET=NUMBER with one of "
                    f"{', '.join(presets)}; received {text!r}."
                )
            # That of a preset goes before that of all.
            for name in (preset,) if preset else presets:
                if preset or name not in epochs:
                    epochs[name] = int(number)
        return epochs


def study_command(argv, prog="sparse-dm study"):
    """Runs `sparse-dm study` and returns the exit code."""
    commands = {
        "run": study_run_command,
        "report": study_report_command,
        "list": study_list_command,
    }
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    if argv in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    received = f"received {argv[0]!r}" if argv else "received nothing"
    *others, last = commands
    wanted = f"{', '.join(others)} or {last}"
    return fail("sparse-dm study", f"the command must be {wanted}; {received}.", 2)


def study_list_command(argv, prog="sparse-dm study list"):
    """Prints the studies and returns the exit code."""
    if argv:
        return fail(prog, f"no options are known; received {argv[0]!r}.", 2)
    for study in STUDIES.values():
        print(f"{study.name:9} {len(study.cells):4} runs  {study.title}")
    names = {cell.name for study in STUDIES.values() for cell in study.cells}
    print(f"{'all':9} {len(names):4} runs, for studies share them")
    return 0


def study_run_command(argv, prog="sparse-dm study run"):
    """Parses the options of `study run`, runs the study, and returns the exit code."""
    try:
        settings = parse_options(StudyRunSettings, argv, prog)
        settings.check()
        study = find_study(settings.name)
        seeds = settings.seeds or (1 if settings.scale == "smoke" else None)
        if seeds is not None:
            study = study.with_seeds(seeds)
        # What the others would need is not asked for.
        study = study.with_cells(settings.cells)
        options = Options(
            settings.scale,
            settings.folder,
            settings.data_dir,
            settings.cache_dir,
            settings.epochs_by_preset(),
            settings.samples,
            settings.autoencoder,
            settings.weights,
            settings.jobs,
        )
        tasks = tasks_of(study, options)
        ask = settings.scale == "paper" and not settings.yes
        if ask and not sys.stdin.isatty():
            raise SettingsError(
                "--scale paper asks before it starts, and there is no terminal to answer in; give "
                "--yes."
            )
        prepare_folder(options)
        if settings.scale == "paper" and not _agreed(tasks, options, ask):
            return 0
        return run_study(study, tasks, options, lines=settings.verbose)
    except UsageError as error:
        return fail(prog, error, 2)
    except OSError as error:
        if error.errno is None:
            raise
        advice = "What was written before is kept; the same command goes on from there."
        return fail(prog, f"{os_error_text(error)} {advice}", 1)
    except (KeyboardInterrupt, EOFError):
        return fail(prog, "interrupted.", 130)


def _agreed(tasks, options, ask):
    """Prints what is left to run and how long it will take; returns whether to start."""
    left = [task for task in tasks if state_of(task)[0] == "waiting"]
    if not left:
        return True
    print(f"Timing a few steps of {len({task.cell.preset for task in left})} networks ...")
    print_costs(estimate(left, WORKER, options.folder), sys.stdout)
    if not ask:
        return True
    return input("Start? [y/N] ").strip().lower() in ("y", "yes")
