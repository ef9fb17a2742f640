"""What may come of a market: futures to try a run on, drawn from its record or made of offers.

A block bootstrap over time (Künsch 1989): blocks of the record are put together anew, all zones at
the same instants, so that what fails together does so again. Markets have moods, which last longer
than a block: each future has one, a stretch of the record that its blocks are near to. Some futures
are of a market that is as usual, for what a short record has not seen. Chosen on the first halves
of public traces by `benchmarks.forecast` (docs/decisions/0018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import InputError
from orchestrator.offers import Market as OfferMarket
from orchestrator.offers import Offer
from orchestrator.simulate.market import Market, join_zones
from orchestrator.simulate.synthetic import draw_rooms

# Hours; how far from the middle of its mood a block of a future begins.
BLOCK_HOURS = 6.0
MOOD_HOURS = 12.0
# Of the futures, how many are of a market that is as usual.
USUAL_SHARE = 0.2
# What a record must have for a forecast.
LEAST_HOURS = 24.0
# Futures beyond those that runs begin in: a run that is late goes on into the next ones.
_NUM_BEYOND = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Futures:
    """Stretches of time, one after the other in one market; a run may begin at each of `starts`."""

    market: Market
    starts: tuple[int, ...]


def redraw(
    market: Market, now: int, *, hours: float, count: int, pace: float, seed: int = 0
) -> Futures:
    """Return so many futures of so many hours, from what was seen before the tick `now`.

    Prices stay as they are. `pace` says how often nodes like these are usually lost. Raises
    InputError if less than a day was seen.
    """
    if now * market.tick_hours < LEAST_HOURS - 1e-9:
        raise InputError(
            f"The traces are {now * market.tick_hours:.1f} h long, too short for a forecast.",
            f"Give {LEAST_HOURS:g} h or more, or none.",
        )
    dice = np.random.default_rng(seed)
    size = math.ceil(hours / market.tick_hours - 1e-9)
    ticks = _ticks(now, market.tick_hours, size, count + _NUM_BEYOND, dice)
    up = market.up[:, ticks]
    num_usual = round(USUAL_SHARE * count)
    # Spread over the others, whose order does not matter, so that no two halves differ in kind.
    for number, at in enumerate(np.linspace(0, count, num_usual, endpoint=False).astype(int)):
        rooms = _usual(market.names, size, market.tick_hours, pace, f"{seed}/{number}")
        up[:, at * size : (at + 1) * size] = rooms
    spot = np.repeat(market.spot[:, now - 1 : now], up.shape[1], axis=1)
    futures = join_zones(
        names=market.names,
        places=market.places,
        tick_hours=market.tick_hours,
        up=up,
        spot=spot,
        on_demand=market.on_demand,
        save_usd=market.save_usd,
    )
    return Futures(market=futures, starts=tuple(range(0, count * size, size)))


def make_up(
    offers: Sequence[Offer],
    *,
    num_nodes: int,
    hours: float,
    count: int,
    pace: float,
    tick_hours: float = 1 / 12,
    seed: int = 0,
) -> Futures:
    """Return so many futures of the offers' zones and prices, each with zones of its own luck.

    A zone that is offered on demand alone never has room on spot, at the price of on demand.
    """
    size, total = math.ceil(hours / tick_hours - 1e-9), count + _NUM_BEYOND
    is_spot = np.array([offer.market is OfferMarket.SPOT for offer in offers])
    names = tuple(offer.zone for offer in offers)
    keys = tuple(str(offer) for offer in offers)
    rooms = [_usual(keys, size, tick_hours, pace, f"{seed}/{number}") for number in range(total)]
    prices = np.array([[float(offer.usd_per_hour) * num_nodes] for offer in offers])
    up = np.concatenate(rooms, axis=1) & is_spot[:, None]
    return Futures(
        market=join_zones(
            names=names,
            places=tuple(offer.place for offer in offers),
            tick_hours=tick_hours,
            up=up,
            spot=np.repeat(prices, up.shape[1], axis=1),
            on_demand=tuple(float(one.on_demand_usd_per_hour) * num_nodes for one in offers),
        ),
        starts=tuple(range(0, count * size, size)),
    )


def _ticks(
    now: int, tick_hours: float, size: int, count: int, dice: np.random.Generator
) -> NDArray[np.int64]:
    """Return the ticks of the record that futures consist of, one after the other."""
    block = max(1, min(now, size, round(BLOCK_HOURS / tick_hours)))
    last, reach = now - block, round(MOOD_HOURS / tick_hours)
    moods = dice.integers(0, last + 1, (count, 1))
    away = dice.integers(-reach, reach + 1, (count, math.ceil(size / block)))
    begins = np.clip(moods + away, 0, last)
    ticks: NDArray[np.int64] = (begins[:, :, None] + np.arange(block)).reshape(count, -1)
    return ticks[:, :size].ravel()


def _usual(
    zones: Sequence[str], size: int, tick_hours: float, pace: float, seed: str
) -> NDArray[np.bool_]:
    rooms = draw_rooms(zones, num_ticks=size, gap_seconds=tick_hours * 3600, pace=pace, seed=seed)
    return np.array(rooms, dtype=np.bool_)
