"""A worker of a study as its launcher sees it: a process with a log."""

import contextlib
import json
import signal
import subprocess
import time

# Seconds that a worker gets to end by itself.
GRACE = 10


class WorkerProcess:
    """A running worker.

    Args:
        command: Command of the worker with its arguments.
        job: What to do, a dictionary of plain values; the worker reads it from its input.
        log: File that the worker's output is appended to.
        environment: Environment variables.
    """

    def __init__(self, command, job, log, environment):
        with open(log, "ab") as output:
            self.log = log
            self._log_start = output.tell()
            # A session of its own, so that Ctrl-C in a terminal reaches the launcher alone.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._start = time.monotonic()
        # The input stays open. Its end tells the worker that the launcher has ended or was killed.
        # A worker that has already ended reads no job; `poll` returns its exit code.
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def seconds(self):
        """Seconds since the start."""
        return time.monotonic() - self._start

    def poll(self):
        """Return the exit code, or None while the worker runs."""
        return self._process.poll()

    def wait(self):
        """Wait until the worker ends by itself, and return the exit code."""
        return self._process.wait()

    def stop(self):
        """End the worker if it still runs, and wait until it has ended."""
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def error(self):
        """Return why the worker failed, in one line: the last line of its log, or the signal."""
        code = self._process.returncode
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"ended by {signal.Signals(-code).name}"
            return f"ended by signal {-code}"
        with open(self.log, "rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        return lines[-1] if lines else f"exit code {code}"
