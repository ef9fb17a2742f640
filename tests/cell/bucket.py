"""The cell's bucket: SeaweedFS with its data below BASE, so it outlives nodes and the cell."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import zlib
from pathlib import Path

from tests.cell.places import (
    ACCESS_KEY,
    BUCKET,
    BUCKET_ENDPOINT,
    BUCKET_PORT,
    GATEWAY,
    SECRET_KEY,
    Places,
    cell_environment,
)

_START_S = 60.0
# What `weed server -s3` opens besides. It also listens on /tmp/seaweedfs-*-PORT.sock, and /tmp is
# the whole machine's: with the usual ports, two servers on it take each other's connections.
_INNER_PORTS = (
    "s3.port.grpc", "s3.port.iceberg", "s3.port.lance", "iam.port", "master.port",
    "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
)  # fmt: skip
_LOOK_S = 0.1


def start_bucket(places: Places) -> None:
    """Start the S3 server and return when it holds the bucket."""
    weed = Path(sys.prefix) / "bin" / "weed"
    command = [
        str(weed), "server", "-s3", f"-dir={places.bucket}", f"-ip={GATEWAY}",
        "-ip.bind=0.0.0.0", f"-s3.port={BUCKET_PORT}", "-volume.max=0",
        "-master.volumeSizeLimitMB=64", "-master.telemetry=false", "-master.electionTimeout=1s",
        *(f"-{flag}={port}" for flag, port in zip(_INNER_PORTS, _own_ports(places), strict=True)),
    ]  # fmt: skip
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    environment = {**cell_environment(places), **keys}
    with (places.logs / "bucket.log").open("ab") as log:
        subprocess.Popen(
            command,
            cwd=places.bucket,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    _create(places)


def remove_sockets(places: Places) -> None:
    """Remove the server's sockets in /tmp, where it leaves them when it is killed."""
    for port in _own_ports(places):
        for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            socket.unlink(missing_ok=True)


def _own_ports(places: Places) -> range:
    first = 20_000 + zlib.crc32(str(places.base).encode()) % 1_000 * len(_INNER_PORTS)
    return range(first, first + len(_INNER_PORTS))


def _create(places: Places) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=BUCKET_ENDPOINT,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}),
    )
    give_up_at = time.monotonic() + _START_S
    while time.monotonic() < give_up_at:
        with contextlib.suppress(BotoCoreError, ClientError):
            with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=BUCKET)
            # Not empty: only then does it wait for the part that holds the data.
            client.put_object(Bucket=BUCKET, Key=".started", Body=b"started")
            return
        time.sleep(_LOOK_S)
    raise RuntimeError(f"SeaweedFS did not start within {_START_S:g} s: {places.logs}/bucket.log")
