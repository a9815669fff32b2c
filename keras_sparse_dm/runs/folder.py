"""The folder of a run: its configuration, and whether a run can begin or resume there."""

import json
from pathlib import Path

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.files import whole_file

CONFIG_FILE = "config.json"


def read_config(folder):
    """Reads a run's `config.json`; None where there is none.

    Raises:
        SettingsError: if it cannot be read or is not a run's configuration.
    """
    return read_json(Path(folder) / CONFIG_FILE, {"settings": dict})


def check_folder(settings):
    """Checks, before any work, that the folder is free or holds the run to be resumed.

    Raises:
        SettingsError: if it is not or does not, or holds a run of another configuration.
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
                "Leave these options out, or begin another run."
            )
        return
    if settings.resume:
        raise SettingsError(f"--resume: {folder} holds no run; leave out --resume to start one.")
    try:
        # What a start that failed has left is no reason to refuse the next one.
        if folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
            raise SettingsError(
                f"--output-dir {folder} is not empty and holds no run; name another folder."
            )
    except OSError as error:
        raise unusable_folder(folder, error) from None


def unusable_folder(folder, error):
    """The error for a folder that cannot be made or read."""
    return SettingsError(
        f"--output-dir {folder} cannot be used: {error.strerror}; name a folder that can be "
        "written."
    )


def option_differences(mine, theirs, prefix=""):
    """Yields `(option, value here, value there)` for what differs."""
    for name, value in mine.items():
        # What the version that began the run did not know has had its default there.
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
    """Reads a JSON file that a run wrote; None where there is none.

    Args:
        path: The file.
        keys: `{key: type}` of what it must hold.

    Raises:
        SettingsError: if it cannot be read or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise SettingsError(
            f"--output-dir {path.parent} cannot be used: it is a file or lies below one; name "
            "another folder."
        ) from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} is damaged and cannot be read: {error}.") from None
    for key, kind in keys.items():
        if not isinstance(values, dict) or not isinstance(values.get(key), kind):
            raise SettingsError(f"{path} is damaged: it holds no {key!r}.")
    return values


def write_json(path, values):
    """Writes a JSON file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
