"""Results of a study, read from the folders of its runs."""

import dataclasses
import json
import re
import shutil

import pytest

from keras_sparse_dm.study.differences import differences_from_paper
from keras_sparse_dm.study.grid import Cell
from keras_sparse_dm.study.results import SCHEMA_VERSION, claim_scale, read_results
from keras_sparse_dm.study.scales import settings_of

DENSE = Cell("chirodiff_vmnist", "dense", 0.0, None, 0)
RIGL = Cell("chirodiff_vmnist", "rigl", 0.9, 0.05, 3, update_every=7)
DISTANCES = {"FD-kanji": {"generated": {"frechet": [12.5, 11.0, 14.0]}}}


def write_run(study, cell, seconds=2.5, steps=(5,)):
    """Write the files of a finished run, and return its folder."""
    settings = settings_of(cell, "smoke", folder=study)
    folder = study / "runs" / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    config = {"settings": settings.to_dict(), "versions": {}}
    (folder / "config.json").write_text(json.dumps(config))
    evaluations = [
        {
            "sampling_steps": n,
            "samples": 64,
            "seed": cell.seed,
            "weights": [],
            "seconds": 1.0,
            "distances": DISTANCES,
        }
        for n in steps
    ]
    result = {
        "schema": SCHEMA_VERSION,
        "name": cell.name,
        "cell": dataclasses.asdict(cell),
        "scale": "smoke",
        "settings": settings.to_dict(),
        "version": "0.1.0",
        "differences": differences_from_paper(cell, "smoke", settings),
        "seconds": seconds,
        "report": {"iterations": 6, "cost": {"parameters": 65019}},
        "evaluations": evaluations,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study"
    claim_scale(folder, "smoke")
    write_run(folder, DENSE)
    write_run(folder, RIGL, steps=(5, 50))
    return folder


def test_results_are_those_of_the_runs(study):
    results = read_results(study)
    assert results.wrong == []
    assert [run.cell for run in results.runs] == sorted([DENSE.name, RIGL.name])
    run = next(run for run in results.runs if run.cell == RIGL.name)
    names = [field.name for field in dataclasses.fields(Cell)]
    assert {name: getattr(run, name) for name in names} == dataclasses.asdict(RIGL)
    assert run.full is False and run.status == "finished" and run.error is None
    assert run.seconds == 2.5 and run.version == "0.1.0" and run.folder == f"runs/{RIGL.name}"
    assert run.settings == settings_of(RIGL, "smoke", folder=study).to_dict()
    assert run.report == {"iterations": 6, "cost": {"parameters": 65019}}
    assert "epochs: 2 instead of 600" in run.differences
    assert [(e.cell, e.sampling_steps, e.samples, e.seed) for e in results.evaluations] == [
        (DENSE.name, 5, 64, 0),
        (RIGL.name, 5, 64, 3),
        (RIGL.name, 50, 64, 3),
    ]
    assert results.evaluations[0].distances == DISTANCES


def test_a_folder_without_runs_has_no_results(tmp_path):
    results = read_results(tmp_path)
    assert results.runs == [] and results.evaluations == []


def test_a_failed_run_counts_until_it_is_finished(study):
    shutil.rmtree(study / "runs" / RIGL.name)
    failure = {
        "name": RIGL.name,
        "cell": dataclasses.asdict(RIGL),
        "scale": "smoke",
        "settings": settings_of(RIGL, "smoke", folder=study).to_dict(),
        "differences": [],
        "version": "0.1.0",
        "error": "ValueError: too bad",
    }
    (study / "failed").mkdir()
    (study / "failed" / f"{RIGL.name}.json").write_text(json.dumps(failure))
    run = read_results(study).runs[1]
    assert (run.status, run.error, run.seconds) == ("failed", "ValueError: too bad", None)
    write_run(study, RIGL)
    assert read_results(study).runs[1].status == "finished"


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "result.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "result.json").write_text("[]"), "holds no 'schema'"),
        (
            lambda folder: (folder / "config.json").write_text(
                (folder / "config.json").read_text().replace('"epochs": 2', '"epochs": 3')
            ),
            "edited by hand.*--epochs is 2 but was 3",
        ),
        (
            lambda folder: (folder / "result.json").write_text(
                (folder / "result.json").read_text().replace('"schema": 1', '"schema": 0')
            ),
            "schema version 0",
        ),
        (
            lambda folder: (folder / "result.json").write_text(
                (folder / "result.json").read_text().replace('"seconds": 2.5, ', "")
            ),
            "KeyError\\('seconds'\\)",
        ),
        (lambda folder: folder.rename(folder.with_name("mine")), "moved by hand"),
    ],
)
def test_folders_that_were_edited_or_moved_do_not_count(study, edit, message):
    edit(study / "runs" / RIGL.name)
    results = read_results(study)
    (line,) = results.wrong
    assert re.search(message, line), line
    assert [run.cell for run in results.runs] == [DENSE.name]


def test_a_damaged_failure_does_not_count(study):
    (study / "failed").mkdir()
    (study / "failed" / "a.json").write_text("{")
    results = read_results(study)
    assert len(results.runs) == 2 and "damaged" in results.wrong[0]
