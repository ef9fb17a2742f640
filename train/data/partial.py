"""Files that grow while a run goes on and are whole again after a SIGKILL at any moment.

`commit` says how long each file is and what the run knows; what was written after the last commit
is cut off when the run is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from train.errors import OutputConflict

_STATE = "state.json"
_LOCK = "lock"
# A run whose parent was killed ends itself; its lock is free a moment later.
_LOCK_TRIES, _LOCK_WAIT_SECONDS = 50, 0.1


class PartialRun:
    """The folder of an unfinished run; its lock is held while this is open."""

    def __init__(self, folder: Path, names: tuple[str, ...], fingerprint: str) -> None:
        """Open the folder, or begin anew where it holds another run's files."""
        self.folder = folder
        found = _read_state(folder / _STATE)
        self.was_other = bool(found) and found.get("fingerprint") != fingerprint
        if self.was_other:
            found = {}
        self._fingerprint = fingerprint
        self.state: dict[str, Any] = found.get("state", {})
        lengths = found.get("lengths", {})
        self._files = {name: _open_at(folder / name, lengths.get(name, 0)) for name in names}

    def __getitem__(self, name: str) -> BinaryIO:
        return self._files[name]

    def commit(self, state: dict[str, Any]) -> None:
        """Make what was written so far durable, together with `state`."""
        lengths = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            lengths[name] = file.tell()
        self.state = state
        content = {"fingerprint": self._fingerprint, "lengths": lengths, "state": state}
        write_durably(self.folder / _STATE, lambda file: file.write(json.dumps(content).encode()))

    def close(self) -> None:
        """Close the files; all stays as it was last committed."""
        for file in self._files.values():
            file.close()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one process; raises OutputConflict while another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        for left in reversed(range(_LOCK_TRIES)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if not left:
                    raise OutputConflict(
                        f"Another process is at work in {folder}.", "Wait for it, or stop it."
                    ) from error
                time.sleep(_LOCK_WAIT_SECONDS)
        yield


def remove(folder: Path) -> None:
    """Delete the folder of a run that is finished."""
    shutil.rmtree(folder, ignore_errors=True)


def write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file all at once: it is the old one, or the new one on disk."""
    scratch = path.with_name(f".{path.name}.new")
    with scratch.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _open_at(path: Path, length: int) -> BinaryIO:
    path.touch()
    file = path.open("r+b")
    file.truncate(length)
    file.seek(length)
    return file
