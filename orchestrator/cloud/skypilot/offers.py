"""Between our offers and SkyPilot's resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.catalog import catalog_state, read_catalog
from orchestrator.errors import SpecError
from orchestrator.offers import Market, MarketPreference, Offer, list_offers
from orchestrator.spec import RunSpec


class TodaysOffers:
    """Offers by the catalog of this machine, which a controller refreshes by itself."""

    def __init__(self) -> None:
        self._state: object = None
        self._offers: Sequence[Offer] | None = None

    def __call__(self, spec: RunSpec) -> Sequence[Offer] | None:
        """Return what the catalog offers for `spec`, None where it has nothing."""
        # Megabytes of CSV, which change a few times a day.
        state = (spec.nodes, spec.clouds, catalog_state(spec.clouds or ()))
        if state != self._state:
            self._state, self._offers = state, _offers(spec)
        return self._offers


def _offers(spec: RunSpec) -> Sequence[Offer] | None:
    kinds, both = spec.nodes.accelerators, MarketPreference.SPOT_WITH_FALLBACK
    table = read_catalog(kinds, spec.clouds or ())
    if table is None:
        return None
    try:
        return list_offers(table, kinds, spec.clouds, both)
    except SpecError:
        return None


def resources_for(
    offer: Offer,
    requested: Any,  # noqa: ANN401  # sky.Resources
    tags: Mapping[str, str],
) -> Any:  # noqa: ANN401  # as above
    """Return `requested` narrowed to the one place, machine and market of `offer`.

    `tags` are added to those that it has: the cloud's bill names them, beside each node.
    """
    from sky.utils import registry

    place: dict[str, Any] = {
        "cloud": registry.CLOUD_REGISTRY.from_str(offer.cloud),
        "instance_type": offer.instance_type,
        "accelerators": offer.accelerators,
        "use_spot": offer.market is Market.SPOT,
        "region": offer.region,
        # Of another machine, where `requested` was narrowed before.
        "cpus": None,
        "memory": None,
        "labels": {**(requested.labels or {}), **tags},
    }
    if offer.zone == offer.region:  # a cloud without zones
        return requested.copy(**place, zone=None)
    try:
        place["cloud"].validate_region_zone(offer.region, offer.zone)
    except ValueError:
        # The catalog may name zones by ids that only their account can translate.
        return requested.copy(**place, zone=None)
    return requested.copy(**place, zone=offer.zone)
