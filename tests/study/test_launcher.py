"""Launchers of studies with a stand-in worker: stopped, killed, failing, and several at once."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock
from study_launcher import FAKE, STUDY, launch, options_for

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.study import launcher as study_module
from keras_sparse_dm.study.grid import Study
from keras_sparse_dm.study.launcher import WORKER, Launcher
from keras_sparse_dm.study.progress import progress_table
from keras_sparse_dm.study.results import read_results
from keras_sparse_dm.study.tasks import tasks_of
from keras_sparse_dm.study.worker import ELSEWHERE
from keras_sparse_dm.study.worker_process import WorkerProcess

LAUNCHER = (sys.executable, str(Path(__file__).with_name("study_launcher.py")))
FIRST = STUDY.cells[0].name


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "POLL", 0.02)
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    monkeypatch.setenv("HOLD", str(tmp_path / "hold"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "study"


@pytest.fixture
def start(folder):
    """Function that starts a launcher on the folder. The fixture ends the launchers."""
    started = []

    def start(jobs=2, *real):
        command = [*LAUNCHER, folder, str(jobs), *real]
        # The tests may run as a background job of a shell, which ignores Ctrl-C.
        inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        signal.signal(signal.SIGINT, inherited)
        return started[-1]

    yield start
    for launcher in started:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()


def ran(tmp_path):
    """Return `(name, process id)` of each run that was started."""
    if not (tmp_path / "ran").exists():
        return []
    lines = (tmp_path / "ran").read_text().split("\n")[:-1]
    return [(name, int(pid)) for name, pid in map(str.split, lines)]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, launcher=None, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert launcher is None or launcher.poll() is None
        time.sleep(0.02)


def statuses(folder):
    return Counter(run.status for run in read_results(folder).runs)


def test_runs_every_cell_once(folder, tmp_path, capsys):
    assert launch(folder) == 0
    assert sorted(name for name, _ in ran(tmp_path)) == sorted(c.name for c in STUDY.cells)
    assert statuses(folder) == {"finished": 6}
    assert "six: 6 finished of 6 runs" in capsys.readouterr().out
    assert launch(folder) == 0
    assert len(ran(tmp_path)) == 6


def test_a_failed_run_is_tried_again_and_stops_no_other(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAIL", FIRST)
    assert launch(folder) == 1
    assert statuses(folder) == {"finished": 5, "failed": 1}
    out = capsys.readouterr().out
    log = folder / "logs" / f"{FIRST}.log"
    assert f"failed {FIRST}: ValueError: too bad (log: {log})" in out and log.exists()
    (failed,) = (run for run in read_results(folder).runs if run.status == "failed")
    assert failed.cell == FIRST and failed.error == "ValueError: too bad"
    monkeypatch.delenv("FAIL")
    assert launch(folder) == 0
    assert statuses(folder) == {"finished": 6}
    assert len(ran(tmp_path)) == 7


@pytest.mark.slow
def test_a_killed_worker_is_a_failed_run(start, folder, tmp_path, capsys):
    (tmp_path / "hold").touch()
    launcher = start(1)
    wait_for(lambda: ran(tmp_path), launcher)
    os.kill(ran(tmp_path)[0][1], signal.SIGKILL)
    wait_for(lambda: len(ran(tmp_path)) == 2, launcher)
    (tmp_path / "hold").unlink()
    out, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 1
    assert "ended by SIGKILL" in out and "5 finished, 1 failed" in out
    assert launch(folder) == 0


@pytest.mark.slow
def test_workers_end_with_a_killed_launcher_and_the_next_one_resumes(start, folder, tmp_path):
    (tmp_path / "hold").touch()
    launcher = start()
    wait_for(lambda: len(ran(tmp_path)) == 2, launcher)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not any(is_running(pid) for _, pid in ran(tmp_path)))
    (tmp_path / "hold").unlink()
    assert launch(folder) == 0
    # The two runs that were started, and all six.
    assert Counter(Counter(name for name, _ in ran(tmp_path)).values()) == {2: 2, 1: 4}


@pytest.mark.cases(1)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_launchers_end_their_workers(start, folder, tmp_path, number):
    (tmp_path / "hold").touch()
    launcher = start()
    wait_for(lambda: len(ran(tmp_path)) == 2, launcher)
    launcher.send_signal(number)
    out, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 130 and "6 not done of 6 runs" in out
    assert not any(is_running(pid) for _, pid in ran(tmp_path))


@pytest.mark.slow
def test_two_launchers_never_run_the_same_cell(start, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SLOW", "0.3")
    launchers = [start(), start()]
    outs = [launcher.communicate(timeout=240)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0]
    assert Counter(name for name, _ in ran(tmp_path)) == dict.fromkeys(
        (cell.name for cell in STUDY.cells), 1
    )
    # Each waits for the cells that the other works on.
    assert all("six: 6 finished of 6 runs" in out for out in outs)
    assert statuses(folder) == {"finished": 6}


@pytest.mark.slow
def test_folders_of_other_settings_are_left_alone(folder, tmp_path, capsys):
    assert launch(folder) == 0
    config = folder / "runs" / FIRST / "config.json"
    values = json.loads(config.read_text())
    values["settings"]["training"]["epochs"] = 77
    config.write_text(json.dumps(values))
    # Put the run of one cell in the folder of another.
    second, third = STUDY.cells[1].name, STUDY.cells[2].name
    shutil.rmtree(folder / "runs" / second)
    (folder / "runs" / third).rename(folder / "runs" / second)
    capsys.readouterr()
    assert launch(folder) == 1
    out = capsys.readouterr().out
    assert "4 finished, 2 left alone" in out
    assert f"left alone {FIRST}: " in out and "--epochs is 2 but was 77" in out
    assert f"left alone {second}: " in out and "--method is 'dense' but was 'static'" in out
    assert json.loads(config.read_text()) == values
    # The third cell was run again; the first two do not count.
    assert [name for name, _ in ran(tmp_path)].count(third) == 2
    assert {run.cell for run in read_results(folder).runs} == {
        cell.name for cell in STUDY.cells
    } - {FIRST, second}


def test_another_number_of_epochs_is_a_clash_for_each_cell(folder, tmp_path, capsys):
    assert launch(folder) == 0
    assert launch(folder, epochs={"chirodiff_vmnist": 3}) == 1
    assert "0 finished" not in capsys.readouterr().out
    assert len(ran(tmp_path)) == 6
    assert statuses(folder) == {"finished": 6}


@pytest.mark.slow
def test_other_sampling_steps_and_samples_are_evaluated_anew(folder, tmp_path):
    assert launch(folder) == 0
    more = dataclasses.replace(STUDY, sampling_steps=(5, 10))
    assert launch(folder, study=more) == 0
    assert len(ran(tmp_path)) == 12
    steps = Counter(e.sampling_steps for e in read_results(folder).evaluations)
    assert steps == {5: 6, 10: 6}
    assert launch(folder, samples=32) == 0
    assert len(ran(tmp_path)) == 18


def test_a_study_of_another_schema_version_stops_it_at_once(folder, tmp_path):
    assert launch(folder) == 0
    before = (folder / "study.json").read_text()
    (folder / "study.json").write_text(before.replace('"schema": 1', '"schema": 99'))
    shutil.rmtree(folder / "runs" / FIRST)
    with pytest.raises(SettingsError, match="schema version 99"):
        launch(folder)
    assert len(ran(tmp_path)) == 6


def test_a_folder_holds_one_scale_and_nothing_else(folder, tmp_path):
    assert launch(folder) == 0
    other = dataclasses.replace(options_for(folder), scale="reduced")
    with pytest.raises(SettingsError, match="scale smoke; received --scale reduced"):
        study_module.claim_folder(other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(SettingsError, match="not empty and holds no study"):
        study_module.claim_folder(options_for(tmp_path / "mine"))


def test_two_cells_of_one_name_that_differ_are_refused(folder):
    cell = STUDY.cells[2]
    study = Study("two", "", (cell, dataclasses.replace(cell, sparsity=0.5 + 1e-9)))
    with pytest.raises(SettingsError, match="called chirodiff_vmnist-static-s0.5-seed0 but differ"):
        tasks_of(study, options_for(folder))


def test_cells_are_chosen_by_pattern(folder):
    tasks = tasks_of(STUDY.with_cells("*rigl*"), options_for(folder))
    assert len(tasks) == 2 and all("rigl" in task.name for task in tasks)
    with pytest.raises(SettingsError, match="'\\*kanji\\*' matches none of the study's 6"):
        STUDY.with_cells("*kanji*")


# Locks -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_waits_for_a_cell_that_another_process_works_on(start, folder, tmp_path):
    study_module.claim_folder(options_for(folder))
    with FileLock(folder / "locks" / f"{FIRST}.lock"):
        launcher = start()
        wait_for(lambda: len(list(folder.glob("runs/*/result.json"))) == 5, launcher)
        time.sleep(0.3)
        assert launcher.poll() is None
    out, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 0 and "6 finished of 6" in out
    assert len(ran(tmp_path)) == 6


def test_lock_files_of_the_previous_version_lock_nothing(folder, tmp_path):
    study_module.claim_folder(options_for(folder))
    for name in (FIRST, "prepare"):
        (folder / "locks" / f"{name}.lock").write_text('{"token": "a", "machine": "another"}')
    assert launch(folder) == 0 and len(ran(tmp_path)) == 6


@pytest.mark.slow
def test_a_worker_leaves_a_locked_cell_alone(tmp_path):
    lock = tmp_path / "a.lock"
    with FileLock(lock):
        job = {"lock": str(lock)}
        worker = WorkerProcess((*WORKER, "run"), job, tmp_path / "log", os.environ)
        assert worker.wait() == ELSEWHERE
        worker.stop()


# Progress ----------------------------------------------------------------------------------


def test_the_table_stays_short_with_many_cells(folder):
    from rich.console import Console

    cells = tuple(
        dataclasses.replace(cell, seed=seed) for cell in STUDY.cells for seed in range(100)
    )
    study = Study("many", "", cells)
    launcher = Launcher(study, tasks_of(study, options_for(folder)), options_for(folder), FAKE)
    for task in launcher.tasks[:50]:
        launcher._set(task, "failed", "ValueError: " + "long " * 50)
    console = Console(width=80, record=True, file=open(os.devnull, "w"))
    console.print(progress_table(launcher))
    lines = console.export_text().splitlines()
    assert len(lines) < 12 and "250 waiting" in lines[0] and "50 failed" in lines[0]
    assert "... and 45 more" in lines[-1]


# The real worker ---------------------------------------------------------------------------


@pytest.mark.nightly  # `.ci/run` kills and resumes a real study
def test_real_runs_resume_after_a_kill(start, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SPARSE_DM_CACHE", str(tmp_path / "cache"))
    launcher = start(1, "real")
    checkpoint = Path("checkpoints", "last.keras")
    wait_for(lambda: list(folder.glob(f"runs/*/{checkpoint}")), launcher)
    launcher.kill()
    launcher.wait()
    begun = next(path.parents[1] for path in folder.glob(f"runs/*/{checkpoint}"))
    assert not (begun / "result.json").exists()
    launcher = start(1, "real")
    launcher.communicate()
    assert launcher.returncode == 0
    log = (folder / "logs" / f"{begun.name}.log").read_text()
    assert f"Resuming {begun} after epoch " in log
    assert statuses(folder) == {"finished": 2}
    for run in read_results(folder).runs:
        assert run.report["iterations"] == 6 and run.seconds > 0
        metrics = (folder / run.folder / "metrics.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in metrics[1:]] == ["0", "1"]
    evaluation = read_results(folder).evaluations[0]
    assert evaluation.samples == 64 and evaluation.sampling_steps == 5
    assert evaluation.distances["FD-kanji"]["generated"]["frechet"][0] > 0
