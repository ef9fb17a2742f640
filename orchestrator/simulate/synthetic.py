"""Make up a market where none was recorded: rooms that come and go in the zones of given offers.

Pure and seeded. A zone's spells with room, and without, are drawn from a mix of three lives. Most
end within the hour and few last for days, so the older a spell, the less likely it ends. That mix
was fitted to the losses per hour of single V100s over nine zones (skypilot-org/spot-traces):

| age of the node | <20 min | 20-60 min | 1-3 h | 3-8 h | 8-24 h | >24 h |
|---|---|---|---|---|---|---|
| recorded | 1.54 | 0.77 | 0.32 | 0.16 | 0.11 | 0.03 |
| drawn, all zones together, in ticks of 300 s | 1.41 | 0.77 | 0.30 | 0.16 | 0.11 | 0.03 |

What is lost more often by `weather.weather_for` (machines of 8 GPUs, gangs) lives shorter by that
much, and its absences are shorter alike: 3.1, 0.88, 0.50, 0.32, 0.12 and 0.04 for one of 8 GPUs.
A zone with room for a share s of the time keeps it sqrt(s / (1 - s)) times as long as one with
s = 1/2, 2.4 h, and lacks it for a time that is shorter by as much (recorded at shares of 0.17, 0.76
and 0.90: 0.7, 5.7 and 10.4 h; drawn 1.1, 4.3 and 7.2). That room comes back in the way that it goes
is an assumption, and so is that zones have nothing to do with each other.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.errors import InputError
from orchestrator.offers import Market, Offer
from orchestrator.simulate.zone_trace import SCHEMA_VERSION, ZoneTrace
from orchestrator.weather import weather_for

# Of time, with room: what the recorded zones have, but for those that never have any.
LEAST_SHARE, MOST_SHARE = 0.2, 0.95
# (share of the spells, ends per hour), where there is room half of the time.
_LIVES = ((0.65, 2.8), (0.34, 0.21), (0.01, 0.018))
# Three years in ticks of five minutes.
_MOST_TICKS = 320_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spells:
    """How long spells of one kind last: whole ticks, of a mix of geometric distributions."""

    ends_per_tick: tuple[float, ...]

    @property
    def _means(self) -> list[float]:
        """Ticks that one of each life contributes to the mean of all."""
        return [
            share / -math.expm1(-ends)
            for (share, _), ends in zip(_LIVES, self.ends_per_tick, strict=True)
        ]

    @property
    def mean(self) -> float:
        """Ticks."""
        return sum(self._means)

    def draw(self, dice: random.Random) -> int:
        """Return how long one lasts that begins."""
        return self._draw([share for share, _ in _LIVES], dice)

    def draw_rest(self, dice: random.Random) -> int:
        """Return how much longer one lasts that is come upon."""
        return self._draw(self._means, dice)

    def _draw(self, weights: Sequence[float], dice: random.Random) -> int:
        (ends,) = dice.choices(self.ends_per_tick, weights)
        return 1 + int(dice.expovariate(ends))


def synthesize(
    offers: Sequence[Offer],
    *,
    hours: float,
    seed: int,
    num_gpus: int,
    num_nodes: int,
    gap_seconds: float = 300.0,
) -> list[ZoneTrace]:
    """Return a market of the offers' zones and prices; the same seed, the same market.

    Of a zone's spot offers that nobody doubts it takes the first. A zone has room for `num_nodes`
    nodes of `num_gpus` GPUs, or for none. Raises InputError if there is no such offer, or the
    record would be too long.
    """
    zones = spot_zones(offers)
    if not zones:
        raise InputError(
            "No spot offer of a price that is not in doubt, so no market to make up.",
            "Choose other accelerators or clouds, or give recorded --traces.",
        )
    num_ticks = math.ceil(hours * 3600 / gap_seconds - 1e-9)
    if not 1 <= num_ticks <= _MOST_TICKS:
        raise InputError(
            f"A made-up market of {hours:g} h has {num_ticks} ticks; it can have {_MOST_TICKS}.",
            "Give a shorter --deadline.",
        )
    rooms = draw_rooms(
        [f"{offer.cloud}/{offer.region}/{offer.zone}" for offer in zones],
        num_ticks=num_ticks,
        gap_seconds=gap_seconds,
        pace=weather_for(num_gpus, num_nodes).pace,
        seed=seed,
    )
    return [
        ZoneTrace(
            schema_version=SCHEMA_VERSION,
            cloud=offer.cloud,
            region=offer.region,
            zone=offer.zone,
            instance_type=offer.instance_type,
            accelerators=offer.accelerators,
            gap_seconds=gap_seconds,
            available_nodes=[num_nodes * has_room for has_room in room],
            spot_usd_per_hour=float(offer.usd_per_hour),
            on_demand_usd_per_hour=float(offer.on_demand_usd_per_hour),
            source="synthetic",
        )
        for offer, room in zip(zones, rooms, strict=True)
    ]


def draw_rooms(
    zones: Sequence[str], *, num_ticks: int, gap_seconds: float, pace: float, seed: int | str
) -> list[list[bool]]:
    """Return in which ticks each of the named zones has room; the same seed, the same rooms."""
    shares = _shares(len(zones), random.Random(f"{seed}/shares"))
    return [
        _room(
            num_ticks,
            with_room=_spells(pace / _stretch(share), gap_seconds),
            without=_spells(pace * _stretch(share), gap_seconds),
            dice=random.Random(f"{seed}/{zone}"),
        )
        for zone, share in zip(zones, shares, strict=True)
    ]


def spot_zones(offers: Sequence[Offer]) -> list[Offer]:
    """Return the first spot offer of each zone that nobody doubts, in the offers' order."""
    first: dict[tuple[str, str, str], Offer] = {}
    for offer in offers:
        if offer.market is Market.SPOT and offer.doubt is None:
            first.setdefault((offer.cloud, offer.region, offer.zone), offer)
    return list(first.values())


def _shares(count: int, dice: random.Random) -> list[float]:
    """Return shares of time with room, from bad to good in any order: one of each stratum."""
    step = (MOST_SHARE - LEAST_SHARE) / count
    shares = [LEAST_SHARE + step * (stratum + dice.random()) for stratum in range(count)]
    dice.shuffle(shares)
    return shares


def _stretch(share: float) -> float:
    return math.sqrt(share / (1 - share))


def _spells(pace: float, gap_seconds: float) -> _Spells:
    return _Spells(ends_per_tick=tuple(ends * pace * gap_seconds / 3600 for _, ends in _LIVES))


def _room(
    num_ticks: int, *, with_room: _Spells, without: _Spells, dice: random.Random
) -> list[bool]:
    room: list[bool] = []
    for has_room, ticks in _alternate(with_room, without, dice):
        room += [has_room] * min(ticks, num_ticks - len(room))
        if len(room) == num_ticks:
            break
    return room


def _alternate(
    with_room: _Spells, without: _Spells, dice: random.Random
) -> Iterator[tuple[bool, int]]:
    """Yield spells without end, (has room, ticks); the first is one that has been going on."""
    has_room = dice.random() < with_room.mean / (with_room.mean + without.mean)
    yield has_room, (with_room if has_room else without).draw_rest(dice)
    while True:
        has_room = not has_room
        yield has_room, (with_room if has_room else without).draw(dice)
