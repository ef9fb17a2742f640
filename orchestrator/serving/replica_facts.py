"""What a replica says of itself in the ledgers of the runs whose models it serves.

A store that fails is no reason to answer nobody: what could not be written is written later.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from datetime import datetime
from socket import gethostname

from checkpoints.errors import CheckpointError
from checkpoints.store import ObjectStore
from orchestrator.clock import Clock
from orchestrator.ledger.facts import (
    Fact,
    QuotedOffer,
    ReplicaEnded,
    ReplicaEndReason,
    ReplicaNoticed,
    ReplicaStarted,
)
from orchestrator.ledger.heartbeat import Heartbeat
from orchestrator.ledger.journal import Journal
from orchestrator.replicas import BEAT_EVERY, beat_as_replica

_log = logging.getLogger(__name__)


class ReplicaFacts:
    """Writes facts, and every 20 s a sign of life, until it is closed."""

    def __init__(
        self, folders: Iterable[tuple[ObjectStore, int]], replica: str, clock: Clock
    ) -> None:
        """Write to these run folders, each with how many of the node's models are of that run.

        `replica` is a name that no other has.
        """
        self._replica = replica
        self._clock = clock
        known = tuple(folders)
        self._folders = tuple(folder for folder, _ in known)
        self._num_own = tuple(number for _, number in known)
        self._journals = tuple(Journal(folder, "replica", clock) for folder in self._folders)
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="replica-beat", daemon=True)

    def started(self, service: str, offer: QuotedOffer, num_models: int, up_at: datetime) -> None:
        """Say that the node was taken for this service, and begin to show that it lives."""
        with self._lock:
            for journal, num_own in zip(self._journals, self._num_own, strict=True):
                body = ReplicaStarted(
                    service=service,
                    replica=self._replica,
                    offer=offer,
                    num_models=num_models,
                    num_own=num_own,
                    up_at=up_at,
                )
                journal.record(body)
        self._flush()
        self._thread.start()

    def noticed(self, deadline_at: datetime) -> None:
        """Say that the cloud takes the node back."""
        self._record(ReplicaNoticed(replica=self._replica, deadline_at=deadline_at))

    def ended(self, reason: ReplicaEndReason) -> None:
        """Say that the node serves no longer."""
        self._is_over.set()
        self._record(ReplicaEnded(replica=self._replica, reason=reason))

    def _live(self) -> None:
        while not self._is_over.is_set():
            self._beat()
            self._flush()
            self._is_over.wait(BEAT_EVERY.total_seconds())

    def _beat(self) -> None:
        beat = Heartbeat(
            writer=self._replica, at=self._clock.now(), host=gethostname(), pid=os.getpid()
        )
        for folder in self._folders:
            try:
                beat_as_replica(folder, beat)
            except CheckpointError as error:
                _log.warning("no sign of life could be left: %s", error)

    def _record(self, body: Fact) -> None:
        with self._lock:
            for journal in self._journals:
                journal.record(body)
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            for journal in self._journals:
                try:
                    journal.flush()
                except CheckpointError as error:
                    _log.warning("the ledger could not be written, and will be: %s", error)
