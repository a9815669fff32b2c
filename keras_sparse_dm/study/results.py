"""Results of a study: one SQLite file, collected from what each run keeps in its own folder.

A study's folder holds `runs/CELL/` (the run, and `result.json` once it is whole),
`failed/CELL.json` for runs that came to nothing, and `results.sqlite`, which is never changed in
place but made anew from them: several machines may write to one folder, and a full disk leaves the
old file whole. Nothing here needs Keras.
"""

import contextlib
import dataclasses
import json
import os
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.runs.folder import CONFIG_FILE, read_json
from keras_sparse_dm.runs.settings import RunSettings
from keras_sparse_dm.study.grid import setting_clashes

RESULTS_FILE = "results.sqlite"
STUDY_FILE = "study.json"
# In a run's folder.
RESULT_FILE = "result.json"
# Of `results.sqlite`, `result.json` and `study.json`: raise it where one of them changes.
SCHEMA_VERSION = 1
# What a killed process has left of a file is removed when it is so old, in seconds.
_LEFTOVER = 3600

_TABLES = """
CREATE TABLE runs (
    cell TEXT PRIMARY KEY,
    scale TEXT NOT NULL,
    preset TEXT NOT NULL,
    method TEXT NOT NULL,
    sparsity REAL NOT NULL,
    prune_rate REAL,
    seed INTEGER NOT NULL,
    category TEXT,
    full INTEGER NOT NULL,
    update_every INTEGER,
    status TEXT NOT NULL CHECK (status IN ('finished', 'failed')),
    settings TEXT NOT NULL,
    version TEXT NOT NULL,
    differences TEXT NOT NULL,
    seconds REAL,
    error TEXT,
    report TEXT NOT NULL,
    folder TEXT NOT NULL
);
CREATE TABLE evaluations (
    cell TEXT NOT NULL,
    sampling_steps INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    distances TEXT NOT NULL,
    seed INTEGER NOT NULL,
    PRIMARY KEY (cell, sampling_steps)
);
"""
_JSON = ("settings", "differences", "report", "distances")


@dataclass(frozen=True)
class RunResult:
    """One run; see the table `runs`.

    Attributes:
        cell: The cell's name.
        scale: smoke, reduced or paper.
        preset, method, sparsity, prune_rate, seed, category, full, update_every: The cell.
        status: finished or failed.
        settings: `RunSettings.to_dict()`.
        version: Of the package that ran it.
        differences: One line for each setting in which it differs from the paper's.
        seconds: Of training and evaluation; None for a failed run.
        error: The last line of a failed run's log; None for a finished one.
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


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluation of a run; see the table `evaluations`.

    Attributes:
        cell: The cell's name.
        sampling_steps: Steps of the sampler.
        samples: Number of samples.
        distances: As `evaluation.json` has them.
        seed: Of the samples.
    """

    cell: str
    sampling_steps: int
    samples: int
    distances: dict
    seed: int


@dataclass(frozen=True)
class Results:
    """All runs and evaluations of a study's folder, by name of the cell."""

    runs: list
    evaluations: list


def read_results(folder):
    """Reads `results.sqlite` of a study's folder.

    Returns:
        `Results`; empty ones where there is no such file.

    Raises:
        SettingsError: if the file is of another schema version or damaged.
    """
    path = Path(folder) / RESULTS_FILE
    if not path.exists():
        return Results([], [])
    try:
        # Immutable: the file is replaced as a whole, and a network disk may know no locks.
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        ) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != SCHEMA_VERSION:
                raise SettingsError(
                    f"{path} is of schema version {version}; this version of the package reads "
                    f"{SCHEMA_VERSION}. Use the version that wrote it, or another --output-dir."
                )
            return Results(
                _read(database, "runs", RunResult),
                _read(database, "evaluations", EvaluationResult),
            )
    except (sqlite3.Error, ValueError, TypeError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(
            f"{path} is damaged and cannot be read: {error}. It is made anew from the runs' "
            "folders by the next `study run`, once it is moved away."
        ) from None


def _read(database, table, kind):
    names = [field.name for field in dataclasses.fields(kind)]
    order = "cell" if kind is RunResult else "cell, sampling_steps"
    rows = database.execute(f"SELECT {', '.join(names)} FROM {table} ORDER BY {order}")
    results = []
    for row in rows:
        values = dict(zip(names, row, strict=True))
        for name in _JSON:
            if name in values:
                values[name] = json.loads(values[name])
        if "full" in values:
            values["full"] = bool(values["full"])
        results.append(kind(**values))
    return results


def claim_scale(folder, scale):
    """Makes a study's folder, and writes its scale into it.

    Raises:
        SettingsError: if it holds runs of another scale, or something else.
        OSError: if it cannot be written.
    """
    path = Path(folder) / STUDY_FILE
    kinds = {"scale": str, "schema": int}
    stored = read_json(path, kinds)
    if stored is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        others = any(not file.name.startswith(".") for file in path.parent.iterdir())
        # Another launcher may have made the folder a study's since.
        stored = read_json(path, kinds)
        if stored is None and others:
            raise SettingsError(
                f"--output-dir {folder} is not empty and holds no study; name another folder."
            )
    if stored is None:
        content = json.dumps({"scale": scale, "schema": SCHEMA_VERSION}) + "\n"
        _replace(path, content.encode())
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
    """Reads and checks the `result.json` of a run's folder.

    Returns:
        Its values, or None where there is none.

    Raises:
        SettingsError: if the folder was moved or edited since: its name is not the cell's, or
            `config.json` and `result.json` tell of different settings.
    """
    folder = Path(folder)
    kinds = {"schema": int, "cell": dict, "name": str, "settings": dict, "evaluations": list}
    result = read_json(folder / RESULT_FILE, kinds)
    if result is None:
        return None
    if result["schema"] != SCHEMA_VERSION:
        raise SettingsError(
            f"{folder / RESULT_FILE} is of schema version {result['schema']}; this version of the "
            f"package reads {SCHEMA_VERSION}."
        )
    if result["name"] != folder.name:
        raise SettingsError(f"{folder} holds the run {result['name']}: it was moved by hand.")
    config = read_json(folder / CONFIG_FILE, {"settings": dict})
    if config is None:
        raise SettingsError(f"{folder} has no {CONFIG_FILE}: it was edited by hand.")
    stored = stored_settings(result["settings"])
    clashes = setting_clashes(stored, config["settings"])
    if clashes:
        raise SettingsError(
            f"{folder} was edited by hand: in {RESULT_FILE} and {CONFIG_FILE} {'; '.join(clashes)}."
        )
    return result


def stored_settings(values):
    """`RunSettings` of what `RunSettings.to_dict` gave.

    Raises:
        SettingsError: if these are no settings of this version.
    """
    return RunSettings.from_preset(values.get("preset")).with_stored(values)


def collect_results(folder):
    """Makes `results.sqlite` anew from the folders of a study's runs.

    What the file holds of runs whose folders are gone stays. Folders that were moved or edited by
    hand are left out.

    Args:
        folder: The study's folder.

    Returns:
        List of lines: what is wrong with folders that are left out.

    Raises:
        SettingsError: if the file there is of another schema version or damaged.
        OSError: if it cannot be written; the old one is then whole.
    """
    folder = Path(folder)
    while True:
        before = _state(folder)
        wrong = _collect(folder)
        # Another launcher may have put in place what it collected before a run ended here.
        if _state(folder) == before:
            return wrong


def _state(folder):
    """What changes with the results that there are to collect."""
    files = (*folder.glob(f"runs/*/{RESULT_FILE}"), *folder.glob("failed/*.json"))
    state = []
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            state.append((str(file), file.stat().st_mtime_ns))
    return sorted(state)


def _collect(folder):
    old = read_results(folder)
    runs, evaluations, wrong, broken = {}, [], [], set()
    for path in sorted((folder / "runs").glob(f"*/{RESULT_FILE}")):
        try:
            result = read_result(path.parent)
            row = _run_row(folder, path.parent, result)
            evaluations += [
                EvaluationResult(row.cell, **evaluation_row(evaluation))
                for evaluation in result["evaluations"]
            ]
            runs[row.cell] = row
        except SettingsError as error:
            broken.add(path.parent.name)
            wrong.append(str(error))
        except (KeyError, TypeError) as error:
            broken.add(path.parent.name)
            wrong.append(f"{path} is damaged: {error!r}.")
    fresh = set(runs)
    for path in sorted((folder / "failed").glob("*.json")):
        failure = read_json(path, {"cell": dict, "name": str, "settings": dict, "error": str})
        if failure is not None and failure["name"] not in fresh:
            runs[failure["name"]] = _failed_row(failure)
    for run in old.runs:
        if run.cell not in broken:
            runs.setdefault(run.cell, run)
    evaluations += [
        evaluation
        for evaluation in old.evaluations
        if evaluation.cell not in fresh
        and evaluation.cell in runs
        and runs[evaluation.cell].status == "finished"
    ]
    _write(folder, runs.values(), evaluations)
    return wrong


def evaluation_row(evaluation):
    """What an evaluation of `result.json` tells, without what only `study run` asks for."""
    return {name: evaluation[name] for name in ("sampling_steps", "samples", "distances", "seed")}


def _run_row(study, folder, result):
    return _row(
        result,
        status="finished",
        seconds=result["seconds"],
        error=None,
        report=result["report"],
        folder=folder.relative_to(study).as_posix(),
    )


def _failed_row(failure):
    return _row(
        failure,
        status="failed",
        seconds=None,
        error=failure["error"],
        report={},
        folder=f"runs/{failure['name']}",
    )


def _row(written, **others):
    """The `RunResult` of what was written down of a run, however it ended."""
    return RunResult(
        cell=written["name"],
        scale=written["scale"],
        **written["cell"],
        settings=written["settings"],
        version=written["version"],
        differences=written["differences"],
        **others,
    )


def _write(folder, runs, evaluations):
    """Writes the whole database beside the old one, and puts it in its place."""
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(_TABLES)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        for table, rows in (("runs", runs), ("evaluations", evaluations)):
            for row in rows:
                values = {
                    name: json.dumps(value) if name in _JSON else value
                    for name, value in vars(row).items()
                }
                names = ", ".join(values)
                places = ", ".join(f":{name}" for name in values)
                database.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", values)
        database.commit()
        content = database.serialize()
    _replace(folder / RESULTS_FILE, content)


def _replace(path, content):
    """Puts a new file in the place of one that several processes may write at once."""
    folder = path.parent
    handle, name = tempfile.mkstemp(prefix=".partial-", suffix=f"-{path.name}", dir=folder)
    temporary = Path(name)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # Those of `mkstemp` are for its user alone.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    for leftover in folder.glob(f".partial-*-{path.name}"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER:
                leftover.unlink()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
