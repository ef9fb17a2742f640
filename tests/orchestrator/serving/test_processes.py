"""Processes that serve, and what they leave behind."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import psutil
import pytest

from orchestrator.serving.processes import start_process, stop_process

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("is_dead", [True, False])
def test_what_a_process_started_ends_with_it(is_dead, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", PARENT]
    process = start_process(command, folder=tmp_path, log=log, environment={})
    give_up_at = time.monotonic() + 30
    while not log.read_text().endswith("\n"):
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    child = psutil.Process(int(log.read_text()))
    if is_dead:
        process.kill()
        process.wait()
        assert child.is_running()
    stop_process(process, timedelta(seconds=5))
    # An orphan whose new parent does not ask for its status is a zombie from then on.
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
