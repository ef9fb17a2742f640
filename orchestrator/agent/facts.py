"""What the ledger is told about one attempt."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence

from checkpoints.errors import ObjectMissing, RecordInvalid
from checkpoints.inspect import read_manifest
from checkpoints.layout import CHECKPOINTS
from checkpoints.manifest import Claim, Manifest
from checkpoints.store import ObjectStore
from orchestrator.attempts import EndReason
from orchestrator.clock import Clock
from orchestrator.ledger.facts import (
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointDamaged,
    CheckpointDeleted,
    CheckpointRestored,
    NoticeReceived,
)
from orchestrator.ledger.fold import CommitView
from orchestrator.ledger.journal import Journal
from train.spool import Commit, Damaged, Deleted, Notice, Record, Resumed

log = logging.getLogger(__name__)


class AttemptFacts:
    """Records facts of one attempt; they are durable after `flush`."""

    def __init__(self, store: ObjectStore, claim: Claim, clock: Clock) -> None:
        self._store = store
        self._claim = claim
        self._journal = Journal(store, f"agent-{claim.attempt:06d}", clock)

    @property
    def writer(self) -> str:
        """The name that these facts, and the agent's heartbeat, are written under."""
        return self._journal.writer

    def flush(self) -> None:
        """Store what is recorded; raises StoreError, and nothing is lost."""
        self._journal.flush()

    def started(self, launch: str) -> None:
        """Say that the attempt is claimed, durably."""
        self._journal.note(
            AttemptStarted(
                attempt=self._claim.attempt,
                launch=launch,
                world_size=self._claim.world_size,
                step=self._claim.step,
                manifest=self._claim.parent,
                host=socket.gethostname(),
            )
        )

    def inherited(self, known: Sequence[CommitView]) -> None:
        """Say what the agent before us saw but may not have lived to say: commit and deletions."""
        manifest = self._parent()
        if manifest is not None:
            self._journal.record(
                CheckpointCommitted(
                    attempt=manifest.attempt,
                    step=manifest.step,
                    manifest=manifest.key,
                    store=manifest.store,
                    num_bytes=manifest.num_bytes,
                    num_objects=len(manifest.objects),
                )
            )
        present = {entry.key for entry in self._store.list(CHECKPOINTS)}
        for commit in known:
            if commit.deleted_at is None and commit.manifest not in present:
                prefix = commit.manifest.rpartition("/")[0]
                self._journal.record(CheckpointDeleted(checkpoint=prefix))
        self._journal.flush()

    def _parent(self) -> Manifest | None:
        if self._claim.parent is None:
            return None
        try:
            return read_manifest(self._store, self._claim.parent)
        except (RecordInvalid, ObjectMissing) as error:
            # The trainer goes back to an earlier one, and says so.
            log.warning("%s", error.what)
            return None

    def measured(self, record: Record) -> None:
        """Turn a trainer's record into a fact if it is one; the rest are measurements."""
        attempt = self._claim.attempt
        if isinstance(record, Commit):
            self._journal.record(
                CheckpointCommitted(
                    attempt=attempt,
                    step=record.step,
                    manifest=record.manifest,
                    store=record.store,
                    num_bytes=record.num_bytes,
                    num_objects=record.num_objects,
                )
            )
        elif isinstance(record, Deleted):
            self._journal.record(CheckpointDeleted(checkpoint=record.checkpoint))
        elif isinstance(record, Damaged):
            damaged = CheckpointDamaged(attempt=attempt, manifest=record.manifest, what=record.what)
            self._journal.record(damaged)
        elif isinstance(record, Resumed) and self._claim.parent is not None:
            restored = CheckpointRestored(
                attempt=attempt, step=record.step, store=record.store, num_bytes=record.num_bytes
            )
            self._journal.record(restored)

    def noticed(self, notice: Notice) -> None:
        """Say that the node goes away."""
        received = NoticeReceived(attempt=self._claim.attempt, deadline_at=notice.deadline_at)
        self._journal.record(received)

    def ended(self, reason: EndReason, step: int, error: str | None) -> None:
        """Say how the attempt ended."""
        self._journal.record(
            AttemptEnded(attempt=self._claim.attempt, reason=reason, step=step, error=error)
        )
