"""Files that are either whole or not there."""

import contextlib
import os
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
