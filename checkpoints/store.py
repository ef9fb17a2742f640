"""What every store of a run folder can do, and which store a URL names.

Conditional writes (`create`, `replace`) are the only synchronisation in the whole system.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias
from urllib.parse import unquote, urlsplit

from checkpoints.errors import (
    Damaged,
    ObjectExists,
    ObjectMissing,
    UnsupportedStore,
    VersionMismatch,
)

Buffer: TypeAlias = bytes | bytearray | memoryview

# Clouds by the scheme of their URLs.
CLOUD_SCHEMES = ("s3", "gs", "az")
_BUCKET_SCHEMES = (*CLOUD_SCHEMES, "s3-local")
# What a bucket or container may be called at some cloud, or was once.
_BUCKET = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,220}[A-Za-z0-9_])?")
# Characters that some store escapes or forbids; the same keys must work in all of them.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\{}^%`\[\]"<>~#|*?]')


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object's bytes and the version to name when replacing it."""

    data: bytes
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectEntry:
    """One line of a listing."""

    key: str
    size: int
    modified_at: datetime


class ObjectStore(Protocol):
    """Objects under one root; every write is atomic and every read sees completed writes.

    Any call may also raise `StoreUnreachable` (a write may then have happened) or `StoreRefused`.
    """

    @property
    def url(self) -> str:
        """Return the URL that opens this store again."""

    def get(self, key: str) -> StoredObject:
        """Return the whole object; raise ObjectMissing."""

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, one behind the other, with the object's bytes from `start` on.

        Raises ObjectMissing, or Damaged if the object ends before they are full; what is in them
        is then undefined. Many threads may call it at once.
        """

    def put(self, key: str, data: Iterable[Buffer] | Buffer) -> None:
        """Write or overwrite; readers see the old or the new object. An iterable is streamed."""

    def create(self, key: str, data: bytes) -> str:
        """Write where nothing is and return the version; raise ObjectExists."""

    def replace(self, key: str, data: bytes, version: str) -> str:
        """Overwrite exactly this version and return the new one; raise VersionMismatch."""

    def list(self, prefix: str) -> list[ObjectEntry]:
        """Return every object whose key starts with `prefix`, sorted by key, of keys alone."""

    def list_folders(self) -> builtins.list[str]:
        """Return the first parts of the keys that have several, each once, sorted.

        What is below them is not listed: a store of runs has hundreds of thousands of objects.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Remove the objects; absent ones are fine."""

    def abort_uploads(self, prefix: str, is_stale: Callable[[str], bool]) -> builtins.list[str]:
        """Give up what dead writers left of unfinished puts, and return the keys, sorted.

        Only of keys that start with `prefix` and are stale: a live writer's put would fail.
        """


def open_store(url: str) -> ObjectStore:
    """Return the store at file:///abs/path, memory://name, or s3, gs or az ://bucket/prefix.

    Raises:
        UnsupportedStore: the URL names none.
        AddressInvalid: the environment names an endpoint of it that is no address.
        StoreRefused: its settings in the environment cannot be used.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    path = unquote(parts.path)
    if parts.scheme == "file" and not parts.netloc and path.startswith("/") and "\0" not in path:
        from checkpoints.folder_store import FolderStore

        return FolderStore(path)
    is_remote = parts.scheme in (*_BUCKET_SCHEMES, "memory")
    if is_remote and _BUCKET.fullmatch(parts.netloc) and _is_prefix(path.strip("/")):
        # Both import this module. obstore's native library adds 9 ms, and a folder needs none.
        from checkpoints.object_store import RemoteStore
        from checkpoints.remote_clients import open_client

        client = open_client(parts.scheme, parts.netloc)
        return RemoteStore(client, scheme=parts.scheme, bucket=parts.netloc, prefix=path.strip("/"))
    raise UnsupportedStore(
        f"{url!r} names no store that is supported",
        "Use file:///absolute/path, s3://bucket/prefix, gs://bucket/prefix or "
        "az://container/prefix.",
    )


def is_bucket(url: str) -> bool:
    """Say whether some server keeps the store, and not a file system or this process."""
    return urlsplit(url).scheme in _BUCKET_SCHEMES


def check_key(key: str) -> str:
    """Return `key` if it is a plain relative path; raise ValueError otherwise."""
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{key!r} is not a key: it has an empty part, '.' or '..'")
    return _check_characters(key)


def is_key(key: str) -> bool:
    """Say whether we could have written that; others may have put anything beside it."""
    try:
        check_key(key)
    except ValueError:
        return False
    return True


def check_prefix(prefix: str) -> str:
    """Return `prefix` if some key could start with it; raise ValueError otherwise."""
    folder, _, _ = prefix.rpartition("/")
    if folder or prefix.startswith("/"):
        check_key(folder)
    return _check_characters(prefix)


def missing(key: str) -> ObjectMissing:
    """Return the error for an absent object."""
    return ObjectMissing(f"{key} does not exist", "Check the run's name and store.")


def exists(key: str) -> ObjectExists:
    """Return the error for a `create` that found an object."""
    return ObjectExists(f"{key} exists already", "Read it, or choose another key.")


def changed(key: str) -> VersionMismatch:
    """Return the error for a `replace` that found another version."""
    return VersionMismatch(f"{key} is not the version that was read", "Read it again.")


def truncated(key: str, num_missing: int) -> Damaged:
    """Return the error for an object that ends before a range does."""
    return Damaged(f"{key} is {num_missing} bytes too short", "Resume from another checkpoint.")


def _is_prefix(path: str) -> bool:
    """Say whether keys can be below it: it may have characters that keys may not."""
    parts = path.split("/") if path else []
    return path.isprintable() and not any(part in ("", ".", "..") for part in parts)


def _check_characters(key: str) -> str:
    # The folder store keeps its own files under names that start with a dot.
    if key.startswith(".") or _FORBIDDEN.search(key):
        raise ValueError(f"{key!r} is not a key: it starts with a dot or has a special character")
    return key
