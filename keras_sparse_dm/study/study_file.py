"""A study of your own, read from a YAML file."""

from pathlib import Path

from keras_sparse_dm.checks import SettingsError, did_you_mean
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.runs.setting_checks import checked_method
from keras_sparse_dm.study.grid import DEFAULTS, OPTIONS, Study, grid

yaml = lazy_module("yaml")

# The keys of the file, with the types of their values.
_KEYS = {
    "title": str,
    "presets": list,
    "methods": list,
    "sparsities": list,
    "prune_rates": list,
    "update_intervals": list,
    "categories": list,
    "seeds": list,
    "full": list,
    "sampling_steps": list,
} | dict.fromkeys(OPTIONS, list)


def read_study(path):
    """Read a study from a YAML file of lists. Its runs are all combinations of the lists' values.

    Example:

        presets: [chirodiff_kanjivg]
        methods: [dense, rigl]
        sparsities: [0.5, 0.9]
        prune_rates: [0.05]
        seeds: [0, 1]

    Optional keys: `title`, `update_intervals` (training steps), `categories` (of QuickDraw),
    `full` (true for all of CelebA-HQ), `sampling_steps`, and options of `train`: `structure`,
    `distribution`, `competition`, `grow_init`, `grow_warmup`, `gradient_steps`, `start_step`,
    `stop_step`, `training_images`, `validation_images`. The study takes the file's name.

    Args:
        path: Path of the file.

    Returns:
        A `Study`.

    Raises:
        SettingsError: for a file that cannot be read, unknown keys, or values that no run can have.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"there is no study {path}.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path} cannot be read: {reason}.") from None
    if not isinstance(values, dict):
        raise SettingsError(
            f"{path} must hold lists of presets, methods and so on; received "
            f"{type(values).__name__}."
        )
    for key, value in values.items():
        if key not in _KEYS:
            raise SettingsError(
                f"{path}: {key!r} is unknown; the keys are {', '.join(_KEYS)}."
                f"{did_you_mean(key, _KEYS)}"
            )
        if not isinstance(value, _KEYS[key]):
            wanted = "text" if _KEYS[key] is str else "a list"
            raise SettingsError(f"{path}: {key} must be {wanted}; received {value!r}.")
    for key in ("presets", "methods"):
        if not values.get(key):
            raise SettingsError(f"{path}: {key} must name at least one.")
    title = values.pop("title", path.stem)
    steps = tuple(_whole_numbers(path, "sampling_steps", values.pop("sampling_steps", ())))
    renamed = {"update_intervals": "update_every"}
    values = {renamed.get(key, key): tuple(value) for key, value in values.items()}
    for key in ("sparsities", "prune_rates"):
        values[key] = tuple(_numbers(path, key, values.get(key, ())))
    for key in ("seeds", "update_every"):
        if key in values:
            values[key] = _whole_numbers(path, key, values[key])
    for key in OPTIONS:
        _check_types(path, key, values.get(key, ()))
    _check_lists(path, values)
    try:
        cells = grid(**values)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    return Study.of(path.stem, title, cells, steps)


def _check_lists(path, values):
    """Check that every list that a method or preset needs is given and holds a value."""
    facts = {name: checked_method(f"{path}: method", name) for name in values["methods"]}
    needed = {
        "sparsities": [name for name in facts if name != "dense"],
        "prune_rates": [name for name in facts if facts[name].exchanges],
    }
    for key, those in needed.items():
        if those and not values[key]:
            raise SettingsError(f"{path}: {key} must be given for method {those[0]}.")
    for key, value in values.items():
        if not value and key not in needed:
            raise SettingsError(f"{path}: {key} must hold at least one value; received [].")


def _check_types(path, key, values):
    """Check that values of an option have the type of its default."""
    kind = type(DEFAULTS[key])
    for value in values:
        if type(value) is not kind:
            wanted = {int: "whole numbers", str: "texts", bool: "true or false"}[kind]
            raise SettingsError(f"{path}: {key} must hold {wanted}; received {value!r}.")


def _numbers(path, key, values):
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SettingsError(f"{path}: {key} must hold numbers; received {value!r}.")
    return [float(value) for value in values]


def _whole_numbers(path, key, values):
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise SettingsError(f"{path}: {key} must hold whole numbers; received {value!r}.")
    return tuple(values)
