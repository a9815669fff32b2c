"""Options of `sparse-dm study run` and `sparse-dm study list`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from keras_sparse_dm.checks import SettingsError, UsageError, at_least, check_choices, did_you_mean
from keras_sparse_dm.commands.options import fail, parse_options
from keras_sparse_dm.commands.study_report import study_report_command
from keras_sparse_dm.files import os_error_text
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.study.estimates import estimate, print_costs
from keras_sparse_dm.study.grid import CHIRODIFF, LATENT_DIFFUSION
from keras_sparse_dm.study.launcher import WORKER, claim_folder, run_study
from keras_sparse_dm.study.scales import SCALES
from keras_sparse_dm.study.studies import STUDIES, find_study
from keras_sparse_dm.study.tasks import Options, state_of, tasks_of
from keras_sparse_dm.study.wording import counted

tyro = lazy_module("tyro")

USAGE = """usage: sparse-dm study {run, report, list} ...

  sparse-dm study run NAME [options]      run the unfinished runs of a study
  sparse-dm study report NAME [options]   write tables and figures of the finished runs
  sparse-dm study list                    list the studies with their numbers of runs
  sparse-dm study run --help              show all options; report and list have --help too
"""


@dataclass(frozen=True)
class StudyRunSettings:
    """Run the unfinished runs of a study: a table or figure of the paper, or your own study."""

    name: tyro.conf.Positional[str]
    """table1 to table6, figure2 to figure7, sketches, or a .yaml file of your own with lists of
    presets, methods, sparsities, prune_rates, seeds and so on (docs/study.md)."""
    scale: Literal[SCALES] = "smoke"
    """Scale of the runs: smoke takes seconds per run, to check that everything works, and reduced
    minutes."""
    output_dir: Path | None = None
    """Folder of the study, studies/SCALE by default. Studies of the same scale can share it."""
    data_dir: Path | None = None
    """Folder that holds one folder per data set: quickdraw, kanjivg, mnist, celebahq,
    lsun_bedrooms, imagenette."""
    cache_dir: Path | None = None
    """Folder for prepared data; the user's cache folder by default."""
    jobs: int = 1
    """Number of runs at a time; each gets its share of the processor cores."""
    seeds: int | None = None
    """Number of seeds of each run, counted from 0. By default, the study's own seeds, and only
    seed 0 at smoke scale."""
    epochs: tuple[str, ...] = ()
    """Epochs in place of the scale's: 8, or for one preset only, chirodiff_kanjivg=8."""
    samples: int | None = None
    """Number of samples to evaluate, in place of the scale's; the paper's is 10,000."""
    weights: tuple[Path, ...] = ()
    """Files of Inception weights; each adds a distance, as in sparse-dm evaluate."""
    autoencoder: Path | None = None
    """Trained autoencoder for latent diffusion, as in sparse-dm train; required at paper scale."""
    cells: str = "*"
    """Run only the cells whose names match this pattern, such as '*kanjivg*s0.9*'."""
    yes: bool = False
    """Start runs at paper scale without asking."""
    verbose: bool = False
    """Print a line for each event instead of the table."""

    def check(self):
        """Check all that can be checked without loading Keras or data.

        Raises:
            SettingsError: for an invalid option; the message says what would be right.
        """
        check_choices(self)
        at_least(
            ("--jobs", self.jobs, 1),
            ("--seeds", self.seeds, 1),
            ("--samples", self.samples, 8),
            error=SettingsError,
        )
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
        """Return the values of `--epochs` as `{preset: epochs}`.

        Raises:
            SettingsError: for a value that is neither a number nor PRESET=NUMBER.
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
            # A preset's own number takes precedence over the number for all.
            for name in (preset,) if preset else presets:
                if preset or name not in epochs:
                    epochs[name] = int(number)
        return epochs


@dataclass(frozen=True)
class StudyListSettings:
    """List the studies with their numbers of runs."""


def study_command(argv, prog="sparse-dm study"):
    """Run `sparse-dm study` and return the exit code."""
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
    received = "received nothing."
    if argv:
        received = f"received {argv[0]!r}.{did_you_mean(argv[0], commands)}"
    *others, last = commands
    return fail(prog, f"the command must be {', '.join(others)} or {last}; {received}", 2)


def study_list_command(argv, prog="sparse-dm study list"):
    """Print the studies and return the exit code."""
    try:
        parse_options(StudyListSettings, argv, prog)
    except UsageError as error:
        return fail(prog, error, 2)
    for study in STUDIES.values():
        print(f"{study.name:9} {len(study.cells):4} runs  {study.title}")
    names = {cell.name for study in STUDIES.values() for cell in study.cells}
    print(f"{'all':9} {len(names):4} runs, because studies share runs")
    return 0


def study_run_command(argv, prog="sparse-dm study run"):
    """Parse the options of `study run`, run the study, and return the exit code."""
    try:
        settings = parse_options(StudyRunSettings, argv, prog)
        settings.check()
        study = find_study(settings.name)
        seeds = settings.seeds or (1 if settings.scale == "smoke" else None)
        if seeds is not None:
            study = study.with_seeds(seeds)
        # Select cells before making tasks, because cells that are left out need no data.
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
                "--scale paper asks before it starts, but the input is not a terminal; give --yes "
                "to start without asking."
            )
        claim_folder(options)
        if settings.scale == "paper" and not _agreed(tasks, options, ask):
            return 0
        return run_study(study, tasks, options, lines=settings.verbose)
    except UsageError as error:
        return fail(prog, error, 2)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        advice = "Finished work is kept; the same command resumes the study."
        return fail(prog, f"{os_error_text(error)} {advice}", 1)
    except (KeyboardInterrupt, EOFError):
        return fail(prog, "interrupted.", 130)


def _agreed(tasks, options, ask):
    """Print the cost of the unfinished runs, and return True if they may start."""
    left = [task for task in tasks if state_of(task)[0] == "waiting"]
    if not left:
        return True
    networks = len({task.cell.preset for task in left})
    print(f"Timing a few steps of {counted(networks, 'network')} ...")
    print_costs(estimate(left, WORKER, options.folder), sys.stdout)
    if not ask:
        return True
    return input("Start? [y/N] ").strip().lower() in ("y", "yes")
