"""How long a run will take and what it will cost, from plays of the policy on random markets.

Pure: the same question has the same answer. What is assumed of markets is here, with its sources.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal

from orchestrator.cost import hours
from orchestrator.offers import Market, Offer
from orchestrator.play import ORIGIN, Outcome, Play, Weather, Work
from orchestrator.policy.history import Limits

_SEED = 0
# Half a second of decisions; p90 of 200 plays is good to about 4 % of them.
_MOST_PLAYS = 200
_MOST_DECISIONS = 6_000
# What the policy would look at anyway, of a catalog's hundred zones.
_MOST_OFFERS = {Market.SPOT: 12, Market.ON_DEMAND: 6}


# Pooled over the public traces of Wu et al., "Can't Be Late", NSDI'24, and of SkyNomad (arXiv
# 2601.06520). Machines of 8 V100s: 1.09 losses per hour up, 1.0 h absent; 16 H100s at once: 0.86
# and 2.2 h. Single V100s: 0.30 and 2.5 h; single H100s: 0.30 and 1.2 h. None of them has A100s.
# Failures: 6.5 per 1000 days of an 8-GPU node (Kokolis et al., HPCA'25).
_FAILURES_PER_HOUR = 6.5e-3 / 24
WHOLE_MACHINES = Weather(
    losses_per_hour=1.0, absence=timedelta(hours=1.5), failures_per_hour=_FAILURES_PER_HOUR
)
SMALLER_NODES = Weather(
    losses_per_hour=0.3, absence=timedelta(hours=2), failures_per_hour=_FAILURES_PER_HOUR
)
_WHOLE_MACHINE_GPUS = 8
# 4 V100 nodes together are lost 1.4 times as often as one of them (the same traces).
_GANG_EXPONENT = 0.25


def weather_for(num_gpus: int, num_nodes: int) -> Weather:
    """Return what is assumed of nodes of `num_gpus` GPUs, `num_nodes` of them at a time."""
    base = WHOLE_MACHINES if num_gpus >= _WHOLE_MACHINE_GPUS else SMALLER_NODES
    return replace(
        base,
        losses_per_hour=base.losses_per_hour * num_nodes**_GANG_EXPONENT,
        failures_per_hour=base.failures_per_hour * num_nodes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What came of the plays. None: in more than that share of them, the run does not finish."""

    hours_p50: float | None
    hours_p90: float | None
    usd_p50: Decimal
    usd_p90: Decimal
    egress_usd_p50: Decimal
    """Of `usd_p50` about so much is for moving checkpoints between regions."""
    chance_unfinished: float
    """Of stopping at the budget, or for want of capacity, before the last step."""
    chance_late: float | None
    """Of not having finished at the deadline; None without one."""
    num_plays: int


def forecast(
    work: Work,
    offers: Sequence[Offer],
    limits: Limits,
    deadline: timedelta | None,
    weather: Weather,
) -> Forecast:
    """Play the run a few hundred times; the same question has the same answer."""
    if deadline is not None:
        limits = replace(limits, deadline_at=ORIGIN + deadline)
    looked_at = _looked_at(offers)
    outcomes: list[Outcome] = []
    num_decisions = 0
    while len(outcomes) < _MOST_PLAYS and num_decisions < _MOST_DECISIONS:
        dice = random.Random(f"{_SEED}/{len(outcomes)}")
        play = Play(work=work, offers=looked_at, limits=limits, weather=weather, dice=dice)
        outcomes.append(play.to_the_end())
        num_decisions += play.num_decisions
    return _summary(outcomes, deadline)


def _looked_at(offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """Keep the first offers of each market, which are those that are trusted and cheapest."""
    kept: dict[Market, list[Offer]] = {market: [] for market in Market}
    for offer in offers:
        if len(kept[offer.market]) < _MOST_OFFERS[offer.market]:
            kept[offer.market].append(offer)
    return tuple(offer for some in kept.values() for offer in some)


def _summary(outcomes: Sequence[Outcome], deadline: timedelta | None) -> Forecast:
    finished = sorted(hours(one.ended_after) for one in outcomes if one.is_finished)
    usd = sorted(one.usd for one in outcomes)
    late = [o for o in outcomes if not o.is_finished or (deadline and o.ended_after > deadline)]
    count = len(outcomes)

    def hours_at(share: float) -> float | None:
        rank = math.ceil(share * count) - 1
        return float(finished[rank]) if rank < len(finished) else None

    return Forecast(
        hours_p50=hours_at(0.5),
        hours_p90=hours_at(0.9),
        usd_p50=_cents(usd[math.ceil(0.5 * count) - 1]),
        usd_p90=_cents(usd[math.ceil(0.9 * count) - 1]),
        egress_usd_p50=_cents(sorted(o.egress_usd for o in outcomes)[math.ceil(0.5 * count) - 1]),
        chance_unfinished=1 - len(finished) / count,
        chance_late=None if deadline is None else len(late) / count,
        num_plays=count,
    )


def _cents(amount: Decimal) -> Decimal:
    return amount.quantize(Decimal("0.01"))
