"""A workplace of the soak's own: home, store, a folder for temporary files; and its processes.

Everything that the command line starts from here bears this home in its environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import yaml

from train.spool import Notice, write_notice

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN = "soak"
_ORCHESTRATE = Path(sys.executable).with_name("orchestrate")
_NODE = "ORCHESTRATE_NODE"
_HOME = "ORCHESTRATE_HOME"
# More than an hour on a fast machine trains; the run is stopped, it does not end.
_NUM_STEPS = 1_000_000


class Site:
    """The folders, the spec, and the command line in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store" / RUN
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._environment = {
            **os.environ,
            _HOME: str(folder / "home"),
            "TMPDIR": str(self.temporary),
            "WANDB_MODE": "offline",
        }

    def write_spec(self, keep_last: int) -> Path:
        """Write a run like the quickstart that neither ends nor is preempted by itself."""
        spec = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text(encoding="utf-8"))
        spec |= {
            "name": RUN,
            "store": str(self.store.parent),
            "model": {"base": str(EXAMPLES / "tiny-llama"), "max_length": 384},
            "data": {"train": str(EXAMPLES / "conversations.json"), "eval_fraction": 0.05},
            "checkpoints": {"interval": "5 steps", "keep_last": keep_last},
            "limits": {"budget_usd": 100_000, "market": "spot", "policy": "greedy"},
            "local": {"ranks": 2, "time_scale": 1, "preemptions": []},
        }
        spec["train"]["num_steps"] = _NUM_STEPS
        path = self.folder / "soak.yaml"
        path.write_text(yaml.safe_dump(spec), encoding="utf-8")
        return path

    def orchestrate(self, *arguments: str) -> str:
        """Run the command line and return its standard output."""
        done = subprocess.run(
            [_ORCHESTRATE, *arguments],
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"orchestrate {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def document(self, *arguments: str) -> dict[str, Any]:
        """Run a reading command and return its document."""
        found = json.loads(self.orchestrate(*arguments, "--json"), parse_float=str)
        assert isinstance(found, dict)
        return found

    def processes(self) -> Iterator[tuple[psutil.Process, str | None]]:
        """Yield each living process, and the node that it belongs to, if to one."""
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                environment = process.environ()
                if environment.get(_HOME) == self._environment[_HOME]:
                    yield process, environment.get(_NODE)

    def nodes(self) -> Iterator[Path]:
        """Yield the folder of every node that there was."""
        return (self.folder / "home" / "runs").glob("*/nodes/*")

    def lived_s(self, node: Path) -> float:
        """Return how long a node that is gone lived: from its configuration to its disk's end."""
        return node.stat().st_mtime - (node / "agent.json").stat().st_mtime

    def give_notice(self, node: str, seconds: float) -> None:
        """Say what a cloud's metadata service says before it takes a node back."""
        deadline_at = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        for folder in self.nodes():
            if folder.name == node:
                write_notice(folder / "metadata" / "notice.json", Notice(deadline_at=deadline_at))

    def kill_node(self, node: str) -> int:
        """SIGKILL all of a node's processes; return how many there were."""
        family = [process for process, of in self.processes() if of == node]
        for process in family:
            with suppress(psutil.Error):
                process.kill()
        return len(family)
