"""Markets that are made to make policies miss their deadlines, or pay for trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from orchestrator.simulate.market import Market, make_market
from orchestrator.simulate.zone_trace import SCHEMA_VERSION, ZoneTrace

_TICK_S = 300.0
_TICKS_PER_HOUR = round(3600 / _TICK_S)
_SPOT, _ON_DEMAND = 1.0, 3.0
_NUM_ZONES = 3

_Room = Callable[[int, int], bool]
_Price = Callable[[int, int], float]


def adversarial_markets(hours: float) -> Iterator[tuple[str, Market]]:
    """Yield name and market; three zones in three regions, in ticks of five minutes."""
    num_ticks = round(hours * _TICKS_PER_HOUR)

    def market(has_room: _Room, price: _Price = lambda *_: _SPOT) -> Market:
        ticks = range(num_ticks)
        zones = [
            _zone(zone, [has_room(zone, t) for t in ticks], [price(zone, t) for t in ticks])
            for zone in range(_NUM_ZONES)
        ]
        return make_market(zones, 1)

    half = num_ticks // 2
    yield "all down", market(lambda *_: False)
    yield "flapping every tick", market(lambda zone, tick: (tick + zone) % 2 == 0)
    yield "gone as soon as it trains", market(lambda zone, tick: (tick + 5 * zone) % 15 < 2)
    # The cheap zones flap; one that costs almost as much as on demand stays.
    yield (
        "dear but stable",
        market(
            lambda zone, tick: zone == 0 or tick % 3 == 0,
            lambda zone, _: 0.95 * _ON_DEMAND if zone == 0 else _SPOT,
        ),
    )
    yield (
        "price spike",
        market(
            lambda *_: True,
            lambda _, tick: 4 * _ON_DEMAND if half // 2 < tick < half else _SPOT,
        ),
    )
    yield "correlated outage", market(lambda _, tick: not half // 2 < tick < half + half // 2)
    # A good morning invites to spend the slack that the rest of the day needs.
    yield "down for good", market(lambda _, tick: tick < half // 4)
    yield "up at the very end", market(lambda _, tick: tick > half)


def _zone(number: int, rooms: Sequence[bool], prices: Sequence[float]) -> ZoneTrace:
    return ZoneTrace(
        schema_version=SCHEMA_VERSION,
        cloud="aws",
        region=f"region-{number}",
        zone=f"region-{number}a",
        gap_seconds=_TICK_S,
        available_nodes=[int(has_room) for has_room in rooms],
        spot_usd_per_hour=list(prices),
        on_demand_usd_per_hour=_ON_DEMAND,
        source="adversarial",
    )
