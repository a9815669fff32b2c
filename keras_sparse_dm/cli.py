"""The command line: `sparse-dm train`, and `python train.py`, which is the same."""

import contextlib
import dataclasses
import io
import os
import sys
from pathlib import Path

import tyro

from keras_sparse_dm import __version__
from keras_sparse_dm.experiments.settings import (
    CONFIG_FILE,
    RunSettings,
    SettingsError,
    TrainingDiverged,
    check_folder,
    read_config,
)
from keras_sparse_dm.models.presets import PRESETS

USAGE = f"""usage: sparse-dm {{train}} ...

  sparse-dm train [PRESET] [options]   train a sparse diffusion model and report on it
  sparse-dm train --help               all options
  sparse-dm --version

presets: {", ".join(PRESETS)}
"""


def main(argv=None):
    """Runs the command line and returns the exit code: 0, 1 for a failed run, 2 for usage."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] == "train":
        return train_command(argv[1:], prog="sparse-dm train")
    if argv in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if argv == ["--version"]:
        print(f"keras_sparse_dm {__version__}")
        return 0
    received = f"received {argv[0]!r}" if argv else "received nothing"
    print(f"sparse-dm: error: the command must be train; {received}.", file=sys.stderr)
    return 2


def train_command(argv, prog="train.py"):
    """Parses the options of `train`, trains, and returns the exit code."""
    try:
        settings = parse_train_options(argv, prog)
        settings.check()
        check_folder(settings)
    except SettingsError as error:
        return _fail(prog, error, 2)
    try:
        with _quiet_start():
            from keras_sparse_dm.experiments.training import train
        folder = train(settings)
    except SettingsError as error:
        return _fail(prog, error, 2)
    except TrainingDiverged as error:
        return _fail(prog, error, 1)
    except OSError as error:
        if error.errno is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _fail(prog, f"{error.strerror or error}{where}. {_advice(settings)}", 1)
    except KeyboardInterrupt:
        return _fail(prog, f"interrupted. {_advice(settings)}", 130)
    print((folder / "report.md").read_text(encoding="utf-8"))
    print(f"Samples: {folder / 'samples.png'}   Report: {folder / 'report.md'}")
    return 0


def _advice(settings):
    if not (settings.folder / CONFIG_FILE).exists():
        return f"Nothing was begun in {settings.folder}."
    return (
        f"What was written before is kept; continue with --output-dir {settings.folder} --resume."
    )


@contextlib.contextmanager
def _quiet_start():
    """Keeps TensorFlow's start-up messages, which no setting silences, off the terminal."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def parse_train_options(argv, prog="train.py"):
    """Parses the options of `train` over the settings of their preset, or of the run resumed.

    Raises:
        SettingsError: for options that do not parse, an unknown preset, or a run that cannot
            be resumed.
        SystemExit: after `--help`.
    """
    # The preset decides the defaults of all else and may stand anywhere: a first pass finds it.
    named = "quickstart"
    if {"-h", "--help"} & set(argv):
        named = next((argument for argument in argv if argument in PRESETS), named)
    settings = _parse(argv, RunSettings.from_preset(named), prog)
    if settings.preset != named:
        settings = _parse(argv, RunSettings.from_preset(settings.preset), prog)
    if settings.resume:
        stored = read_config(settings.folder)
        if stored is not None:
            # What is not said again stays as it was.
            default = dataclasses.replace(settings, resume=False).with_stored(stored["settings"])
            default = dataclasses.replace(default, output_dir=Path(settings.folder))
            settings = _parse(argv, default, prog)
    return settings


def _parse(argv, default, prog):
    # tyro frames what is wrong in a box of many lines; a terminal's user needs the first.
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(RunSettings, default=default, args=argv, prog=prog)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        message = []
        for line in errors.getvalue().splitlines():
            text = line.strip("│╭╮╰╯ ")
            if message and not text.strip("─"):
                break
            if line.startswith("│"):
                message.append(text)
        message = " ".join(message) or errors.getvalue().strip()
        raise SettingsError(f"{message}; see {prog} --help.") from None


def _fail(prog, message, code):
    print(f"{prog}: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
