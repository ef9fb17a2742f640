"""What a policy may know of a run: facts and measurements turned into the question of `decide`.

Every backend asks through here, so that the local supervisor and a cloud's controller decide alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise

from orchestrator.attempts import EndReason
from orchestrator.charges import node_rate
from orchestrator.clock import MarketTime
from orchestrator.cost import bill, egress_usd
from orchestrator.ledger.fold import CommitView, LaunchView, RunState
from orchestrator.ledger.measurements import Measured, steps_of
from orchestrator.ledger.record import RunRecord
from orchestrator.offers import Offer
from orchestrator.places import objects_url, split_place
from orchestrator.policy.answers import Decision, Stop
from orchestrator.policy.decide import decide, reason_to_stop
from orchestrator.policy.history import STOP_MARGIN, History, LaunchRecord, Limits
from orchestrator.weather import usual_pace

# In the field: provisioning, set-up and restore until the first new step.
RESTART = timedelta(minutes=10)
# A launch that finds no room (an assumption), and the time between two looks.
FAILED_LAUNCH = timedelta(minutes=3)
# Between saves where the trainer decides (checkpoints.interval: auto), until some were seen.
ASSUMED_INTERVAL = timedelta(minutes=20)
PATIENCE = timedelta(minutes=1)
# What the same takes here, by the wall clock, where a simulated market runs faster than that.
WALL_STOP = timedelta(seconds=10)
WALL_RESTART = timedelta(seconds=12)
WALL_PATIENCE = timedelta(seconds=2)
WALL_INTERVAL = timedelta(seconds=20)
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

    def reason_to_stop(self) -> Stop | None:
        """Return why the run is to end, None if it is not; no policy is asked."""
        allowed = [one for one in self.offers if self.limits.market.allows(one.market)]
        return reason_to_stop(self.history, allowed, self.limits)


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

    `pace` are the wall seconds of a step, None before any was measured: what is only assumed
    of the work is nothing to wait by.
    """
    market, current = market_time(state.record), state.current_launch
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
        unsaved=_unsaved(state, now, market),
        save_usd=_save_usd(state, last),
        is_complete=_is_complete(state),
        stop_requested=state.is_stop_requested,
        num_nodes=state.record.spec.nodes.count,
    )
    return Situation(
        history=history,
        offers=tuple(quoted.to_offer() for quoted in state.record.offers)
        if offers is None
        else tuple(offers),
        limits=_limits(state, pace, market),
        now=market.at(now),
    )


def _limits(state: RunState, pace: float | None, market: MarketTime) -> Limits:
    limits = state.spec.limits
    deadline = limits.deadline
    return Limits(
        budget_usd=limits.budget_usd,
        deadline_at=None if deadline is None else state.record.created_at + deadline,
        market=limits.market,
        stop_margin=max(STOP_MARGIN, WALL_STOP * market.scale),
        restart=max(RESTART, WALL_RESTART * market.scale),
        policy=limits.policy,
        failed_launch=FAILED_LAUNCH if market.scale == 1 else timedelta(),
        patience=max(PATIENCE, WALL_PATIENCE * market.scale),
        lost_work=_interval(state, pace, market),
        pace=usual_pace(state.spec.nodes.num_gpus),
    )


def _is_complete(state: RunState) -> bool:
    """Say whether nothing is left to do; the node that committed the last step may have died."""
    if any(launch.reason is EndReason.SUCCEEDED for launch in state.launches):
        return True
    return state.current_launch is None and state.last_commit_step >= state.record.num_steps


def _as_record(launch: LaunchView, market: MarketTime, *, has_progressed: bool) -> LaunchRecord:
    return LaunchRecord(
        # As it was asked for: providers name the zone that they give in their own way.
        offer=replace(launch.offer, zone=launch.asked_zone or launch.offer.zone),
        started_at=market.at(launch.started_at),
        ready_at=None if launch.ready_at is None else market.at(launch.ready_at),
        ended_at=None if launch.ended_at is None else market.at(launch.ended_at),
        reason=launch.reason,
        has_progressed=has_progressed,
    )


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


def _unsaved(state: RunState, now: datetime, market: MarketTime) -> timedelta:
    """Return the market time since the last commit, or since the launch that is up could train."""
    launch = state.current_launch
    if launch is None or launch.attempt_started_at is None:
        return timedelta()
    saved_at = [one.at for one in state.commits if one.attempt == launch.attempt]
    wall = now - max([launch.attempt_started_at, *saved_at])
    restart = timedelta() if saved_at else max(RESTART, WALL_RESTART * market.scale)
    return max(timedelta(), wall * market.scale - restart)


def _save_usd(state: RunState, last: CommitView | None) -> Decimal:
    """Return what a save costs that goes from the nodes that are up to a store elsewhere."""
    launch = state.current_launch
    if launch is None or last is None:
        return Decimal(0)
    has_store = objects_url(state.spec, launch.offer) is not None
    store = launch.offer.place if has_store else state.record.home_place
    return egress_usd(last.num_bytes, launch.offer.place, store)


def _interval(state: RunState, pace: float | None, market: MarketTime) -> timedelta:
    """Return the longest market time between saves, as planned or seen, in whole minutes.

    Before a save was seen, what is lost with a node is what the spec says, or an assumption.
    """
    asked = state.spec.checkpoints.interval
    if asked.seconds is not None:
        planned = timedelta(seconds=asked.seconds) * market.scale
    elif asked.steps is not None:
        planned = _time_for(asked.steps, pace, market) or timedelta()
    else:
        planned = max(ASSUMED_INTERVAL, WALL_INTERVAL * market.scale)
    in_order = sorted(state.commits, key=lambda commit: commit.at)
    gaps = [
        (later.at - earlier.at) * market.scale
        for earlier, later in pairwise(in_order)
        if earlier.attempt == later.attempt
    ]
    return timedelta(minutes=math.ceil(max([planned, *gaps]) / timedelta(minutes=1)))
