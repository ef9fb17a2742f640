"""Start a run's supervisor on this machine, detached, and see whether one is at work."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

from checkpoints.store import ObjectStore

LOCK_NAME = "supervisor.lock"
LOG_NAME = "supervisor.log"
NODES_NAME = "nodes"


def is_supervised(home: Path) -> bool:
    """Say whether a supervisor holds the run's lock on this machine."""
    path = home / LOCK_NAME
    if not path.exists():
        return False
    with path.open("ab") as lock:
        try:
            # Shared: two that merely look at the same time must not see each other.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def start_supervisor(store: ObjectStore, home: Path) -> Path:
    """Start a supervisor in a session of its own and return its log.

    Starting a second one is harmless: it finds the lock taken and leaves.
    """
    home.mkdir(parents=True, exist_ok=True)
    log = home / LOG_NAME
    with log.open("ab") as output:
        subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cloud.local", store.url, str(home)],
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return log
