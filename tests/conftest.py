"""A real S3 server on loopback, for every test that needs one."""

import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import boto3
import pytest

BUCKET = "runs"
PORT_FLAGS = (
    "s3.port", "s3.port.grpc", "s3.port.iceberg", "s3.port.lance", "iam.port",
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
    "filer.port", "filer.port.grpc",
)  # fmt: skip


def free_ports(number):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def weed_binary():
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


def wait_until_served(endpoint, process, log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client = s3_client(endpoint)
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="probe", Body=b"x")
        except Exception:  # noqa: BLE001 whatever it is, the server is not up yet
            time.sleep(0.1)  # polls another process; nothing tells us when it is up
        else:
            return
    pytest.fail(f"SeaweedFS did not start: {log.read_text()[-2000:]}")


def s3_client(endpoint):
    config = boto3.session.Config(
        connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}
    )
    return boto3.client("s3", endpoint_url=endpoint, config=config)


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory):
    """Start SeaweedFS once and yield the URL of its bucket."""
    folder = tmp_path_factory.mktemp("weed")
    ports = dict(zip(PORT_FLAGS, free_ports(len(PORT_FLAGS)), strict=True))
    credentials = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(8),
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
    }
    log = folder / "log"
    command = [
        weed_binary(), "server", "-s3", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-volume.max=0", "-master.volumeSizeLimitMB=64",
        *(f"-{flag}={port}" for flag, port in ports.items()),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, log.open("wb") as output:
        for name, value in credentials.items():
            patch.setenv(name, value)
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
        try:
            wait_until_served(credentials["AWS_ENDPOINT_URL"], process, log)
            yield f"s3://{BUCKET}"
        finally:
            process.kill()
            process.wait()
