"""From facts to what a policy sees: dates, money and launches become a `Sight`, and back.

Zones are those of trusted spot offers, cheapest first, the one that nodes are in, and the cheapest
on demand. What is known of them is what launches have shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from orchestrator.attempts import EndReason
from orchestrator.cost import move_usd
from orchestrator.offers import Market, Offer
from orchestrator.policy.history import (
    RETRY_ZONE_AFTER,
    History,
    LaunchRecord,
    Limits,
    not_recently_refused,
    price_order,
)
from orchestrator.policy.sight import Mode, Sight, Sighting, Zone

# Beyond six regions little is gained (SkyNomad, arXiv 2601.06520), and a decision takes longer.
_MOST_ZONES = 6
# Of an on-demand price where none is to be had: never chosen, and still a number to reckon with.
_DEAR = 1000.0
# Of the work, in hours: a new estimate of it would otherwise need new tables at each decision.
_WORK_STEP = 0.25
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A sight, and the offers behind its zones."""

    sight: Sight
    spot: tuple[Offer | None, ...]
    on_demand: tuple[Offer | None, ...]
    began_at: datetime
    doubtful_at: float
    """Hour from which on a zone that had no room is worth another try."""

    def offer(self, mode: Mode, zone: int) -> Offer | None:
        """Return what is offered in a zone."""
        return (self.spot if mode is Mode.SPOT else self.on_demand)[zone]

    def instant(self, hour: float) -> datetime:
        """Return an hour of the sight as an instant; that of the deadline at the latest."""
        return self.began_at + min(hour, self.sight.deadline) * _HOUR


def look(history: History, offers: Sequence[Offer], limits: Limits, now: datetime) -> View | None:
    """Return what a policy sees.

    None where there is nothing to weigh: no deadline, work that nobody knows, or not both markets.
    """
    if limits.deadline_at is None or history.work_left is None:
        return None
    spot = _cheapest_by_zone(offers)
    on_demand = _on_demand_by_place(history, offers, now)
    if not on_demand:
        return None
    zones = _zones(history, spot, on_demand, now)
    places = sorted({zone.place for zone in zones} | _places_of_checkpoint(history))
    paid = {place: float(one.usd_per_hour * history.num_nodes) for place, one in on_demand.items()}
    dear = _DEAR * max(paid.values())
    sight = Sight(
        zones=tuple(
            Zone(zone.zone, places.index(zone.place), paid.get(zone.place, dear)) for zone in zones
        ),
        move_usd=move_usd(places, history.checkpoint_bytes / 1e9),
        deadline=(limits.deadline_at - history.began_at) / _HOUR,
        work=_rounded_up((history.work_left + history.work_done) / _HOUR),
        restart=limits.restart / _HOUR,
        failed_launch=limits.failed_launch / _HOUR,
        patience=limits.patience / _HOUR,
        lost_work=limits.lost_work / _HOUR,
        pace=limits.pace,
        now=max(0.0, (now - history.began_at) / _HOUR),  # clocks differ
        work_left=history.work_left / _HOUR,
        usd_left=_usd_left(history, on_demand, limits),
        spot=[float(_price(zone, offers) * history.num_nodes) for zone in zones],
        unsaved=history.unsaved / _HOUR,
    )
    if history.checkpoint_place is not None:
        sight.checkpoint_place = places.index(history.checkpoint_place)
    doubtful_at = _show_launches(sight, history, zones, spot)
    return View(
        sight=sight,
        spot=tuple(spot.get(_key(zone)) for zone in zones),
        on_demand=tuple(on_demand.get(zone.place) for zone in zones),
        began_at=history.began_at,
        doubtful_at=doubtful_at,
    )


def _usd_left(history: History, on_demand: dict[tuple[str, str], Offer], limits: Limits) -> float:
    """Return what may be spent, less what stopping a node on demand takes."""
    rate = min(offer.usd_per_hour for offer in on_demand.values()) * history.num_nodes
    return float(limits.budget_usd - history.usd) - float(rate) * (limits.stop_margin / _HOUR)


def _rounded_up(hours: float) -> float:
    return _WORK_STEP * math.ceil(hours / _WORK_STEP - 1e-6)  # dates have microseconds


def _key(offer: Offer) -> tuple[str, str]:
    return (offer.cloud, offer.zone)


def _price(zone: Offer, offers: Sequence[Offer]) -> Decimal:
    """Return the present price of spot in a zone, also one in doubt: a node may be up there."""
    now = [one for one in offers if _key(one) == _key(zone) and one.market is zone.market]
    return min(now, key=price_order, default=zone).usd_per_hour


def _cheapest_by_zone(offers: Sequence[Offer]) -> dict[tuple[str, str], Offer]:
    trusted = [offer for offer in offers if offer.market is Market.SPOT and offer.doubt is None]
    found: dict[tuple[str, str], Offer] = {}
    for offer in sorted(trusted, key=price_order):
        found.setdefault(_key(offer), offer)
    return found


def _on_demand_by_place(
    history: History, offers: Sequence[Offer], now: datetime
) -> dict[tuple[str, str], Offer]:
    """Return the cheapest of each place, without those that were refused a moment ago."""
    every = [offer for offer in offers if offer.market is Market.ON_DEMAND]
    trusted = [offer for offer in every if offer.doubt is None] or every
    found: dict[tuple[str, str], Offer] = {}
    for offer in not_recently_refused(trusted, history, now):
        found.setdefault(offer.place, offer)
    return found


def _zones(
    history: History,
    spot: dict[tuple[str, str], Offer],
    on_demand: dict[tuple[str, str], Offer],
    now: datetime,
) -> list[Offer]:
    """Return one offer for each zone, which stands for it.

    Zones that were refused a moment ago give way, or six cheap ones would hide all others.
    """
    usable = not_recently_refused(list(spot.values()), history, now)
    refused = [offer for offer in spot.values() if offer not in usable]
    zones = sorted([*usable, *refused][:_MOST_ZONES], key=price_order)
    known = {_key(zone) for zone in zones}
    if history.is_up and _key(history.launches[-1].offer) not in known:
        zones.append(history.launches[-1].offer)
    cheapest = min(on_demand.values(), key=price_order)
    if cheapest.place not in {zone.place for zone in zones}:
        zones.append(cheapest)
    return zones


def _places_of_checkpoint(history: History) -> set[tuple[str, str]]:
    return set() if history.checkpoint_place is None else {history.checkpoint_place}


def _show_launches(
    sight: Sight,
    history: History,
    zones: Sequence[Offer],
    spot: dict[tuple[str, str], Offer],
) -> float:
    """Add what is up and what launches have shown of zones; return when that says nothing more."""
    index = {_key(zone): number for number, zone in enumerate(zones)}
    if history.is_up:
        launch = history.launches[-1]
        is_spot = launch.offer.market is Market.SPOT
        sight.mode = Mode.SPOT if is_spot else Mode.ON_DEMAND
        sight.zone = index[_key(launch.offer)]
        since = launch.ready_at or launch.started_at
        sight.ready_at = (since - history.began_at) / _HOUR + sight.restart
    is_up: list[bool | None] = [None] * len(zones)
    seen: list[Sighting] = []
    for number, zone in enumerate(zones):
        if _key(zone) not in spot:  # on demand alone
            is_up[number] = False
            seen.append(Sighting(0.0, number, False))
    doubtful_at = math.inf
    for hour, key, found in _sightings(history):
        if key not in index or key not in spot:
            continue
        if hour > sight.now:
            doubtful_at = min(doubtful_at, hour)
            continue
        seen.append(Sighting(hour, index[key], found))
        is_up[index[key]] = found
    if sight.mode is Mode.SPOT:
        is_up[sight.zone] = True  # it may be coming up
    sight.is_up = is_up
    sight.sightings = sorted(seen, key=lambda one: one.hour)
    return doubtful_at


def _sightings(history: History) -> Iterator[tuple[float, tuple[str, str], bool | None]]:
    """Yield hour, zone and what was seen, in order for each zone."""
    events: list[tuple[datetime, tuple[str, str], bool, bool]] = []
    for launch in history.launches:
        if launch.offer.market is Market.SPOT:
            key = _key(launch.offer)
            events += [(at, key, is_up, watched) for at, is_up, watched in _seen_by(launch)]
    events.sort(key=lambda event: event[0])
    following: dict[tuple[str, str], datetime] = {}
    forgotten: list[datetime | None] = []
    for at, key, _, is_watched in reversed(events):
        gone_at, next_at = at + RETRY_ZONE_AFTER, following.get(key)
        is_forgotten = not is_watched and (next_at is None or gone_at <= next_at)
        forgotten.append(gone_at if is_forgotten else None)
        following[key] = at
    for (at, key, is_up, _), until in zip(events, reversed(forgotten), strict=True):
        yield (at - history.began_at) / _HOUR, key, is_up
        if until is not None:
            yield (until - history.began_at) / _HOUR, key, None


def _seen_by(launch: LaunchRecord) -> Iterator[tuple[datetime, bool, bool]]:
    """Yield when a launch has shown its zone with room or none, and whether it then watched it."""
    ended_at = launch.ended_at
    if launch.ready_at is not None:
        yield launch.ready_at, True, ended_at is None or ended_at > launch.ready_at
    if ended_at is None:
        return
    if launch.reason is EndReason.NO_CAPACITY:
        yield ended_at, False, False
    elif launch.ready_at is not None:
        is_lost = launch.reason in (EndReason.PREEMPTED, EndReason.NODE_LOST)
        yield ended_at, not is_lost, False
