"""Entry of the detached supervisor: `python -m orchestrator.cloud.local RUN_FOLDER_URL HOME`."""

from __future__ import annotations

import fcntl
import logging
import sys
import time
from pathlib import Path

from checkpoints.store import open_store
from orchestrator.clock import SystemClock
from orchestrator.cloud.local.launcher import LOCK_NAME, NODES_NAME
from orchestrator.cloud.local.supervisor import Supervisor
from orchestrator.errors import UnknownRun
from orchestrator.ledger.record import read_record

_LOCK_TRIES = 10
_LOCK_RETRY_S = 0.1


def main(run_url: str, home: Path) -> None:
    """Supervise the run, unless another supervisor on this machine does."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    with (home / LOCK_NAME).open("ab") as lock:
        if not _acquire(lock.fileno()):
            logging.getLogger(__name__).info("another supervisor is at work")
            return
        store = open_store(run_url)
        record = read_record(store)
        if record is None:
            raise UnknownRun(f"{run_url} holds no run.", "Start it with orchestrate launch.")
        Supervisor(store, record, home / NODES_NAME, SystemClock()).run()


def _acquire(lock: int) -> bool:
    """Take the lock; a command line that merely looks at it holds it for a moment too."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_RETRY_S)
        else:
            return True
    return False


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
