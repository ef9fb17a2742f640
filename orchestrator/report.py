"""The documents of `status --json` and `cost --json`: folds over a run, as plain JSON values."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

from orchestrator.attempts import StopReason
from orchestrator.badput import BADPUT_TYPES
from orchestrator.charges import Basis
from orchestrator.cost import Parts, is_failed, on_demand_usd, storage_usd_per_day
from orchestrator.goodput import Bucket, Goodput
from orchestrator.launch_report import (
    as_instant,
    as_usd,
    attempts_document,
    coming_up_document,
    vain_launches_document,
)
from orchestrator.ledger.fold import RunState
from orchestrator.ledger.record import Percentiles
from orchestrator.outlook import hours_so_far, outlook
from orchestrator.reconciliation import reconciliation_document
from orchestrator.serving_report import lifetime_usd, serving_document
from orchestrator.standing import deadline_at, eta_at, state_name
from orchestrator.view import RunView

SCHEMA_VERSION = 1


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
        "as_of": as_instant(view.as_of),
        "started_at": as_instant(view.record.created_at),
        "ended_at": as_instant(state.ended_at),
        "step": view.step,
        "num_steps": view.record.num_steps,
        "last_commit_step": state.last_commit_step,
        "num_preemptions": state.num_preemptions,
        "last_decision": _decision_document(state),
        "attempts": attempts_document(view),
        "vain_launches": vain_launches_document(view),
        "coming_up": coming_up_document(view),
        "replay": {
            "steps": replay.num_steps,
            "max_abs_diff": replay.max_abs_diff,
            "differing": list(replay.differing),
        },
        "loss": view.steps[-1][1].loss if view.steps else None,
        "evaluations": [{"step": one.step, "loss": one.loss} for one in view.evaluations],
        "usd": as_usd(view.parts.total),
        "budget_usd": as_usd(limits.budget_usd),
        "storage_usd_per_day": as_usd(storage_usd_per_day(state)),
        "deadline_at": as_instant(deadline_at(state)),
        "eta_at": as_instant(eta_at(view)),
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
            else as_instant(view.record.created_at + timedelta(hours=hours / scale))
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
    until = as_instant(made.until)
    return {"at": as_instant(at), "action": made.action, "why": made.why, "until": until}


def cost_document(view: RunView) -> dict[str, Any]:
    """Return the document of `cost RUN --json`."""
    parts, goodput = view.parts, view.goodput
    on_demand = on_demand_usd(view.state, goodput.undisturbed(view.state.launches))
    trained = goodput.seconds()[Bucket.PRODUCTIVE] > timedelta()
    savings = 1 - parts.total / on_demand if on_demand and trained else None
    return {
        "schema_version": SCHEMA_VERSION,
        "run": view.record.run,
        "state": state_name(view).value,
        "as_of": as_instant(view.as_of),
        "total_usd": as_usd(parts.total),
        "parts": parts_document(parts),
        "basis": _basis_document(view),
        "parts_basis": _parts_basis_document(view),
        "compute_by_bucket": {
            bucket.value: as_usd(usd) for bucket, usd in view.compute_by_bucket.items()
        },
        "waived_usd": as_usd(waived_usd(view)),
        "storage_usd_per_day": as_usd(storage_usd_per_day(view.state)),
        "on_demand_usd": as_usd(on_demand),
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
        "budget_usd": as_usd(view.state.spec.limits.budget_usd),
        "forecast": None
        if view.record.forecast is None
        else _percentiles_document(view.record.forecast.hours, view.record.forecast.usd),
        "market_hours": round(hours_so_far(view), 3),
        "attempts": attempts_document(view),
        "vain_launches": vain_launches_document(view),
        "coming_up": coming_up_document(view),
        "reconciliation": reconciliation_document(view),
        "serving": serving_document(view),
        "lifetime_usd": lifetime_usd(view),
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
    return {name: as_usd(getattr(parts, name)) for name in names}


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
        Basis.ESTIMATED.value: as_usd(view.parts.total - sampled),
        Basis.SAMPLED.value: as_usd(sampled),
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
