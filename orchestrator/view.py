"""Everything that reports read of a run, at one instant: facts, measurements and heartbeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property

from checkpoints.store import ObjectStore
from orchestrator.badput import compute_by_launch
from orchestrator.charges import Charge, charge
from orchestrator.cost import Parts, bill, billed_until
from orchestrator.errors import UnknownRun
from orchestrator.goodput import Bucket, Goodput, account
from orchestrator.ledger.fold import LaunchView, RunState
from orchestrator.ledger.heartbeat import (
    SILENT_NODE_STOPS_AFTER,
    Heartbeat,
    read_heartbeats,
)
from orchestrator.ledger.measurements import (
    Measured,
    MeasurementReader,
    evaluations_of,
    latest_by_step,
    steps_of,
)
from orchestrator.ledger.record import RunRecord, read_record
from orchestrator.ledger.state import StateReader
from orchestrator.replay import Replay, compare_replayed
from orchestrator.replicas import ServingBill, read_replica_beats, serving_bill
from train.spool import Evaluated, Step

# A node whose owner is silent is gone after its lease and a save; so is a machine that lost power.
_SILENT_LOCAL_NODE_STOPS_AFTER = timedelta(seconds=30)


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as the run folder shows it at `as_of`; each fold is made once, when asked for."""

    state: RunState
    measured: tuple[Measured, ...]
    heartbeats: tuple[Heartbeat, ...]
    as_of: datetime
    replicas_seen_at: Mapping[str, datetime] = field(default_factory=dict)
    """When each node that serves the model was last heard."""

    @property
    def record(self) -> RunRecord:
        """What was decided at launch."""
        return self.state.record

    @cached_property
    def steps(self) -> list[tuple[int, Step]]:
        """Every step record with its attempt, in order."""
        return steps_of(self.measured)

    @cached_property
    def latest(self) -> dict[int, Step]:
        """The record of each step from the last attempt that took it."""
        return latest_by_step(self.measured)

    @cached_property
    def step(self) -> int:
        """Last step that the current (or last) attempt reported, or resumed from."""
        attempts = [one for one in self.state.launches if one.attempt is not None]
        if not attempts:
            return 0
        return self.furthest_step(attempts[-1])

    def furthest_step(self, launch: LaunchView) -> int:
        """Return the last step that the launch's attempt is known to have taken.

        Heartbeats and commits say it as well, to those who do not read the measurements.
        """
        state, attempt = self.state, launch.attempt
        if attempt is None:
            return 0
        known = [step.step for number, step in self.steps if number == attempt]
        known += [one.step or 0 for one in self.heartbeats if one.attempt == attempt]
        known += [commit.step for commit in state.commits if commit.attempt == attempt]
        known += [end.step for end in state.attempt_ends if end.attempt == attempt]
        return max([*known, launch.resumed_step or 0])

    @cached_property
    def billed_until(self) -> datetime:
        """Until when nodes are billed: they stop themselves when their owner is silent."""
        until = billed_until(self.state, self.as_of)
        if not self.heartbeats:
            return until
        # A node that has recorded something was up, whoever was silent.
        records = [one.record.at for one in self.measured[-1:]]
        heard_at = max([*(one.at for one in self.heartbeats), *records])
        is_local = self.record.spec.is_local
        lasts = _SILENT_LOCAL_NODE_STOPS_AFTER if is_local else SILENT_NODE_STOPS_AFTER
        return min(until, heard_at + lasts)

    @cached_property
    def parts(self) -> Parts:
        """What the run has cost."""
        return bill(self.state, self.billed_until)

    @cached_property
    def charges(self) -> dict[str, Charge]:
        """What the nodes of each launch cost."""
        return {
            launch.launch: charge(self.state, launch, self.billed_until)
            for launch in self.state.launches
        }

    @cached_property
    def serving(self) -> ServingBill:
        """What serving the model has cost, which is no part of the training's bill."""
        return serving_bill(self.state.replicas, self.replicas_seen_at, self.as_of)

    @cached_property
    def compute_by_launch(self) -> dict[str, dict[Bucket, Decimal]]:
        """What each launch was charged for."""
        return compute_by_launch(self.state, self.goodput, self.charges)

    @cached_property
    def compute_by_bucket(self) -> dict[Bucket, Decimal]:
        """What the compute part was charged for; adds up to it exactly."""
        totals = dict.fromkeys(Bucket, Decimal(0))
        for shares in self.compute_by_launch.values():
            for bucket, usd in shares.items():
                totals[bucket] += usd
        return totals

    @cached_property
    def goodput(self) -> Goodput:
        """Where the time went."""
        return account(self.state, self.measured, self.as_of, self.billed_until)

    @cached_property
    def evaluations(self) -> list[Evaluated]:
        """The evaluations by step."""
        return evaluations_of(self.measured)

    @cached_property
    def replay(self) -> Replay:
        """How replayed steps compare with their recorded values."""
        return compare_replayed(self.measured)


class RunViewer:
    """Reads a run again and again, fetching only what is new."""

    def __init__(self, store: ObjectStore) -> None:
        """Open the run in `store`.

        Raises:
            UnknownRun: there is none.
        """
        record = read_record(store)
        if record is None:
            raise UnknownRun(
                f"{store.url} holds no run.", "List what is known: orchestrate status."
            )
        self._store = store
        self._states = StateReader(store, record)
        self._measurements = MeasurementReader(store)

    def look(self, as_of: datetime) -> RunView:
        """Return the run as it is now."""
        state = self._states.read()
        return RunView(
            state=state,
            measured=tuple(self._measurements.read()),
            heartbeats=tuple(read_heartbeats(self._store)),
            as_of=as_of,
            # A request more, for runs whose model was ever served.
            replicas_seen_at=read_replica_beats(self._store) if state.replicas else {},
        )
