"""Who runs which cell: lock files that launchers on several machines understand.

A lock is a file that only one process can make. It names its launcher and worker; the launcher
touches it as long as it lives. A lock whose processes are dead on this machine, or that nobody on
another one has touched for ten minutes, is taken over.
"""

import contextlib
import json
import os
import socket
import uuid
from pathlib import Path

import psutil

from keras_sparse_dm.files import whole_file

# Seconds between touches, and without one after which a lock of another machine is stale.
HEARTBEAT = 20
STALE = 600
# By which a process's start may seem to differ: two processes of one number start further apart.
_SAME_START = 2.0


def process_identity(pid):
    """What tells a process from another that gets its number later: `{"pid", "started"}`."""
    return {"pid": pid, "started": psutil.Process(pid).create_time()}


def is_alive(process):
    """Whether a process of this machine still runs."""
    try:
        started = psutil.Process(process["pid"]).create_time()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return abs(started - process["started"]) < _SAME_START


def machine():
    """What tells apart machines, their restarts, and containers: within one, numbers of processes
    mean the same."""
    parts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        with contextlib.suppress(OSError):
            parts.append(read())
    return " ".join(parts)


class Lock:
    """The lock of one cell, held by this process.

    Attributes:
        path: The file.
        token: Text that no other lock has.
    """

    def __init__(self, path, owner):
        self.path = path
        self.token = owner["token"]
        self._owner = owner

    def name_worker(self, pid):
        """Writes down the worker: the lock holds until it is dead too."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._owner = self._owner | {"worker": process_identity(pid)}
            with whole_file(self.path) as temporary:
                temporary.write_text(json.dumps(self._owner), encoding="utf-8")

    def touch(self):
        """Shows that the launcher lives; returns False where another one has the lock now."""
        if not self.is_ours():
            return False
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path)
        return True

    def is_ours(self):
        stored = _read(self.path)
        return stored is not None and stored.get("token") == self.token

    def release(self):
        if self.is_ours():
            self.path.unlink(missing_ok=True)


def acquire(path):
    """Takes a lock, or takes over a stale one.

    Args:
        path: The lock file; its folder exists.

    Returns:
        The `Lock`, or None where another launcher has it.

    Raises:
        OSError: if the file cannot be written.
    """
    path = Path(path)
    owner = {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "machine": machine(),
        "launcher": process_identity(os.getpid()),
    }
    if _create(path, json.dumps(owner)):
        return Lock(path, owner)
    if not is_stale(path):
        return None
    # Two launchers may see at once that it is stale; one of them removes it.
    guard = path.with_suffix(".takeover")
    if not _create(guard, ""):
        if _silent_for(guard) > STALE:
            guard.unlink(missing_ok=True)
        return None
    try:
        if is_stale(path):
            path.unlink(missing_ok=True)
        return Lock(path, owner) if _create(path, json.dumps(owner)) else None
    finally:
        guard.unlink(missing_ok=True)


def is_stale(path):
    """Whether nobody works under a lock any more; False where there is none."""
    stored = _read(path)
    if stored is None:
        # Of a process that was killed while it wrote it, or that is writing it.
        return _silent_for(path) > STALE
    try:
        if stored["machine"] == machine():
            processes = (stored["launcher"], stored.get("worker"))
            return not any(is_alive(process) for process in processes if process is not None)
    except (KeyError, TypeError, AttributeError):
        pass
    return _silent_for(path) > STALE


def _create(path, content):
    """Makes a file that must not exist, and returns whether it did not."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(content)
    except OSError:
        # An empty lock of nobody would keep all others out.
        path.unlink(missing_ok=True)
        raise
    return True


def _read(path):
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) else None


def _silent_for(path):
    """Seconds for which a file was not touched, by the clock of the disk that it lies on."""
    clock = path.with_name(f".clock-{socket.gethostname()}-{os.getpid()}")
    try:
        clock.touch()
        return clock.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        clock.unlink(missing_ok=True)
