"""Runs a study: one process for each cell, safe to stop at any point and to start again.

The truth about a cell is in its run's folder, and who works on it in a lock file, so that any
number of launchers may share a study's folder. Nothing here needs Keras.
"""

import collections
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from keras_sparse_dm import __version__
from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.files import os_error_text
from keras_sparse_dm.runs.folder import read_config, read_json, write_json
from keras_sparse_dm.runs.settings import RunSettings
from keras_sparse_dm.study.grid import (
    LATENT_DIFFUSION,
    Cell,
    differences_from_paper,
    sampling_steps_of,
    setting_clashes,
    settings_of,
)
from keras_sparse_dm.study.locks import HEARTBEAT, acquire, is_stale
from keras_sparse_dm.study.progress import plain_progress, table_progress
from keras_sparse_dm.study.results import (
    claim_scale,
    collect_results,
    read_result,
    read_results,
)
from keras_sparse_dm.study.worker import fits, training_settings

WORKER = (sys.executable, "-m", "keras_sparse_dm.study.worker")
# Seconds between looks at the workers, and at cells that others work on.
POLL = 0.5
LOOK_AT_OTHERS = 10
# Seconds between collections of the results while runs go on.
COLLECT = 60
# Seconds that a worker gets to end by itself.
GRACE = 10
# What cells on images share besides their data.
_FIRST_STAGE = ("autoencoder", "first_stage")


@dataclass(frozen=True)
class Options:
    """What a study is run with.

    Attributes:
        scale: `"smoke"`, `"reduced"` or `"paper"`.
        folder: The study's folder.
        data_dir, cache_dir, epochs, samples, autoencoder: As `settings_of` takes them.
        weights: Paths of Inception weights for the evaluation.
        jobs: Runs at a time.
    """

    scale: str
    folder: Path
    data_dir: Path | None = None
    cache_dir: Path | None = None
    epochs: dict = field(default_factory=dict)
    samples: int | None = None
    autoencoder: Path | None = None
    weights: tuple[Path, ...] = ()
    jobs: int = 1


@dataclass(frozen=True)
class Task:
    """A cell and all that its worker must know.

    Attributes:
        cell: The `Cell`.
        settings: Its `RunSettings`.
        sampling_steps: Numbers of sampling steps to evaluate it with.
        weights: Paths of Inception weights.
    """

    cell: Cell
    settings: RunSettings
    sampling_steps: tuple[int, ...]
    weights: tuple[Path, ...]

    @property
    def name(self):
        return self.cell.name


def tasks_of(study, options):
    """The tasks of a study.

    Raises:
        SettingsError: for settings that no run can be made of, or two cells of one name.
    """
    tasks = {}
    for cell in study.cells:
        settings = settings_of(
            cell,
            options.scale,
            options.data_dir,
            folder=options.folder,
            cache_dir=options.cache_dir,
            epochs=options.epochs,
            samples=options.samples,
            autoencoder=options.autoencoder,
        )
        _check(settings)
        steps = sampling_steps_of(study, settings)
        if max(steps) > settings.noise.timesteps:
            raise SettingsError(
                f"sampling_steps must be at most the {settings.noise.timesteps} timesteps; "
                f"received {max(steps)}."
            )
        task = Task(cell, settings, steps, options.weights)
        if tasks.setdefault(cell.name, task).cell != cell:
            raise SettingsError(f"two runs of the study are called {cell.name} but differ.")
    return list(tasks.values())


def _check(settings):
    """Checks settings, all but an autoencoder that is still to be trained."""
    if settings.preset in LATENT_DIFFUSION and _trains_autoencoder(settings):
        settings = dataclasses.replace(
            settings, autoencoder=None, data=dataclasses.replace(settings.data, dataset="kanjivg")
        )
    settings.check()


def _trains_autoencoder(settings):
    """Whether the autoencoder that settings name is trained first, in the study's folder."""
    path = getattr(settings, "autoencoder", None)
    return path is not None and settings.output_dir.parents[1] in path.parents


def state_of(task):
    """What a cell's folder says: `(state, text)`.

    The state is `"finished"`, `"waiting"` (not begun, or a part of it done), or `"clash"`: the
    folder holds something else than the cell's run, which the text tells.
    """
    folder = task.settings.folder
    try:
        config = read_config(folder)
        if config is None:
            return "waiting", ""
        clashes = setting_clashes(training_settings(task.settings), config["settings"])
        if clashes:
            return "clash", f"{folder} holds a run of other settings: {'; '.join(clashes)}."
        result = read_result(folder)
        if result is None:
            return "waiting", ""
        there = {
            evaluation["sampling_steps"]
            for evaluation in result["evaluations"]
            if fits(evaluation, task.settings, task.weights)
        }
    except SettingsError as error:
        return "clash", str(error)
    except (KeyError, TypeError) as error:
        return "clash", f"{folder / 'result.json'} is damaged: {error!r}."
    return ("finished" if there.issuperset(task.sampling_steps) else "waiting"), ""


def run_study(study, tasks, options, worker=WORKER, lines=False):
    """Runs what is not finished of a study.

    Args:
        study: The `Study`.
        tasks: Its `Task`s, or some of them.
        options: `Options`.
        worker: The command that works on the file of a job.
        lines: Whether to print lines of text in a terminal too, rather than a table.

    Returns:
        The exit code: 0 where all cells are finished, 1 where some failed or could not be run,
        130 after Ctrl-C or SIGTERM.

    Raises:
        SettingsError: for a folder or data that cannot be used, before any run.
        OSError: where the folder cannot be written; what runs have written stays.
    """
    prepare_folder(options)
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


def prepare_folder(options):
    """Makes the study's folder, or checks the one that is there.

    Raises:
        SettingsError: if it holds runs of another scale, results of another schema version, or
            something else.
        OSError: if it cannot be written.
    """
    claim_scale(options.folder, options.scale)
    # Another version's file is told now, not after the runs.
    read_results(options.folder)
    for name in ("runs", "logs", "locks", "jobs", "failed"):
        (options.folder / name).mkdir(exist_ok=True)


@contextlib.contextmanager
def _signals():
    """Context in which SIGTERM ends the launcher as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    # What is ignored, as by nohup, stays ignored.
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Process:
    """A worker at work.

    Args:
        command: The worker's command and its arguments.
        log: File that its output is appended to.
        environment: Its environment variables.
    """

    def __init__(self, command, log, environment):
        with open(log, "ab") as output:
            self.log = log
            self.log_from = output.tell()
            # Its own session, so that Ctrl-C in a terminal reaches the launcher alone. Its input
            # is never written to: it ends with the launcher, however that ends.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.begin = time.monotonic()

    @property
    def seconds(self):
        return time.monotonic() - self.begin

    def poll(self):
        """The exit code, or None while it works."""
        return self._process.poll()

    def stop(self):
        """Ends it and waits until it has ended."""
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.close()

    def close(self):
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def error(self):
        """Why it failed, in one line: the last of its log, or the signal that ended it."""
        code = self._process.returncode
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"ended by {signal.Signals(-code).name}"
            return f"ended by signal {-code}"
        with open(self.log, "rb") as file:
            file.seek(self.log_from)
            lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        return lines[-1] if lines else f"exit code {code}"


@dataclass
class AtWork:
    """A cell at work in this launcher."""

    task: Task
    process: Process
    lock: object
    slot: int


class Launcher:
    """The cells of a study and who works on them.

    Attributes:
        study, tasks, options: As given.
        states: `{cell's name: state}`: waiting, at work, elsewhere (another launcher works on
            it), finished, failed or clash.
        messages: `{cell's name: what is wrong with it}`.
        at_work: List of `AtWork`.
        events: Deque of lines on what has happened, for those who print them.
        phase: What is done beside runs, or "".
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
        self._preparing = None
        self._trouble = []
        self._looked = self._beat = self._collected = time.monotonic()
        for task in tasks:
            self._look(task)
        done = self.count("finished")
        if done:
            self.events.append(f"{done} of {len(tasks)} runs are finished already")

    def count(self, state):
        """Number of cells in a state."""
        return sum(s == state for s in self.states.values())

    def _look(self, task):
        """Reads a cell's state from its folder."""
        state, message = state_of(task)
        self._set(task, state, message)

    def _set(self, task, state, message=""):
        self.states[task.name] = state
        if message:
            self.messages[task.name] = message
        if state == "clash":
            self.events.append(f"left alone {task.name}: {message}")

    def run(self):
        """Runs all cells, until none is left or an exception ends it."""
        if not self.count("waiting"):
            return
        self._prepare()
        waiting = collections.deque(t for t in self.tasks if self.states[t.name] == "waiting")
        while True:
            self._end_finished()
            if self._is_due("_looked", LOOK_AT_OTHERS if self.at_work else 4 * POLL):
                waiting.extend(self._free_from_others())
            while waiting and len(self.at_work) < self.options.jobs:
                self._start(waiting.popleft())
            if not (waiting or self.at_work or self.count("elsewhere")):
                return
            self._heartbeat()
            if self._is_due("_collected", COLLECT):
                self.collect()
            time.sleep(POLL)

    def _free_from_others(self):
        """Cells that others worked on and do no longer, and that are not finished."""
        free = []
        for task in self.tasks:
            if self.states[task.name] != "elsewhere":
                continue
            lock = self._lock_path(task)
            if lock.exists() and not is_stale(lock):
                continue
            self._look(task)
            failure = self._failure_path(task)
            if self.states[task.name] == "waiting" and failure.exists():
                self._set(task, "failed", _error_of(failure))
            elif self.states[task.name] == "waiting":
                free.append(task)
            else:
                self.events.append(f"{self.states[task.name]} elsewhere {task.name}")
        return free

    def _prepare(self):
        """Prepares what cells share, in a process of its own, and waits for it.

        Raises:
            SettingsError: if it fails.
        """
        self.phase = "waiting for another launcher, which prepares data"
        path = self.options.folder / "locks" / "prepare.lock"
        while (lock := acquire(path)) is None:
            time.sleep(4 * POLL)
        jobs = self.options.folder / "jobs" / f"prepare-{lock.token}.json"
        log = self.options.folder / "logs" / "prepare.log"
        self.phase = f"preparing data (log: {log})"
        self.events.append(self.phase)
        try:
            write_json(jobs, self._preparations())
            command = (*self._worker, "--prepare", str(jobs))
            self._preparing = Process(command, log, self._environment(0, 1))
            lock.name_worker(self._preparing.pid)
            while self._preparing.poll() is None:
                time.sleep(POLL)
                if self._is_due("_beat", HEARTBEAT):
                    lock.touch()
            if self._preparing.poll():
                error = self._preparing.error()
                raise SettingsError(f"the data cannot be prepared: {error} (log: {log})")
        finally:
            if self._preparing is not None:
                self._preparing.stop()
            self._preparing, self.phase = None, ""
            jobs.unlink(missing_ok=True)
            lock.release()

    def _preparations(self):
        """One job for each data set, and autoencoder, that waiting cells share."""
        jobs = {}
        for task in self.tasks:
            if self.states[task.name] == "waiting":
                s = task.settings
                shared = (s.data, s.data_dir, *(getattr(s, n, None) for n in _FIRST_STAGE))
                jobs.setdefault(
                    repr(shared),
                    _job_of_settings(s) | {"train_autoencoder": _trains_autoencoder(s)},
                )
        return list(jobs.values())

    def _is_due(self, name, seconds):
        """Whether something was last done so long ago; it is taken to be done now."""
        now = time.monotonic()
        if now - getattr(self, name) < seconds:
            return False
        setattr(self, name, now)
        return True

    def _start(self, task):
        """Starts a cell's worker, where no other launcher has taken the cell."""
        lock = acquire(self._lock_path(task))
        if lock is None:
            self.states[task.name] = "elsewhere"
            return
        # What was free when this launcher looked may have been finished meanwhile.
        self._look(task)
        if self.states[task.name] != "waiting":
            lock.release()
            return
        try:
            # What another launcher finds there tells of this attempt, no more of the last.
            self._failure_path(task).unlink(missing_ok=True)
            job = self.options.folder / "jobs" / f"{task.name}.json"
            held = {"lock": str(lock.path.absolute()), "token": lock.token}
            write_json(job, self._job(task) | held)
            slot = min(set(range(self.options.jobs)) - {work.slot for work in self.at_work})
            process = Process(
                (*self._worker, str(job)),
                self.options.folder / "logs" / f"{task.name}.log",
                self._environment(slot, self.options.jobs),
            )
        except BaseException:
            lock.release()
            raise
        self.at_work.append(AtWork(task, process, lock, slot))
        self.states[task.name] = "at work"
        lock.name_worker(process.pid)
        self.events.append(f"started {task.name}")

    def _job(self, task):
        scale = self.options.scale
        return _job_of_settings(task.settings) | {
            "name": task.name,
            "cell": dataclasses.asdict(task.cell),
            "scale": scale,
            "sampling_steps": task.sampling_steps,
            "weights": [str(Path(path).absolute()) for path in task.weights],
            "differences": differences_from_paper(task.cell, scale, task.settings, task.weights),
        }

    def _environment(self, slot, jobs):
        """Environment variables of a worker: its share of the processor cores, and one GPU."""
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
        """Takes note of workers that have ended."""
        for work in list(self.at_work):
            code = work.process.poll()
            if code is None:
                continue
            self.at_work.remove(work)
            work.process.close()
            task, seconds = work.task, work.process.seconds
            error = work.process.error() if code else ""
            if not code:
                self._look(task)
                if self.states[task.name] == "waiting":
                    error = "the worker ended without a result"
            if error:
                self._failed(task, error)
            elif self.states[task.name] == "finished":
                self.durations[task.cell.preset].append(seconds)
                self.events.append(f"finished {task.name} in {seconds:.0f} s")
            (self.options.folder / "jobs" / f"{task.name}.json").unlink(missing_ok=True)
            # Last: another launcher must see what became of the cell.
            work.lock.release()

    def _failed(self, task, error):
        self._set(task, "failed", error)
        log = self.options.folder / "logs" / f"{task.name}.log"
        self.events.append(f"failed {task.name}: {error} (log: {log})")
        job = self._job(task)
        values = {name: job[name] for name in ("name", "cell", "scale", "settings", "differences")}
        try:
            write_json(self._failure_path(task), values | {"version": __version__, "error": error})
        except OSError as trouble:
            # A disk that is full may have failed the run too; what is there stays as it is.
            self._trouble.append(os_error_text(trouble))

    def _heartbeat(self):
        if not self._is_due("_beat", HEARTBEAT):
            return
        for work in list(self.at_work):
            if not work.lock.touch():
                # This machine slept, or its disk was away, for so long that another took over.
                work.process.stop()
                self.at_work.remove(work)
                self.states[work.task.name] = "elsewhere"
                self.events.append(f"another launcher has taken over {work.task.name}")

    def collect(self):
        """Brings `results.sqlite` up to date, if that can be done."""
        try:
            wrong = collect_results(self.options.folder)
        except OSError as error:
            wrong = [f"results.sqlite could not be written: {os_error_text(error)}"]
        except SettingsError as error:
            wrong = [str(error)]
        self._trouble = [*dict.fromkeys((*self._trouble, *wrong))]

    def stop(self):
        """Ends the workers; what they have written stays, and is gone on with next time."""
        for work in self.at_work:
            work.process.stop()
            work.lock.release()
            self.states[work.task.name] = "waiting"
        self.at_work = []

    def finish(self, out):
        """Collects the results, prints what came of it all and returns the exit code."""
        self.collect()
        states = collections.Counter(self.states.values())
        order = ("finished", "failed", "clash", "elsewhere", "waiting")
        names = {"clash": "left alone", "elsewhere": "at work elsewhere", "waiting": "not done"}
        counts = [f"{states[s]} {names.get(s, s)}" for s in order if states[s]]
        print(f"{self.study.name}: {', '.join(counts)} of {len(self.tasks)} runs", file=out)
        for state, name in (("failed", "failed"), ("clash", "left alone")):
            for task in self.tasks:
                if self.states[task.name] == state:
                    log = self.options.folder / "logs" / f"{task.name}.log"
                    where = f" (log: {log})" if state == "failed" else ""
                    print(f"  {name} {task.name}: {self.messages[task.name]}{where}", file=out)
        known = " ".join(self.messages.values())
        for line in self._trouble:
            if line not in known:
                print(f"  {line}", file=out)
        print(f"Results: {self.options.folder / 'results.sqlite'}", file=out)
        if self.interrupted:
            return 130
        return int(states["finished"] < len(self.tasks) or bool(self._trouble))

    def remaining_seconds(self):
        """How long what is left will take, by the runs that this launcher has finished; or None."""
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

    def _lock_path(self, task):
        return self.options.folder / "locks" / f"{task.name}.lock"

    def _failure_path(self, task):
        return self.options.folder / "failed" / f"{task.name}.json"


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
