"""How a run stands: the state that it is in, its deadline, and when it is going to be there."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum

from orchestrator.ledger.fold import RunState
from orchestrator.view import RunView

# The supervisor speaks every second or so; a machine that sleeps may be this late.
_LOCAL_SILENCE = timedelta(seconds=30)
# A controller speaks every minute; the first one may have to be provisioned before it does.
_SILENCE = timedelta(minutes=5)
_FIRST_SILENCE = timedelta(minutes=15)
# Before, what is expected is mostly of the start-up.
_ETA_FROM_SHARE = 0.05


class RunStateName(str, Enum):
    """The states that a run can be in, for people and scripts."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"
    WAITING = "WAITING"
    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"


def state_name(view: RunView) -> RunStateName:
    """Return the run's state; silence of whoever runs it is UNKNOWN, never a guess."""
    state = view.state
    if state.ended is not None:
        return RunStateName(state.ended.state.value)
    is_local = view.record.spec.is_local
    heard_at = max((one.at for one in view.heartbeats), default=None)
    if heard_at is None or heard_at < state.launched_at:
        longest = _LOCAL_SILENCE if is_local else _FIRST_SILENCE
        is_young = view.as_of - state.launched_at < longest
        return RunStateName.PENDING if is_young else RunStateName.UNKNOWN
    if view.as_of - heard_at > (_LOCAL_SILENCE if is_local else _SILENCE):
        return RunStateName.UNKNOWN
    return _living_state(view)


def _living_state(view: RunView) -> RunStateName:
    launch = view.state.current_launch
    if launch is None:
        waits = view.state.decisions and view.state.decisions[-1][1].action == "wait"
        if waits:
            return RunStateName.WAITING
        return RunStateName.RECOVERING if view.state.launches else RunStateName.PENDING
    has_stepped = launch.attempt is not None and view.step > (launch.resumed_step or 0)
    if has_stepped:
        return RunStateName.RUNNING
    is_first = not any(one.ready_at for one in view.state.launches if one is not launch)
    return RunStateName.PENDING if is_first else RunStateName.RECOVERING


def missed_by(view: RunView) -> timedelta | None:
    """Return by how much wall time the deadline is missed (so far), None if it is not."""
    due_at = deadline_at(view.state)
    if due_at is None:
        return None
    late = (view.state.ended_at or view.as_of) - due_at
    return late if late > timedelta() else None


def deadline_at(state: RunState) -> datetime | None:
    """Return the wall instant of the deadline, which counts market time."""
    deadline = state.spec.limits.deadline
    if deadline is None:
        return None
    return state.record.created_at + deadline / state.record.spec.time_scale


def eta_at(view: RunView) -> datetime | None:
    """Extrapolate from what each new step has taken so far, interruptions included.

    Not the time for which the run was over before it was launched again.
    """
    if view.state.ended is not None or view.step == 0:
        return None
    elapsed = max(timedelta(), view.as_of - view.record.created_at - view.state.paused)
    return view.as_of + elapsed / view.step * (view.record.num_steps - view.step)


def spare(view: RunView) -> timedelta | None:
    """Return how long before its deadline the run ends at this pace; below 0 it would be late.

    None without a deadline, and before a twentieth of the steps.
    """
    due_at, there_at = deadline_at(view.state), eta_at(view)
    is_early = view.step < _ETA_FROM_SHARE * view.record.num_steps
    return None if due_at is None or there_at is None or is_early else due_at - there_at
