"""Where this node is and how it was bought, by its cloud's metadata service.

Only asked where nobody told: without our plugin it is SkyPilot that chose among the run's offers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import httpx

from orchestrator.agent.metadata import aws_headers, open_client, service_address
from orchestrator.ledger.facts import QuotedOffer
from orchestrator.offers import Market

_log = logging.getLogger(__name__)
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """One node's place; zones may go by two names."""

    cloud: str
    region: str
    zones: tuple[str, ...]
    instance_type: str
    market: Market


def find_whereabouts(cloud: str | None = None) -> Whereabouts | None:
    """Ask the metadata service of `cloud`, or of each in turn; None where none answers."""
    askers: dict[str, Callable[[], Whereabouts]] = {"aws": _aws, "gcp": _google, "azure": _azure}
    for name, ask in askers.items():
        if cloud in (None, name):
            try:
                return ask()
            except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
                _log.info("%s's metadata service says nothing of this node: %s", name, error)
    return None


def find_offer(offers: Sequence[QuotedOffer], place: Whereabouts | None) -> QuotedOffer:
    """Return the offer that this node is billed as, in its own zone; the closest one in doubt.

    Prices of one region differ little; what is not quoted at all counts as the cheapest offer.
    """
    if place is None:
        _log.warning("nobody says where this node is: it is counted as the cheapest offer")
        return _cheapest(offers)
    here = [one for one in offers if (one.cloud, one.region) == (place.cloud, place.region)]
    narrower: tuple[Callable[[QuotedOffer], bool], ...] = (
        lambda one: one.market is place.market,
        lambda one: one.instance_type == place.instance_type,
        lambda one: one.zone in place.zones,
    )
    for fits in narrower:
        here = [one for one in here if fits(one)] or here
    if not here or here[0].market is not place.market:
        _log.warning("no offer was quoted for %s: it is counted as the nearest one", place)
    return (_cheapest(here) if here else _cheapest(offers)).model_copy(
        update={"cloud": place.cloud, "region": place.region, "zone": place.zones[0]}
    )


def _cheapest(offers: Sequence[QuotedOffer]) -> QuotedOffer:
    return min(offers, key=lambda offer: (offer.doubt is not None, offer.usd_per_hour))


def _aws() -> Whereabouts:
    with open_client(service_address("aws"), _TIMEOUT_S) as client:
        headers = aws_headers(client)

        def get(name: str) -> str:
            reply = client.get(f"/latest/meta-data/{name}", headers=headers)
            return reply.raise_for_status().text.strip()

        zones = [get("placement/availability-zone")]
        with suppress(httpx.HTTPStatusError):
            zones.append(get("placement/availability-zone-id"))  # as price lists name zones
        is_spot = get("instance-life-cycle") == "spot"
        return Whereabouts(
            cloud="aws",
            region=get("placement/region"),
            zones=tuple(zones),
            instance_type=get("instance-type"),
            market=Market.SPOT if is_spot else Market.ON_DEMAND,
        )


def _google() -> Whereabouts:
    headers = {"Metadata-Flavor": "Google"}
    with open_client(service_address("gcp"), _TIMEOUT_S, headers) as client:

        def get(name: str) -> str:
            reply = client.get(f"/computeMetadata/v1/instance/{name}")
            return reply.raise_for_status().text.strip().rpartition("/")[2]

        zone = get("zone")
        is_spot = get("scheduling/preemptible") == "TRUE"
        return Whereabouts(
            cloud="gcp",
            region=zone.rpartition("-")[0],
            zones=(zone,),
            instance_type=get("machine-type"),
            market=Market.SPOT if is_spot else Market.ON_DEMAND,
        )


def _azure() -> Whereabouts:
    with open_client(service_address("azure"), _TIMEOUT_S, {"Metadata": "true"}) as client:
        wanted = {"api-version": "2021-02-01", "format": "json"}
        reply = client.get("/metadata/instance/compute", params=wanted).raise_for_status()
    found = reply.json()
    region, zone = str(found["location"]), str(found.get("zone") or "")
    is_spot = found.get("priority") in ("Spot", "Low")
    return Whereabouts(
        cloud="azure",
        region=region,
        zones=(f"{region}-{zone}" if zone else region, zone or region),
        instance_type=str(found["vmSize"]),
        market=Market.SPOT if is_spot else Market.ON_DEMAND,
    )
