"""Report a run to Weights & Biases: one W&B run for all attempts, never in training's way.

W&B is a view of what the run folder holds, drawn by a process of its own (`tracking_process`) that
reads the trainer's spool. Here that process is started, and ended in bounded time.
"""

from __future__ import annotations

import logging
import netrc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.agent.processes import kill_tree

_log = logging.getLogger(__name__)
# The node is billed meanwhile; what W&B lacks then, the next attempt or `wandb sync` sends.
_FINISH_TIMEOUT_S = 15.0
# Nothing is waited for but this machine: its W&B process writes out the file at its end only,
# and on a fresh, loaded node a short attempt is over before W&B is imported.
_FINISH_OFFLINE_TIMEOUT_S = 60.0


class Mode(str, Enum):
    """How W&B is spoken to, in its own words."""

    ONLINE = "online"
    OFFLINE = "offline"
    DISABLED = "disabled"


class TrackingConfig(BaseModel):
    """What the side process is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    store: str
    attempt: int
    spool_dir: Path
    directory: Path
    mode: Mode | None = None
    """None: online where W&B has a key and can be reached."""


class Tracker:
    """The agent's end of the attempt's only W&B process, which can neither block nor outlive it.

    A process and no thread: `wandb.init` waits for ever, whatever its init_timeout, for a server
    that answers 500 or nothing (wandb 0.26.1: 55 s with init_timeout=10), and after an init that
    failed the id is "in use" for the rest of the process. A process can be killed and started
    again. What it has not read yet waits in the spool, so that it may be as slow as it likes.
    """

    def __init__(self, config: TrackingConfig, log: Path) -> None:
        self._config, self._log_file = config, log
        self._process = self._start(config)

    def finish(self, each_second: Callable[[], None] = lambda: None) -> Path | None:
        """Close the run; return the file that `wandb sync` takes, None where W&B has everything."""
        if _end(self._process, self._config, each_second):
            return _recorded(self._config, "offline-run-*")
        _log.warning("W&B did not finish in time or in order: recording the run offline")
        directory = self._config.directory.with_name("wandb-again")
        again = self._config.model_copy(update={"directory": directory, "mode": Mode.OFFLINE})
        _end(self._start(again), again, each_second)
        return _recorded(again, "offline-run-*") or _recorded(self._config, "*run-*")

    def _start(self, config: TrackingConfig) -> subprocess.Popen[bytes] | None:
        try:
            return _start(config, self._log_file)
        except OSError as error:
            _log.warning("W&B cannot be started, the run goes on without it: %s", error)
            return None


def _start(config: TrackingConfig, log: Path) -> subprocess.Popen[bytes]:
    config.directory.mkdir(parents=True, exist_ok=True)
    config_file = config.directory / "tracking.json"
    config_file.write_text(config.model_dump_json())
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.agent.tracking_process", str(config_file)],
            # Its end tells the process to finish, also when the agent has died.
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _end(
    process: subprocess.Popen[bytes] | None,
    config: TrackingConfig,
    each_second: Callable[[], None],
) -> bool:
    """Have the process finish, and kill it if it does not; say whether it did all."""
    if process is None:
        return False
    assert process.stdin is not None
    process.stdin.close()
    started = time.monotonic()
    while process.poll() is None:
        each_second()
        is_online = online_mark(config.directory).exists()
        limit_s = _FINISH_TIMEOUT_S if is_online else _FINISH_OFFLINE_TIMEOUT_S
        left_s = started + limit_s - time.monotonic()
        if left_s <= 0:
            _kill(process)
            break
        # Briefly: the mark may come meanwhile.
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(left_s, 1.0))
    return process.returncode == 0


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        kill_tree(process)
    except subprocess.TimeoutExpired:
        _log.warning("the W&B process %d cannot be killed", process.pid)


def online_mark(directory: Path) -> Path:
    """Return the file that the process leaves once it waits for a server."""
    return directory / "online"


def _recorded(config: TrackingConfig, runs: str) -> Path | None:
    files = sorted(config.directory.glob(f"wandb/{runs}/run-*.wandb"))
    return files[-1] if files else None


def has_key() -> bool:
    """Say whether W&B's key is where its client looks for it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
