"""The documents of `status --json` and `cost --json`: folds over a run, as plain JSON values."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

from orchestrator.attempts import StopReason
from orchestrator.badput import BADPUT_TYPES
from orchestrator.charges import Basis
from orchestrator.cost import Parts, is_failed, on_demand_usd, storage_usd_per_day
from orchestrator.goodput import Bucket, Goodput
from orchestrator.ledger.fold import LaunchView, RunState
from orchestrator.ledger.record import Percentiles
from orchestrator.outlook import hours_so_far, outlook
from orchestrator.reconciliation import reconciliation_document
from orchestrator.view import RunView

SCHEMA_VERSION = 1
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


def describe_progress(view: RunView) -> str:
    """Return one line that says how far the run is."""
    share = view.step / view.record.num_steps
    state = state_name(view).value
    parts = [state, f"step {view.step}/{view.record.num_steps} ({share:.0%})"]
    if view.steps:
        parts.append(f"loss {view.steps[-1][1].loss:.4f}")
    launch = view.state.current_launch
    if launch is not None:
        attempt = "-" if launch.attempt is None else str(launch.attempt)
        parts.append(f"attempt {attempt} on {launch.offer}")
    parts.append(f"${view.parts.total:.2f} of ${view.state.spec.limits.budget_usd}")
    if view.record.simulated:
        parts.append("simulated")
    return " · ".join(parts)


def status_document(view: RunView) -> dict[str, Any]:
    """Return the document of `status RUN --json`."""
    state, goodput, replay = view.state, view.goodput, view.replay
    limits = state.spec.limits
    return {
        "schema_version": SCHEMA_VERSION,
        "run": view.record.run,
        "state": state_name(view).value,
        "why": state.ended.why if state.ended is not None else None,
        "as_of": _instant(view.as_of),
        "started_at": _instant(view.record.created_at),
        "ended_at": _instant(state.ended_at),
        "step": view.step,
        "num_steps": view.record.num_steps,
        "last_commit_step": state.last_commit_step,
        "num_preemptions": state.num_preemptions,
        "last_decision": _decision_document(state),
        "attempts": attempts_document(view),
        "vain_launches": _vain_launches_document(view),
        "coming_up": _coming_up_document(view),
        "replay": {
            "steps": replay.num_steps,
            "max_abs_diff": replay.max_abs_diff,
            "differing": list(replay.differing),
        },
        "loss": view.steps[-1][1].loss if view.steps else None,
        "evaluations": [{"step": one.step, "loss": one.loss} for one in view.evaluations],
        "usd": _usd(view.parts.total),
        "budget_usd": _usd(limits.budget_usd),
        "storage_usd_per_day": _usd(storage_usd_per_day(state)),
        "deadline_at": _instant(deadline_at(state)),
        "eta_at": _instant(eta_at(view)),
        "forecast": _outlook_document(view),
        "goodput": round(goodput.share_of_wall, 6),
        "simulated": view.record.simulated,
        "time_scale": view.record.spec.time_scale,
        "store": view.record.spec.store,
    }


def _outlook_document(view: RunView) -> dict[str, Any] | None:
    """Return what is expected in all, and when the end is; None without a forecast or after it."""
    found = outlook(view)
    if found is None:
        return None
    scale = view.record.spec.time_scale
    return {
        **_percentiles_document(found.hours, found.usd),
        "ends_at": {
            share: None
            if hours is None
            else _instant(view.record.created_at + timedelta(hours=hours / scale))
            for share, hours in found.hours.model_dump().items()
        },
    }


def _percentiles_document(hours: Percentiles, usd: Percentiles) -> dict[str, Any]:
    return {
        name: {
            share: None if amount is None else round(amount, 3)
            for share, amount in found.model_dump().items()
        }
        for name, found in (("hours", hours), ("usd", usd))
    }


def describe_evaluations(view: RunView) -> str | None:
    """Return e.g. `evaluation loss 3.310 after step 0, 3.082 after step 30`."""
    made = view.evaluations
    if not made:
        return None
    shown = dict.fromkeys([made[0], made[-1]])
    return "evaluation loss " + ", ".join(f"{one.loss:.3f} after step {one.step}" for one in shown)


def _decision_document(state: RunState) -> dict[str, Any] | None:
    """Return what the policy decided last, None before its first decision."""
    if not state.decisions:
        return None
    at, made = state.decisions[-1]
    until = _instant(made.until)
    return {"at": _instant(at), "action": made.action, "why": made.why, "until": until}


def _vain_launches_document(view: RunView) -> list[dict[str, Any]]:
    """Return the launches after which no agent spoke, in order: refused, lost, or badly set up."""
    return [
        {
            **_place_document(launch),
            "ended_at": _instant(launch.ended_at),
            "end_reason": launch.reason.value,
            "detail": launch.detail,
            "usd": _usd(view.charges[launch.launch].usd),
        }
        for launch in view.state.launches
        if launch.attempt is None and launch.reason is not None
    ]


def _coming_up_document(view: RunView) -> list[dict[str, Any]]:
    """Return the launches that are under way, on which no agent has spoken yet."""
    return [
        {
            **_place_document(launch),
            "started_at": _instant(launch.started_at),
            "usd": _usd(view.charges[launch.launch].usd),
        }
        for launch in view.state.open_launches
        if launch.attempt is None
    ]


def cost_document(view: RunView) -> dict[str, Any]:
    """Return the document of `cost RUN --json`."""
    parts, goodput = view.parts, view.goodput
    productive = goodput.productive_by_launch()
    first = next((one for one in view.state.launches if one.launch in productive), None)
    startup = timedelta() if first is None else goodput.startup_of(first)
    on_demand = on_demand_usd(view.state, productive, startup)
    trained = goodput.seconds()[Bucket.PRODUCTIVE] > timedelta()
    savings = 1 - parts.total / on_demand if on_demand and trained else None
    return {
        "schema_version": SCHEMA_VERSION,
        "run": view.record.run,
        "state": state_name(view).value,
        "as_of": _instant(view.as_of),
        "total_usd": _usd(parts.total),
        "parts": parts_document(parts),
        "basis": _basis_document(view),
        "parts_basis": _parts_basis_document(view),
        "compute_by_bucket": {
            bucket.value: _usd(usd) for bucket, usd in view.compute_by_bucket.items()
        },
        "waived_usd": _usd(waived_usd(view)),
        "storage_usd_per_day": _usd(storage_usd_per_day(view.state)),
        "on_demand_usd": _usd(on_demand),
        "savings_fraction": None if savings is None else round(float(savings), 6),
        **_unit_costs(view),
        "goodput": {
            "billed": round(goodput.share_of_billed, 6),
            "wall": round(goodput.share_of_wall, 6),
        },
        "seconds": seconds_document(goodput),
        "badput": badput_document(goodput),
        "wall_seconds": goodput.wall.total_seconds(),
        "billed_seconds": goodput.billed.total_seconds(),
        "time_scale": view.record.spec.time_scale,
        "budget_usd": _usd(view.state.spec.limits.budget_usd),
        "forecast": None
        if view.record.forecast is None
        else _percentiles_document(view.record.forecast.hours, view.record.forecast.usd),
        "market_hours": round(hours_so_far(view), 3),
        "attempts": attempts_document(view),
        "vain_launches": _vain_launches_document(view),
        "coming_up": _coming_up_document(view),
        "reconciliation": reconciliation_document(view),
        "prices_source": view.record.prices_source,
        "simulated": view.record.simulated,
    }


def _unit_costs(view: RunView) -> dict[str, float | None]:
    """Return what the steps, and the tokens in them, cost that the run has got to so far."""
    reached = view.step if view.state.ended is None else view.state.last_commit_step
    known = [step for number, step in view.latest.items() if number <= reached]
    # Records of a lost node's last steps are lost with it; the steps may be saved all the same.
    num_tokens = sum(step.num_tokens for step in known) * reached / max(1, len(known))
    amounts = {
        "usd_per_thousand_steps": reached / 1_000,
        "usd_per_million_tokens": num_tokens / 1_000_000,
    }
    total = float(view.parts.total)
    return {name: round(total / amount, 6) if amount else None for name, amount in amounts.items()}


def parts_document(parts: Parts) -> dict[str, float]:
    """Return the parts of the bill; as decimals they add up to the total exactly."""
    names = ("compute", "storage", "requests", "egress", "controller", "failed_launches")
    return {name: _usd(getattr(parts, name)) for name in names}


def seconds_document(goodput: Goodput) -> dict[str, float]:
    """Return the seconds of each bucket, in microseconds' precision."""
    seconds = goodput.seconds()
    return {bucket.value: seconds[bucket].total_seconds() for bucket in Bucket}


def badput_document(goodput: Goodput) -> dict[str, float]:
    """Return the seconds that were not productive, by ml-goodput-measurement's names."""
    seconds = goodput.seconds()
    return {name: seconds[bucket].total_seconds() for bucket, name in BADPUT_TYPES.items()}


def waived_usd(view: RunView) -> Decimal:
    """Return what clouds do not charge for nodes that they took back early."""
    return sum((charge.waived_usd for charge in view.charges.values()), Decimal(0))


def _basis_document(view: RunView) -> dict[str, float]:
    """Return how much of the total is by which kind of price; adds up to it."""
    sampled = sum((charge.sampled_usd for charge in view.charges.values()), Decimal(0))
    return {
        Basis.ESTIMATED.value: _usd(view.parts.total - sampled),
        Basis.SAMPLED.value: _usd(sampled),
    }


def _parts_basis_document(view: RunView) -> dict[str, str]:
    """Return how well each part is known: only nodes' prices are ever asked again."""
    sampled = {
        name: any(
            view.charges[one.launch].sampled_usd
            for one in view.state.launches
            if is_failed(one) is failed
        )
        for name, failed in (("compute", False), ("failed_launches", True))
    }
    return {
        name: Basis.SAMPLED.value if sampled.get(name) else Basis.ESTIMATED.value
        for name in parts_document(view.parts)
    }


def attempts_document(view: RunView) -> list[dict[str, Any]]:
    """Return one row per attempt, in order."""
    return [
        _attempt_document(view, launch)
        for launch in view.state.launches
        if launch.attempt is not None
    ]


def _place_document(launch: LaunchView) -> dict[str, Any]:
    offer = launch.offer
    return {
        "cloud": offer.cloud,
        "region": offer.region,
        "zone": offer.zone,
        "market": offer.market.value,
        "nodes": launch.num_nodes,
        "usd_per_hour": _usd(offer.usd_per_hour),
    }


def _attempt_document(view: RunView, launch: LaunchView) -> dict[str, Any]:
    charge = view.charges[launch.launch]
    return {
        "attempt": launch.attempt,
        **_place_document(launch),
        "started_at": _instant(launch.started_at),
        "ended_at": _instant(launch.ended_at),
        "end_reason": launch.reason.value if launch.reason is not None else None,
        "terminated_by": launch.terminated_by.value if launch.terminated_by is not None else None,
        "detail": launch.detail,
        "had_notice": launch.notice_at is not None,
        "resumed_step": launch.resumed_step,
        "usd": _usd(charge.usd),
        "sampled_usd": _usd(charge.sampled_usd),
        "waived_usd": _usd(charge.waived_usd),
        "basis": basis_of(launch).value,
        "price_as_of": _instant(priced_at(launch)),
    }


def basis_of(launch: LaunchView) -> Basis:
    """Return how well a launch's price is known: as it was quoted, or asked again since."""
    return Basis.SAMPLED if launch.prices else Basis.ESTIMATED


def priced_at(launch: LaunchView) -> datetime:
    """Return when the price was asked that a launch is charged by last."""
    return launch.prices[-1].at if launch.prices else launch.started_at


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


def next_step_after(run: str, reason: StopReason) -> str:
    """Return the command that is useful next for a run that has ended so."""
    match reason:
        case StopReason.DONE:
            return f"See what it cost: orchestrate cost {run}"
        case StopReason.TOO_MANY_FAILURES:
            return f"See orchestrate logs {run}"
        case StopReason.BUDGET:
            return f"Go on: orchestrate resume {run} --set limits.budget_usd=..."
        case StopReason.REQUESTED | StopReason.NO_CAPACITY | StopReason.TOO_MANY_PREEMPTIONS:
            return f"Go on: orchestrate resume {run}"


def _instant(instant: datetime | None) -> str | None:
    return None if instant is None else instant.isoformat()


def _usd(amount: Decimal) -> float:
    """Return an amount for JSON; six decimals print and parse back exactly."""
    return float(amount)
