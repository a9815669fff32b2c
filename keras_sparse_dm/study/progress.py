"""Progress of a study: a table that redraws itself in a terminal, lines of text elsewhere."""

import contextlib
import datetime
import threading

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from keras_sparse_dm.study.estimates import epochs_done

# Failures that the table shows; the summary at the end lists all of them.
FAILURES = 5


@contextlib.contextmanager
def plain_progress(launcher, out):
    """Context in which each event is printed as a line."""
    with _repeat(lambda: _print_events(launcher, out), 0.2):
        yield
    _print_events(launcher, out)


def _print_events(launcher, out):
    while launcher.events:
        line = launcher.events.popleft()
        done = launcher.count("finished")
        left = launcher.remaining_seconds()
        left = f", {_duration(left)} left" if left else ""
        # The study continues if its reader, such as `head`, has closed the pipe.
        with contextlib.suppress(BrokenPipeError):
            print(f"[{done}/{len(launcher.tasks)}{left}] {line}", file=out, flush=True)


@contextlib.contextmanager
def table_progress(launcher, out):
    """Context in which a table shows the cells at work and the number of cells in each state."""
    console = Console(file=out)
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        with _repeat(lambda: live.update(progress_table(launcher)), 0.5):
            yield


@contextlib.contextmanager
def _repeat(act, seconds):
    """Context in which a function is called every few seconds, in a thread of its own."""
    ended = threading.Event()

    def work():
        while not ended.wait(seconds):
            act()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def progress_table(launcher):
    """Return the table of `table_progress`. Its length depends on the jobs, not on the cells."""
    counts = [("finished", "green"), ("at work", "cyan"), ("waiting", "white")]
    counts += [("elsewhere", "blue"), ("failed", "red"), ("clash", "yellow")]
    head = Text(f"{launcher.study.name}  ")
    for state, style in counts:
        number = launcher.count(state)
        if number or state in ("finished", "waiting"):
            name = "left alone" if state == "clash" else state
            head.append(f"{number} {name}  ", style)
    left = launcher.remaining_seconds()
    head.append(f"of {len(launcher.tasks)}" + (f", {_duration(left)} left" if left else ""))
    table = Table(box=None, pad_edge=False)
    for column in ("at work", "progress", "time"):
        table.add_column(column, overflow="fold")
    for work in list(launcher.at_work):
        table.add_row(work.task.name, progress_of(work), _duration(work.process.seconds))
    failed = [
        Text(f"failed {name}: {launcher.messages[name]}", "red", overflow="ellipsis", no_wrap=True)
        for name, state in list(launcher.states.items())
        if state == "failed"
    ]
    more = [Text(f"... and {len(failed) - FAILURES} more")] if len(failed) > FAILURES else []
    phase = [Text(launcher.phase)] if launcher.phase else []
    return Group(head, *phase, table, *failed[:FAILURES], *more)


def progress_of(work):
    """Return the progress of a cell at work: its epochs done, `"sampling"` or `"evaluating"`."""
    folder = work.task.settings.folder
    epochs = work.task.settings.training.epochs
    if (folder / "report.json").exists():
        return "evaluating"
    done = epochs_done(folder)
    return f"epoch {done}/{epochs} done" if done < epochs else "sampling"


def _duration(seconds):
    return str(datetime.timedelta(seconds=round(seconds)))
