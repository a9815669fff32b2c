"""Launcher of a study: one process for each cell, safe to stop at any point and to start again.

A run's folder says how far its cell is, and a worker holds a file lock while it trains the cell, so
any number of launchers may share a study's folder. Loads no Keras.
"""

import collections
import contextlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import keras_sparse_dm
from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.files import os_error_text
from keras_sparse_dm.lazy import lazy_module
from keras_sparse_dm.runs.folder import read_json, write_json
from keras_sparse_dm.study.differences import differences_from_paper
from keras_sparse_dm.study.progress import plain_progress, table_progress
from keras_sparse_dm.study.results import claim_scale, read_results
from keras_sparse_dm.study.tasks import Task, state_of, trains_autoencoder
from keras_sparse_dm.study.wording import counted
from keras_sparse_dm.study.worker import ELSEWHERE
from keras_sparse_dm.study.worker_process import WorkerProcess

filelock = lazy_module("filelock")

WORKER = (sys.executable, "-m", "keras_sparse_dm.study.worker")
# Seconds between checks of the workers, and of cells that other launchers work on.
POLL = 0.5
LOOK_AT_OTHERS = 10
# Settings that cells on images share besides their data.
_FIRST_STAGE = ("autoencoder", "first_stage")


def run_study(study, tasks, options, worker=WORKER, lines=False):
    """Run the cells of a study that are not finished.

    Args:
        study: The `Study`.
        tasks: Its `Task`s, or some of them.
        options: `Options`.
        worker: Command that starts a worker.
        lines: True to print lines of text in a terminal too, instead of a table.

    Returns:
        The exit code: 0 if all cells are finished, 1 if some failed or could not be run, 130 after
        Ctrl-C or SIGTERM.

    Raises:
        SettingsError: for a folder or data that cannot be used, before any run starts.
        OSError: if the folder cannot be written; files that runs have written stay.
    """
    claim_folder(options)
    out = sys.stdout
    progress = table_progress if out.isatty() and not lines else plain_progress
    launcher = Launcher(study, tasks, options, worker)
    with _signals(), progress(launcher, out):
        try:
            launcher.run()
        except KeyboardInterrupt:
            launcher.interrupted = True
        finally:
            launcher.stop()
    return launcher.finish(out)


def claim_folder(options):
    """Make the study's folder, or check the one that exists.

    Raises:
        SettingsError: if it holds runs of another scale or schema version, or something else.
        OSError: if it cannot be written.
    """
    claim_scale(options.folder, options.scale)
    for name in ("runs", "logs", "locks", "failed"):
        (options.folder / name).mkdir(exist_ok=True)


@contextlib.contextmanager
def _signals():
    """Context in which SIGTERM and SIGHUP end the launcher as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    # Signals that are ignored, as under nohup, stay ignored.
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class AtWork:
    """A cell that a worker of this launcher works on; `slot` numbers the concurrent workers."""

    task: Task
    process: WorkerProcess
    slot: int


class Launcher:
    """The cells of a study, and the workers that run them.

    Attributes:
        study, tasks, options: The arguments.
        states: `{name of the cell: state}`. A state is waiting, at work, elsewhere (another
            launcher works on it), finished, failed or clash.
        messages: `{name of the cell: error}`.
        at_work: List of `AtWork`.
        events: Deque of lines about what has happened; the progress display takes them out.
        phase: What the launcher does before the runs, or "".
    """

    def __init__(self, study, tasks, options, worker=WORKER):
        self.study = study
        self.tasks = tasks
        self.options = options
        self.at_work = []
        self.events = collections.deque()
        self.phase = ""
        self.interrupted = False
        self.messages = {}
        self.states = {}
        self.durations = collections.defaultdict(list)
        self._worker = tuple(worker)
        self._trouble = []
        for task in tasks:
            self._look(task)
        done = self.count("finished")
        if done:
            self.events.append(f"{done} of {counted(len(tasks), 'run')} already finished")

    def count(self, state):
        """Return the number of cells in a state."""
        return sum(s == state for s in self.states.values())

    def _look(self, task):
        """Read a cell's state from its folder."""
        state, message = state_of(task)
        self._set(task, state, message)

    def _set(self, task, state, message=""):
        self.states[task.name] = state
        if message:
            self.messages[task.name] = message
        if state == "clash":
            self.events.append(f"left alone {task.name}: {message}")

    def run(self):
        """Run all cells, until none is left or an exception ends it."""
        if not self.count("waiting"):
            return
        self._prepare_data()
        looked = time.monotonic()
        while True:
            self._end_finished()
            if time.monotonic() - looked > (LOOK_AT_OTHERS if self.at_work else 4 * POLL):
                looked = time.monotonic()
                self._look_at_others()
            for task in self.tasks:
                if len(self.at_work) == self.options.jobs:
                    break
                if self.states[task.name] == "waiting":
                    self._start(task)
            if not (self.at_work or self.count("waiting") or self.count("elsewhere")):
                return
            time.sleep(POLL)

    def _look_at_others(self):
        """Read the states of cells that other launchers have stopped working on."""
        for task in self.tasks:
            if self.states[task.name] != "elsewhere" or _is_held(self._lock_path(task.name)):
                continue
            self._look(task)
            failure = self._failure_path(task)
            if self.states[task.name] == "waiting" and failure.exists():
                self._set(task, "failed", _error_of(failure))
            elif self.states[task.name] != "waiting":
                self.events.append(f"{self.states[task.name]} elsewhere {task.name}")

    def _prepare_data(self):
        """Prepare the data that cells share in a separate process, and wait for it.

        Raises:
            SettingsError: if the preparation fails.
        """
        log = self.options.folder / "logs" / "prepare.log"
        self.phase = f"preparing data (log: {log})"
        self.events.append(self.phase)
        process = WorkerProcess(
            (*self._worker, "prepare"),
            {"lock": str(self._lock_path("prepare")), "preparations": self._preparations()},
            log,
            self._environment(0, 1),
        )
        try:
            while process.poll() is None:
                time.sleep(POLL)
            if process.poll():
                raise SettingsError(f"preparing the data failed: {process.error()} (log: {log})")
        finally:
            process.stop()
            self.phase = ""

    def _preparations(self):
        """Return one job for each data set, and autoencoder, that waiting cells share."""
        jobs = {}
        for task in self.tasks:
            if self.states[task.name] == "waiting":
                s = task.settings
                shared = (s.data, s.data_dir, *(getattr(s, n, None) for n in _FIRST_STAGE))
                jobs.setdefault(
                    repr(shared),
                    _job_of_settings(s) | {"train_autoencoder": trains_autoencoder(s)},
                )
        return list(jobs.values())

    def _start(self, task):
        """Start a cell's worker, unless another launcher has finished the cell or works on it."""
        self._look(task)
        if self.states[task.name] != "waiting":
            return
        if _is_held(self._lock_path(task.name)):
            self.states[task.name] = "elsewhere"
            return
        # The error of an earlier attempt no longer counts.
        self._failure_path(task).unlink(missing_ok=True)
        slot = min(set(range(self.options.jobs)) - {work.slot for work in self.at_work})
        process = WorkerProcess(
            (*self._worker, "run"),
            self._job(task),
            self._log_path(task),
            self._environment(slot, self.options.jobs),
        )
        self.at_work.append(AtWork(task, process, slot))
        self.states[task.name] = "at work"
        self.events.append(f"started {task.name}")

    def _job(self, task):
        scale = self.options.scale
        return _job_of_settings(task.settings) | {
            "lock": str(self._lock_path(task.name)),
            "name": task.name,
            "cell": task.cell.to_dict(),
            "scale": scale,
            "sampling_steps": task.sampling_steps,
            "weights": [str(Path(path).absolute()) for path in task.weights],
            "differences": differences_from_paper(task.cell, scale, task.settings, task.weights),
        }

    def _environment(self, slot, jobs):
        """Return a worker's environment variables: its share of the processor cores, and a GPU."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = str(max(1, cores // jobs))
        names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        environment = os.environ | dict.fromkeys((*names, "LOKY_MAX_CPU_COUNT"), threads)
        environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        environment.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
        gpus = [gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        return environment | {"PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg"}

    def _end_finished(self):
        """Record the results of workers that have ended."""
        for work in list(self.at_work):
            code = work.process.poll()
            if code is None:
                continue
            self.at_work.remove(work)
            work.process.stop()
            task, seconds = work.task, work.process.seconds
            if code == ELSEWHERE:
                self.states[task.name] = "elsewhere"
            elif code:
                self._failed(task, work.process.error())
            else:
                self._look(task)
                if self.states[task.name] == "waiting":
                    self._failed(task, "the worker ended without a result")
                elif self.states[task.name] == "finished":
                    self.durations[task.cell.preset].append(seconds)
                    self.events.append(f"finished {task.name} in {seconds:.0f} s")

    def _failed(self, task, error):
        self._set(task, "failed", error)
        self.events.append(f"failed {task.name}: {error} (log: {self._log_path(task)})")
        job = self._job(task)
        values = {name: job[name] for name in ("name", "cell", "scale", "settings", "differences")}
        try:
            write_json(
                self._failure_path(task),
                values | {"version": keras_sparse_dm.__version__, "error": error},
            )
        except OSError as trouble:
            # A full disk may have failed the run too.
            self._trouble.append(os_error_text(trouble))

    def stop(self):
        """End the workers. What they have written stays, and the next start resumes it."""
        for work in self.at_work:
            work.process.stop()
            self.states[work.task.name] = "waiting"
        self.at_work = []

    def finish(self, out):
        """Print a summary, and return the exit code of `run_study`."""
        states = collections.Counter(self.states.values())
        order = ("finished", "failed", "clash", "elsewhere", "waiting")
        names = {"clash": "left alone", "elsewhere": "at work elsewhere", "waiting": "not done"}
        counts = [f"{states[s]} {names.get(s, s)}" for s in order if states[s]]
        total = counted(len(self.tasks), "run")
        print(f"{self.study.name}: {', '.join(counts)} of {total}", file=out)
        for state, name in (("failed", "failed"), ("clash", "left alone")):
            for task in self.tasks:
                if self.states[task.name] == state:
                    where = f" (log: {self._log_path(task)})" if state == "failed" else ""
                    print(f"  {name} {task.name}: {self.messages[task.name]}{where}", file=out)
        # The folder can hold runs of other studies. Errors of our own runs are printed above.
        known = " ".join(self.messages.values())
        trouble = [*self._trouble, *read_results(self.options.folder).wrong]
        trouble = [line for line in dict.fromkeys(trouble) if line not in known]
        for line in trouble:
            print(f"  {line}", file=out)
        print(f"Results: {self.options.folder / 'runs'}", file=out)
        if self.interrupted:
            return 130
        return int(states["finished"] < len(self.tasks) or bool(trouble))

    def remaining_seconds(self):
        """Return the seconds that the rest will take, judged by this launcher's runs; or None."""
        every = [seconds for values in self.durations.values() for seconds in values]
        if not every:
            return None
        left = 0.0
        for task in self.tasks:
            if self.states[task.name] in ("waiting", "at work"):
                known = self.durations.get(task.cell.preset) or every
                left += sum(known) / len(known)
        left -= sum(work.process.seconds for work in self.at_work)
        return max(left, 0.0) / self.options.jobs

    def _lock_path(self, name):
        return (self.options.folder / "locks" / f"{name}.lock").absolute()

    def _log_path(self, task):
        return self.options.folder / "logs" / f"{task.name}.log"

    def _failure_path(self, task):
        return self.options.folder / "failed" / f"{task.name}.json"


def _is_held(lock):
    """Return True if a worker of any launcher holds a lock file."""
    try:
        with filelock.FileLock(lock, timeout=0):
            return False
    except filelock.Timeout:
        return True


def _job_of_settings(settings):
    place = settings.cache_dir
    return {
        "settings": settings.to_dict(),
        "output_dir": str(settings.output_dir.absolute()),
        "cache_dir": None if place is None else str(Path(place).absolute()),
    }


def _error_of(path):
    with contextlib.suppress(SettingsError):
        return (read_json(path, {"error": str}) or {}).get("error", "")
    return ""
