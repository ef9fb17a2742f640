"""The S3 server of this machine: one of them, whoever is killed, and always with the same data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from checkpoints.remote_clients import LOCAL_SERVER
from checkpoints.store import open_store
from orchestrator.cloud.local.s3_server import ensure_server, read_server
from orchestrator.spec import LOCAL_S3

pytestmark = pytest.mark.xdist_group("local-s3")
ENSURE = "from orchestrator.cloud.local.s3_server import ensure_server; ensure_server()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Yield the folder of a server that two commands wanted at once, after one that was killed."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "s3"
    try:
        first = start_command(home)
        while not list(servers(folder)):
            assert first.poll() is None
        first.kill()
        first.wait()
        assert read_server(folder) is None
        both = [start_command(home) for _ in range(2)]
        assert [process.wait(60) for process in both] == [0, 0]
        yield folder
    finally:
        for server in servers(folder):
            server.kill()


@pytest.fixture
def here(folder, monkeypatch):
    """Have this process find the server."""
    monkeypatch.setenv(LOCAL_SERVER, "")
    monkeypatch.setenv("ORCHESTRATE_HOME", str(folder.parent))


def start_command(home) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "ORCHESTRATE_HOME": str(home)}
    return subprocess.Popen([sys.executable, "-c", ENSURE], env=environment)


def servers(folder) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["cmdline"]):
        if f"-dir={folder}/data" in (process.info["cmdline"] or ()):
            yield process


def test_commands_at_once_have_one_server_and_a_killed_one_s_is_gone(folder):
    assert [server.pid for server in servers(folder)] == [read_server(folder).pid]


def test_a_server_that_was_killed_is_started_again_with_its_data_by_the_next_command(folder, here):
    ensure_server()
    store, before = open_store(f"{LOCAL_S3}/demo"), read_server(folder)
    store.put("a", b"x" * 100_000)
    psutil.Process(before.pid).kill()
    while before.is_running:
        pass

    command = [Path(sys.executable).with_name("orchestrate"), "status", "--store", "s3-local"]
    subprocess.run(command, check=True, timeout=60)
    after = read_server(folder)
    assert psutil.pid_exists(after.pid)
    assert after == before.model_copy(update={"pid": after.pid})  # so that clients find it
    assert store.get("a").data == b"x" * 100_000


def test_another_process_with_the_server_s_id_is_not_taken_for_it(folder):
    record = read_server(folder)
    assert record.is_running
    assert not record.model_copy(update={"pid": os.getpid()}).is_running
