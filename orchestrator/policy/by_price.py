"""Where to run when nothing is to be weighed: the cheapest spot that has not just failed.

For runs without a deadline, or with one market alone, and until the first step is measured. On
demand is taken where spot is nowhere, and left once that pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from orchestrator.attempts import EndReason, StopReason
from orchestrator.offers import Market, MarketPreference, Offer
from orchestrator.policy.answers import Drain, Keep, Launch, Stop, Wait
from orchestrator.policy.history import (
    RETRY_ZONE_AFTER,
    History,
    LaunchRecord,
    Limits,
    not_recently_refused,
    place_just_lost,
    price_order,
    refusals,
)

# With nothing but spot allowed and nowhere to be had, the run gives up after this long.
MAX_WAIT = timedelta(hours=24)
_BOTH = MarketPreference.SPOT_WITH_FALLBACK
# On demand is left for spot after this long at the earliest, and for twice what the move costs.
MIN_STAY = timedelta(hours=1)
MIN_GAIN = 2


def choose_by_price(
    history: History, offers: Sequence[Offer], limits: Limits, now: datetime
) -> Keep | Launch | Wait | Drain | Stop:
    """Return what to do by the prices on offer."""
    if history.is_up:
        current = history.launches[-1]
        return _return_to_spot(current, history, offers, limits, now) or Keep(
            why=f"{current.offer} is up"
        )
    return _cheapest(history, offers, limits, now)


def _return_to_spot(
    current: LaunchRecord,
    history: History,
    offers: Sequence[Offer],
    limits: Limits,
    now: datetime,
) -> Drain | None:
    """Leave on demand once spot may be back, if that pays and the deadline allows a failed try."""
    if current.offer.market is not Market.ON_DEMAND or history.work_left is None:
        return None
    if now - current.started_at < MIN_STAY:
        return None
    spot = [offer for offer in offers if offer.market is Market.SPOT and offer.doubt is None]
    usable = not_recently_refused(spot, history, now)
    if not usable:
        return None
    restarts = 2 * limits.restart  # to spot, and back if there is none after all
    left = None if limits.deadline_at is None else limits.deadline_at - now
    if left is not None and left < history.work_left + 2 * restarts:
        return None
    price = current.offer.usd_per_hour * history.num_nodes
    cheaper = usable[0].usd_per_hour * history.num_nodes
    saved = (price - cheaper) * Decimal(history.work_left / timedelta(hours=1))
    cost = price * Decimal(restarts / timedelta(hours=1))
    if saved < MIN_GAIN * cost:
        return None
    return Drain(why=f"{usable[0]} may have room again: saves ${saved:.2f} on ${cost:.2f}")


def _cheapest(
    history: History, offers: Sequence[Offer], limits: Limits, now: datetime
) -> Launch | Wait | Stop:
    if not offers:
        why = f"nothing is on offer ({limits.market.value})"
        return Stop(reason=StopReason.NO_CAPACITY, why=why)
    usable = not_recently_refused(offers, history, now)
    lost = place_just_lost(history)
    elsewhere = [offer for offer in usable if offer.place != lost]
    first = "cheapest on offer" if lost is None else f"cheapest outside {lost[1]}, just lost"
    for candidates, why in ((elsewhere, first), (usable, "no other region has capacity")):
        if candidates:
            best = min(candidates, key=price_order)
            return Launch(offer=best, why=f"{why}: {best} at ${best.usd_per_hour}/h")
    waiting_since = _without_capacity_since(history)
    has_net = limits.deadline_at is not None and limits.market is _BOTH
    if waiting_since is not None and now - waiting_since > MAX_WAIT and not has_net:
        return Stop(
            reason=StopReason.NO_CAPACITY, why=f"no capacity for {_hours(now - waiting_since)}"
        )
    refused_at = refusals(history)
    until = min(refused_at[offer.zone, offer.market] for offer in offers) + RETRY_ZONE_AFTER
    return Wait(until=until, why=f"no capacity in {len(offers)} zones a moment ago")


def _without_capacity_since(history: History) -> datetime | None:
    """Return when the first refusal came after the last launch that came up."""
    since = None
    for launch in reversed(history.launches):
        if launch.reason is EndReason.NO_CAPACITY:
            since = launch.ended_at
        elif launch.reason is not EndReason.NO_ACCESS:
            break
    return since


def _hours(duration: timedelta) -> str:
    return f"{duration / timedelta(hours=1):.1f} h"
