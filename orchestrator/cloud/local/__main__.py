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
from orchestrator.notify.addresses import take_addresses
from orchestrator.notify.notifier import start_notifier

_log = logging.getLogger(__name__)
_LOCK_TRIES = 10
_LOCK_RETRY_S = 0.1


def main(run_url: str, home: Path) -> None:
    """Supervise the run, unless another supervisor on this machine does."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    with (home / LOCK_NAME).open("ab") as lock:
        if not _acquire(lock.fileno()):
            _log.info("another supervisor is at work")
            return
        addresses = take_addresses(_log)  # before there are nodes, which are not to have them
        store, clock = open_store(run_url), SystemClock()
        record = read_record(store)
        if record is None:
            raise UnknownRun(f"{run_url} holds no run.", "Start it with orchestrate launch.")
        notifier = start_notifier(store, record, addresses, clock, _log)
        try:
            Supervisor(store, record, home / NODES_NAME, clock).run()
        finally:
            if notifier is not None:
                notifier.close()


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
