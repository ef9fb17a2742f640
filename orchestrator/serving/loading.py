"""A node that is told to go before it serves: it goes at once, for nobody waits for its answer."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from orchestrator.ledger.facts import ReplicaEndReason
from orchestrator.serving.replica_facts import ReplicaFacts

_log = logging.getLogger(__name__)
_LOOK_S = 0.5


@contextmanager
def gone_when_told(
    leaves_at: Callable[[], datetime | None], facts: ReplicaFacts, stop: threading.Event
) -> Iterator[None]:
    """While this is open, `stop` or the cloud's notice ends the process, with its facts written.

    Loading takes up to 20 minutes. What it started is killed with this process by the kernel.
    """
    is_loaded = threading.Event()

    def watch() -> None:
        while not is_loaded.wait(_LOOK_S):
            deadline_at = leaves_at()
            if deadline_at is None and not stop.is_set():
                continue
            _log.warning("told to go while loading; the cloud takes this node at %s", deadline_at)
            if deadline_at is not None:
                facts.noticed(deadline_at)
            facts.ended(ReplicaEndReason.STOPPED)
            # No exception reaches a thread that downloads gigabytes, or waits for one that does.
            os._exit(1)

    watching = threading.Thread(target=watch, name="told-while-loading", daemon=True)
    watching.start()
    try:
        yield
    finally:
        is_loaded.set()
        # It may be writing why the process ends, and then it does.
        watching.join()
