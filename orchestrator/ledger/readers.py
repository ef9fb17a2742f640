"""Who else reads the ledger: a run may be carried out by an earlier version than this one."""

from __future__ import annotations

from checkpoints.store import ObjectStore
from orchestrator.ledger.facts import SCHEMA_VERSION
from orchestrator.ledger.fold import RunState
from orchestrator.ledger.journal import LedgerReader


def is_read_by_older(folder: ObjectStore, state: RunState) -> bool:
    """Say whether the run goes on under a version that could not read facts of this one."""
    if state.ended is not None:
        return False
    versions = [
        entry.schema_version
        for entry in LedgerReader(folder).read()
        if entry.at == state.launched_at
    ]
    return min(versions, default=SCHEMA_VERSION) < SCHEMA_VERSION
