"""Parsing of options and printing of errors, for all commands. Loads neither Keras nor data."""

import contextlib
import io
import itertools
import os
import sys
import typing

from keras_sparse_dm.checks import UsageError, check_choices
from keras_sparse_dm.lazy import lazy_module, load

tyro = lazy_module("tyro")


def _choices_shown():
    """Return a registry of tyro that shows the choices of a `Literal`, and leaves their check."""
    rules = tyro.constructors.ConstructorRegistry()

    @rules.primitive_rule
    def any_text(info):
        choices = typing.get_args(info.type)
        if typing.get_origin(info.type) is not typing.Literal or not isinstance(choices[0], str):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{{{','.join(choices)}}}",
            instance_from_str=lambda texts: texts[0],
            is_instance=lambda value: isinstance(value, str),
            str_from_instance=lambda value: [value],
        )

    return rules


def parse_options(kind, argv, prog, default=None):
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
    # The module of `--method package.module:Class` may lie in the working folder.
    sys.path.append("")
    # tyro prints errors in a box of many lines, of which the first ones are enough.
    errors = io.StringIO()
    given = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            with _choices_shown():
                settings = tyro.cli(kind, args=argv, prog=prog, **given)
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
    check_choices(settings)
    return settings


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
    """Print an error and return the exit code."""
    print(f"{prog}: error: {message}", file=sys.stderr)
    return code
