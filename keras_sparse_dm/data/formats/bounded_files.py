"""Files and lines of bounded size."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from keras_sparse_dm.data.formats.broken_input import OnBroken, named, report

# A compressed file may unpack to this many bytes or this many times its own size, whichever is
# more. Real sketch files unpack to 3 to 10 times their size; deflate can reach 1,032 times.
UNPACKED_BYTES = 2**24
UNPACKED_RATIO = 100


def existing_file(path) -> Path:
    """Return the path of a file.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path={str(path)!r} is a folder; give a sketch file")
    if not path.exists():
        raise FileNotFoundError(f"path={str(path)!r} does not exist; give a sketch file")
    return path


def read_bounded(path: Path, limit: int, remedy: str) -> bytes:
    """Return a file's content, or raise a ValueError ending in `remedy` if it exceeds `limit`."""
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        if size > limit:
            raise ValueError(f"has {size:,} bytes, more than {limit:,}; {remedy}")
        file.seek(0)
        return file.read(size)


def unpacked_limit(size: int) -> int:
    """Return the number of bytes that a compressed file of `size` bytes may unpack to."""
    return max(UNPACKED_BYTES, UNPACKED_RATIO * size)


def bounded_lines(
    path: Path, max_line: int, on_broken: OnBroken | None
) -> Iterator[tuple[int, bytes]]:
    """Iterate over the lines of a text file, or of one compressed as `.gz`, of bounded length.

    Args:
        path: the file.
        max_line: greatest length of a line in bytes.
        on_broken: called with `"FILE, line N"` and a ValueError for a longer line, which is
            skipped, and if a compressed file is damaged or unpacks to more than `unpacked_limit`,
            which ends the iteration. Without it, the error is raised.

    Yields:
        `(number, line)`: numbers count all lines from 1; blank lines are skipped, and lines have
        no line end.
    """
    compressed = path.name.lower().endswith(".gz")
    limit = unpacked_limit(path.stat().st_size) if compressed else None
    number = unpacked = 0
    with open(path, "rb") as raw, gzip.GzipFile(fileobj=raw) if compressed else raw as file:
        while True:
            number += 1
            try:
                line = part = file.readline(max_line + 1)
                unpacked += len(part)
                # The rest of a line that is too long is read in parts and discarded.
                too_long = len(line) > max_line and not line.endswith(b"\n")
                while too_long and part and not part.endswith(b"\n"):
                    part = file.readline(2**20)
                    unpacked += len(part)
                    if limit is not None and unpacked > limit:
                        break
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                where = f"{path.name}, line {number}"
                error = named(where, f"the compressed file is damaged: {error}")
                return report(on_broken, where, error)
            if limit is not None and unpacked > limit:
                where = f"{path.name}, line {number}"
                error = named(
                    where,
                    f"the compressed file unpacks to more than {limit:,} bytes, "
                    f"{UNPACKED_RATIO} times its size; no file of sketches does",
                )
                return report(on_broken, where, error)
            if not line:
                return
            if too_long:
                where = f"{path.name}, line {number}"
                error = named(where, f"is longer than {max_line:,} bytes; no sketch is")
                report(on_broken, where, error)
            elif line := line.rstrip():
                # Some editors write a byte order mark at the start of a file.
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
