"""A run folder in the bucket of a cloud, through obstore, and one in memory for tests."""

from __future__ import annotations

import builtins
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from checkpoints.errors import BucketMissing, StoreError, StoreRefused, StoreUnreachable
from checkpoints.multipart import abort_uploads
from checkpoints.receiving import Receiver
from checkpoints.remote_clients import HINTS, Client
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

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutResult, UpdateVersion

# S3 takes 10,000 parts: 160 GB per object. Three in flight filled the link in our measurements.
_PART_BYTES = 16 * 1024 * 1024
_PARTS_IN_FLIGHT = 3
_INSTANCE_METADATA = ("169.254.169.254", "metadata.google.internal")
# In the text of what obstore has no error type for: listings, and deletions in batches.
_STATUS = re.compile(r"status code: (\d{3})")
# S3 answers a batch with 200 and says of each key what became of it.
_REFUSED_IN_BATCH = "(code: AccessDenied)"


class RemoteStore:
    """Objects below a prefix of a bucket; versions are ETags, on Google Cloud generations."""

    def __init__(self, client: Client, *, scheme: str, bucket: str, prefix: str) -> None:
        self._client = client
        self._receiver = Receiver(client) if isinstance(client, S3Store) else None
        self._hints = HINTS[scheme]
        self._has_generations = scheme == "gs"
        self._bucket_url = f"{scheme}://{bucket}"
        self._url = f"{self._bucket_url}/{prefix}" if prefix else self._bucket_url
        self._prefix = f"{prefix}/" if prefix else ""

    @property
    def url(self) -> str:
        """Return the URL that was opened."""
        return self._url

    def get(self, key: str) -> StoredObject:
        """Return the object and its version."""
        with self._reading(key):
            found = obstore.get(self._client, self._path(key))
            return StoredObject(data=bytes(found.bytes()), version=self._version(found.meta))

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        """Receive into the buffers; where that is not possible or fails, copy into them."""
        path = self._path(key)
        length = sum(len(buffer) for buffer in buffers)
        if not length:
            return  # HTTP has no empty range
        if self._receiver is not None and self._receiver.receive(path, start, buffers):
            return
        with self._reading(key):
            try:
                data = memoryview(obstore.get_range(self._client, path, start=start, length=length))
            except BaseError:
                # A range behind the end is an error of no type of its own.
                size = obstore.head(self._client, path)["size"]
                if size > start:
                    raise
                data = memoryview(b"")
        if len(data) < length:
            raise truncated(key, length - len(data))
        for buffer in buffers:
            buffer[:], data = data[: len(buffer)], data[len(buffer) :]

    def put(self, key: str, data: Iterable[Buffer] | Buffer) -> None:
        """Upload in one request, or as parts that appear together when the last one is there."""
        path = self._path(key)
        with self._calling(key):
            try:
                obstore.put(
                    self._client,
                    path,
                    _one_buffer_if_small(data),
                    chunk_size=_PART_BYTES,
                    max_concurrency=_PARTS_IN_FLIGHT,
                )
            except FileNotFoundError as error:
                raise self._no_bucket() from error

    def create(self, key: str, data: bytes) -> str:
        """Put if absent (If-None-Match)."""
        path = self._path(key)
        with self._calling(key):
            try:
                return self._version(obstore.put(self._client, path, data, mode="create"))
            except (AlreadyExistsError, PreconditionError):
                raise exists(key) from None
            except FileNotFoundError as error:
                raise self._no_bucket() from error

    def replace(self, key: str, data: bytes, version: str) -> str:
        """Put if the version is still this one (If-Match)."""
        path = self._path(key)
        expected: UpdateVersion = {"e_tag": version}
        if self._has_generations:
            expected = {"version": version}
        with self._calling(key):
            try:
                return self._version(obstore.put(self._client, path, data, mode=expected))
            except (PreconditionError, FileNotFoundError):
                raise changed(key) from None

    def list(self, prefix: str) -> list[ObjectEntry]:
        """List the folder and filter by name: obstore takes prefixes of whole parts only."""
        folder = (self._prefix + check_prefix(prefix)).rpartition("/")[0]
        with self._calling(prefix):
            found = obstore.list(self._client, folder or None, chunk_size=1000).collect()
        entries = [
            ObjectEntry(
                key=item["path"].removeprefix(self._prefix),
                size=item["size"],
                modified_at=item["last_modified"],
            )
            for item in found
            if item["path"].startswith(self._prefix + prefix)
            and is_key(item["path"].removeprefix(self._prefix))
        ]
        return sorted(entries, key=lambda entry: entry.key)

    def list_folders(self) -> builtins.list[str]:
        """List the folders with a delimiter: one request for a thousand of them."""
        with self._calling("the store's folders"):
            found = obstore.list_with_delimiter(self._client, self._prefix.rstrip("/") or None)
        names = (path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])
        return sorted(names)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete in batches; one by one where an absent object ended that, as not on S3."""
        paths = [self._path(key) for key in dict.fromkeys(keys)]
        with self._calling(", ".join(paths[:3])):
            try:
                if paths:
                    obstore.delete(self._client, paths)
            except FileNotFoundError:
                for path in paths:
                    with suppress(FileNotFoundError):
                        obstore.delete(self._client, path)

    def abort_uploads(self, prefix: str, is_stale: Callable[[str], bool]) -> builtins.list[str]:
        """Abort multipart uploads; those of other clouds end by themselves, or by a bucket's rule.

        Azure drops uncommitted blocks after a week; Google Cloud needs the lifecycle rule
        AbortIncompleteMultipartUpload.
        """
        if not isinstance(self._client, S3Store):
            return []
        aborted = abort_uploads(
            self._client,
            self._prefix + check_prefix(prefix),
            lambda path: is_stale(path.removeprefix(self._prefix)),
        )
        return sorted({path.removeprefix(self._prefix) for path in aborted})

    def _version(self, written: PutResult | ObjectMeta) -> str:
        return written["version" if self._has_generations else "e_tag"] or ""

    def _path(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """Translate errors of a read, and tell what is missing from what is refused.

        AWS answers 403 to both where the policy allows to list some prefixes and not the bucket.
        """
        with self._calling(key):
            try:
                yield
            except PermissionDeniedError:
                if self._is_missing(key):
                    raise missing(key) from None
                raise

    def _is_missing(self, key: str) -> bool:
        """Look for the object in a listing of its folder, from just before its key on."""
        path = self._path(key)
        folder = path.rpartition("/")[0] or None
        try:
            for chunk in obstore.list(self._client, folder, offset=path[:-1]):
                for found in chunk:
                    if found["path"] >= path:
                        return bool(found["path"] > path)
        except BaseError:
            return False  # nobody may know
        return True

    @contextmanager
    def _calling(self, key: str) -> Iterator[None]:
        """Translate obstore's errors."""
        try:
            yield
        except FileNotFoundError:
            raise missing(key) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._refused(key, error) from error
        except BaseError as error:
            raise self._translated(key, error) from error

    def _translated(self, key: str, error: BaseError) -> StoreError:
        text = str(error)
        if any(address in text for address in _INSTANCE_METADATA):
            # The last place where credentials are looked for, outside of a cloud in vain.
            return StoreRefused(
                f"{self._url} cannot be used: no credentials were found", self._hints.credentials
            )
        status = _STATUS.search(text)
        if _REFUSED_IN_BATCH in text or (status and status[1] in ("401", "403")):
            return self._refused(key, error)
        if status and status[1] == "404":
            return self._no_bucket()
        return StoreUnreachable(
            f"{self._url} did not answer{key and f' for {key}'}: {_first_line(error)}",
            self._hints.network,
        )

    def _refused(self, key: str, error: BaseError) -> StoreRefused:
        return StoreRefused(
            f"{self._url} refused access{key and f' to {key}'}: {_first_line(error)}",
            self._hints.access,
        )

    def _no_bucket(self) -> BucketMissing:
        return BucketMissing(
            f"{self._bucket_url} does not exist", "Create it, or correct the store's URL."
        )


def _first_line(error: Exception) -> str:
    """Return what obstore says, without the page that the server answered."""
    return str(error).partition("\n")[0].partition("<")[0].rstrip(": ")


def _one_buffer_if_small(data: Iterable[Buffer] | Buffer) -> bytes | Buffer | Iterator[Buffer]:
    """Return one buffer where one request will do, else an iterator over all the data."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        return data
    chunks = iter(data)
    first: list[Buffer] = []
    for chunk in chunks:
        first.append(chunk)
        if sum(len(held) for held in first) > _PART_BYTES:
            return itertools.chain(first, chunks)
    return b"".join(first)
