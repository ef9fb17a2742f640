"""Which recorded steps the present weights come from: a history that forks where work was lost.

Each update stands on the one before it. Resuming goes back to the update that a checkpoint was
written after, and so does a roll-back; what was done since is on another branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.ledger.measurements import Measured
from train.spool import Commit, Resumed, RolledBack, Step


@dataclass(frozen=True, slots=True)
class _Update:
    """The step recorded at `place`, and what it stands on."""

    place: int
    step: int
    before: _Update | None


def lineage(measured: Sequence[Measured], last_commit_step: int | None = None) -> frozenset[int]:
    """Return the places of the step records that the last one stands on, its own included.

    With `last_commit_step`, of a run of which nothing is up: those that its last checkpoint has.
    """
    tip: _Update | None = None
    saved: dict[int, _Update | None] = {}
    for place, one in enumerate(measured):
        record = one.record
        if isinstance(record, Step):
            tip = _Update(place, record.step, _back(tip, record.step - 1))
        elif isinstance(record, Commit):
            saved[record.step] = _back(tip, record.step)
        elif isinstance(record, RolledBack):
            tip = _back(tip, record.to_step)
        elif isinstance(record, Resumed):
            # A roll-back may have given up what was saved, and saved nothing since.
            tip = saved.get(record.step, _back(tip, record.step))
    if last_commit_step is not None:
        tip = saved.get(last_commit_step, tip)
    places = []
    while tip is not None:
        places.append(tip.place)
        tip = tip.before
    return frozenset(places)


def _back(update: _Update | None, step: int) -> _Update | None:
    """Return the last update up to `step`."""
    while update is not None and update.step > step:
        update = update.before
    return update
