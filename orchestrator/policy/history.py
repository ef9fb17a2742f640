"""The question of a decision: what happened so far, and what the run may take.

All instants and durations are market time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from orchestrator.attempts import EndReason
from orchestrator.offers import Market, MarketPreference, Offer
from orchestrator.policy.sight import PolicyName

# A zone without capacity is not asked again for this long: a guess between burning API quota and
# missing capacity. Not measured yet.
RETRY_ZONE_AFTER = timedelta(minutes=10)
# A cloud that refuses the account is not asked again for this long while another may have room, and
# not at all after so many times in a row. Not measured: keys are not renewed within minutes.
RETRY_CLOUD_AFTER = timedelta(hours=6)
MAX_REFUSALS = 3
# In the field: a save and a stop.
STOP_MARGIN = timedelta(minutes=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRecord:
    """One launch: nodes asked for, had (maybe), and gone (maybe)."""

    offer: Offer
    started_at: datetime
    ready_at: datetime | None = None
    """When its nodes were up; None where nobody has said so yet."""
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
    """That is not saved; None before any step was measured."""
    is_complete: bool
    stop_requested: bool
    began_at: datetime
    """Of the run, and of its deadline."""
    num_nodes: int = 1
    work_done: timedelta = timedelta()
    unsaved: timedelta = timedelta()
    """Training of the launch that is up, in market time, that is in no checkpoint yet."""
    checkpoint_bytes: int = 0
    checkpoint_place: tuple[str, str] | None = None
    """Cloud and region of the store that has the last checkpoint."""
    save_usd: Decimal = Decimal(0)
    """What one more save costs from where nodes are up: its way to a store elsewhere."""

    @property
    def is_up(self) -> bool:
        """Say whether a launch is up or coming up."""
        return bool(self.launches) and self.launches[-1].ended_at is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the run may take, and what things take."""

    budget_usd: Decimal
    deadline_at: datetime | None
    market: MarketPreference
    stop_margin: timedelta
    """What a save and a stop take."""
    restart: timedelta
    """What a new node takes until its first new step."""
    policy: PolicyName = PolicyName.AUTO
    failed_launch: timedelta = timedelta(minutes=3)
    """What a launch takes that finds no room."""
    patience: timedelta = timedelta(minutes=1)
    """How soon a decision can follow another."""
    lost_work: timedelta = timedelta()
    """Most that is lost with a node: the time between saves."""
    pace: float = 1.0
    """How often nodes like these are usually lost, in losses of nodes with one GPU."""


def price_order(offer: Offer) -> tuple[bool, bool, Decimal, str]:
    """Return a sort key: spot below on demand first, then trusted prices, then by price."""
    is_on_demand, is_doubted = offer.market is Market.ON_DEMAND, offer.doubt is not None
    is_dear = not is_on_demand and offer.usd_per_hour >= offer.on_demand_usd_per_hour
    return (is_on_demand or is_dear, is_doubted, offer.usd_per_hour, str(offer))


def refusals(history: History) -> dict[tuple[str, Market], datetime]:
    """Return when each zone last had no capacity."""
    return {
        (launch.offer.zone, launch.offer.market): launch.ended_at
        for launch in history.launches
        if launch.reason is EndReason.NO_CAPACITY and launch.ended_at is not None
    }


def not_recently_refused(offers: Sequence[Offer], history: History, now: datetime) -> list[Offer]:
    """Return the offers in zones that may have capacity, in `price_order`."""
    refused_at = refusals(history)
    return sorted(
        (
            offer
            for offer in offers
            if (offer.zone, offer.market) not in refused_at
            or now - refused_at[offer.zone, offer.market] >= RETRY_ZONE_AFTER
        ),
        key=price_order,
    )


def clouds_given_up(history: History) -> set[str]:
    """Return the clouds that have refused the account too often since they last gave nodes."""
    counts = Counter[str]()
    for launch in history.launches:
        if launch.reason is EndReason.NO_ACCESS:
            counts[launch.offer.cloud] += 1
        elif launch.ready_at is not None:
            counts[launch.offer.cloud] = 0
    return {cloud for cloud, count in counts.items() if count >= MAX_REFUSALS}


def of_willing_clouds(offers: Sequence[Offer], history: History, now: datetime) -> list[Offer]:
    """Return the offers of clouds that have not just refused the account.

    Where those have no room, one that has is asked again, until it is given up.
    """
    given_up = clouds_given_up(history)
    left = [offer for offer in offers if offer.cloud not in given_up]
    last = {launch.offer.cloud: launch for launch in history.launches}
    refusing = {
        cloud
        for cloud, launch in last.items()
        if launch.reason is EndReason.NO_ACCESS
        and launch.ended_at is not None
        and now - launch.ended_at < RETRY_CLOUD_AFTER
    }
    willing = [offer for offer in left if offer.cloud not in refusing]
    return willing if not_recently_refused(willing, history, now) else left


def place_just_lost(history: History) -> tuple[str, str] | None:
    """Return the region of the last launch that came up, if it was lost there."""
    for launch in reversed(history.launches):
        if launch.reason in (EndReason.NO_CAPACITY, EndReason.NO_ACCESS):
            continue
        lost = launch.reason in (EndReason.PREEMPTED, EndReason.NODE_LOST)
        return launch.offer.place if lost else None
    return None
