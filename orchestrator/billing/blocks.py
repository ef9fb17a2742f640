"""Read a large file once, a piece at a time, wherever it is: on this machine or in a bucket."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from checkpoints.regular_files import open_regular
from checkpoints.store import open_store
from orchestrator.errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from checkpoints.store import ObjectStore

_BLOCK_BYTES = 4 << 20
# A row of a report with hundreds of columns has some 10 kB.
_LONGEST_LINE = 1 << 20
_GZIP = b"\x1f\x8b"
_OTHERS = {b"PAR1": "Parquet", b"PK": "a ZIP archive"}


@contextmanager
def open_lines(source: str) -> Iterator[Iterator[str]]:
    """Yield the lines of a path or URL, whether it is packed with gzip or not.

    Raises:
        InputError: it is not there, is no text, or is damaged; also while lines are read.
        CheckpointError: its bucket refuses or cannot be reached.
    """
    name = name_of(source)
    try:
        with _opened(source) as file, _unpacked(file, name) as plain, _text(plain) as text:
            yield _lines(text, name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{name} is damaged: {error}.", "Fetch it again.") from error
    except OSError as error:
        what = f"{name} cannot be read: {error.strerror or error}."
        raise InputError(what, "Give a file of the export, not its folder.") from error


def name_of(source: str) -> str:
    """Return the last part of a path or URL; the rest may hold what nobody is to see."""
    name = source.partition("?")[0].rstrip("/").rpartition("/")[2] or source
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _opened(source: str) -> io.BufferedReader:
    if "://" not in source:
        return open_regular(Path(source))
    place, _, key = source.rpartition("/")
    store = open_store(place)
    size = next((entry.size for entry in store.list(key) if entry.key == key), None)
    if size is None:
        raise InputError(f"There is no {key} in {place}.", "Check the URL.")
    return io.BufferedReader(_Object(store, key, size), _BLOCK_BYTES)


def _unpacked(file: io.BufferedReader, name: str) -> IO[bytes]:
    start = file.peek(4)[:4]
    for magic, kind in _OTHERS.items():
        if start.startswith(magic):
            raise InputError(f"{name} is {kind}.", "Export as CSV, plain or packed with gzip.")
    return cast(IO[bytes], gzip.GzipFile(fileobj=file)) if start.startswith(_GZIP) else file


def _text(file: IO[bytes]) -> IO[str]:
    # Names of other people's things may be in any encoding; what is compared is ASCII.
    return io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="")


def _lines(text: IO[str], name: str) -> Iterator[str]:
    """Return lines, none of them longer than a bill's may be: a file may have no line's end."""
    while line := text.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise InputError(
                f"{name} has a line of more than {_LONGEST_LINE:,} characters.",
                "Export as CSV, or as JSON with one object on each line.",
            )
        yield line


class _Object(io.RawIOBase):
    """An object of a store as a file."""

    def __init__(self, store: ObjectStore, key: str, size: int) -> None:
        super().__init__()
        self._store, self._key, self._size, self._at = store, key, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        length = min(len(view), self._size - self._at)
        if length:
            self._store.read_into(self._key, self._at, [view[:length]])
        self._at += length
        return length
