"""What the ledger is told about one attempt."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence

from checkpoints.errors import CheckpointError, ObjectMissing, RecordInvalid
from checkpoints.fence import read_head
from checkpoints.inspect import read_manifest
from checkpoints.layout import CHECKPOINTS
from checkpoints.manifest import Claim
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
from orchestrator.offers import Offer
from orchestrator.places import place_of_objects
from orchestrator.spec import RunSpec
from train.spool import Commit, Damaged, Deleted, Notice, Record, Resumed

log = logging.getLogger(__name__)


class AttemptFacts:
    """Records facts of one attempt; they are durable after `flush`."""

    def __init__(
        self, store: ObjectStore, claim: Claim, clock: Clock, *, spec: RunSpec, offer: Offer
    ) -> None:
        self._store = store
        self._claim = claim
        self._spec = spec
        self._offer = offer
        self._known: set[str] = set()  # manifests whose commit is in the ledger
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
        """Say what the agent before us saw but may not have lived to say: commits and deletions."""
        self._known |= {commit.manifest for commit in known}
        self._catch_up(self._claim.parent, end=None)
        present = {entry.key for entry in self._store.list(CHECKPOINTS)}
        for commit in known:
            if commit.deleted_at is None and commit.manifest not in present:
                prefix = commit.manifest.rpartition("/")[0]
                self._journal.record(CheckpointDeleted(checkpoint=prefix))
        self._journal.flush()

    def _catch_up(self, key: str | None, *, end: str | None) -> None:
        """Say the commits from `key` to `end`, along their parents, that the ledger does not know.

        A commit whose answer was lost is one that nobody has told of, also if others followed.
        """
        while key is not None and key != end:
            try:
                manifest = read_manifest(self._store, key)
            except (RecordInvalid, ObjectMissing):
                # Pruned; or damaged, then the trainer goes back to an earlier one and says so.
                return
            key = manifest.parent
            if manifest.key in self._known:
                continue
            self._committed(
                CheckpointCommitted(
                    attempt=manifest.attempt,
                    step=manifest.step,
                    manifest=manifest.key,
                    place=self._place(manifest.store),
                    num_bytes=manifest.num_bytes,
                    num_objects=len(manifest.objects),
                )
            )

    def _committed(self, fact: CheckpointCommitted) -> None:
        self._known.add(fact.manifest)
        self._journal.record(fact)

    def _place(self, store: str | None) -> str | None:
        return place_of_objects(self._spec, self._offer, store)

    def measured(self, record: Record) -> None:
        """Turn a trainer's record into a fact if it is one; the rest are measurements."""
        attempt = self._claim.attempt
        if isinstance(record, Commit):
            self._committed(
                CheckpointCommitted(
                    attempt=attempt,
                    step=record.step,
                    manifest=record.manifest,
                    place=self._place(record.store),
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
                attempt=attempt,
                step=record.step,
                place=self._place(record.store),
                num_bytes=record.num_bytes,
            )
            self._journal.record(restored)

    def noticed(self, notice: Notice) -> None:
        """Say that the node goes away."""
        received = NoticeReceived(attempt=self._claim.attempt, deadline_at=notice.deadline_at)
        self._journal.record(received)

    def ended(self, reason: EndReason, step: int, error: str | None) -> None:
        """Say how the attempt ended, and what it committed without hearing of it."""
        try:
            head = read_head(self._store)
            if head is not None and head[0].attempt == self._claim.attempt:
                self._catch_up(head[0].manifest, end=self._claim.parent)
        except CheckpointError as failure:
            log.warning("the last commits were not looked for: %s", failure)
        self._journal.record(
            AttemptEnded(attempt=self._claim.attempt, reason=reason, step=step, error=error)
        )
