"""What all commands share: how options are read and errors told. Loads neither Keras nor data."""

import contextlib
import io
import itertools
import os
import sys

from keras_sparse_dm.checks import UsageError
from keras_sparse_dm.lazy import lazy_module, load

tyro = lazy_module("tyro")


def parse_options(kind, argv, prog, default=None):
    """Parses options into a dataclass.

    Args:
        kind: The dataclass.
        argv: List of strings.
        prog: What the command is called.
        default: An instance whose values are the defaults; by default those of the class.

    Returns:
        An instance of `kind`.

    Raises:
        UsageError: for options that do not parse.
        SystemExit: after `--help`.
    """
    # tyro tells what is wrong in a box of many lines; a terminal's user needs the first.
    errors = io.StringIO()
    given = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=argv, prog=prog, **given)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        # A title, then what is wrong, then a rule and advice; frames only where the terminal
        # can draw them.
        _, *lines = (line.strip("│╭╮╰╯ ") for line in errors.getvalue().splitlines())
        while lines and not lines[0].strip("─-"):
            del lines[0]
        message = " ".join(itertools.takewhile(lambda line: line.strip("─-"), lines))
        advice = "see"
        if "Perhaps you meant:" in lines:
            meant = next(line for line in lines if line.startswith("--"))
            advice = f"did you mean {meant.split()[0]}? See"
        raise UsageError(f"{message}; {advice} {prog} --help.") from None


@contextlib.contextmanager
def readers_may_leave():
    """End quietly where the reader of the output, such as `head`, has left."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes the output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + 13) from None  # as a program that SIGPIPE has ended


def load_quietly(module):
    """Load a `lazy_module` that needs TensorFlow, with `quiet_start`."""
    with quiet_start():
        load(module)


@contextlib.contextmanager
def quiet_start():
    """Keep TensorFlow's start-up messages, which no setting silences, off the terminal."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def fail(prog, message, code):
    """Prints an error and returns the exit code."""
    print(f"{prog}: error: {message}", file=sys.stderr)
    return code
