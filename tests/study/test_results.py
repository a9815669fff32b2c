import dataclasses
import json
import os
import shutil
import sqlite3
import time

import pytest

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.study.grid import Cell, differences_from_paper, settings_of
from keras_sparse_dm.study.results import (
    SCHEMA_VERSION,
    claim_scale,
    collect_results,
    read_results,
)

DENSE = Cell("chirodiff_vmnist", "dense", 0.0, None, 0)
RIGL = Cell("chirodiff_vmnist", "rigl", 0.9, 0.05, 3, update_every=7)
DISTANCES = {"FD-kanji": {"generated": {"frechet": [12.5, 11.0, 14.0]}}}


def write_run(study, cell, seconds=2.5, steps=(5,)):
    """Leaves what a finished run of a cell leaves."""
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


def test_what_runs_tell_comes_back(study):
    assert collect_results(study) == []
    results = read_results(study)
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


def test_the_file_answers_to_plain_sql(study):
    collect_results(study)
    database = sqlite3.connect(study / "results.sqlite")
    assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    rows = database.execute(
        "SELECT method, json_extract(distances, '$.FD-kanji.generated.frechet[0]') "
        "FROM runs JOIN evaluations USING (cell) WHERE sampling_steps = 5 ORDER BY method"
    ).fetchall()
    database.close()
    assert rows == [("dense", 12.5), ("rigl", 12.5)]


def test_no_file_means_no_results(tmp_path):
    results = read_results(tmp_path)
    assert results.runs == [] and results.evaluations == []


def test_rows_of_runs_whose_folders_are_gone_stay(study):
    collect_results(study)
    before = read_results(study)
    shutil.rmtree(study / "runs" / RIGL.name)
    write_run(study, DENSE, seconds=9.0)
    collect_results(study)
    after = read_results(study)
    assert [run.seconds for run in after.runs] == [9.0, 2.5]
    assert after.evaluations == before.evaluations


def test_a_failed_run_is_told_until_it_is_finished(study):
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
    collect_results(study)
    run = read_results(study).runs[1]
    assert (run.status, run.error, run.seconds) == ("failed", "ValueError: too bad", None)
    write_run(study, RIGL)
    collect_results(study)
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
    collect_results(study)
    edit(study / "runs" / RIGL.name)
    (line,) = collect_results(study)
    import re

    assert re.search(message, line), line
    kept = [run.cell for run in read_results(study).runs]
    moved = (study / "runs" / "mine").exists()
    # Of one that was moved away the row stays, as of one that is gone.
    assert kept == sorted([DENSE.name, *([RIGL.name] if moved else [])])


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + b"x" * 500, b"hello"])
def test_a_damaged_file_is_told(study, content):
    (study / "results.sqlite").write_bytes(content)
    with pytest.raises(SettingsError, match="schema version 0|damaged"):
        read_results(study)
    with pytest.raises(SettingsError):
        collect_results(study)
    assert (study / "results.sqlite").read_bytes() == content


def test_a_failed_write_leaves_the_old_file(study, monkeypatch):
    collect_results(study)
    before = (study / "results.sqlite").read_bytes()
    write_run(study, DENSE, seconds=9.0)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            collect_results(study)
    assert (study / "results.sqlite").read_bytes() == before
    assert not list(study.glob(".partial*"))


def test_leftovers_of_killed_processes_are_removed_in_time(study):
    old, new = (study / f".partial-{name}-results.sqlite" for name in ("a", "b"))
    for file in (old, new):
        file.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    collect_results(study)
    assert not old.exists() and new.exists()


def test_what_ends_while_results_are_collected_is_not_lost(study, monkeypatch):
    from keras_sparse_dm.study import results as study_results

    collect = study_results._collect
    late = dataclasses.replace(DENSE, seed=1)
    calls = []

    def collect_and_finish_a_run(folder):
        wrong = collect(folder)
        if not calls:
            write_run(study, late)
        calls.append(1)
        return wrong

    monkeypatch.setattr(study_results, "_collect", collect_and_finish_a_run)
    collect_results(study)
    assert late.name in {run.cell for run in read_results(study).runs} and len(calls) == 2
