"""Folder of a run: its configuration, and checks before a run starts or resumes there."""

import json
from pathlib import Path

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.files import whole_file

CONFIG_FILE = "config.json"


def read_config(folder):
    """Read a run's `config.json`; return None if it does not exist.

    Raises:
        SettingsError: if the file cannot be read or is not a run's configuration.
    """
    return read_json(Path(folder) / CONFIG_FILE, {"settings": dict})


def check_folder(settings):
    """Check that a run's folder is free or, with `resume`, holds a run of the same configuration.

    Raises:
        SettingsError: if the folder is not free, holds no run to resume, or holds a run of another
            configuration.
    """
    folder = settings.folder
    stored = read_config(folder)
    if stored is not None:
        if not settings.resume:
            raise SettingsError(
                f"--output-dir {folder} already holds a run; continue it with --resume, or name "
                "another folder."
            )
        different = [
            f"{name} is {here!r} but was {there!r}"
            for name, here, there in option_differences(settings.to_dict(), stored["settings"])
            if name not in ("--samples", "--samples-every")
        ]
        if different:
            raise SettingsError(
                f"--resume: the run in {folder} has another configuration: {'; '.join(different)}. "
                "Leave these options out, or start another run."
            )
        return
    if settings.resume:
        raise SettingsError(f"--resume: {folder} holds no run; leave out --resume to start one.")
    try:
        # A start that failed may have left hidden files.
        if folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
            raise SettingsError(
                f"--output-dir {folder} is not empty and holds no run; name another folder."
            )
    except OSError as error:
        raise unusable_folder(folder, error) from None


def unusable_folder(folder, error):
    """Return the error for a folder that cannot be created or read."""
    return SettingsError(
        f"--output-dir {folder} cannot be used: {error.strerror}; name a folder that can be "
        "written."
    )


def option_differences(mine, theirs, prefix=""):
    """Yield `(option, value here, value there)` of each setting that differs."""
    for name, value in mine.items():
        # Settings unknown to the version that started the run had their defaults there.
        if isinstance(theirs, dict) and name not in theirs:
            continue
        other = theirs.get(name) if isinstance(theirs, dict) else None
        if isinstance(value, dict):
            flat = name in ("training", "model", "data")
            yield from option_differences(value, other, prefix if flat else f"{prefix}{name}.")
        elif value != other:
            option = f"--{prefix}{name}".replace("_", "-")
            yield "preset" if name == "preset" else option, value, other


def read_json(path, keys):
    """Read a JSON file that a run wrote; return None if it does not exist.

    Args:
        path: The file.
        keys: `{key: type}` of the entries that the file must hold.

    Raises:
        SettingsError: if the file cannot be read or lacks an entry.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise SettingsError(
            f"--output-dir {path.parent} cannot be used: it is a file or lies below a file; name "
            "another folder."
        ) from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} is damaged and cannot be read: {error}.") from None
    for key, kind in keys.items():
        if not isinstance(values, dict) or not isinstance(values.get(key), kind):
            raise SettingsError(f"{path} is damaged: it holds no {key!r}.")
    return values


def write_json(path, values, temporary=None):
    """Write a JSON file in one step: the file is complete or does not change; see `whole_file`."""
    with whole_file(path, temporary) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
