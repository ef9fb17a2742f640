"""`python decisions.py RUN_FOLDER`: recorded decisions, and whether each is made again, as JSON."""

from __future__ import annotations

import json
import sys

from checkpoints.store import open_store
from orchestrator.deciding import replay_decisions
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.record import read_record


def replay(url: str) -> list[tuple[str, str, bool]]:
    """Return action, reason, and whether the ledger alone gives the same decision."""
    store = open_store(url)
    record = read_record(store)
    assert record is not None
    found = replay_decisions(record, LedgerReader(store).read())
    return [(one.recorded.action, one.recorded.why, one.is_equal) for one in found]


if __name__ == "__main__":
    print(json.dumps(replay(sys.argv[1])))  # noqa: T201
