"""Run the real command line on a small run, in folders of its own, and leave no process behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from checkpoints.store import open_store
from orchestrator.clock import SystemClock
from orchestrator.errors import UnknownRun
from orchestrator.report import status_document
from orchestrator.view import RunViewer

EXAMPLES = Path(__file__).parents[2] / "examples"
ORCHESTRATE = str(Path(sys.executable).with_name("orchestrate"))


class Workplace:
    """A store, a state folder and specs; `home` marks every process that belongs to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.environment = {
            **os.environ,
            "ORCHESTRATE_HOME": str(self.home),
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
        }

    def write_spec(self, name: str = "small", **changes: object) -> Path:
        spec = {
            "name": name,
            "store": str(self.folder / "store"),
            "infra": "local",
            "model": {"base": str(EXAMPLES / "tiny-llama"), "max_length": 128},
            "data": {"train": str(EXAMPLES / "conversations.json")},
            "train": {"num_steps": 12, "global_batch": 8, "micro_batch": 4, "precision": "fp32"},
            "checkpoints": {"interval": "4 steps"},
            "limits": {"budget_usd": 500},
            "local": {"ranks": 2, "time_scale": 60, "preemptions": []},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**spec, **changes}))
        return path

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [ORCHESTRATE, *map(str, arguments)],
            env=self.environment,
            cwd=self.folder,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: object, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def document(self, *arguments: object) -> dict[str, Any]:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert isinstance(document, dict)
        return document

    def look(self, run: str = "small") -> dict[str, Any]:
        """Return what `status` says of a run that may not be there yet, for tests that wait."""
        try:
            reader = RunViewer(open_store((self.folder / "store" / run).as_uri()))
        except UnknownRun:
            return {"step": 0, "state": None, "attempts": []}
        return status_document(reader.look(SystemClock().now()))

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("ORCHESTRATE_HOME") == str(self.home):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def supervisors(self) -> list[psutil.Process]:
        return [one for one in self.processes() if "orchestrator.cloud.local" in one.cmdline()]

    def wait_until_quiet(self, seconds: float = 30) -> None:
        """Return when no process of this workplace is left."""
        left = self.leftovers(seconds)
        assert not left, [one.cmdline() for one in left]

    def leftovers(self, seconds: float) -> list[psutil.Process]:
        """Return the processes that are left after so long."""
        give_up_at = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < give_up_at:
            time.sleep(0.1)
        return left

    def wait_for(self, condition: Any, seconds: float = 90) -> None:
        give_up_at = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up_at, "it never came true"
            time.sleep(0.1)


@pytest.fixture
def workplace(tmp_path):
    place = Workplace(tmp_path)
    yield place
    for process in place.processes():
        process.kill()
    for temporary in place.home.glob("runs/*/nodes/*/tmp"):  # of nodes that were just killed
        shutil.rmtree(temporary.resolve(), ignore_errors=True)


@pytest.fixture(scope="module")
def browser():
    # Not for the session: its event loop would be in the way of modules that run their own.
    # Playwright is 80 ms, and tests that need no browser import this module too.
    from tests.browser import open_browser

    with open_browser() as running:
        yield running
