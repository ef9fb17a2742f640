"""What capacity costs where: a dated table of offers, one row per zone.

The table is a snapshot of list and spot prices (see `PRICES_AS_OF`); quoted prices are frozen into
run.json at launch. Rows where the public catalog is known to be wrong (spot at or above on-demand)
are not in it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from importlib import resources

from orchestrator.errors import SpecError

# The catalog gives no day for its rows; only the year of the snapshot is known.
PRICES_AS_OF = "2026"
PRICES_SOURCE = "orchestrator/prices.csv, from the SkyPilot catalog v8"


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

    @property
    def place(self) -> tuple[str, str]:
        """Cloud and region: what is lost together when spot capacity there ends."""
        return (self.cloud, self.region)

    def __str__(self) -> str:
        return f"{self.cloud} {self.region} {self.zone} {self.market.value}"


def list_offers(
    accelerators: str, clouds: Iterable[str] | None, preference: MarketPreference
) -> tuple[Offer, ...]:
    """Return the offers for `accelerators` (as "A100-80GB:8"), cheapest first.

    Raises:
        SpecError: no row of the table fits.
    """
    wanted = None if clouds is None else set(clouds)
    table = list(_read_table())
    fitting = [
        offer
        for offer in table
        if offer.accelerators == accelerators
        and (wanted is None or offer.cloud in wanted)
        and preference.allows(offer.market)
    ]
    if not fitting:
        known = sorted({offer.accelerators for offer in table})
        places = "any cloud" if wanted is None else ", ".join(sorted(wanted))
        raise SpecError(
            f"No offer for nodes.accelerators {accelerators!r} on {places} ({preference.value}).",
            f"Choose one of {', '.join(known)}, or other clouds under infra.",
        )
    return tuple(sorted(fitting, key=lambda offer: (offer.usd_per_hour, str(offer))))


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
