"""Small recorded markets for tests, written zone by zone as strings."""

from orchestrator.simulate.market import make_market
from orchestrator.simulate.zone_trace import ZoneTrace

TICK_S = 600


def zone(name, room, *, region="r", cloud="aws", spot=1.0, on_demand=3.0, gap=TICK_S):
    """Return a zone's trace; `room` has a digit per tick: how many nodes could be had."""
    return ZoneTrace(
        schema_version=1,
        cloud=cloud,
        region=region,
        zone=name,
        gap_seconds=gap,
        available_nodes=[int(digit) for digit in room],
        spot_usd_per_hour=spot,
        on_demand_usd_per_hour=on_demand,
    )


def market(*rooms, nodes=1, **more):
    """Return the market of one region and zone for each string."""
    zones = [zone(f"z{n}", room, region=f"r{n}", **more) for n, room in enumerate(rooms)]
    return make_market(zones, nodes)
