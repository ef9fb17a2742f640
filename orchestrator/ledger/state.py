"""Read a run's state again and again: most looks find no new fact, and folding takes time."""

from __future__ import annotations

from collections.abc import Sequence

from checkpoints.store import ObjectStore
from orchestrator.ledger.facts import Entry
from orchestrator.ledger.fold import RunState, fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.record import RunRecord


class StateReader:
    """What the facts of one run say now."""

    def __init__(self, store: ObjectStore, record: RunRecord) -> None:
        self._record = record
        self._ledger = LedgerReader(store)
        self._folded: tuple[Sequence[Entry], RunState] | None = None

    def read(self) -> RunState:
        """Return the state; the same object as before where nothing was written since."""
        entries = self._ledger.read()
        if self._folded is None or self._folded[0] is not entries:
            self._folded = (entries, fold(self._record, entries))
        return self._folded[1]
