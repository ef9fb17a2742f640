"""What reports say of serving a run's model: the `serving` block of `cost --json`."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from orchestrator.launch_report import as_instant, as_usd
from orchestrator.offers import Market
from orchestrator.replicas import ReplicaCharge
from orchestrator.view import RunView


def serving_document(view: RunView) -> dict[str, Any]:
    """Return what it cost to serve the model: by market, service and replica; parts add up."""
    bill = view.serving
    on_demand = sum((one.on_demand_usd for one in bill.replicas), Decimal(0))
    return {
        "usd": as_usd(bill.usd),
        "usd_by_market": {one.value: as_usd(bill.usd_where(market=one)) for one in Market},
        "hours_by_market": {
            one.value: round(float(bill.hours_where(market=one)), 6) for one in Market
        },
        "on_demand_usd": as_usd(on_demand),
        "services": [
            {
                "service": name,
                "usd": as_usd(bill.usd_where(service=name)),
                "hours": round(float(bill.hours_where(service=name)), 6),
            }
            for name in bill.services
        ],
        "replicas": [_replica_document(one) for one in bill.replicas],
    }


def lifetime_usd(view: RunView) -> float | None:
    """Return what training and serving cost together; None: the training's dollars are made up."""
    if view.record.simulated and view.serving.replicas:
        return None
    return as_usd(view.parts.total + view.serving.usd)


def _replica_document(charge: ReplicaCharge) -> dict[str, Any]:
    replica, offer = charge.replica, charge.replica.offer
    return {
        "replica": replica.replica,
        "service": replica.service,
        "cloud": offer.cloud,
        "region": offer.region,
        "zone": offer.zone,
        "market": offer.market.value,
        "usd_per_hour": as_usd(offer.usd_per_hour),
        "num_models": replica.num_models,
        "num_own": replica.num_own,
        "started_at": as_instant(replica.up_at),
        "ended_at": as_instant(replica.ended_at),
        "end_reason": None if replica.reason is None else replica.reason.value,
        "hours": round(float(charge.hours), 6),
        "usd": as_usd(charge.usd),
        "waived_usd": as_usd(charge.waived_usd),
    }
