"""A process of a study: it trains and evaluates one cell, or works for all cells.

    python -m keras_sparse_dm.study.worker {run, prepare, measure}

The launcher writes the job as one line of JSON to the standard input and leaves the input open. The
worker ends when its input ends, because then the launcher has ended.

A worker holds the file lock of its cell while it trains and evaluates the cell. The operating
system releases the lock when the process ends, even if it is killed.
"""

import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path

import keras_sparse_dm
from keras_sparse_dm.checks import UsageError
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.runs.folder import CONFIG_FILE, read_json, write_json
from keras_sparse_dm.runs.settings import TrainingDiverged
from keras_sparse_dm.study.results import RESULT_FILE, SCHEMA_VERSION, stored_settings
from keras_sparse_dm.study.scales import autoencoder_settings
from keras_sparse_dm.study.tasks import fits, names_of, training_settings

autoencoder = lazy_module("keras_sparse_dm.runs.autoencoder")
estimates = lazy_module("keras_sparse_dm.study.estimates")
evaluation_of_run = lazy_module("keras_sparse_dm.runs.evaluate")
samples = lazy_module("keras_sparse_dm.runs.samples")
training = lazy_module("keras_sparse_dm.runs.train")
filelock = lazy_module("filelock")

# Exit codes besides 0 and 1.
LAUNCHER_GONE = 3
ELSEWHERE = 4
# Seconds to wait for a cell's lock. Launchers hold it for a moment to check if it is free.
LOCK_TIMEOUT = 1


def main(kind):
    """Do the job that the standard input describes, and return the exit code.

    Args:
        kind: `"run"`, `"prepare"` or `"measure"`.
    """
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    try:
        if kind == "run":
            with filelock.FileLock(job["lock"], timeout=LOCK_TIMEOUT):
                run_cell(job)
        elif kind == "prepare":
            # Wait until other launchers have finished their preparations, which the cache keeps.
            with filelock.FileLock(job["lock"]):
                prepare_data(job["preparations"])
        else:
            measure(job)
    except filelock.Timeout:
        return ELSEWHERE
    except (UsageError, TrainingDiverged) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _end_with_launcher():
    while os.read(0, 1):
        pass
    os._exit(LAUNCHER_GONE)


def settings_of_job(job):
    """Return the `RunSettings` of a job, with its folders.

    Args:
        job: Dictionary with `settings`, `output_dir` and `cache_dir`.
    """
    cache_dir = job["cache_dir"]
    return dataclasses.replace(
        stored_settings(job["settings"]),
        output_dir=Path(job["output_dir"]),
        cache_dir=None if cache_dir is None else Path(cache_dir),
        verbose=2,
    )


def run_cell(job):
    """Train a cell from where its training stopped, evaluate it, and write `result.json`.

    Args:
        job: Dictionary with `name`, `cell`, `scale`, `settings`, `output_dir`, `cache_dir`,
            `sampling_steps`, `weights` and `differences`.
    """
    settings = settings_of_job(job)
    folder = settings.folder
    report = read_json(folder / "report.json", {"cost": dict})
    run = None
    if report is None or not (folder / samples.MODEL).exists():
        run = training.train_run(training_settings(settings))
        report = read_json(folder / "report.json", {"cost": dict})
    weights = [Path(path) for path in job["weights"]]
    evaluations = []
    for steps in job["sampling_steps"]:
        file = folder / "evaluations" / f"steps-{steps}.json"
        evaluation = read_json(file, {"distances": dict})
        if evaluation is None or not fits(evaluation, settings, weights):
            if run is None:
                run = samples.load_run(folder, settings.data_dir, settings.cache_dir, verbose=0)
            start = time.perf_counter()
            results = evaluation_of_run.evaluate(
                run,
                settings.sampling.evaluation,
                steps=steps,
                weights=weights,
                seed=settings.seed,
                cache_dir=settings.cache_dir,
                progress=False,
            )
            evaluation = {
                "sampling_steps": steps,
                "samples": results["samples"],
                "seed": results["seed"],
                "weights": names_of(weights),
                "seconds": time.perf_counter() - start,
                "distances": results["distances"],
            }
            file.parent.mkdir(exist_ok=True)
            write_json(file, evaluation)
        evaluations.append(evaluation)
    # Keep the evaluations that other studies asked for, with the same samples.
    for file in sorted((folder / "evaluations").glob("steps-*.json")):
        evaluation = read_json(file, {"distances": dict})
        if evaluation not in evaluations and fits(evaluation, settings, weights):
            evaluations.append(evaluation)
    report["sparsity"] = {k: v for k, v in report["sparsity"].items() if k != "kernels"}
    seconds = report["training_seconds"] + sum(e["seconds"] for e in evaluations)
    write_json(
        folder / RESULT_FILE,
        {
            "schema": SCHEMA_VERSION,
            "name": job["name"],
            "cell": job["cell"],
            "scale": job["scale"],
            "settings": settings.to_dict(),
            "version": keras_sparse_dm.__version__,
            "differences": job["differences"],
            "seconds": seconds,
            "report": report,
            "evaluations": evaluations,
        },
    )


def prepare_data(jobs):
    """Put the data, autoencoders and latents that cells share into the cache.

    Args:
        jobs: List of dictionaries with `settings`, `output_dir`, `cache_dir` and
            `train_autoencoder`.
    """
    for job in jobs:
        settings = settings_of_job(job)
        if job["train_autoencoder"] and not settings.autoencoder.exists():
            ours = autoencoder_settings(settings)
            resume = (ours.folder / CONFIG_FILE).exists()
            autoencoder.train_autoencoder(dataclasses.replace(ours, resume=resume))
        print(settings.kind.put_in_cache(settings), flush=True)


def measure(job):
    """Time training steps, and write the times to a file.

    Args:
        job: Dictionary with `settings`, and with `answer`, the path of the file.
    """
    write_json(Path(job["answer"]), estimates.measure(stored_settings(job["settings"])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
