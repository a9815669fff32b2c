"""One process of a study: it trains and evaluates one cell, or prepares what the cells share.

    python -m keras_sparse_dm.study.worker FILE
    python -m keras_sparse_dm.study.worker --prepare FILE
    python -m keras_sparse_dm.study.worker --measure FILE

The file is written by `study.py`, which starts these processes. A worker ends itself when its
standard input does: its launcher is gone then.
"""

import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path

from keras_sparse_dm import __version__
from keras_sparse_dm.checks import UsageError
from keras_sparse_dm.runs.folder import CONFIG_FILE, read_json, write_json
from keras_sparse_dm.runs.settings import TrainingDiverged
from keras_sparse_dm.runs.sketch_data import load_sketch_data
from keras_sparse_dm.study.grid import autoencoder_settings
from keras_sparse_dm.study.locks import HEARTBEAT, Lock
from keras_sparse_dm.study.results import (
    RESULT_FILE,
    SCHEMA_VERSION,
    stored_settings,
)

LAUNCHER_GONE = 3


def main(argv):
    """Does what a launcher has written down, and returns the exit code."""
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    *kind, file = argv
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    if not kind:
        lock = Lock(Path(job["lock"]), {"token": job["token"]})
        threading.Thread(target=_keep, args=(lock,), daemon=True).start()
    work = {"--prepare": prepare, "--measure": measure}[kind[0]] if kind else run_cell
    try:
        work(job)
    except (UsageError, TrainingDiverged) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _end_with_launcher():
    while os.read(0, 1):
        pass
    os._exit(LAUNCHER_GONE)


def _keep(lock):
    """Keeps the cell's lock alive, for a launcher may sleep; ends where another has taken it."""
    while lock.touch():
        time.sleep(HEARTBEAT)
    os._exit(LAUNCHER_GONE)


def settings_of_job(values):
    """The `RunSettings` of a job, folders included.

    Args:
        values: Dictionary of `settings`, `output_dir` and `cache_dir`.
    """
    settings = stored_settings(values["settings"])
    cache_dir = values["cache_dir"]
    return dataclasses.replace(
        settings,
        output_dir=None if values["output_dir"] is None else Path(values["output_dir"]),
        cache_dir=None if cache_dir is None else Path(cache_dir),
        verbose=2,
    )


def training_settings(settings):
    """The settings that a cell is trained with: it is evaluated afterwards, as often as asked."""
    sampling = dataclasses.replace(settings.sampling, evaluation=0)
    resume = (settings.folder / CONFIG_FILE).exists()
    return dataclasses.replace(settings, sampling=sampling, resume=resume)


def run_cell(job):
    """Trains a cell as far as it is not trained yet, evaluates it and writes `result.json`.

    Args:
        job: Dictionary: `name`, `cell`, `scale`, `settings`, `output_dir`, `cache_dir`,
            `sampling_steps`, `weights`, `differences`.
    """
    from keras_sparse_dm.runs.evaluate import evaluate
    from keras_sparse_dm.runs.samples import MODEL, load_run
    from keras_sparse_dm.runs.train import train_run

    settings = settings_of_job(job)
    folder = settings.folder
    report = read_json(folder / "report.json", {"cost": dict})
    run = None
    if report is None or not (folder / MODEL).exists():
        run = train_run(training_settings(settings))
        report = read_json(folder / "report.json", {"cost": dict})
    weights = [Path(path) for path in job["weights"]]
    evaluations = []
    for steps in job["sampling_steps"]:
        kept = folder / "evaluations" / f"steps-{steps}.json"
        evaluation = read_json(kept, {"distances": dict})
        if evaluation is None or not fits(evaluation, settings, weights):
            if run is None:
                run = load_run(folder, settings.data_dir, settings.cache_dir, verbose=0)
            begin = time.perf_counter()
            results = evaluate(
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
                "seconds": time.perf_counter() - begin,
                "distances": results["distances"],
            }
            kept.parent.mkdir(exist_ok=True)
            write_json(kept, evaluation)
        evaluations.append(evaluation)
    # Those that other studies have asked for, with the same samples.
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
            "version": __version__,
            "differences": job["differences"],
            "seconds": seconds,
            "report": report,
            "evaluations": evaluations,
        },
    )


def fits(evaluation, settings, weights):
    """Whether an evaluation that is kept is the one that is asked for."""
    return (
        evaluation["samples"] == settings.sampling.evaluation
        and evaluation["seed"] == settings.seed
        and evaluation["weights"] == names_of(weights)
    )


def names_of(weights):
    """Names of files of weights, which tell evaluations by other networks apart."""
    return sorted(Path(path).name for path in weights)


def prepare(jobs):
    """Prepares data, autoencoders and latents, which are then in the cache for all cells.

    Args:
        jobs: List of dictionaries of `settings`, `output_dir` and `cache_dir`, one for each
            preparation.
    """
    for job in jobs:
        settings = settings_of_job(job)
        if settings.to_preset().model.kind == "chirodiff":
            train, _ = load_sketch_data(settings.data, settings.data_dir, settings.cache_dir)
            print(train.summary, flush=True)
        else:
            _prepare_images(settings, job["train_autoencoder"])


def _prepare_images(settings, train_first):
    from keras_sparse_dm.runs.autoencoder import train_autoencoder
    from keras_sparse_dm.runs.images import ImageRun

    if train_first and not settings.autoencoder.exists():
        ours = autoencoder_settings(settings)
        resume = (ours.folder / CONFIG_FILE).exists()
        train_autoencoder(dataclasses.replace(ours, resume=resume))
    run = ImageRun(settings)
    run.before_training(run.new_model())
    print(run.summary(), flush=True)


def measure(job):
    """Times training steps and writes down how long they take.

    Args:
        job: Dictionary of `settings`, and `answer`, the file to write.
    """
    from keras_sparse_dm.study.estimates import measure

    write_json(Path(job["answer"]), measure(stored_settings(job["settings"])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
