"""`decide()`: keep, launch where, wait until when, or stop; pure, and each answer with its reason.

All instants and durations are market time. The policy here is `greedy`: the cheapest spot offer
that has not just failed or been lost; on-demand when spot is nowhere, or when the deadline demands
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from orchestrator.attempts import EndReason, RetryBudget, StopReason, charged_to
from orchestrator.offers import Market, MarketPreference, Offer

# A zone without capacity is not asked again for this long: a guess between burning API quota and
# missing capacity. Not measured yet.
RETRY_ZONE_AFTER = timedelta(minutes=10)
# With nothing but spot allowed and nowhere to be had, the run gives up after this long.
MAX_WAIT = timedelta(hours=24)
# On demand is left for spot after this long at the earliest, and for twice what the move costs.
MIN_STAY = timedelta(hours=1)
MIN_GAIN = 2
# Both count ends in a row without a new checkpoint in between.
MAX_PREEMPTIONS = 50
MAX_FAILURES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRecord:
    """One launch: nodes asked for, had (maybe), and gone (maybe)."""

    offer: Offer
    started_at: datetime
    ended_at: datetime | None = None
    reason: EndReason | None = None
    has_progressed: bool = False
    """It committed a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What is known when a decision is due; `launches` since the last launch command, in order."""

    launches: tuple[LaunchRecord, ...]
    usd: Decimal
    usd_per_hour: Decimal
    work_left: timedelta | None
    is_complete: bool
    stop_requested: bool
    num_nodes: int = 1

    @property
    def is_up(self) -> bool:
        """Say whether a launch is up or coming up."""
        return bool(self.launches) and self.launches[-1].ended_at is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the run may take; `stop_margin` and `restart` are what a stop and a new node take."""

    budget_usd: Decimal
    deadline_at: datetime | None
    market: MarketPreference
    stop_margin: timedelta
    restart: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Leave the running launch alone."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Ask for nodes under this offer."""

    offer: Offer
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Ask for nothing before `until`."""

    until: datetime
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Have the running launch save and leave, to go on elsewhere."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End the run: a running launch saves first."""

    reason: StopReason
    why: str


Decision = Keep | Launch | Wait | Drain | Stop


def decide(history: History, offers: Sequence[Offer], limits: Limits, now: datetime) -> Decision:
    """Return what to do at `now`; never does I/O and never looks at a clock."""
    allowed = [offer for offer in offers if limits.market.allows(offer.market)]
    if (stop := _reason_to_stop(history, allowed, limits)) is not None:
        return stop
    if history.is_up:
        current = history.launches[-1]
        return _return_to_spot(current, history, allowed, limits, now) or Keep(
            why=f"{current.offer} is up"
        )
    if (launch := _place_for_deadline(history, allowed, limits, now)) is not None:
        return launch
    return _cheapest(history, allowed, limits, now)


def _reason_to_stop(history: History, offers: Sequence[Offer], limits: Limits) -> Stop | None:
    if history.is_complete:
        return Stop(reason=StopReason.DONE, why="the last step is committed")
    if history.stop_requested:
        return Stop(reason=StopReason.REQUESTED, why="a stop was requested")
    committed = history.usd + _unavoidable_usd(history, offers, limits)
    if committed >= limits.budget_usd:
        what = "saving" if history.is_up else "another node"
        return Stop(
            reason=StopReason.BUDGET,
            why=f"${history.usd:.2f} spent, and {what} takes the rest of ${limits.budget_usd}",
        )
    num_failures = _count(history, RetryBudget.FAILURES)
    if num_failures >= MAX_FAILURES:
        return Stop(
            reason=StopReason.TOO_MANY_FAILURES,
            why=f"{num_failures} launches in a row failed",
        )
    num_preemptions = _count(history, RetryBudget.PREEMPTIONS)
    if num_preemptions >= MAX_PREEMPTIONS:
        return Stop(
            reason=StopReason.TOO_MANY_PREEMPTIONS,
            why=f"{num_preemptions} nodes in a row were lost before a checkpoint",
        )
    return None


def _unavoidable_usd(history: History, offers: Sequence[Offer], limits: Limits) -> Decimal:
    """Return what a stop costs from here, or at the least a start and a stop where nothing runs."""
    if history.is_up:
        return history.usd_per_hour * Decimal(limits.stop_margin / timedelta(hours=1))
    trusted = [offer for offer in offers if offer.doubt is None] or offers
    cheapest = min((offer.usd_per_hour for offer in trusted), default=Decimal(0))
    return (
        cheapest
        * history.num_nodes
        * Decimal((limits.restart + limits.stop_margin) / timedelta(hours=1))
    )


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
    usable = _not_recently_refused(spot, history, now)
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


def _count(history: History, budget: RetryBudget) -> int:
    """Count the ends since the last launch that committed something: progress forgives."""
    count = 0
    for launch in reversed(history.launches):
        if launch.reason is not None and charged_to(launch.reason) is budget:
            count += 1
        if launch.has_progressed:
            break
    return count


def _place_for_deadline(
    history: History, offers: Sequence[Offer], limits: Limits, now: datetime
) -> Launch | None:
    """Go to on-demand when waiting longer could miss the deadline (the safety net)."""
    if limits.deadline_at is None or history.work_left is None:
        return None
    left = limits.deadline_at - now
    needed = history.work_left + 2 * limits.restart
    on_demand = [offer for offer in offers if offer.market is Market.ON_DEMAND]
    usable = _not_recently_refused(on_demand, history, now)
    if left > needed or not usable:
        return None
    lost = _place_just_lost(history)
    return Launch(
        offer=next((offer for offer in usable if offer.place != lost), usable[0]),
        why=f"{_hours(left)} to the deadline and {_hours(needed)} needed: on-demand from here",
    )


def _cheapest(
    history: History, offers: Sequence[Offer], limits: Limits, now: datetime
) -> Launch | Wait | Stop:
    wanted = _wanted(offers, history, limits)
    if not wanted:
        why = f"nothing is on offer ({limits.market.value})"
        return Stop(reason=StopReason.NO_CAPACITY, why=why)
    usable = _not_recently_refused(wanted, history, now)
    lost = _place_just_lost(history)
    elsewhere = [offer for offer in usable if offer.place != lost]
    first = "cheapest on offer" if lost is None else f"cheapest outside {lost[1]}, just lost"
    for candidates, why in ((elsewhere, first), (usable, "no other region has capacity")):
        if candidates:
            best = min(candidates, key=_price_order)
            return Launch(offer=best, why=f"{why}: {best} at ${best.usd_per_hour}/h")
    waiting_since = _without_capacity_since(history)
    if waiting_since is not None and now - waiting_since > MAX_WAIT:
        return Stop(
            reason=StopReason.NO_CAPACITY, why=f"no capacity for {_hours(now - waiting_since)}"
        )
    refusals = _refusals(history)
    until = min(refusals[offer.zone, offer.market] for offer in wanted) + RETRY_ZONE_AFTER
    return Wait(until=until, why=f"no capacity in {len(wanted)} zones a moment ago")


def _wanted(offers: Sequence[Offer], history: History, limits: Limits) -> list[Offer]:
    """Return what greedy asks for: it waits for spot while a deadline is known to have slack."""
    spot = [offer for offer in offers if offer.market is Market.SPOT]
    knows_slack = limits.deadline_at is not None and history.work_left is not None
    return spot if knows_slack and spot else list(offers)


def _without_capacity_since(history: History) -> datetime | None:
    """Return when the first refusal came after the last launch that came up."""
    since = None
    for launch in reversed(history.launches):
        if launch.reason is not EndReason.NO_CAPACITY:
            break
        since = launch.ended_at
    return since


def _price_order(offer: Offer) -> tuple[bool, bool, Decimal, str]:
    is_on_demand, is_doubted = offer.market is Market.ON_DEMAND, offer.doubt is not None
    return (is_on_demand, is_doubted, offer.usd_per_hour, str(offer))


def _refusals(history: History) -> dict[tuple[str, Market], datetime]:
    """Return when each zone last had no capacity."""
    return {
        (launch.offer.zone, launch.offer.market): launch.ended_at
        for launch in history.launches
        if launch.reason is EndReason.NO_CAPACITY and launch.ended_at is not None
    }


def _not_recently_refused(offers: Sequence[Offer], history: History, now: datetime) -> list[Offer]:
    refusals = _refusals(history)
    return sorted(
        (
            offer
            for offer in offers
            if (offer.zone, offer.market) not in refusals
            or now - refusals[offer.zone, offer.market] >= RETRY_ZONE_AFTER
        ),
        key=_price_order,
    )


def _place_just_lost(history: History) -> tuple[str, str] | None:
    """Return the region of the last launch that came up, if it was lost there."""
    for launch in reversed(history.launches):
        if launch.reason is EndReason.NO_CAPACITY:
            continue
        lost = launch.reason in (EndReason.PREEMPTED, EndReason.NODE_LOST)
        return launch.offer.place if lost else None
    return None


def _hours(duration: timedelta) -> str:
    return f"{duration / timedelta(hours=1):.1f} h"
