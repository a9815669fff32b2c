import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from study_launcher import FAKE, STUDY, launch, options_for

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.cli import main
from keras_sparse_dm.study import launcher as study_module
from keras_sparse_dm.study.grid import Study, find_study
from keras_sparse_dm.study.launcher import Launcher, tasks_of
from keras_sparse_dm.study.locks import acquire, is_stale, machine, process_identity
from keras_sparse_dm.study.progress import progress_table
from keras_sparse_dm.study.results import read_results

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
    """Starts launchers on the folder; those that a test leaves behind are ended."""
    started = []

    def start(jobs=2, *real):
        command = [*LAUNCHER, folder, str(jobs), *real]
        # A shell's background jobs, of which the tests may be one, ignore Ctrl-C.
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
    """`(name, process)` of each run that was started."""
    if not (tmp_path / "ran").exists():
        return []
    lines = (tmp_path / "ran").read_text().split("\n")[:-1]
    return [(name, int(pid)) for name, pid in map(str.split, lines)]


def wait_for(condition, launcher=None, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert launcher is None or launcher.poll() is None
        time.sleep(0.02)


def statuses(folder):
    return Counter(run.status for run in read_results(folder).runs)


def test_runs_all_cells_once_and_no_finished_one_again(folder, tmp_path, capsys):
    assert launch(folder) == 0
    assert sorted(name for name, _ in ran(tmp_path)) == sorted(c.name for c in STUDY.cells)
    assert statuses(folder) == {"finished": 6}
    assert "six: 6 finished of 6 runs" in capsys.readouterr().out
    assert list((folder / "locks").iterdir()) == list((folder / "jobs").iterdir()) == []
    assert launch(folder) == 0
    assert len(ran(tmp_path)) == 6


def test_a_failed_run_stops_no_other_and_is_tried_again(folder, tmp_path, monkeypatch, capsys):
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


def test_workers_end_with_a_killed_launcher_and_the_next_goes_on(start, folder, tmp_path):
    (tmp_path / "hold").touch()
    launcher = start()
    wait_for(lambda: len(ran(tmp_path)) == 2, launcher)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not any(psutil.pid_exists(pid) for _, pid in ran(tmp_path)))
    assert len(list((folder / "locks").glob("chirodiff*.lock"))) == 2
    (tmp_path / "hold").unlink()
    assert launch(folder) == 0
    # The two that were begun, and all six.
    assert Counter(Counter(name for name, _ in ran(tmp_path)).values()) == {2: 2, 1: 4}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_launchers_leave_all_in_order(start, folder, tmp_path, number):
    (tmp_path / "hold").touch()
    launcher = start()
    wait_for(lambda: len(ran(tmp_path)) == 2, launcher)
    launcher.send_signal(number)
    out, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 130 and "6 not done of 6 runs" in out
    assert not any(psutil.pid_exists(pid) for _, pid in ran(tmp_path))
    assert list((folder / "locks").iterdir()) == []


def test_two_launchers_never_run_the_same_cell(start, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SLOW", "0.3")
    launchers = [start(), start()]
    outs = [launcher.communicate(timeout=240)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0]
    assert Counter(name for name, _ in ran(tmp_path)) == dict.fromkeys(
        (cell.name for cell in STUDY.cells), 1
    )
    # Each waits for what the other works on.
    assert all("six: 6 finished of 6 runs" in out for out in outs)
    assert statuses(folder) == {"finished": 6}


def test_folders_of_other_settings_are_left_alone(folder, tmp_path, capsys):
    assert launch(folder) == 0
    config = folder / "runs" / FIRST / "config.json"
    values = json.loads(config.read_text())
    values["settings"]["training"]["epochs"] = 77
    config.write_text(json.dumps(values))
    # Another has become a folder of another cell's run.
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
    # The third was run again, in its place; the others are not counted.
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


def test_other_sampling_steps_and_samples_are_evaluated_anew(folder, tmp_path):
    assert launch(folder) == 0
    more = dataclasses.replace(STUDY, sampling_steps=(5, 10))
    assert launch(folder, study=more) == 0
    assert len(ran(tmp_path)) == 12
    steps = Counter(e.sampling_steps for e in read_results(folder).evaluations)
    assert steps == {5: 6, 10: 6}
    assert launch(folder, samples=32) == 0
    assert len(ran(tmp_path)) == 18


def test_results_of_another_schema_version_stop_it_at_once(folder, tmp_path):
    import sqlite3

    assert launch(folder) == 0
    database = sqlite3.connect(folder / "results.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.commit()
    database.close()
    before = (folder / "results.sqlite").read_bytes()
    shutil.rmtree(folder / "runs" / FIRST)
    with pytest.raises(SettingsError, match="schema version 99"):
        launch(folder)
    assert (folder / "results.sqlite").read_bytes() == before and len(ran(tmp_path)) == 6


def test_a_full_disk_leaves_the_results_whole(folder, tmp_path, monkeypatch, capsys):
    assert launch(folder) == 0
    before = (folder / "results.sqlite").read_bytes()
    shutil.rmtree(folder / "runs" / FIRST)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results.sqlite")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", full)
        assert launch(folder) == 1
    assert "No space left on device" in capsys.readouterr().out
    assert (folder / "results.sqlite").read_bytes() == before
    # The run itself is not lost.
    assert launch(folder) == 0 and len(ran(tmp_path)) == 7


def test_a_folder_holds_one_scale_and_nothing_else(folder, tmp_path):
    assert launch(folder) == 0
    other = dataclasses.replace(options_for(folder), scale="reduced")
    with pytest.raises(SettingsError, match="scale smoke; received --scale reduced"):
        study_module.prepare_folder(other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(SettingsError, match="not empty and holds no study"):
        study_module.prepare_folder(options_for(tmp_path / "mine"))


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


def test_data_of_cells_that_are_not_chosen_are_not_asked_for(tmp_path, capsys):
    (tmp_path / "celebahq").mkdir()
    command = ["study", "run", "table1", "--scale", "reduced", "--data-dir", str(tmp_path)]
    command += ["--output-dir", str(tmp_path / "study")]
    assert main([*command, "--cells", "*bedrooms*"]) == 2
    assert "in which lsun_bedrooms holds the data set" in capsys.readouterr().err
    options = dataclasses.replace(
        options_for(tmp_path / "study"), scale="reduced", data_dir=tmp_path
    )
    assert len(tasks_of(find_study("table1").with_cells("*celebahq-dense*"), options)) > 0


# Locks -------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one(tmp_path):
    lock = acquire(tmp_path / "a.lock")
    assert acquire(tmp_path / "a.lock") is None
    assert lock.touch()
    lock.release()
    assert acquire(tmp_path / "a.lock") is not None


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    identity = process_identity(process.pid)
    process.communicate()
    return identity


def write_lock(path, **values):
    owner = {"token": "other", "host": "a", "machine": machine(), "launcher": dead_process()}
    path.write_text(json.dumps(owner | values))


def test_locks_of_dead_processes_are_taken_over(tmp_path):
    path = tmp_path / "a.lock"
    write_lock(path)
    assert is_stale(path)
    assert acquire(path) is not None
    # A worker may outlive its launcher for a moment.
    write_lock(path, worker=process_identity(os.getpid()))
    assert acquire(path) is None
    # A process that has got the number of a dead one.
    recycled = process_identity(os.getpid())
    write_lock(path, launcher=recycled | {"started": recycled["started"] - 60})
    assert acquire(path) is not None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, ""])
def test_locks_of_other_machines_are_taken_over_when_silent(tmp_path, content):
    path = tmp_path / "a.lock"
    write_lock(path, machine="another")
    if content is not None:
        path.write_text(content)
    assert acquire(path) is None
    os.utime(path, (time.time() - 700,) * 2)
    mine = acquire(path)
    assert mine is not None and acquire(path) is None


def test_a_launcher_that_lost_its_lock_notices(tmp_path):
    lock = acquire(tmp_path / "a.lock")
    write_lock(tmp_path / "a.lock")
    assert not lock.touch()
    lock.release()
    assert (tmp_path / "a.lock").exists()


def test_waits_for_a_cell_of_another_machine(start, folder, tmp_path, monkeypatch):
    study_module.prepare_folder(options_for(folder))
    path = folder / "locks" / f"{FIRST}.lock"
    write_lock(path, machine="another")
    monkeypatch.setattr(study_module, "LOOK_AT_OTHERS", 0.05)
    launcher = start()
    wait_for(lambda: len(list(folder.glob("runs/*/result.json"))) == 5, launcher)
    time.sleep(0.3)
    assert launcher.poll() is None
    path.unlink()
    out, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 0 and "6 finished of 6" in out
    assert len(ran(tmp_path)) == 6


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


# The command -------------------------------------------------------------------------------


def one_line(capsys, *argv):
    assert main(["study", *map(str, argv)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("sparse-dm study")
    return lines[0]


def test_the_command_tells_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "must be run, report or list; received nothing" in one_line(capsys)
    assert "Did you mean table" in one_line(capsys, "run", "tabel2")
    assert "received 'big'" in one_line(capsys, "run", "table2", "--scale", "big")
    assert "--jobs must be 1 or more" in one_line(capsys, "run", "table2", "--jobs", "0")
    assert "received 'x=3'" in one_line(capsys, "run", "table2", "--epochs", "x=3")
    assert "matches none" in one_line(capsys, "run", "table2", "--cells", "nothing")
    assert "no folder" in one_line(capsys, "run", "table2", "--data-dir", "nowhere")
    assert "mnist" in one_line(capsys, "run", "sketches", "--scale", "reduced")
    monkeypatch.setattr(sys, "stdin", open(os.devnull))
    kanji = ("run", "table2", "--scale", "paper", "--cells", "*kanjivg*")
    (tmp_path / "quickdraw").mkdir()
    (tmp_path / "mnist").mkdir()
    assert "give --yes" in one_line(capsys, *kanji, "--data-dir", tmp_path)
    assert not (tmp_path / "studies").exists()


def test_epochs_of_a_preset_go_before_those_of_all():
    from keras_sparse_dm.commands.study import StudyRunSettings

    settings = StudyRunSettings("sketches", epochs=("chirodiff_vmnist=3", "8"))
    epochs = settings.epochs_by_preset()
    assert epochs["chirodiff_vmnist"] == 3 and epochs["chirodiff_kanjivg"] == 8


def test_list_names_the_studies(capsys):
    assert main(["study", "list"]) == 0
    out = capsys.readouterr().out
    assert "table2      60 runs" in out and "sketches    44 runs" in out


# The real worker ---------------------------------------------------------------------------


@pytest.mark.slow
def test_real_runs_killed_and_gone_on_with(start, folder, tmp_path, monkeypatch):
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
