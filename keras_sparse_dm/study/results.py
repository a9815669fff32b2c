"""Results of a study, read from the folders of its runs.

A study's folder holds `runs/CELL/` with the run, and with `result.json` once the run is finished,
and `failed/CELL.json` for each run that failed. Loads no Keras.
"""

import uuid
from dataclasses import dataclass, field
from pathlib import Path

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.runs.folder import CONFIG_FILE, read_json, write_json
from keras_sparse_dm.runs.settings import RunSettings
from keras_sparse_dm.study.differences import setting_clashes

STUDY_FILE = "study.json"
# In a run's folder.
RESULT_FILE = "result.json"
# Version of `result.json` and `study.json`: raise it when one of them changes.
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RunResult:
    """Result of one run.

    Attributes:
        cell: Name of the cell.
        scale: `"smoke"`, `"reduced"` or `"paper"`.
        preset, method, sparsity, prune_rate, seed, category, full, update_every, options: The
            `Cell`.
        status: `"finished"` or `"failed"`.
        settings: `RunSettings.to_dict()`.
        version: Version of the package that ran it.
        differences: One line for each setting in which it differs from the paper's.
        seconds: Seconds of training and evaluation; None for a failed run.
        error: Last line of a failed run's log; None for a finished run.
        report: The run's `report.json` without its list of kernels; empty for a failed run.
        folder: The run's folder, relative to the study's.
    """

    cell: str
    scale: str
    preset: str
    method: str
    sparsity: float
    prune_rate: float | None
    seed: int
    category: str | None
    full: bool
    update_every: int | None
    status: str
    settings: dict
    version: str
    differences: list
    seconds: float | None
    error: str | None
    report: dict
    folder: str
    options: tuple = ()


@dataclass(frozen=True)
class EvaluationResult:
    """Result of one evaluation of a run.

    Attributes:
        cell: Name of the cell.
        sampling_steps: Number of sampling steps.
        samples: Number of samples.
        distances: The `distances` of `evaluation.json`.
        seed: Seed of the samples.
    """

    cell: str
    sampling_steps: int
    samples: int
    distances: dict
    seed: int


@dataclass(frozen=True)
class Results:
    """Results in a study's folder.

    Attributes:
        runs: List of `RunResult`, sorted by cell.
        evaluations: List of `EvaluationResult`, sorted by cell and sampling steps.
        wrong: One line for each folder or file that was left out, with the reason.
    """

    runs: list
    evaluations: list
    wrong: list = field(default_factory=list)


def read_results(folder):
    """Read the results of all runs in a study's folder that have ended.

    Folders that were moved or edited by hand are left out.

    Args:
        folder: The study's folder.

    Returns:
        `Results`; empty if no run has ended.
    """
    files = [(path, _finished) for path in sorted(Path(folder).glob(f"runs/*/{RESULT_FILE}"))]
    files += [(path, _failed) for path in sorted(Path(folder).glob("failed/*.json"))]
    runs, evaluations, wrong = {}, [], []
    for path, read in files:
        try:
            run, own_evaluations = read(path)
        except SettingsError as error:
            wrong.append(str(error))
        except (KeyError, TypeError) as error:
            wrong.append(f"{path} is damaged: {error!r}.")
        else:
            # A finished run may have failed before.
            if run.cell not in runs:
                runs[run.cell] = run
                evaluations += own_evaluations
    evaluations.sort(key=lambda evaluation: (evaluation.cell, evaluation.sampling_steps))
    return Results([runs[cell] for cell in sorted(runs)], evaluations, wrong)


def _finished(path):
    """Return the `RunResult` and the `EvaluationResult`s of a `result.json`."""
    stored = read_result(path.parent)
    run = _run_result(
        stored, status="finished", seconds=stored["seconds"], error=None, report=stored["report"]
    )
    names = ("sampling_steps", "samples", "distances", "seed")
    return run, [
        EvaluationResult(run.cell, **{name: evaluation[name] for name in names})
        for evaluation in stored["evaluations"]
    ]


def _failed(path):
    """Return the `RunResult` of a failed run, and no evaluations."""
    stored = read_json(path, {"cell": dict, "name": str, "settings": dict, "error": str})
    return _run_result(stored, status="failed", seconds=None, error=stored["error"], report={}), []


def _run_result(stored, **others):
    """Return the `RunResult` of what is stored of a run, with the fields in `others`."""
    # JSON has no tuples.
    options = tuple(map(tuple, stored["cell"].get("options", ())))
    return RunResult(
        cell=stored["name"],
        scale=stored["scale"],
        **stored["cell"] | {"options": options},
        settings=stored["settings"],
        version=stored["version"],
        differences=stored["differences"],
        folder=f"runs/{stored['name']}",
        **others,
    )


def claim_scale(folder, scale):
    """Make a study's folder for runs of a scale, or check the folder that exists.

    Raises:
        SettingsError: if the folder holds runs of another scale, or something else.
        OSError: if it cannot be written.
    """
    path = Path(folder) / STUDY_FILE
    kinds = {"scale": str, "schema": int}
    stored = read_json(path, kinds)
    if stored is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        others = any(not file.name.startswith(".") for file in path.parent.iterdir())
        # Another launcher may have made this a study's folder in the meantime.
        stored = read_json(path, kinds)
        if stored is None and others:
            raise SettingsError(
                f"--output-dir {folder} is not empty and holds no study; name another folder."
            )
    if stored is None:
        # Several launchers may write it at the same time.
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        write_json(path, {"scale": scale, "schema": SCHEMA_VERSION}, temporary)
        return
    if stored["schema"] != SCHEMA_VERSION:
        raise SettingsError(
            f"--output-dir {folder} holds a study of schema version {stored['schema']}; this "
            f"version of the package reads {SCHEMA_VERSION}."
        )
    if stored["scale"] != scale:
        raise SettingsError(
            f"--output-dir {folder} holds runs of scale {stored['scale']}; received --scale "
            f"{scale}. Name another folder for it."
        )


def read_result(folder):
    """Read and check the `result.json` of a run's folder.

    Returns:
        Dictionary of its values, or None if the run is not finished.

    Raises:
        SettingsError: if the folder was moved or edited by hand: its name is not the cell's, or
            `config.json` and `result.json` hold different settings.
    """
    folder = Path(folder)
    kinds = {"schema": int, "cell": dict, "name": str, "settings": dict, "evaluations": list}
    result = read_json(folder / RESULT_FILE, kinds)
    if result is None:
        return None
    if result["schema"] != SCHEMA_VERSION:
        raise SettingsError(
            f"{folder / RESULT_FILE} has schema version {result['schema']}; this version of the "
            f"package reads {SCHEMA_VERSION}."
        )
    if result["name"] != folder.name:
        raise SettingsError(f"{folder} holds the run {result['name']}: it was moved by hand.")
    config = read_json(folder / CONFIG_FILE, {"settings": dict})
    if config is None:
        raise SettingsError(f"{folder} has no {CONFIG_FILE}: it was edited by hand.")
    clashes = setting_clashes(stored_settings(result["settings"]), config["settings"])
    if clashes:
        raise SettingsError(
            f"{folder} was edited by hand: {RESULT_FILE} and {CONFIG_FILE} disagree, "
            f"{'; '.join(clashes)}."
        )
    return result


def stored_settings(values):
    """Return the `RunSettings` whose `to_dict` gave the values.

    Raises:
        SettingsError: if this version has no such settings.
    """
    return RunSettings.from_preset(values.get("preset")).with_stored(values)
