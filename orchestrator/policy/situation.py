"""What a policy may know of a run: facts and measurements turned into the question of `decide`.

Every backend asks through here, so that the local supervisor and a cloud's controller decide alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise

from orchestrator.attempts import EndReason
from orchestrator.clock import MarketTime
from orchestrator.cost import bill, node_rate
from orchestrator.ledger.fold import CommitView, LaunchView, RunState
from orchestrator.ledger.measurements import Measured, steps_of
from orchestrator.ledger.record import RunRecord
from orchestrator.offers import Offer
from orchestrator.places import split_place
from orchestrator.policy.answers import Decision
from orchestrator.policy.decide import decide
from orchestrator.policy.history import History, LaunchRecord, Limits
from orchestrator.weather import usual_pace

# In the field: a save and a stop, and provisioning, set-up and restore until the first new step.
STOP_MARGIN = timedelta(minutes=3)
RESTART = timedelta(minutes=10)
# A launch that finds no room (an assumption), and the time between two looks.
FAILED_LAUNCH = timedelta(minutes=3)
PATIENCE = timedelta(minutes=1)
# What the same takes here, by the wall clock, where a simulated market runs faster than that.
WALL_STOP = timedelta(seconds=10)
WALL_RESTART = timedelta(seconds=12)
WALL_PATIENCE = timedelta(seconds=2)
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


def seconds_per_step(measured: Sequence[Measured]) -> float | None:
    """Return the wall seconds that a step of the latest attempt takes, None before any was."""
    steps = steps_of(measured[-_RECENT_RECORDS:])
    if not steps:
        return None
    latest = [step for attempt, step in steps if attempt == steps[-1][0]]
    num_taken = latest[-1].step - latest[0].step
    if num_taken > 0:
        # From the first to the last, so that what saves cost in between is in it.
        return (latest[-1].at - latest[0].at).total_seconds() / num_taken
    return statistics.median(step.seconds for _, step in steps)


def situation(
    state: RunState,
    pace: float | None,
    now: datetime,
    offers: Sequence[Offer] | None = None,
) -> Situation:
    """Return what is known at the wall instant `now`; `offers` where prices are newer than the run.

    `pace` are the wall seconds of a step, None before any was measured: those that were assumed at
    launch stand in, where there are any.
    """
    pace = _assumed_pace(state.record) if pace is None else pace
    market, limits, current = market_time(state.record), state.spec.limits, state.current_launch
    is_billed = current is not None and current.ready_at is not None
    num_steps, last = state.record.num_steps, _last_commit(state)
    progressed = {commit.attempt for commit in state.commits}
    history = History(
        launches=tuple(
            _as_record(launch, market, has_progressed=launch.attempt in progressed)
            for launch in state.launches
            if launch.ended_at is None or state.is_current(launch)
        ),
        usd=bill(state, now).total,
        usd_per_hour=node_rate(current) if current is not None and is_billed else Decimal(0),
        work_left=_time_for(num_steps - state.last_commit_step, pace, market),
        work_done=_time_for(state.last_commit_step, pace, market) or timedelta(),
        began_at=state.record.created_at,
        checkpoint_bytes=0 if last is None else last.num_bytes,
        checkpoint_place=None if last is None else _place_of(last, state),
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
            policy=limits.policy,
            failed_launch=FAILED_LAUNCH if market.scale == 1 else timedelta(),
            patience=max(PATIENCE, WALL_PATIENCE * market.scale),
            lost_work=_longest_interval(state, market),
            pace=usual_pace(state.spec.nodes.num_gpus),
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
        ready_at=None if launch.ready_at is None else market.at(launch.ready_at),
        ended_at=None if launch.ended_at is None else market.at(launch.ended_at),
        reason=launch.reason,
        has_progressed=has_progressed,
    )


def _assumed_pace(record: RunRecord) -> float | None:
    if record.forecast is None:
        return None
    return record.forecast.work_hours * 3600 / record.num_steps


def _time_for(num_steps: int, pace: float | None, market: MarketTime) -> timedelta | None:
    """Return the market time that so many steps take."""
    return None if pace is None else timedelta(seconds=pace * num_steps * market.scale)


def _last_commit(state: RunState) -> CommitView | None:
    whole = (commit for commit in state.commits if commit.damage is None)
    return max(whole, key=lambda commit: commit.step, default=None)


def _place_of(commit: CommitView, state: RunState) -> tuple[str, str]:
    if commit.place is not None:
        return split_place(commit.place)
    return state.record.home_place


def _longest_interval(state: RunState, market: MarketTime) -> timedelta:
    """Return the longest market time between saves of one attempt, in whole minutes; 0 unknown."""
    gaps = [
        (later.at - earlier.at) * market.scale
        for earlier, later in pairwise(sorted(state.commits, key=lambda commit: commit.at))
        if earlier.attempt == later.attempt
    ]
    return timedelta(minutes=math.ceil(max(gaps, default=timedelta()) / timedelta(minutes=1)))
