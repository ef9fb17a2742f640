"""The thread that tells a run's news beside whoever runs it: it holds nothing up, and may die."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from datetime import timedelta

from checkpoints.store import ObjectStore, is_bucket
from orchestrator.clock import Clock
from orchestrator.ledger.record import RunRecord
from orchestrator.notify.messenger import open_valid_addresses
from orchestrator.notify.teller import Teller

# A look at a bucket is two LIST and some GET: 2,880 a day are about $0.03 on S3.
_LOOK_EVERY = timedelta(seconds=1)
_LOOK_AT_BUCKETS_EVERY = timedelta(seconds=30)
# Or a store that is away for an hour fills the log.
_AFTER_TROUBLE = timedelta(seconds=30)
_LAST_LOOKS_EVERY = timedelta(seconds=0.5)
CLOSING_TAKES = timedelta(seconds=15)
"""How long a process may wait for its last messages."""


class Notifier:
    """A daemon thread around a teller; `close` lets the last messages out, for a bounded time."""

    def __init__(self, teller: Teller, look_every: timedelta, log: logging.Logger) -> None:
        self._teller, self._look_every, self._log = teller, look_every, log
        self._closing = threading.Event()
        # In this context: SkyPilot keeps each job's variables and log in one.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="notifier", daemon=True)
        self._thread.start()

    def dismiss(self) -> None:
        """Have it end without being waited for."""
        self._closing.set()

    def close(self, wait: timedelta = CLOSING_TAKES) -> None:
        """Have it look once more and end when all is sent; return after `wait` in any case."""
        self._closing.set()
        self._thread.join(wait.total_seconds())
        if self._thread.is_alive():
            self._log.warning("not every notification could be sent in time")

    def _run(self) -> None:
        while not self._closing.is_set():
            pause = self._look_every if self._step() else max(self._look_every, _AFTER_TROUBLE)
            self._closing.wait(pause.total_seconds())
        give_up_at = time.monotonic() + CLOSING_TAKES.total_seconds()
        self._teller.hurry()
        while not (self._step() and self._teller.is_done) and time.monotonic() < give_up_at:
            time.sleep(_LAST_LOOKS_EVERY.total_seconds())

    def _step(self) -> bool:
        """Return whether it could look for news."""
        try:
            return self._teller.step()
        except Exception as error:  # noqa: BLE001  # the run goes on, whatever this is
            # Not its words: they may hold an address.
            self._log.warning("telling the news failed: %s", type(error).__name__)
            return False


def start_notifier(
    store: ObjectStore,
    record: RunRecord,
    addresses: str | None,
    clock: Clock,
    log: logging.Logger,
) -> Notifier | None:
    """Begin to tell the news of a run; None where no address is known that can be used."""
    try:
        known = open_valid_addresses(addresses, log) if addresses else []
    except Exception as error:  # noqa: BLE001  # the run goes on without messages
        log.warning("nobody is notified: apprise failed, %s", type(error).__name__)
        return None
    if not known:
        return None
    log.info("news of the run goes to %s", ", ".join(address.name for address in known))
    is_free = not is_bucket(store.url) or store.url.startswith("s3-local:")
    look_every = _LOOK_EVERY if is_free else _LOOK_AT_BUCKETS_EVERY
    return Notifier(Teller(store, record, known, clock, log), look_every, log)
