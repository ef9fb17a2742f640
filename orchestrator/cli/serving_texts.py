"""What `orchestrate serve` says of a service on clouds: its plan, and how it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.offers import Market, MarketPreference

if TYPE_CHECKING:
    from orchestrator.cloud.skypilot.service import ServiceStatus
    from orchestrator.serving.plan import ServicePlan

_SHOWN_OFFERS = 6


def render_service_plan(plan: ServicePlan, weights: Mapping[str, int]) -> str:
    """Return the plan as people read it; `weights` are bytes by the model's name."""
    return "\n".join([*_what(plan, weights), *_where(plan), *_how_much(plan, weights)])


def _what(plan: ServicePlan, weights: Mapping[str, int]) -> Iterator[str]:
    replicas = plan.replicas
    models = ", ".join(f"{name} ({_size(size)})" for name, size in weights.items())
    many = f"{replicas.least}"
    if replicas.requests_per_s is not None:
        many += f" to {replicas.most} (above {replicas.requests_per_s:g} requests/s on each)"
    yield f"Service {plan.service}: {models} on each replica"
    yield f"Replicas: {many} x {plan.accelerators}, {replicas.market.value}"


def _where(plan: ServicePlan) -> Iterator[str]:
    yield "Offers, cheapest first; SkyServe puts each replica into a zone of its own:"
    for offer in plan.offers[:_SHOWN_OFFERS]:
        yield (
            f"  {offer.cloud:<7}{offer.region:<17}{offer.zone:<19}{offer.market.value:<10} "
            f"${offer.usd_per_hour:>8}/h"
        )
    hidden = len(plan.offers) - _SHOWN_OFFERS
    if hidden > 0:
        yield f"  and {hidden} more"
    yield f"  Prices: {plan.prices}"


def _how_much(plan: ServicePlan, weights: Mapping[str, int]) -> Iterator[str]:
    replicas = plan.replicas
    for market in Market:
        least, most = (
            plan.usd_per_hour(number, market) for number in (replicas.least, replicas.most)
        )
        if least is not None:
            more = "" if most == least else f" to ${most}/h"
            yield f"All on {market.value.replace('_', ' ')}: ${least}/h{more} at the cheapest offer"
    stand_ins = ""
    if replicas.market is MarketPreference.SPOT_WITH_FALLBACK:
        stand_ins = ", an on-demand node beside each spot node: as until the first spot is up"
    yield f"Worst case: ${plan.worst_usd_per_hour}/h at the dearest offers{stand_ins}"
    size = _size(sum(weights.values()))
    yield f"Beside that SkyServe's controller, a CPU machine, and {size} of egress to each replica"
    if replicas.least == 1:
        yield "With one replica a preemption is minutes without an answer: --replicas 2"


def status_document(services: Sequence[ServiceStatus]) -> dict[str, Any]:
    """Return the document of `serve --status --json`."""
    return {
        "schema_version": 1,
        "services": [
            {
                "service": one.service,
                "status": one.status,
                "endpoint": one.endpoint,
                "ready_since": None if one.ready_since is None else one.ready_since.isoformat(),
                "replicas": [
                    {
                        "replica": replica.replica,
                        "status": replica.status,
                        "place": replica.place,
                        "market": _market(is_spot=replica.is_spot),
                    }
                    for replica in one.replicas
                ],
            }
            for one in services
        ],
    }


def render_status(service: ServiceStatus) -> str:
    """Return how a service is, as people read it."""
    up = ""
    if service.ready_since is not None:
        up = f" since {service.ready_since.astimezone():%Y-%m-%d %H:%M:%S}"
    lines = [f"{service.service} {service.status}{up} · {service.endpoint or 'no address yet'}"]
    lines += [
        f"  {replica.replica:<4}{replica.status:<18}{_market(is_spot=replica.is_spot):<11}"
        f"{replica.place or '-'}"
        for replica in service.replicas
    ]
    return "\n".join(lines)


def _market(*, is_spot: bool) -> str:
    market = Market.SPOT if is_spot else Market.ON_DEMAND
    return market.value


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
