"""Options of `sparse-dm study report`."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from keras_sparse_dm.checks import SettingsError, UsageError, at_least
from keras_sparse_dm.commands.options import fail, load_quietly, parse_options
from keras_sparse_dm.files import os_error_text
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.study.results import STUDY_FILE
from keras_sparse_dm.study.scales import SCALES
from keras_sparse_dm.study.studies import find_study

tyro = lazy_module("tyro")
report = lazy_module("keras_sparse_dm.study.report")

STUDIES_FOLDER = Path("studies")


@dataclass(frozen=True)
class StudyReportSettings:
    """Write tables, figures and sample sheets of a study from the runs that have ended."""

    name: tyro.conf.Positional[str]
    """Name of the study (see `sparse-dm study list`), or its .yaml file."""
    folder: Path | None = None
    """Folder of the study. By default, studies/smoke, studies/reduced or studies/paper if only one
    of them exists."""
    output_dir: Path | None = None
    """Folder of the report; reports/NAME in the folder of the study by default."""
    score: str | None = None
    """Name of the distance to report: FD-kanji, FID, FID-quickdraw. By default, the FID if all
    runs were evaluated with it, FD-kanji otherwise."""
    seeds: int | None = None
    """Number of seeds that each run should have, counted from 0. By default, the study's own seeds,
    and at smoke scale the seeds that were run."""

    def check(self):
        """Check all that can be checked without loading Keras or data.

        Raises:
            SettingsError: for an invalid option; the message says what would be right.
        """
        find_study(self.name)
        at_least(("--seeds", self.seeds, 1), error=SettingsError)
        if self.output_dir is not None and self.output_dir.exists():
            if not self.output_dir.is_dir():
                raise SettingsError(f"--output-dir {self.output_dir} is not a folder.")

    @property
    def folder_of_runs(self):
        """The study's folder.

        Raises:
            SettingsError: if it is not given, and none or several of the default folders exist.
        """
        if self.folder is not None:
            return self.folder
        found = [STUDIES_FOLDER / scale for scale in SCALES]
        found = [folder for folder in found if (folder / STUDY_FILE).exists()]
        if len(found) != 1:
            there = " and ".join(map(str, found)) or "none"
            raise SettingsError(
                "--folder must name the folder of the study; without it, exactly one of "
                f"{STUDIES_FOLDER}/{{{','.join(SCALES)}}} must hold a study, but found {there}."
            )
        return found[0]

    @property
    def command(self):
        """Command line that writes the same report."""
        parts = ["sparse-dm", "study", "report", self.name, "--folder", str(self.folder_of_runs)]
        parts += [] if self.score is None else ["--score", self.score]
        parts += [] if self.seeds is None else ["--seeds", str(self.seeds)]
        return shlex.join(parts)


def study_report_command(argv, prog="sparse-dm study report"):
    """Parse the options of `study report`, write the report, and return the exit code."""
    try:
        settings = parse_options(StudyReportSettings, argv, prog)
        settings.check()
        folder = settings.folder_of_runs
        load_quietly(report)
        path = report.write_study_report(
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
