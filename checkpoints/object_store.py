"""A run folder in S3 or its kin, through obstore, and one in memory for tests."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import MemoryStore, S3Store

from checkpoints.errors import StoreRefused, StoreUnreachable
from checkpoints.store import (
    Buffer,
    ObjectEntry,
    StoredObject,
    changed,
    check_key,
    check_prefix,
    exists,
    missing,
    truncated,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# S3 takes 10,000 parts: 160 GB per object. Three in flight filled the link in our measurements.
_PART_BYTES = 16 * 1024 * 1024
_PARTS_IN_FLIGHT = 3
# One request must move a part over a slow link; a dead peer is noticed by the connect timeout.
_CLIENT: ClientConfig = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=60)}
# Retries with jittered exponential backoff, on connection errors and 5xx; credentials outlive it.
_RETRY: RetryConfig = {
    "max_retries": 6,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5)},
    "retry_timeout": timedelta(seconds=60),
}
_DEFAULT_REGION = "us-east-1"

_memory_stores: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()


_INSTANCE_METADATA = "169.254.169.254"


class RemoteStore:
    """Objects below a prefix of an obstore client; versions are ETags."""

    def __init__(self, client: MemoryStore | S3Store, *, url: str, prefix: str) -> None:
        self._client = client
        self._url = url
        self._prefix = f"{prefix}/" if prefix else ""

    @property
    def url(self) -> str:
        """Return the URL that was opened."""
        return self._url

    def get(self, key: str) -> StoredObject:
        """Return the object and its ETag."""
        with self._calling(key):
            found = obstore.get(self._client, self._path(key))
            return StoredObject(data=bytes(found.bytes()), version=found.meta["e_tag"] or "")

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`."""
        path = self._path(key)
        if not length:
            return b""  # HTTP has no empty range
        with self._calling(key):
            try:
                data = bytes(obstore.get_range(self._client, path, start=start, length=length))
            except BaseError:
                # A range behind the end is an error of no type of its own.
                size = obstore.head(self._client, path)["size"]
                if size > start:
                    raise
                data = b""
        if len(data) < length:
            raise truncated(key, length - len(data))
        return data

    def put(self, key: str, data: Iterable[Buffer] | Buffer) -> None:
        """Upload in one request, or as parts that appear together when the last one is there."""
        path = self._path(key)
        with self._calling(key):
            obstore.put(
                self._client,
                path,
                _one_buffer_if_small(data),
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_IN_FLIGHT,
            )

    def create(self, key: str, data: bytes) -> str:
        """Put if absent (If-None-Match)."""
        path = self._path(key)
        with self._calling(key):
            try:
                return obstore.put(self._client, path, data, mode="create")["e_tag"] or ""
            except (AlreadyExistsError, PreconditionError):
                raise exists(key) from None

    def replace(self, key: str, data: bytes, version: str) -> str:
        """Put if the ETag is still this one (If-Match)."""
        path = self._path(key)
        with self._calling(key):
            try:
                return obstore.put(self._client, path, data, mode={"e_tag": version})["e_tag"] or ""
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
        ]
        return sorted(entries, key=lambda entry: entry.key)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete in batches."""
        paths = [self._path(key) for key in keys]
        with self._calling(", ".join(paths[:3])):
            if paths:
                obstore.delete(self._client, paths)

    def _path(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextmanager
    def _calling(self, key: str) -> Iterator[None]:
        """Translate obstore's errors."""
        try:
            yield
        except FileNotFoundError:
            raise missing(key) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreRefused(
                f"{self._url} refused access to {key}: {_first_line(error)}",
                "Check the credentials (aws sts get-caller-identity) and the bucket's policy.",
            ) from error
        except BaseError as error:
            if _INSTANCE_METADATA in str(error):
                # The last place where credentials are looked for, outside of EC2 in vain.
                raise StoreRefused(
                    f"{self._url} cannot be used: no AWS credentials were found",
                    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
                ) from error
            raise StoreUnreachable(
                f"{self._url} did not answer for {key}: {_first_line(error)}",
                "Check the network, AWS_ENDPOINT_URL and AWS_REGION; then run it again.",
            ) from error


def open_memory(name: str, prefix: str) -> RemoteStore:
    """Return the store that this process knows by `name`."""
    with _memory_lock:
        client = _memory_stores.setdefault(name, MemoryStore())
    return RemoteStore(client, url=_url("memory", name, prefix), prefix=prefix)


def open_s3(bucket: str, prefix: str) -> RemoteStore:
    """Return the store in a bucket; finds endpoint, region and credentials as AWS' tools do."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    is_plain = endpoint is not None and endpoint.startswith("http://")
    options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    if _has_profile():
        options["credential_provider"] = _profile_credentials()
    client = S3Store(
        bucket,
        region=region or _DEFAULT_REGION,
        # Hashing the body halved the upload rate; our own checksums cover it.
        unsigned_payload=True,
        client_options={**_CLIENT, "allow_http": is_plain},
        retry_config=_RETRY,
        **options,
    )
    return RemoteStore(client, url=_url("s3", bucket, prefix), prefix=prefix)


def _url(scheme: str, name: str, prefix: str) -> str:
    return f"{scheme}://{name}/{prefix}" if prefix else f"{scheme}://{name}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


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


def _has_profile() -> bool:
    """Return whether credentials come from a profile, which obstore cannot read by itself."""
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return False
    names = ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_PROFILE")
    files = (Path("~/.aws/credentials"), Path("~/.aws/config"))
    return any(os.environ.get(name) for name in names) or any(
        file.expanduser().exists() for file in files
    )


def _profile_credentials() -> Callable[[], dict[str, Any]]:
    """Return a provider that asks boto3; obstore's own needs Python 3.11."""
    import boto3  # 0.3 s, needed only here

    session = boto3.Session()

    def provide() -> dict[str, Any]:
        found = session.get_credentials()
        if found is None:
            raise StoreRefused(
                f"AWS profile {session.profile_name!r} has no credentials",
                "Run: aws configure, or set AWS_PROFILE.",
            )
        now = found.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            # boto3 renews them in time when asked again.
            "expires_at": datetime.now(timezone.utc) + timedelta(minutes=5),
        }

    return provide
