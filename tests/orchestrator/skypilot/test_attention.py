"""Where flash-attn's prebuilt wheels are, by the names of its releases."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from orchestrator.cloud.skypilot.attention import Build, find_wheel, is_there, wheel_urls

BUILD = Build(
    python=(3, 11),
    torch="2.8.0+cu128",
    cuda="12.8",
    has_cxx11_abi=True,
    system="Linux",
    machine="x86_64",
)
RELEASED = (
    "https://github.com/Dao-AILab/flash-attention/releases/download/v2.8.3/"
    "flash_attn-2.8.3%2Bcu12torch2.8cxx11abiTRUE-cp311-cp311-linux_x86_64.whl"
)


def test_url_is_that_of_a_wheel_that_was_released():
    assert next(iter(wheel_urls(BUILD))) == RELEASED


def test_older_release_is_taken_where_the_newest_has_no_wheel_for_this_torch():
    build = replace(BUILD, python=(3, 12), torch="2.9.1", cuda="13.0")
    name = "flash_attn-2.8.1%2Bcu13torch2.9cxx11abiTRUE-cp312-cp312-linux_x86_64.whl"
    found = find_wheel(build, lambda url: url.endswith(name))
    assert found is not None
    assert "/v2.8.1/" in found
    assert find_wheel(build, lambda _: False) is None


@pytest.mark.parametrize("changes", [{"cuda": None}, {"system": "Darwin"}])
def test_machine_without_cuda_gets_none(changes):
    assert list(wheel_urls(replace(BUILD, **changes))) == []


class _Releases(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/there.whl" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_wheel_is_asked_for_without_being_downloaded():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Releases) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        assert is_there(f"{here}/there.whl")
        assert not is_there(f"{here}/missing.whl")
        server.shutdown()
    assert not is_there(f"{here}/there.whl")


def test_machine_without_cuda_is_told_that_attention_will_be_sdpa_s():
    command = [sys.executable, "-m", "orchestrator.cloud.skypilot.attention"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == ""
    assert "attention will be sdpa's" in done.stderr
