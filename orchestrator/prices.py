"""Today's prices for a spec: SkyPilot's catalog, or the shipped table, and what AWS says itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.aws import ask_spot_prices, is_elsewhere, merge_spot_prices
from orchestrator.catalog import read_catalog
from orchestrator.clock import SystemClock
from orchestrator.offers import Market, PriceTable, shipped_prices
from orchestrator.readiness import has_credentials, what_is_missing
from orchestrator.spec import RunSpec


def price_table(spec: RunSpec, *, offline: bool = False) -> PriceTable:
    """Return prices for `spec`, and what could not be asked; what is simulated stays as it is."""
    if spec.clouds is None:
        return shipped_prices()
    wants_spot = spec.limits.market.allows(Market.SPOT)
    return prices_on(spec.nodes.accelerators, spec.clouds, wants_spot=wants_spot, offline=offline)


def prices_on(
    accelerators: str, clouds: Sequence[str], *, wants_spot: bool, offline: bool = False
) -> PriceTable:
    """Return prices of `accelerators` on these clouds, and what could not be asked.

    The network is used only where this machine has credentials for AWS, and not if `offline`.
    """
    table = read_catalog(accelerators, clouds) or shipped_prices()
    table = replace(table, gaps=tuple(what_is_missing(clouds)))
    if offline or not wants_spot or "aws" not in clouds or not has_credentials("aws"):
        return table
    if is_elsewhere():
        gap = "AWS_ENDPOINT_URL is set, so AWS is not asked for spot prices"
        return replace(table, gaps=(*table.gaps, gap))
    return _with_spot_prices(table, accelerators)


def _with_spot_prices(table: PriceTable, accelerators: str) -> PriceTable:
    wanted = [o for o in table.offers if o.cloud == "aws" and o.accelerators == accelerators]
    if not wanted:
        return table
    now = SystemClock().now()
    types, regions = ({o.instance_type for o in wanted}, {o.region for o in wanted})
    answers = ask_spot_prices(sorted(types), sorted(regions), now)
    gaps = [
        f"AWS did not say the spot price of {region}: {why}"
        for region, why in answers.failures.items()
    ]
    quoted = sorted(region for region, prices in answers.prices.items() if prices)
    update = f"AWS' own spot prices of {now:%Y-%m-%d %H:%M} UTC in {', '.join(quoted)}"
    return replace(
        table,
        offers=merge_spot_prices(table.offers, answers),
        updates=(update,) if quoted else (),
        gaps=(*table.gaps, *gaps),
    )
