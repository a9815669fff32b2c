"""`sparse-dm study report`: how its options are read."""

import shlex
from dataclasses import dataclass
from pathlib import Path

import tyro

from keras_sparse_dm.checks import SettingsError, UsageError
from keras_sparse_dm.commands.options import fail, parse_options, quiet_start
from keras_sparse_dm.files import os_error_text
from keras_sparse_dm.study.grid import SCALES, find_study
from keras_sparse_dm.study.results import RESULTS_FILE

STUDIES_FOLDER = Path("studies")


@dataclass(frozen=True)
class StudyReportSettings:
    """Writes tables, figures and sample sheets of a study from the results that there are."""

    name: tyro.conf.Positional[str]
    """Name of the study (see `sparse-dm study list`), or its .yaml file."""
    folder: Path | None = None
    """Folder of the study's runs; by default that of studies/smoke, studies/reduced and
    studies/paper which holds results."""
    output_dir: Path | None = None
    """Where to write; by default reports/NAME in the folder of the study's runs."""
    score: str | None = None
    """Distance to report, as the evaluations name it: FD-kanji, FID, FID-quickdraw. By default
    the FID where all were evaluated by it, else FD-kanji."""
    seeds: int | None = None
    """Seeds that each run is wanted with, from 0; by default the study's, and at smoke scale those
    that there are."""

    def check(self):
        """Checks everything that can be checked without loading anything.

        Raises:
            SettingsError: naming the option, what was received and what would be right.
        """
        find_study(self.name)
        if self.seeds is not None and self.seeds < 1:
            raise SettingsError(f"--seeds must be 1 or more; received {self.seeds}.")
        if self.output_dir is not None and self.output_dir.exists():
            if not self.output_dir.is_dir():
                raise SettingsError(f"--output-dir {self.output_dir} is no folder.")

    @property
    def folder_of_runs(self):
        """The study's folder.

        Raises:
            SettingsError: if it is not given, and none or several are where it is by default.
        """
        if self.folder is not None:
            return self.folder
        found = [STUDIES_FOLDER / scale for scale in SCALES]
        found = [folder for folder in found if (folder / RESULTS_FILE).exists()]
        if len(found) != 1:
            there = " and ".join(map(str, found)) or "none"
            raise SettingsError(
                f"--folder must name the folder of the study's runs: of {STUDIES_FOLDER}/"
                f"{{{','.join(SCALES)}}} there must be one with {RESULTS_FILE} to do without it; "
                f"there is {there}."
            )
        return found[0]

    @property
    def command(self):
        """The command line that gives the same report."""
        parts = ["sparse-dm", "study", "report", self.name, "--folder", str(self.folder_of_runs)]
        parts += [] if self.score is None else ["--score", self.score]
        parts += [] if self.seeds is None else ["--seeds", str(self.seeds)]
        return shlex.join(parts)


def study_report_command(argv, prog="sparse-dm study report"):
    """Parses the options of `study report`, writes the report, and returns the exit code."""
    try:
        settings = parse_options(StudyReportSettings, argv, prog)
        settings.check()
        folder = settings.folder_of_runs
        with quiet_start():
            from keras_sparse_dm.study.report import write_study_report
        path = write_study_report(
            find_study(settings.name),
            folder,
            settings.output_dir,
            settings.score,
            settings.seeds,
            settings.command,
        )
    except UsageError as error:
        return fail(prog, error, 2)
    except OSError as error:
        if error.errno is None:
            raise
        return fail(prog, os_error_text(error), 1)
    except KeyboardInterrupt:
        return fail(prog, "interrupted.", 130)
    print(f"Report: {path}   Tables: {path.parent / 'tables.tex'}")
    return 0
