"""Clients that move one object between warm memory and the store, in parts and in parallel.

`CLIENTS` names those that `benchmarks.checkpointing.raw` tries; which is fastest depends on the
machine.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

import obstore

from checkpoints.remote_clients import open_client

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import CompletedPartTypeDef

_MIB = 1024 * 1024
_T = TypeVar("_T")


class TransferClient(Protocol):
    """A way to move one object, in parts and in parallel as it can."""

    def upload(self, key: str, memory: memoryview) -> None:
        """Write an object."""

    def download(self, key: str, memory: memoryview) -> None:
        """Fill the memory with an object of its size."""


class Obstore:
    """The client that the saver uses, with a part size and a number of parts in flight."""

    def __init__(self, bucket: str, part_bytes: int, num_parallel: int) -> None:
        self._store = open_client("s3", bucket)
        self._part_bytes, self._num_parallel = part_bytes, num_parallel

    def upload(self, key: str, memory: memoryview) -> None:
        """Upload in parts."""
        obstore.put(
            self._store,
            key,
            memory,
            chunk_size=self._part_bytes,
            max_concurrency=self._num_parallel,
        )

    def download(self, key: str, memory: memoryview) -> None:
        """Request ranges from threads."""

        def fetch(start: int, part: memoryview) -> None:
            found = obstore.get_range(self._store, key, start=start, length=len(part))
            part[:] = memoryview(found)

        _in_parallel(fetch, memory, self._part_bytes, self._num_parallel)


class Crt:
    """AWS' C runtime by way of s3torchconnector, which divides requests into parts by itself."""

    def __init__(self, bucket: str, part_bytes: int) -> None:
        from s3torchconnector import S3ClientConfig, S3ReaderConstructor
        from s3torchconnector.dcp import S3FileSystem

        self._bucket, self._part_bytes = bucket, part_bytes
        self._files = S3FileSystem(
            os.environ["AWS_REGION"],
            s3client_config=S3ClientConfig(part_size=part_bytes, force_path_style=True),
            reader_constructor=S3ReaderConstructor.range_based(buffer_size=0),
        )

    def upload(self, key: str, memory: memoryview) -> None:
        """Write a stream."""
        with self._files.create_stream(f"s3://{self._bucket}/{key}", "wb") as stream:
            for start in range(0, len(memory), self._part_bytes):
                stream.write(memory[start : start + self._part_bytes])

    def download(self, key: str, memory: memoryview) -> None:
        """Read one range that is all of the object."""
        with self._files.create_stream(f"s3://{self._bucket}/{key}", "rb") as stream:
            stream.readinto(memory)


class Boto3:
    """Parts and ranges from Python threads, without checksums that cost a pass over the bytes."""

    def __init__(self, bucket: str, part_bytes: int, num_parallel: int) -> None:
        import boto3
        from botocore.config import Config

        self._bucket, self._part_bytes, self._num_parallel = bucket, part_bytes, num_parallel
        config = Config(
            max_pool_connections=num_parallel,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._s3: S3Client = boto3.client("s3", config=config)

    def upload(self, key: str, memory: memoryview) -> None:
        """Upload in parts."""
        bucket = self._bucket
        upload = self._s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]

        def send(start: int, part: memoryview) -> CompletedPartTypeDef:
            number = start // self._part_bytes + 1
            sent = self._s3.upload_part(
                Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=bytes(part)
            )
            return {"PartNumber": number, "ETag": sent["ETag"]}

        parts = _in_parallel(send, memory, self._part_bytes, self._num_parallel)
        self._s3.complete_multipart_upload(
            Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
        )

    def download(self, key: str, memory: memoryview) -> None:
        """Request ranges and have the socket fill the memory."""

        def fetch(start: int, part: memoryview) -> None:
            wanted = f"bytes={start}-{start + len(part) - 1}"
            body = self._s3.get_object(Bucket=self._bucket, Key=key, Range=wanted)["Body"]
            while part:
                part = part[body.readinto(part) :]  # type: ignore[arg-type]  # a buffer, says botocore

        _in_parallel(fetch, memory, self._part_bytes, self._num_parallel)


# Part sizes and numbers of parts in flight around those that the saver and the peers use.
CLIENTS: dict[str, Callable[[str], TransferClient]] = {
    "obstore 8 MiB x 8": lambda bucket: Obstore(bucket, 8 * _MIB, 8),
    "obstore 16 MiB x 3": lambda bucket: Obstore(bucket, 16 * _MIB, 3),
    "obstore 16 MiB x 8": lambda bucket: Obstore(bucket, 16 * _MIB, 8),
    "obstore 32 MiB x 3": lambda bucket: Obstore(bucket, 32 * _MIB, 3),
    "crt 8 MiB": lambda bucket: Crt(bucket, 8 * _MIB),
    "crt 32 MiB": lambda bucket: Crt(bucket, 32 * _MIB),
    "boto3 16 MiB x 4": lambda bucket: Boto3(bucket, 16 * _MIB, 4),
}


def installed_clients() -> list[str]:
    """Return the names of the clients that can be tried here."""
    has_crt = importlib.util.find_spec("s3torchconnector") is not None
    return [name for name in CLIENTS if has_crt or not name.startswith("crt")]


def _in_parallel(
    move: Callable[[int, memoryview], _T], memory: memoryview, part_bytes: int, num_parallel: int
) -> list[_T]:
    """Call `move` with the offset and the memory of every part; return what it returned."""
    starts = range(0, len(memory), part_bytes)
    parts = [memory[start : start + part_bytes] for start in starts]
    with ThreadPoolExecutor(num_parallel) as pool:
        return list(pool.map(move, starts, parts))
