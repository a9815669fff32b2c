"""The command line: `sparse-dm COMMAND ...`."""

import importlib
import sys
from typing import NamedTuple

import keras_sparse_dm
from keras_sparse_dm.checks import did_you_mean
from keras_sparse_dm.commands.options import fail, readers_may_leave
from keras_sparse_dm.lazy import MissingPackage
from keras_sparse_dm.presets import PRESETS


class Command(NamedTuple):
    """A command, whose module loads when the command runs.

    Attributes:
        module: Module of `keras_sparse_dm.commands`.
        function: Name of its function, which takes the arguments and returns the exit code.
        arguments: The arguments, as the usage shows them.
        help: Description of the command in half a line.
    """

    module: str
    function: str
    arguments: str
    help: str


COMMANDS = {
    "train": Command(
        "train",
        "train_command",
        "[PRESET] [options]",
        "train a sparse diffusion model and report",
    ),
    "train-autoencoder": Command(
        "train",
        "train_autoencoder_command",
        "[PRESET] [options]",
        "train latent diffusion's autoencoder on images",
    ),
    "convert": Command(
        "convert",
        "convert_command",
        "SOURCE TARGET [options]",
        "convert PyTorch checkpoints to .keras and back",
    ),
    "evaluate": Command(
        "evaluate",
        "evaluate_command",
        "RUN [options]",
        "measure distance from real data, and cost",
    ),
    "sample": Command(
        "evaluate",
        "sample_command",
        "RUN -n 64 --output FILE",
        "write samples: .png .svg .gif .npz .json",
    ),
    "export": Command(
        "export",
        "export_command",
        "RUN [options]",
        "write sparse, TFLite and SavedModel files",
    ),
    "study": Command(
        "study",
        "study_command",
        "{run, report, list} ...",
        "reproduce the paper's tables and figures",
    ),
    "data": Command(
        "data", "data_command", "NAME [options]", "describe and draw a data set of sketches"
    ),
    "convert-sketches": Command(
        "convert_sketches",
        "convert_sketches_command",
        "SOURCE TARGET",
        "convert sketches to .json or .svg",
    ),
}


def usage():
    """Return the text of `sparse-dm --help`."""
    lines = {f"sparse-dm {name} {c.arguments}": c.help for name, c in COMMANDS.items()}
    lines["sparse-dm COMMAND --help"] = "all options; name a preset to see its own"
    table = "\n".join(f"  {shown:<47} {help}" for shown, help in lines.items())
    return (
        f"usage: sparse-dm {{{', '.join(COMMANDS)}}} ...\n\n{table}\n  sparse-dm --version\n\n"
        f"presets: {', '.join(PRESETS)}\n"
    )


def run_command(name, argv, prog):
    """Run a command, called `prog` in its messages, and return the exit code."""
    command = COMMANDS[name]
    try:
        module = importlib.import_module(f"keras_sparse_dm.commands.{command.module}")
        with readers_may_leave():
            return getattr(module, command.function)(argv, prog=prog)
    except MissingPackage as error:
        return fail(prog, error, 1)


def main(argv=None):
    """Run the command line and return the exit code: 0, 1 for a failed run, 2 for usage."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in COMMANDS:
        return run_command(argv[0], argv[1:], f"sparse-dm {argv[0]}")
    if argv in (["-h"], ["--help"]):
        print(usage(), end="")
        return 0
    if argv == ["--version"]:
        print(f"keras_sparse_dm {keras_sparse_dm.__version__}")
        return 0
    received = "received nothing."
    if argv:
        received = f"received {argv[0]!r}.{did_you_mean(argv[0], COMMANDS)}"
    *most, last = COMMANDS
    return fail("sparse-dm", f"the command must be {', '.join(most)} or {last}; {received}", 2)


if __name__ == "__main__":
    sys.exit(main())
