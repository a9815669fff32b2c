"""Files and directories written in one step: complete, or not at all."""

import contextlib
import ctypes
import os
import shutil
from pathlib import Path


@contextlib.contextmanager
def whole_file(path, temporary=None):
    """Write a file in one step: a context that yields a temporary path, renamed at the end.

    If the block succeeds, the file is synced and renamed to `path`; otherwise it is removed and
    `path` stays unchanged.

    Args:
        path: The file to write.
        temporary: The temporary file, in the same folder; its name must be unique if several
            processes may write `path` at once. By default one of the same ending.

    Yields:
        The `pathlib.Path` to write to.
    """
    path = Path(path)
    temporary = temporary or path.with_name(f".partial-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(path, keep_others=False):
    """Write a directory in one step: a context that yields a temporary one, renamed at the end.

    The temporary directory lies beside `path`. If the block succeeds, the directory is synced and
    takes the place of `path` in one step; otherwise it is removed and `path` stays unchanged. The
    next call removes the leftovers of a killed process.

    Args:
        path: The directory to write; an existing one is replaced with all its contents.
        keep_others: Whether an existing directory stays instead, and gets the new files, each in
            one step; its files of other names are kept.

    Yields:
        The `pathlib.Path` of an empty directory.
    """
    path = Path(path).absolute()
    temporary = path.with_name(f".partial-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with open(Path(folder, name), "rb") as file:
                    os.fsync(file.fileno())
        if keep_others and path.is_dir():
            for file in temporary.iterdir():
                file.replace(path / file.name)
        elif path.exists():
            _exchange(temporary, path)
        else:
            temporary.rename(path)
    finally:
        # The directory that was replaced, or the unfinished one.
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one, other):
    """Exchange two directories, on Linux in one step."""
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
    """Return the reason and the file of an OSError in one line."""
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}."
