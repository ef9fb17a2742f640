"""What it cost to serve a run's model: a bill of its own, beside that of the training.

Nodes are charged by the rules of `charges`; where several models share one, each run is charged
its even share. These dollars are never simulated: whatever trained the model, a cloud served it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from pydantic import ValidationError

from checkpoints.errors import ObjectMissing
from checkpoints.layout import REPLICAS, replica_key
from checkpoints.store import ObjectStore
from orchestrator.attempts import EndReason
from orchestrator.charges import charge_nodes, round_usd
from orchestrator.ledger.facts import ReplicaEndReason, TerminatedBy
from orchestrator.ledger.fold import LaunchView
from orchestrator.ledger.heartbeat import Heartbeat
from orchestrator.ledger.replicas import ReplicaView
from orchestrator.offers import Market

BEAT_EVERY = timedelta(seconds=20)
# SkyServe gives a replica up that has not answered for 3 minutes, and terminates it within one.
SILENT_REPLICA_STOPS_AFTER = timedelta(minutes=4)
# A node that was to be taken and has missed so many beats was taken.
_TAKEN_AFTER = 3 * BEAT_EVERY


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaCharge:
    """A run's share of what one node that served its model cost, in USD."""

    replica: ReplicaView
    """Ended, where it has fallen silent."""
    hours: Decimal
    """For which the node was up, whoever shared it."""
    usd: Decimal
    waived_usd: Decimal
    """What more it would be without the cloud's rule for nodes that it takes back early."""
    on_demand_usd: Decimal
    """What so many hours cost on demand in the same region."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingBill:
    """All that was paid for serving a run's model."""

    replicas: tuple[ReplicaCharge, ...]

    @property
    def usd(self) -> Decimal:
        """The sum over replicas."""
        return self.usd_where()

    def usd_where(self, *, service: str | None = None, market: Market | None = None) -> Decimal:
        """Return the sum over the replicas of a service, of a market, or of both."""
        return sum((one.usd for one in self._where(service, market)), Decimal(0))

    def hours_where(self, *, service: str | None = None, market: Market | None = None) -> Decimal:
        """Return the hours of the same replicas."""
        return sum((one.hours for one in self._where(service, market)), Decimal(0))

    @property
    def services(self) -> tuple[str, ...]:
        """Names of the services, in the order of their first replicas."""
        return tuple(dict.fromkeys(one.replica.service for one in self.replicas))

    @property
    def is_going_on(self) -> bool:
        """Say whether a replica still serves."""
        return any(one.replica.ended_at is None for one in self.replicas)

    def _where(self, service: str | None, market: Market | None) -> Iterable[ReplicaCharge]:
        return (
            one
            for one in self.replicas
            if service in (None, one.replica.service) and market in (None, one.replica.offer.market)
        )


def serving_bill(
    replicas: Iterable[ReplicaView], seen_at: Mapping[str, datetime], as_of: datetime
) -> ServingBill:
    """Return what the replicas have cost until `as_of`; `seen_at` are their last signs of life."""
    settled = (_settled(one, seen_at.get(one.replica), as_of) for one in replicas)
    return ServingBill(replicas=tuple(_charge(one, as_of) for one in settled))


def _settled(replica: ReplicaView, seen_at: datetime | None, as_of: datetime) -> ReplicaView:
    """Return the replica with its end, where it has fallen silent without having told one.

    A node that was to be taken was taken then; any other is paid for until SkyServe gives it up.
    """
    if replica.ended_at is not None:
        return replica
    heard_at = max(replica.started_at, seen_at or replica.started_at)
    if replica.leaves_at is not None:
        taken_at = max(replica.leaves_at, heard_at)
        if as_of > taken_at + _TAKEN_AFTER:
            return replace(replica, ended_at=taken_at, reason=ReplicaEndReason.PREEMPTED)
        return replica
    given_up_at = heard_at + SILENT_REPLICA_STOPS_AFTER
    if as_of > given_up_at:
        return replace(replica, ended_at=given_up_at, reason=ReplicaEndReason.LOST)
    return replica


def _charge(replica: ReplicaView, as_of: datetime) -> ReplicaCharge:
    charged = charge_nodes(_as_launch(replica), as_of)
    share = Decimal(replica.num_own) / replica.num_models
    on_demand = charged.hours * replica.offer.on_demand_usd_per_hour
    return ReplicaCharge(
        replica=replica,
        hours=charged.hours,
        usd=round_usd(charged.usd * share),
        waived_usd=round_usd(charged.waived_usd * share),
        on_demand_usd=round_usd(on_demand * share),
    )


def _as_launch(replica: ReplicaView) -> LaunchView:
    """Return the node as clouds see it, to which it is one like those that train."""
    was_taken = replica.reason is ReplicaEndReason.PREEMPTED
    return LaunchView(
        launch=replica.replica,
        offer=replica.offer,
        num_nodes=1,
        started_at=replica.up_at,
        ready_at=replica.up_at,
        ended_at=replica.ended_at,
        reason=EndReason.PREEMPTED if was_taken else EndReason.STOPPED,
        terminated_by=TerminatedBy.CLOUD if was_taken else TerminatedBy.US,
        leaves_at=replica.leaves_at,
        was_watched=was_taken,  # by itself: its last word is of its shutdown
    )


def beat_as_replica(store: ObjectStore, beat: Heartbeat) -> None:
    """Overwrite the sign of life of a replica, which is the writer of `beat`."""
    store.put(replica_key(beat.writer), beat.model_dump_json().encode())


def read_replica_beats(store: ObjectStore) -> dict[str, datetime]:
    """Return when each replica was last heard; what does not parse proves nothing."""
    found = (_beat(store, entry.key) for entry in store.list(REPLICAS))
    return {beat.writer: beat.at for beat in found if beat is not None}


def _beat(store: ObjectStore, key: str) -> Heartbeat | None:
    try:
        return Heartbeat.model_validate_json(store.get(key).data)
    except (ObjectMissing, ValidationError):
        return None
