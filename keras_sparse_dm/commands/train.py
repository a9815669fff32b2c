"""The commands `sparse-dm train` (also `python train.py`) and `sparse-dm train-autoencoder`."""

import dataclasses
import typing
from pathlib import Path

from keras_sparse_dm.checks import UsageError
from keras_sparse_dm.commands.options import fail, load_quietly, parse_options
from keras_sparse_dm.files import os_error_text
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.presets import PRESETS
from keras_sparse_dm.runs.autoencoder_settings import AutoencoderRunSettings
from keras_sparse_dm.runs.folder import CONFIG_FILE, check_folder, read_config
from keras_sparse_dm.runs.settings import SETTINGS, RunSettings, TrainingDiverged

autoencoder = lazy_module("keras_sparse_dm.runs.autoencoder")
report = lazy_module("keras_sparse_dm.runs.report")
training = lazy_module("keras_sparse_dm.runs.train")


def train_command(argv, prog="train.py"):
    """Parse the options of `train`, train, and return the exit code."""

    def train(settings):
        load_quietly(training)
        folder = training.train(settings)
        print(f"\n{report.summary(folder)}")

    return _run(argv, prog, RunSettings, "quickstart", train)


def train_autoencoder_command(argv, prog="sparse-dm train-autoencoder"):
    """Parse the options of `train-autoencoder`, train, and return the exit code."""

    def train(settings):
        load_quietly(autoencoder)
        folder = autoencoder.train_autoencoder(settings)
        print(f"Autoencoder: {folder / 'autoencoder.keras'}, for --autoencoder of train")
        print(f"Report:      {folder / 'report.md'}")

    return _run(argv, prog, AutoencoderRunSettings, "ldm_kanjivg", train)


def _run(argv, prog, kind, preset, train):
    """Parse the options of a kind of run, run it, and return the exit code."""
    try:
        settings = parse_settings(argv, prog, kind, preset)
        settings.check()
        check_folder(settings)
    except UsageError as error:
        return fail(prog, error, 2)
    try:
        train(settings)
    except UsageError as error:
        return fail(prog, error, 2)
    except TrainingDiverged as error:
        return fail(prog, error, 1)
    except OSError as error:
        if error.errno is None:
            raise
        return fail(prog, f"{os_error_text(error)} {_advice(settings)}", 1)
    except KeyboardInterrupt:
        return fail(prog, f"interrupted. {_advice(settings)}", 130)
    return 0


def _advice(settings):
    if not (settings.folder / CONFIG_FILE).exists():
        return f"Nothing was written to {settings.folder}."
    return f"Finished epochs are kept; continue with --output-dir {settings.folder} --resume."


def parse_settings(argv, prog="train.py", kind=RunSettings, preset="quickstart"):
    """Parse the options of a run; defaults come from the preset or from the run to resume.

    Args:
        argv: List of command line arguments.
        prog: Name of the command in messages.
        kind: `RunSettings` or `AutoencoderRunSettings`.
        preset: Name of the default preset.

    Raises:
        UsageError: for options that do not parse, an unknown preset, or a run that cannot
            be resumed.
        SystemExit: after `--help`.
    """

    def parse(default):
        return parse_options(type(default), argv, prog, default)

    # The preset determines the options and their defaults; it can stand anywhere in the line.
    named = named_preset(argv) or _preset_to_resume(argv) or preset
    settings = parse(kind.from_preset(named))
    if settings.preset != named:
        settings = parse(kind.from_preset(settings.preset))
    if settings.resume:
        stored = read_config(settings.folder)
        if stored is not None:
            # Options that are not given again keep their stored values.
            default = dataclasses.replace(settings, resume=False).with_stored(stored["settings"])
            default = dataclasses.replace(default, output_dir=Path(settings.folder))
            settings = parse(default)
    return settings


def _flags(kind):
    """Return the names of the options without a value, `{"resume", ...}`."""
    names = set()
    for name, hint in typing.get_type_hints(kind).items():
        if hint is bool:
            names.add(name.replace("_", "-"))
        elif dataclasses.is_dataclass(hint):
            names |= _flags(hint)
    return names


def named_preset(argv):
    """Return the argument that names the preset and is not an option's value, or None."""
    flags = set().union(*map(_flags, (*SETTINGS.values(), AutoencoderRunSettings)))
    before = None
    for argument in argv:
        name = (before or "").removeprefix("--").removeprefix("no-").replace("_", "-")
        is_value = (before or "").startswith("--") and "=" not in before and name not in flags
        if argument in PRESETS and not is_value:
            return argument
        before = argument
    return None


def _preset_to_resume(argv):
    """Return the preset of the run that the options resume, or None."""
    arguments = [part for argument in argv for part in argument.split("=", 1)]
    names = [argument.replace("_", "-") for argument in arguments]
    if "--resume" not in names or "--output-dir" not in names:
        return None
    folder = arguments[names.index("--output-dir") + 1 :][:1]
    stored = read_config(folder[0]) if folder else None
    preset = stored["settings"].get("preset") if stored else None
    return preset if preset in PRESETS else None
