"""What a policy may know of a run: facts and measurements turned into the question of `decide`.

Every backend asks through here, so that the local supervisor and a cloud's controller decide alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from orchestrator.attempts import EndReason
from orchestrator.clock import MarketTime
from orchestrator.cost import bill, node_rate
from orchestrator.ledger.fold import LaunchView, RunState
from orchestrator.ledger.measurements import Measured, steps_of
from orchestrator.ledger.record import RunRecord
from orchestrator.offers import Offer
from orchestrator.policy.decide import Decision, History, LaunchRecord, Limits, decide

# In the field: a save and a stop, and provisioning, set-up and restore until the first new step.
STOP_MARGIN = timedelta(minutes=3)
RESTART = timedelta(minutes=10)
# What the same takes here, by the wall clock, where a simulated market runs faster than that.
WALL_STOP = timedelta(seconds=10)
WALL_RESTART = timedelta(seconds=12)
# Enough steps for a median; the whole history would be read again at every decision.
_RECENT_RECORDS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One question to the policy, in market time."""

    history: History
    offers: tuple[Offer, ...]
    limits: Limits
    now: datetime

    def decide(self) -> Decision:
        """Return the policy's answer."""
        return decide(self.history, self.offers, self.limits, self.now)


def market_time(record: RunRecord) -> MarketTime:
    """Return how the run's market time relates to the wall's."""
    return MarketTime(origin=record.created_at, scale=record.spec.time_scale)


def situation(
    state: RunState,
    measured: Sequence[Measured],
    now: datetime,
    offers: Sequence[Offer] | None = None,
) -> Situation:
    """Return what is known at the wall instant `now`; `offers` where prices are newer than the run.

    Without `offers`, those that were quoted when the run was launched first.
    """
    market, limits, current = market_time(state.record), state.spec.limits, state.current_launch
    is_billed = current is not None and current.ready_at is not None
    progressed = {commit.attempt for commit in state.commits}
    history = History(
        launches=tuple(
            _as_record(launch, market, has_progressed=launch.attempt in progressed)
            for launch in state.launches
            if launch.ended_at is None or state.is_current(launch)
        ),
        usd=bill(state, now).total,
        usd_per_hour=node_rate(current) if current is not None and is_billed else Decimal(0),
        work_left=_work_left(state, measured, market),
        is_complete=_is_complete(state),
        stop_requested=state.is_stop_requested,
        num_nodes=state.record.spec.nodes.count,
    )
    deadline = limits.deadline
    return Situation(
        history=history,
        offers=tuple(quoted.to_offer() for quoted in state.record.offers)
        if offers is None
        else tuple(offers),
        limits=Limits(
            budget_usd=limits.budget_usd,
            deadline_at=None if deadline is None else state.record.created_at + deadline,
            market=limits.market,
            stop_margin=max(STOP_MARGIN, WALL_STOP * market.scale),
            restart=max(RESTART, WALL_RESTART * market.scale),
        ),
        now=market.at(now),
    )


def _is_complete(state: RunState) -> bool:
    """Say whether nothing is left to do; the node that committed the last step may have died."""
    if any(launch.reason is EndReason.SUCCEEDED for launch in state.launches):
        return True
    return state.current_launch is None and state.last_commit_step >= state.record.num_steps


def _as_record(launch: LaunchView, market: MarketTime, *, has_progressed: bool) -> LaunchRecord:
    return LaunchRecord(
        offer=launch.offer,
        started_at=market.at(launch.started_at),
        ended_at=None if launch.ended_at is None else market.at(launch.ended_at),
        reason=launch.reason,
        has_progressed=has_progressed,
    )


def _work_left(
    state: RunState, measured: Sequence[Measured], market: MarketTime
) -> timedelta | None:
    """Return the market time that the steps to go will take, None before any was measured."""
    steps = steps_of(measured[-_RECENT_RECORDS:])
    if not steps:
        return None
    latest = [step for attempt, step in steps if attempt == steps[-1][0]]
    num_taken = latest[-1].step - latest[0].step
    if num_taken > 0:
        # From the first to the last, so that what saves cost in between is in it.
        each_s = (latest[-1].at - latest[0].at).total_seconds() / num_taken
    else:
        each_s = statistics.median(step.seconds for _, step in steps)
    num_left = state.record.num_steps - state.last_commit_step
    return timedelta(seconds=each_s * num_left * market.scale)
