"""The least that a job can cost with all of the market known beforehand: the yardstick.

Backward dynamic programming over ticks and work left, as in "Can't Be Late" (Wu et al., NSDI'24),
with moves between regions. It is a lower bound: what does not divide into the grid of work, a start
or a tick, is rounded in its favour, decisions fall on ticks (between two changes of the market,
nothing is gained by acting later), and nothing is ever lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.cost import move_usd
from orchestrator.simulate.market import Market
from orchestrator.simulate.terms import Terms

_Usd = NDArray[np.float64]  # by units of work left
_IMPOSSIBLE = 1e15
# Of work, in seconds: finer grids take longer and change the fourth digit.
_FINEST_UNIT_S = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Work in units; a start takes `start_ticks` whole ticks and then `start_units` of the next."""

    unit_hours: float
    per_tick: int
    start_ticks: int
    start_units: int
    num_units: int


@dataclass(slots=True, kw_only=True)
class _Values:
    """Least cost from the beginning of a tick on, by what is up: [zone or place][work left]."""

    spot: _Usd
    on_demand: _Usd
    idle: _Usd


def least_usd(market: Market, start: int, terms: Terms) -> float:
    """Return the least cost of a job that begins at a tick of the market.

    The billing is plain. Returns inf where no way meets the deadline.
    """
    grid = _grid(market, terms)
    places = sorted(set(market.places))
    place_of = [places.index(place) for place in market.places]
    moves = np.array(move_usd(places, terms.state_gb))
    # The cheapest on demand of each place.
    on_demand = np.array(
        [
            min(usd for zone, usd in enumerate(market.on_demand) if place_of[zone] == place)
            for place in range(len(places))
        ]
    )
    # A last tick that the deadline cuts is a whole one here: in its favour.
    end = start + math.ceil(terms.deadline / market.tick_hours - 1e-9)
    if end > market.num_ticks:
        raise ValueError(f"the record ends at tick {market.num_ticks}, the job may at {end}")
    sizes = (len(market.names), len(places), len(places))
    ahead = [_at_the_end(sizes, grid.num_units)]  # values of the next ticks, the next one first
    for tick in range(end - 1, start - 1, -1):
        values = _step(market, tick, end, grid, ahead, place_of, moves, on_demand)
        ahead = [values, *ahead[: grid.start_ticks]]
    found = min(float(one) for one in ahead[0].idle[:, grid.num_units])
    return found if found < _IMPOSSIBLE / 2 else math.inf


def _grid(market: Market, terms: Terms) -> _Grid:
    tick_s, restart_s = round(market.tick_hours * 3600), round(terms.restart * 3600)
    common_s = math.gcd(tick_s, restart_s, round(terms.work * 3600))
    unit_s = max(common_s, min(_FINEST_UNIT_S, tick_s))
    per_tick = max(1, tick_s // unit_s)
    unit_hours = market.tick_hours / per_tick
    start_ticks, start_units = divmod(int(terms.restart / unit_hours + 1e-9), per_tick)
    return _Grid(
        unit_hours=unit_hours,
        per_tick=per_tick,
        start_ticks=start_ticks,
        start_units=start_units,
        num_units=math.floor(terms.work / unit_hours + 1e-9),
    )


def _at_the_end(sizes: tuple[int, int, int], num_units: int) -> _Values:
    tables = [np.full((size, num_units + 1), _IMPOSSIBLE) for size in sizes]
    for table in tables:
        table[:, 0] = 0
    return _Values(spot=tables[0], on_demand=tables[1], idle=tables[2])


def _step(
    market: Market,
    tick: int,
    end: int,
    grid: _Grid,
    ahead: list[_Values],
    place_of: list[int],
    moves: _Usd,
    on_demand: _Usd,
) -> _Values:
    """Return the values at the beginning of a tick, from those of the ticks after it."""
    units = np.arange(grid.num_units + 1)
    after = ahead[0]
    up = np.flatnonzero(market.up[:, tick])
    # Each may start in any place, from any place.
    from_any = np.full((len(moves), len(units)), _IMPOSSIBLE)
    # A start must be over by the end, and its node be there until then.
    first = tick + grid.start_ticks
    if first < end:
        then = ahead[grid.start_ticks]
        trained = np.minimum(units, grid.per_tick - grid.start_units)
        left = units - trained
        for zone in up:
            if market.next_down[zone][tick] <= first:
                continue
            cold = float(market.spot[zone, tick:first].sum()) * grid.per_tick
            price = float(market.spot[zone, first])
            usd = grid.unit_hours * (cold + price * (grid.start_units + trained))
            usd = usd + then.spot[zone][left]
            np.minimum(from_any, moves[:, place_of[zone], None] + usd, out=from_any)
        cold_units = grid.start_ticks * grid.per_tick + grid.start_units
        for place, price in enumerate(on_demand):
            usd = grid.unit_hours * price * (cold_units + trained) + then.on_demand[place][left]
            np.minimum(from_any, moves[:, place, None] + usd, out=from_any)
    idle = np.minimum(from_any, after.idle)
    idle[:, 0] = 0
    trained = np.minimum(units, grid.per_tick)
    left = units - trained
    hours = grid.unit_hours * trained
    spot = idle[place_of].copy()
    for zone in up:
        stay = market.spot[zone, tick] * hours + after.spot[zone][left]
        np.minimum(spot[zone], stay, out=spot[zone])
    stay = on_demand[:, None] * hours + after.on_demand[:, left]
    return _Values(spot=spot, on_demand=np.minimum(idle, stay), idle=idle)
