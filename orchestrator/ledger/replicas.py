"""Nodes that served a run's model, from the facts, in whatever order and however often."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from orchestrator.ledger.facts import (
    Entry,
    ReplicaEnded,
    ReplicaEndReason,
    ReplicaNoticed,
    ReplicaStarted,
)
from orchestrator.offers import Offer

# A replica that is there so long after its deadline was not taken after all, and ends by itself.
STAYS_AFTER_NOTICE = timedelta(minutes=1)
# Clocks differ, and the machine's shutdown begins before it is gone.
_SOONER = timedelta(seconds=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """One node that served the run's model."""

    service: str
    replica: str
    offer: Offer
    num_models: int
    """Models on the node, which share its price evenly."""
    num_own: int
    """How many of them are this run's."""
    up_at: datetime
    started_at: datetime
    """When it said that it serves, or is about to."""
    ended_at: datetime | None = None
    reason: ReplicaEndReason | None = None
    leaves_at: datetime | None = None
    """When the notice said that the node would be taken."""


def is_of_replica(entry: Entry) -> bool:
    """Say whether a fact is of one that served the model, and not of the training."""
    return isinstance(entry.body, (ReplicaStarted, ReplicaNoticed, ReplicaEnded))


def fold_replicas(ordered: Iterable[Entry]) -> tuple[ReplicaView, ...]:
    """Return the replicas that the entries, in the order all readers agree on, tell of."""
    told = [entry for entry in ordered if is_of_replica(entry)]
    found: dict[str, ReplicaView] = {}
    # Beginnings first: whoever wrote the end may have a clock that is behind.
    for entry in told:
        if isinstance(entry.body, ReplicaStarted):
            found.setdefault(entry.body.replica, _started(entry.at, entry.body))
    for entry in told:
        body = entry.body
        if isinstance(body, (ReplicaNoticed, ReplicaEnded)) and body.replica in found:
            known = found[body.replica]
            if isinstance(body, ReplicaNoticed):
                found[body.replica] = _noticed(known, body)
            else:
                found[body.replica] = _ended(known, entry.at, body)
    views = [_taken(view) for view in found.values()]
    return tuple(sorted(views, key=lambda one: (one.up_at, one.replica)))


def _started(at: datetime, body: ReplicaStarted) -> ReplicaView:
    return ReplicaView(
        service=body.service,
        replica=body.replica,
        offer=body.offer.to_offer(),
        num_models=body.num_models,
        num_own=min(body.num_own, body.num_models),
        up_at=min(body.up_at, at),
        started_at=at,
    )


def _noticed(known: ReplicaView, body: ReplicaNoticed) -> ReplicaView:
    """Take the earliest deadline that was told."""
    earliest = min(known.leaves_at or body.deadline_at, body.deadline_at)
    return replace(known, leaves_at=earliest)


def _ended(known: ReplicaView, at: datetime, body: ReplicaEnded) -> ReplicaView:
    """Take the first end that anybody saw, and let none be before the beginning."""
    if known.ended_at is not None:
        return known
    return replace(known, ended_at=max(at, known.started_at), reason=body.reason)


def _taken(known: ReplicaView) -> ReplicaView:
    """Tell a node that the cloud took as announced from one that left by itself.

    AWS takes a node by shutting its system down, in which the replica sees a SIGTERM like any.
    """
    if known.reason is not ReplicaEndReason.STOPPED or known.ended_at is None:
        return known
    if known.leaves_at is None or known.ended_at < known.leaves_at - _SOONER:
        return known
    if known.ended_at >= known.leaves_at + STAYS_AFTER_NOTICE:
        return known
    ended_at = max(known.ended_at, known.leaves_at)
    return replace(known, ended_at=ended_at, reason=ReplicaEndReason.PREEMPTED)
