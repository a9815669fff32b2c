"""Parsing of options and printing of errors, for all commands. Loads neither Keras nor data."""

import contextlib
import io
import itertools
import os
import sys

import tyro

from keras_sparse_dm.checks import UsageError


def parse_options(kind, argv, prog, default=tyro.MISSING_NONPROP):
    """Parse options into a dataclass.

    Args:
        kind: The dataclass.
        argv: List of command line arguments.
        prog: Name of the command in messages.
        default: Instance of `kind` with the default values; by default, those of the class.

    Returns:
        An instance of `kind`.

    Raises:
        UsageError: for options that do not parse.
        SystemExit: after `--help`.
    """
    # tyro prints errors in a box of many lines, of which the first ones are enough.
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, default=default, args=argv, prog=prog)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        # The box has a title, the error, a rule and advice; its frame depends on the terminal.
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
    """End quietly if the reader of the output, such as `head`, has ended."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes the output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + 13) from None  # the exit code of a program that SIGPIPE ends


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
    """Print an error and return the exit code."""
    print(f"{prog}: error: {message}", file=sys.stderr)
    return code
