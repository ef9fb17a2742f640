"""Doctor's questions to SkyPilot's API server: a real one, none at all, and one that hangs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import psutil
import pytest

from orchestrator.cloud.skypilot.checks import Inquiry
from tests.end_to_end.conftest import EXAMPLES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CLOUD = EXAMPLES / "vicuna-13b.yaml"


@pytest.fixture(autouse=True)
def port(monkeypatch) -> int:
    """Have SkyPilot look for its server at a port of our own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    monkeypatch.setenv("SKYPILOT_API_SERVER_LOCAL_PORT", str(number))
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    monkeypatch.delenv("SKYPILOT_API_SERVER_ENDPOINT", raising=False)
    monkeypatch.delenv("SKY_RUNTIME_DIR")
    return number


@pytest.fixture
def server(port, tmp_path, orchestrate, monkeypatch) -> Iterator[None]:
    """Start an API server in this test's home after `doctor --fix`."""
    (tmp_path / "user").mkdir()
    assert orchestrate("doctor", "--fix", "--yes")[0] == 0
    monkeypatch.setenv("SKYPILOT_POD_MEMORY_GB_LIMIT", "4")  # fewer workers
    command = [sys.executable, "-m", "sky.server.server", "--host=127.0.0.1", f"--port={port}"]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=tmp_path
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/health", process)
        yield
    finally:
        started = psutil.Process(process.pid)
        for one in [*started.children(recursive=True), started]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < give_up_at:
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.2)
    raise AssertionError("the API server did not start")


def test_a_real_server_that_was_fixed_has_loaded_the_plugin(server, orchestrate, loose):
    _, out, _ = orchestrate("doctor", CLOUD, "--json")
    found = json.loads(out)["findings"]
    whats = [(one["check"], one["verdict"], one["what"]) for one in found]
    assert ("plugin", "ok", "the API server has loaded the plugin") in whats
    (version,) = [what for check, _, what in whats if check == "server"]
    assert version.startswith("SkyPilot's API server 0.14")
    assert [verdict for check, verdict, _ in whats if check == "strays"] == ["ok"]
    (clouds,) = [one for one in found if one["check"] == "clouds"]
    assert clouds["next_step"] == "sky check aws gcp azure lambda"


def test_no_server_is_said_and_none_is_started(port):
    answers = Inquiry().answers()
    assert answers.server is not None
    assert (answers.server.status, answers.server.is_local) == ("unhealthy", True)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_server_that_hangs_is_given_up(port):
    with socket.create_server(("127.0.0.1", port)):
        begun = time.monotonic()
        answers = Inquiry().answers(timedelta(seconds=8))
        assert time.monotonic() - begun < 12
    # SkyPilot's own health check gives up after 7.5 s; importing it may have taken the rest.
    assert answers.server is None or answers.server.status == "unhealthy"
