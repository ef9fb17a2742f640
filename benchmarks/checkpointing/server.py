"""The S3 server of the checkpoint benchmark, and a bucket for each run."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

from orchestrator.cloud.local.s3_server import read_server, start_server

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_REGION = "us-east-1"


class Server:
    """A server that is running, and where clients find it."""

    def __init__(self, endpoint: str, pid: int, key: tuple[str, str]) -> None:
        self.pid = pid
        self._numbers = itertools.count(1)
        kept = {name: text for name, text in os.environ.items() if not name.startswith("AWS_")}
        self.environment: Mapping[str, str] = {
            **kept,
            "AWS_ACCESS_KEY_ID": key[0],
            "AWS_SECRET_ACCESS_KEY": key[1],
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,  # boto3 knows only this one
            # For the ranks, which meet on this machine.
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        self._s3 = _client(endpoint, key)

    @contextlib.contextmanager
    def bucket(self) -> Iterator[str]:
        """Yield the name of a new bucket, and remove it with all that is in it.

        A bucket has volumes of its own, whose files are gone at once; deleted objects would fill
        the disk until the server compacts theirs.
        """
        name = f"bench-{next(self._numbers)}"
        self._s3.create_bucket(Bucket=name)
        try:
            # The first write makes the volumes, which takes about a second (the very first, five).
            self._s3.put_object(Bucket=name, Key="first", Body=b"volumes")
            yield name
        finally:
            self._s3.delete_bucket(Bucket=name)


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Yield a server whose data are in a temporary folder (of TMPDIR), and end it."""
    with tempfile.TemporaryDirectory() as folder:
        process = start_server(Path(folder))
        try:
            record = read_server(Path(folder))
            assert record is not None
            key = (record.access_key, record.secret_key)
            yield Server(record.endpoint, record.pid, key)
        finally:
            process.kill()
            process.wait()


def _client(endpoint: str, key: tuple[str, str]) -> S3Client:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=_REGION,
        aws_access_key_id=key[0],
        aws_secret_access_key=key[1],
        config=Config(read_timeout=120, proxies={}),
    )
