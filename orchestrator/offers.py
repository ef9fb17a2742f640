"""What capacity costs where: a dated table of offers, one row per zone.

The shipped table is a snapshot of list and spot prices, without the rows of the public catalog that
are known to be wrong; `orchestrator.catalog` reads the present one. Quoted prices are frozen into
run.json at launch.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import Enum
from importlib import resources
from statistics import median

from orchestrator.errors import SpecError

# A price is doubted that is this far from what others of its kind are.
_LOW_SPOT = Decimal("0.15")
_LOW_ON_DEMAND = Decimal("0.75")


class Market(str, Enum):
    """How capacity is bought."""

    SPOT = "spot"
    ON_DEMAND = "on_demand"


class MarketPreference(str, Enum):
    """What the spec's `limits.market` allows."""

    SPOT = "spot"
    ON_DEMAND = "on_demand"
    SPOT_WITH_FALLBACK = "spot_with_fallback"

    def allows(self, market: Market) -> bool:
        """Say whether an offer of this market may be launched at all."""
        return self is MarketPreference.SPOT_WITH_FALLBACK or self.value == market.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One kind of node in one zone at a quoted price per node and hour."""

    cloud: str
    region: str
    zone: str
    instance_type: str
    accelerators: str
    market: Market
    usd_per_hour: Decimal
    on_demand_usd_per_hour: Decimal
    doubt: str | None = None
    """Why the price may be wrong."""

    @property
    def place(self) -> tuple[str, str]:
        """Cloud and region: what is lost together when spot capacity there ends."""
        return (self.cloud, self.region)

    def __str__(self) -> str:
        return f"{self.cloud} {self.region} {self.zone} {self.market.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """Offers, where their prices are from, and of when."""

    offers: tuple[Offer, ...]
    source: str
    as_of: datetime | None
    """None: of some day in 2026; the shipped snapshot gives none."""
    updates: tuple[str, ...] = ()
    """What was asked since, and of when that is."""
    gaps: tuple[str, ...] = ()
    """What could not be asked, and why."""

    def price_of(self, taken: Offer, asked_zone: str | None) -> Decimal | None:
        """Return what nodes that were taken cost per hour by this table; None: it has no such row.

        Clouds may name a zone otherwise than price lists; `asked_zone` is how it was asked for.
        """
        kind = (taken.cloud, taken.region, taken.instance_type, taken.market)
        zones = (taken.zone, asked_zone)
        alike = (
            offer
            for offer in self.offers
            if (offer.cloud, offer.region, offer.instance_type, offer.market) == kind
        )
        return next((offer.usd_per_hour for offer in alike if offer.zone in zones), None)

    def __str__(self) -> str:
        day = "2026" if self.as_of is None else f"{self.as_of:%Y-%m-%d}"
        return ", ".join((f"{self.source} ({day})", *self.updates))


def shipped_prices() -> PriceTable:
    """Return the table that comes with this version."""
    return PriceTable(
        offers=tuple(_read_table()),
        source="orchestrator/prices.csv, from the SkyPilot catalog v8",
        as_of=None,
    )


def list_offers(
    table: PriceTable,
    accelerators: str,
    clouds: Iterable[str] | None,
    preference: MarketPreference,
) -> tuple[Offer, ...]:
    """Return the offers for `accelerators` (as "A100-80GB:8"), cheapest first, doubted ones last.

    Raises:
        SpecError: no row of the table fits.
    """
    wanted = None if clouds is None else set(clouds)
    fitting = [
        offer
        for offer in table.offers
        if offer.accelerators == accelerators and (wanted is None or offer.cloud in wanted)
    ]
    allowed = [offer for offer in _doubted(fitting) if preference.allows(offer.market)]
    if not allowed:
        known = sorted({offer.accelerators for offer in table.offers} - {accelerators})
        places = "any cloud" if wanted is None else ", ".join(sorted(wanted))
        raise SpecError(
            f"No offer for nodes.accelerators {accelerators!r} on {places} ({preference.value}).",
            f"Choose one of {', '.join(known)}, or other clouds under infra."
            if known
            else "Choose others, or other clouds under infra.",
        )
    return tuple(sorted(allowed, key=lambda o: (o.doubt is not None, o.usd_per_hour, str(o))))


def _doubted(offers: list[Offer]) -> Iterator[Offer]:
    """Yield the offers, with doubts about prices that public catalogs are known to have wrong."""
    usual: dict[tuple[str, str], list[Decimal]] = {}
    for offer in offers:
        kind = (offer.cloud, offer.instance_type)
        usual.setdefault(kind, []).append(offer.on_demand_usd_per_hour)
    for offer in offers:
        typical = median(usual[offer.cloud, offer.instance_type])
        yield replace(offer, doubt=_doubt(offer, typical))


def _doubt(offer: Offer, typical: Decimal) -> str | None:
    listed = offer.on_demand_usd_per_hour
    if offer.market is Market.SPOT:
        if offer.usd_per_hour >= listed:
            return "not below on demand"
        if offer.usd_per_hour < _LOW_SPOT * listed:
            return f"{offer.usd_per_hour / listed:.0%} of on demand"
    if offer.market is Market.ON_DEMAND and listed < _LOW_ON_DEMAND * typical:
        return f"{1 - listed / typical:.0%} below other regions"
    return None


def _read_table() -> Iterable[Offer]:
    text = resources.files("orchestrator").joinpath("prices.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        on_demand = Decimal(row.pop("on_demand_usd_per_hour"))
        spot = row.pop("spot_usd_per_hour")
        yield Offer(
            **row, market=Market.ON_DEMAND, usd_per_hour=on_demand, on_demand_usd_per_hour=on_demand
        )
        if spot:
            yield Offer(
                **row,
                market=Market.SPOT,
                usd_per_hour=Decimal(spot),
                on_demand_usd_per_hour=on_demand,
            )
