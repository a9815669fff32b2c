"""Files and directories that are either whole or not there."""

import contextlib
import ctypes
import os
import shutil
from pathlib import Path


@contextlib.contextmanager
def whole_file(path):
    """Context that gives a temporary path to write, and puts it in place of `path` at the end.

    The temporary file lies beside `path` and has its ending. It is synced and renamed where the
    block ends well; otherwise it is removed and whatever `path` held stays.

    Args:
        path: The file to write.

    Yields:
        The `pathlib.Path` to write to.
    """
    path = Path(path)
    temporary = path.with_name(f".partial-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(path):
    """Context that gives a temporary directory to fill, and puts it in place of `path` at the end.

    As `whole_file`: the temporary directory lies beside `path`, is synced and takes its place in
    one step where the block ends well; otherwise it is removed and whatever `path` held stays.
    What a process that was killed has left of it, the next one removes.

    Args:
        path: The directory to write; one that exists is removed with all that is in it.

    Yields:
        The `pathlib.Path` of an empty directory.
    """
    path = Path(path)
    temporary = path.with_name(f".partial-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with open(Path(folder, name), "rb") as file:
                    os.fsync(file.fileno())
        if path.exists():
            _exchange(temporary, path)
        else:
            temporary.rename(path)
    finally:
        # What was in its place before, or what was not finished.
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one, other):
    """Exchanges two directories: in one step where the system can, which Linux can."""
    rename = (
        getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if os.name == "posix"
        else None
    )
    at_working_directory, exchange = -100, 2
    if rename is not None and not rename(
        at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other), exchange
    ):
        return
    between = one.with_name(f"{one.name}.replaced")
    shutil.rmtree(between, ignore_errors=True)
    other.rename(between)
    one.rename(other)
    between.rename(one)


def os_error_text(error):
    """What went wrong with which file, in one line."""
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}."
