"""Let the cloud take a node that it does not charge for if it takes it itself.

AWS charges nothing for a spot node that it takes back in the first hour, but by the second for one
that leaves at the notice, because SkyPilot terminates it then. What is left of two minutes is a
small price for up to an hour's.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from checkpoints.errors import CheckpointError
from checkpoints.store import ObjectStore
from orchestrator.charges import free_if_taken_at
from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.record import RunRecord
from train.termination import termination_notice

_log = logging.getLogger(__name__)
# Clouds are seldom punctual; a node that is still there then was not taken after all.
_LATEST = timedelta(minutes=1)
_LOOK_EVERY = timedelta(seconds=5)


def stay_while_free(store: ObjectStore, record: RunRecord, launch: str, clock: Clock) -> None:
    """Return when the node of a launch gains nothing by waiting to be taken; at once if never."""
    try:
        state = fold(record, LedgerReader(store).read())
    except (CheckpointError, OrchestratorError) as error:
        _log.warning("leaving at once, the ledger cannot be read: %s", error)
        return
    found = next((one for one in state.launches if one.launch == launch), None)
    taken_at = None if found is None else free_if_taken_at(found)
    if taken_at is None:
        return
    _log.info("staying until %s: a node that the cloud takes itself is not charged", taken_at)
    while clock.now() < taken_at + _LATEST and termination_notice() is None:
        clock.sleep(_LOOK_EVERY)
