"""A run folder on a file system that several processes (or nodes) share.

Writes go to a temporary file that is synced, then linked or renamed into place; `replace` holds a
file lock from the comparison to the rename. A writer killed anywhere leaves old or new, never half.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from checkpoints.errors import (
    ObjectMissing,
    StoreError,
    StoreRefused,
    StoreUnreachable,
)
from checkpoints.store import (
    Buffer,
    ObjectEntry,
    StoredObject,
    changed,
    check_key,
    check_prefix,
    exists,
    is_key,
    missing,
    truncated,
)

# A live writer touches its temporary file with every chunk; after this long its writer is dead.
_STALE_AFTER_S = 3600.0
# Stands for the slashes of a key in a temporary file's name; no key has it.
_SLASH = "%"
_MAX_NAMED_BYTES = 200
# `delete` removes emptied folders; a write that loses its folder to that makes it again.
_PUBLISH_TRIES = 100
_NO_SUCH_OBJECT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_REFUSED = {
    errno.EACCES: "Give this user write access, or choose another store.",
    errno.EPERM: "Give this user write access, or choose another store.",
    errno.EROFS: "The file system is read-only: remount it, or choose another store.",
    errno.ENOSPC: "Free disk space, prune old checkpoints, or choose another store.",
    errno.EDQUOT: "Raise the disk quota, prune old checkpoints, or choose another store.",
    errno.ENOTDIR: "A file stands where a folder is needed: move it, or choose another store.",
    errno.EEXIST: "A file stands where a folder is needed: move it, or choose another store.",
    errno.EISDIR: "A folder stands where a file is needed: move it, or choose another store.",
    errno.ENAMETOOLONG: "Choose a shorter path.",
}


class FolderStore:
    """Objects as files below one folder, which the first write creates."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root).absolute()
        self._temporary = self._root / ".temporary"
        self._is_swept = False

    @property
    def url(self) -> str:
        """Return the file:// URL of the folder."""
        return self._root.as_uri()

    def get(self, key: str) -> StoredObject:
        """Return the file's bytes and their hash."""
        data = self._read(key)
        return StoredObject(data=data, version=_version(data))

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        """Read into the buffers."""
        path = self._path(key)
        with _reading(key):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                for buffer in buffers:
                    num_missing = _fill(descriptor, start, buffer)
                    if num_missing:
                        raise truncated(key, num_missing)
                    start += len(buffer)
            finally:
                os.close(descriptor)

    def put(self, key: str, data: Iterable[Buffer] | Buffer) -> None:
        """Stream into a temporary file, then rename it over the key."""
        path = self._path(key)
        with self._written(key, data) as temporary:
            _publish(path, lambda: temporary.replace(path))

    def create(self, key: str, data: bytes) -> str:
        """Link a finished file to the key, which the kernel allows only once."""
        path = self._path(key)
        with self._written(key, data) as temporary:
            try:
                _publish(path, lambda: path.hardlink_to(temporary))
            except FileExistsError:
                raise exists(key) from None
        return _version(data)

    def replace(self, key: str, data: bytes, version: str) -> str:
        """Compare and rename under the folder's lock."""
        path = self._path(key)
        with self._written(key, data) as temporary, self._locked():
            try:
                found = _version(self._read(key))
            except ObjectMissing:
                found = "absent"
            if found != version:
                raise changed(key)
            _publish(path, lambda: temporary.replace(path))
        return _version(data)

    def list(self, prefix: str) -> list[ObjectEntry]:
        """Walk the folder; files that vanish meanwhile are left out."""
        folder = self._root / check_prefix(prefix).rpartition("/")[0]
        found = (self._entry(path) for path in self._files(folder))
        entries = [
            entry for entry in found if entry and entry.key.startswith(prefix) and is_key(entry.key)
        ]
        return sorted(entries, key=lambda entry: entry.key)

    def list_folders(self) -> builtins.list[str]:
        """Look at the folder itself; one that holds no object counts, too."""
        with _reading("the store's folders"):
            try:
                found = [entry for entry in os.scandir(self._root) if entry.is_dir()]
            except FileNotFoundError:
                return []
        return sorted(entry.name for entry in found if not entry.name.startswith("."))

    def delete(self, keys: Iterable[str]) -> None:
        """Remove the files and the folders that they leave empty."""
        for key in keys:
            path = self._path(key)
            try:
                path.unlink()
            except OSError as error:
                if error.errno not in _NO_SUCH_OBJECT:
                    raise _translated(error) from error
            else:
                _remove_empty(path.parent, self._root)

    def abort_uploads(self, prefix: str, is_stale: Callable[[str], bool]) -> builtins.list[str]:
        """Remove the temporary files whose writers let go of their locks, as the dead do."""
        check_prefix(prefix)
        with _reading(prefix):
            found = [(_key_of(path), path) for path in _entries(self._temporary)]
        return sorted(
            {
                key
                for key, path in found
                if key is not None and key.startswith(prefix) and is_stale(key) and _abandon(path)
            }
        )

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _read(self, key: str) -> bytes:
        with _reading(key):
            return self._path(key).read_bytes()

    def _files(self, folder: Path) -> Iterator[Path]:
        for parent, folders, names in os.walk(folder, onerror=_raise_unless_gone):
            if parent == str(self._root):
                folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if parent != str(self._root) or not name.startswith("."):
                    yield Path(parent, name)

    def _entry(self, path: Path) -> ObjectEntry | None:
        with suppress(FileNotFoundError):
            status = path.stat()
            modified_at = datetime.fromtimestamp(status.st_mtime, tz=timezone.utc)
            key = path.relative_to(self._root).as_posix()
            return ObjectEntry(key=key, size=status.st_size, modified_at=modified_at)
        return None

    @contextmanager
    def _written(self, key: str, data: Iterable[Buffer] | Buffer) -> Iterator[Path]:
        """Yield a synced temporary file with these bytes; translate what goes wrong meanwhile."""
        path = self._temporary / _temporary_name(key)
        try:
            _make_folder(self._temporary)
            self._sweep()
            with path.open("xb", buffering=0) as file:
                try:
                    # Says that its writer lives; the kernel drops it with the process.
                    fcntl.flock(file, fcntl.LOCK_EX)
                    _write(file.fileno(), data)
                    yield path
                finally:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise _translated(error) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock; the kernel drops it with the process."""
        with (self._root / ".locks").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _sweep(self) -> None:
        """Remove what killed writers left, once per store object; a lost shard may be gigabytes."""
        if self._is_swept:
            return
        self._is_swept = True
        for path in _entries(self._temporary):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_AFTER_S:
                    path.unlink()


def _fill(descriptor: int, start: int, buffer: memoryview) -> int:
    """Fill the buffer from the file's offset `start` on; return how many bytes are not there."""
    while buffer:  # one preadv() moves at most 2 GiB, and may be interrupted
        num_bytes = os.preadv(descriptor, [buffer], start)
        if not num_bytes:
            break
        buffer, start = buffer[num_bytes:], start + num_bytes
    return len(buffer)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _temporary_name(key: str) -> str:
    """Return a new name that tells the key, unless that makes it too long for a file."""
    name = key.replace("/", _SLASH)
    unique = secrets.token_hex(8)
    return f"{unique}-{name}" if len(name.encode()) <= _MAX_NAMED_BYTES else unique


def _key_of(temporary: Path) -> str | None:
    _, _, name = temporary.name.partition("-")
    return name.replace(_SLASH, "/") or None


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _abandon(path: Path) -> bool:
    """Remove a temporary file unless its writer lives, here or on another node."""
    with suppress(FileNotFoundError, BlockingIOError), path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return False


def _write(descriptor: int, data: Iterable[Buffer] | Buffer) -> None:
    chunks = [data] if isinstance(data, (bytes, bytearray, memoryview)) else data
    for chunk in chunks:
        _write_all(descriptor, chunk)
    os.fsync(descriptor)


def _write_all(descriptor: int, chunk: Buffer) -> None:
    view = memoryview(chunk).cast("B")
    while view:  # one write() moves at most 2 GiB
        view = view[os.write(descriptor, view) :]


def _publish(path: Path, place: Callable[[], object]) -> None:
    """Put a finished file in place and make its name survive a power cut."""
    for _ in range(_PUBLISH_TRIES):
        with suppress(FileNotFoundError):
            _make_folder(path.parent)
            place()
            _sync_folder(path.parent)
            return
    raise FileNotFoundError(errno.ENOENT, "the folder keeps vanishing", str(path.parent))


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():  # not FileExistsError, which `create` takes for its own object
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder)) from None
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_empty(folder: Path, root: Path) -> None:
    with suppress(OSError):  # not empty, or gone already
        while folder != root:
            folder.rmdir()
            folder = folder.parent


def _raise_unless_gone(error: OSError) -> None:
    if error.errno not in _NO_SUCH_OBJECT:
        raise _translated(error) from error


@contextmanager
def _reading(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SUCH_OBJECT:
            raise missing(key) from None
        raise _translated(error) from error


def _translated(error: OSError) -> StoreError:
    where = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if error.errno in _REFUSED:
        return StoreRefused(f"Cannot use the folder: {where}", _REFUSED[error.errno])
    return StoreUnreachable(f"The folder did not answer: {where}", "Check the disk and try again.")
