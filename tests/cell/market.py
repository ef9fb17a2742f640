"""The market: what capacity each zone has, and how long the cloud takes to say so."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from tests.cell.records import Instance, Record


class Market(Record):
    """How the clouds behave just now.

    `capacity` maps `cloud/place/market` to the instances that may live there at once, where place
    is a zone, a region or `*` (each region) and market is `spot` or `on_demand`. The closest key
    counts; a place without one has no limit.
    """

    capacity: dict[str, int] = Field(default={})
    boot_seconds: float = 0
    no_capacity_seconds: float = 0

    def room(
        self, living: Iterable[Instance], cloud: str, region: str, zone: str, spot: bool
    ) -> int:
        """Return how many more instances the zone takes."""
        market = "spot" if spot else "on_demand"
        peers = [one for one in living if one.cloud == cloud and one.spot is spot]
        if (key := f"{cloud}/{zone}/{market}") in self.capacity:
            return self.capacity[key] - sum(one.zone == zone for one in peers)
        for place in (region, "*"):
            if (key := f"{cloud}/{place}/{market}") in self.capacity:
                return self.capacity[key] - sum(one.region == region for one in peers)
        return _UNLIMITED


_UNLIMITED = 1_000_000
