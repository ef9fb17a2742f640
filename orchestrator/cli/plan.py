"""A launch plan as people and as programs read it."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from orchestrator.clock import show_duration
from orchestrator.cost import CROSS_CLOUD_EGRESS_USD_PER_GB, SAME_CLOUD_EGRESS_USD_PER_GB
from orchestrator.offers import MarketPreference
from orchestrator.places import objects_url
from orchestrator.plan import ASSUMED_STALL, Estimate, LaunchPlan
from orchestrator.policy.situation import RESTART
from orchestrator.spec import RunSpec

if TYPE_CHECKING:
    from orchestrator.forecast import Spread

_SHOWN_OFFERS = 6
# Of running over the budget: then p90 is above it.
_WORTH_A_WARNING = 0.1


def plan_document(plan: LaunchPlan) -> dict[str, Any]:
    """Return the document of `plan --json`."""
    estimate = plan.estimate
    return {
        "schema_version": 1,
        "run": plan.spec.name,
        "num_steps": plan.num_steps,
        "offers": [
            {
                "cloud": offer.cloud,
                "region": offer.region,
                "zone": offer.zone,
                "instance_type": offer.instance_type,
                "market": offer.market.value,
                "usd_per_hour": float(offer.usd_per_hour),
                "on_demand_usd_per_hour": float(offer.on_demand_usd_per_hour),
                "checkpoint_store": objects_url(plan.spec, offer),
                "move_usd": _usd(plan.egress.move_usd(offer.place)),
                "doubt": offer.doubt,
            }
            for offer in plan.offers
        ],
        "prices": {
            "source": plan.prices.source,
            "as_of": None if plan.prices.as_of is None else plan.prices.as_of.isoformat(),
            "updates": list(plan.prices.updates),
            "gaps": list(plan.prices.gaps),
        },
        "usd_per_hour": float(plan.usd_per_hour),
        "worst_case_usd": float(plan.worst_case_usd),
        "estimate": None
        if estimate is None
        else {
            "productive_hours": round(estimate.productive.total_seconds() / 3600, 3),
            "usd_cheapest": float(estimate.usd_cheapest),
            "assumption": estimate.assumption,
        },
        "forecast": None if estimate is None else _forecast_document(estimate, plan.spec),
        "memory": None
        if plan.memory is None
        else {
            "needed_gb": _gigabytes(plan.memory.needed),
            "available_gb": _gigabytes(plan.memory.available),
            "state_gb": _gigabytes(plan.memory.state),
            "gathered_gb": _gigabytes(plan.memory.gathered),
            "activations_gb": _gigabytes(plan.memory.activations),
            "logits_gb": _gigabytes(plan.memory.logits),
            "reserved_gb": _gigabytes(plan.memory.reserved),
        },
        "egress": {
            "home": "/".join(plan.egress.home),
            "checkpoint_gb": _gigabytes(plan.egress.checkpoint_bytes),
            "same_cloud_usd_per_gb": float(SAME_CLOUD_EGRESS_USD_PER_GB),
            "cross_cloud_usd_per_gb": float(CROSS_CLOUD_EGRESS_USD_PER_GB),
        },
        "data": None if plan.inputs is None else plan.inputs.summary.model_dump(mode="json"),
        "simulated": plan.spec.is_local,
        "warnings": list(plan.warnings),
        "spec": plan.spec.model_dump(mode="json"),
    }


def _forecast_document(estimate: Estimate, spec: RunSpec) -> dict[str, Any]:
    found = estimate.forecast
    return {
        "hours": _spread_document(found.hours),
        "usd": _spread_document(found.usd),
        "egress_usd_p50": round(found.egress_usd_p50, 3),
        "chance_unfinished": round(found.chance_unfinished, 3),
        "chance_late": _rounded(found.chance_late),
        "chance_over_budget": round(found.chance_over_budget, 3),
        "num_plays": found.num_plays,
        "assumptions": _assumptions(estimate, spec),
    }


def _spread_document(found: Spread) -> dict[str, float | None]:
    return {
        "p10": _rounded(found.p10),
        "p50": _rounded(found.p50),
        "p90": _rounded(found.p90),
    }


def render_plan(plan: LaunchPlan) -> str:
    """Return the plan as people read it."""
    parts = [_what(plan), _where(plan), [*_how_much(plan), *_moves(plan)]]
    if plan.prices.gaps:
        parts.append(["What this machine lacks, for a better plan or for a launch:"])
        parts[-1] += [f"  {gap}" for gap in plan.prices.gaps]
    if plan.warnings:
        parts.append([f"Warning: {warning}" for warning in plan.warnings])
    return "\n\n".join("\n".join(part) for part in parts)


def _what(plan: LaunchPlan) -> list[str]:
    spec = plan.spec
    lines = [f"Run {spec.name} in {spec.store}/{spec.name}"]
    if plan.inputs is not None:
        summary = plan.inputs.summary
        lines.append(
            f"Data: {summary.num_conversations} conversations, {summary.num_samples} samples in "
            f"{summary.num_sequences} sequences ({summary.fill:.0%} full), "
            f"{summary.num_tokens:,} tokens ({summary.num_trained_tokens:,} trained on)"
            + (f", {len(summary.dropped)} dropped or cut" if summary.dropped else "")
        )
    if plan.num_steps is not None:
        lines.append(f"Training: {plan.num_steps} steps of {spec.train.global_batch} sequences")
    return lines


def _where(plan: LaunchPlan) -> list[str]:
    kind = " (simulated)" if plan.spec.is_local else ""
    lines = [f"Offers for {plan.spec.nodes.accelerators}{kind}, cheapest first:"]
    for number, offer in enumerate(plan.offers[:_SHOWN_OFFERS], start=1):
        lines.append(
            f"  {number}. {offer.cloud:<7}{offer.region:<17}{offer.zone:<19}"
            f"{offer.market.value:<10} ${offer.usd_per_hour:>8}/h"
            f"   on demand ${offer.on_demand_usd_per_hour}/h"
            + ("" if offer.doubt is None else f"   ? {offer.doubt}")
        )
    hidden = len(plan.offers) - _SHOWN_OFFERS
    num_doubted = sum(offer.doubt is not None for offer in plan.offers)
    if hidden > 0:
        doubted = f", {num_doubted} of all with a price that may be wrong" if num_doubted else ""
        lines.append(f"  and {hidden} more{doubted} (plan --json shows them)")
    return [*lines, f"  Prices: {plan.prices}"]


def _how_much(plan: LaunchPlan) -> list[str]:
    limits, spec = plan.spec.limits, plan.spec
    lines = []
    if plan.estimate is not None:
        lines += _how_long(plan.estimate, plan.spec)
    if plan.memory is not None:
        memory = plan.memory
        lines.append(
            f"Memory: about {_gigabytes(memory.needed)} of {_gigabytes(memory.available):g} GB per "
            f"GPU (state {_gigabytes(memory.state)}, gathered {_gigabytes(memory.gathered)}, "
            f"activations {_gigabytes(memory.activations)}, logits {_gigabytes(memory.logits)})"
        )
    if spec.is_local:
        lines.append(f"Time: 1 wall second counts as {spec.time_scale:g} market seconds")
    deadline = "none" if limits.deadline is None else show_duration(limits.deadline)
    lines.append(
        f"Price{' (simulated)' if spec.is_local else ''}: ${plan.usd_per_hour}/h, "
        f"at most ${plan.worst_case_usd} (the budget); deadline {deadline}"
    )
    return lines


def _how_long(estimate: Estimate, spec: RunSpec) -> list[str]:
    found, limits = estimate.forecast, spec.limits
    chances = [f"over the budget of ${limits.budget_usd}: {found.chance_over_budget:.0%}"]
    if limits.deadline is not None and found.chance_late is not None:
        chances.insert(0, f"later than {show_duration(limits.deadline)}: {found.chance_late:.0%}")
    if found.chance_unfinished > found.chance_over_budget:
        chances.append(f"not finished: {found.chance_unfinished:.0%}")
    hours = " / ".join(map(_hours, (found.hours.p10, found.hours.p50, found.hours.p90)))
    usd = " / ".join(f"${one:.2f}" for one in (found.usd.p10, found.usd.p50, found.usd.p90) if one)
    lines = [
        f"Estimate: {estimate.productive / timedelta(hours=1):.1f} h of training alone, "
        f"${estimate.usd_cheapest} on the first offer ({estimate.assumption})",
        f"Forecast: {hours} and {usd} (p10 / p50 / p90)"
        + (
            f", ${found.egress_usd_p50:.2f} of it for checkpoints that cross regions"
            if found.egress_usd_p50 >= 0.005
            else ""
        ),
        f"  {'; '.join(chances)} (of {found.num_plays} replays of the run)",
        *(f"  assumes {line}" for line in _assumptions(estimate, spec)),
    ]
    if limits.budget_usd < estimate.usd_on_demand and found.chance_over_budget > _WORTH_A_WARNING:
        lines.append(
            f"Warning: on demand alone the run would cost ${estimate.usd_on_demand}, more than the "
            f"budget, and p90 on spot is above it too: it may stop at ${limits.budget_usd}, saved "
            "but not finished"
        )
    return lines


def _assumptions(estimate: Estimate, spec: RunSpec) -> list[str]:
    weather = estimate.weather
    if estimate.is_recorded:
        market = (
            "the market goes on as in its record: stretches of it are put together anew, and a few "
            "futures are as usual elsewhere; prices stay as at its end"
        )
    else:
        market = (
            "a made-up market: zones have room for 20 to 95 % of the time, lose it "
            f"{weather.pace:.2g} times as often as single V100s did in public traces (none of "
            "A100s), and old nodes last; prices stay. Recorded ones: --traces"
        )
    return [
        market,
        _decides(spec),
        f"each loss takes {show_duration(RESTART)} to restart and half of what was trained between "
        f"two saves, which are {show_duration(estimate.interval)} apart and stall training for "
        f"{show_duration(ASSUMED_STALL)}; no use of notices",
        f"on demand always has room; any node fails {weather.failures_per_hour * 24000:.2g} times "
        "in 1000 days",
    ]


def _decides(spec: RunSpec) -> str:
    """Say what the replays do, which follows from the limits."""
    limits = spec.limits
    if limits.market is MarketPreference.ON_DEMAND:
        return "on demand all the time, with which the market has nothing to do"
    if limits.market is MarketPreference.SPOT:
        return "spot as soon as there is any, and nothing else: without it the run waits"
    if limits.deadline is None:
        return "no deadline: spot if there is any, else on demand, without waiting"
    return f"{limits.policy.value} decides, by what its own launches show"


def _hours(found: float | None) -> str:
    return "unfinished" if found is None else f"{found:.1f} h"


def _rounded(found: float | None) -> float | None:
    return None if found is None else round(found, 3)


def _moves(plan: LaunchPlan) -> list[str]:
    """Say what a move of the checkpoint costs, and where every save would cost as much."""
    cloud, region = plan.egress.home
    same, other = (cloud, f"not {region}"), (f"not {cloud}", "")
    moves = [plan.egress.move_usd(place) for place in (same, other)]
    if None in moves:
        prices = (
            f"${SAME_CLOUD_EGRESS_USD_PER_GB}/GB within a cloud, "
            f"${CROSS_CLOUD_EGRESS_USD_PER_GB}/GB between clouds"
        )
        size = "of unknown size"
    else:
        prices = f"${moves[0]:.2f} within {cloud}, ${moves[1]:.2f} to another cloud"
        size = f"about {_gigabytes(plan.egress.checkpoint_bytes)} GB each"
    lines = [
        f"Checkpoints: {size}; {plan.spec.store} is counted as {cloud} {region}; taking the last "
        f"one to another region costs {prices}, once per move"
    ]
    far = {
        offer.place: None  # in the order of their prices
        for offer in plan.offers
        if offer.place != plan.egress.home and objects_url(plan.spec, offer) is None
    }
    if far:
        lines.append(
            f"  In {len(far)} of these regions every save crosses regions at that price: name a "
            f"store there, as in checkpoints.stores: {{{'/'.join(next(iter(far)))}: s3://...}}"
        )
    return lines


def _usd(amount: Decimal | None) -> float | None:
    return None if amount is None else float(round(amount, 6))


def _gigabytes(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else round(num_bytes / 1e9, 1)
