"""Files that people name: regular ones only, for a pipe or a device may have no end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to be read to its end; raise OSError, also for what is none."""
    file = _open(path)
    if not os.fstat(file.fileno()).st_size and file.peek(1):
        file.close()
        # /proc/self/pagemap has 256 GB.
        raise OSError(errno.EINVAL, "It does not say how long it is", str(path))
    return file


def read_regular(path: Path, most: int) -> bytes:
    """Return what a regular file holds; raise OSError, also for more than `most` bytes.

    Not by its size: files of the kernel's (/proc) say 0 and have something to read.
    """
    with _open(path) as file:
        # None where such a file has nothing to say at present.
        content = file.read(most + 1) or b""
    if len(content) > most:
        raise OSError(errno.EFBIG, f"It has more than {most:,} bytes", str(path))
    return content


def _open(path: Path) -> BufferedReader:
    # A pipe would be waited for until somebody writes.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "It is not a regular file", str(path))
