"""What reports say of each launch: where, when, why it ended and what it cost."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from orchestrator.charges import Basis
from orchestrator.ledger.fold import LaunchView
from orchestrator.view import RunView


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
        "usd_per_hour": as_usd(offer.usd_per_hour),
    }


def _attempt_document(view: RunView, launch: LaunchView) -> dict[str, Any]:
    charge = view.charges[launch.launch]
    return {
        "attempt": launch.attempt,
        **_place_document(launch),
        "started_at": as_instant(launch.started_at),
        "ended_at": as_instant(launch.ended_at),
        "end_reason": launch.reason.value if launch.reason is not None else None,
        "terminated_by": launch.terminated_by.value if launch.terminated_by is not None else None,
        "detail": launch.detail,
        "had_notice": launch.notice_at is not None,
        "resumed_step": launch.resumed_step,
        "usd": as_usd(charge.usd),
        "sampled_usd": as_usd(charge.sampled_usd),
        "waived_usd": as_usd(charge.waived_usd),
        "basis": (Basis.SAMPLED if charge.sampled_usd else Basis.ESTIMATED).value,
        "price_as_of": as_instant(priced_at(launch)),
    }


def priced_at(launch: LaunchView) -> datetime:
    """Return when the price was asked that a launch is charged by last."""
    return launch.prices[-1].at if launch.prices else launch.started_at


def vain_launches_document(view: RunView) -> list[dict[str, Any]]:
    """Return the launches after which no agent spoke, in order: refused, lost, or badly set up."""
    return [
        {
            **_place_document(launch),
            "ended_at": as_instant(launch.ended_at),
            "end_reason": launch.reason.value,
            "detail": launch.detail,
            "usd": as_usd(view.charges[launch.launch].usd),
        }
        for launch in view.state.launches
        if launch.attempt is None and launch.reason is not None
    ]


def coming_up_document(view: RunView) -> list[dict[str, Any]]:
    """Return the launches that are under way, on which no agent has spoken yet."""
    return [
        {
            **_place_document(launch),
            "started_at": as_instant(launch.started_at),
            "usd": as_usd(view.charges[launch.launch].usd),
        }
        for launch in view.state.open_launches
        if launch.attempt is None
    ]


def as_instant(moment: datetime | None) -> str | None:
    """Return an instant for JSON."""
    return None if moment is None else moment.isoformat()


def as_usd(amount: Decimal) -> float:
    """Return an amount for JSON; six decimals print and parse back exactly."""
    return float(amount)
