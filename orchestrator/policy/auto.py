"""The default policy: the choice whose expected cost to the end is least, by a learned market.

What is seen of zones becomes rates of losing and regaining room; a table of expected costs follows
from them (`values`), anew after some hours or when prices change; and a choice is a comparison of
its entries. The safety net is not among them: no learning can switch it off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from orchestrator.policy.hazards import (
    USUAL_LOSSES,
    USUAL_RETURNS,
    Spells,
    mean_life,
    phase_of,
)
from orchestrator.policy.sight import (
    NEVER,
    NOWHERE,
    Choice,
    Mode,
    Sight,
    on_demand_to_the_end,
)
from orchestrator.policy.values import Array, Grid, Outlook, Table, solve, state_of

# Hours after the launch at which what was learned is put to use; then every _LEARN_EVERY.
_LEARN_AT = (0.0, 1.0, 2.0, 4.0, 8.0, 12.0, 18.0, 24.0)
_LEARN_EVERY = 8.0
# Of the table, in hours; and as many steps at most. Half of it takes four times as long, and was no
# better on the public traces.
_STEP, _MOST_STEPS = 0.5, 240
# After so many hours in the mean, a market is as usual again.
_MOOD_HOURS = 12.0
# Prices that differ by less are the same to the table, and to that of a usual market.
_PRICE_STEP, _USUAL_PRICE_STEP = 0.02, 0.1
_MOST_TABLES = 2
# Beyond, a life makes no difference to a choice.
_LONGEST_LIFE = 24.0
# What is usual for the other places together: how often they lose all room, and have some again.
_USUAL_OTHERS = (0.5, 0.25)
_OTHERS_WEIGHT = 4.0
# Chance that a place of several zones has room when a node is lost there.
_USUAL_SECOND = 0.15


class _Option(NamedTuple):
    usd: float
    mode: Mode
    zone: int


class Auto:
    """One run's policy; what it keeps between calls follows from the sightings it was shown."""

    looks_around = True

    def __init__(self) -> None:
        self._num_sightings = 0
        self._zones: list[Spells] = []
        self._places: list[Spells] = []
        self._others: list[Spells] = []
        self._known: _Known | None = None
        self._tables: dict[tuple[float, ...], Table] = {}
        self._usual: dict[tuple[float, ...], Table] = {}

    def choose(self, sight: Sight) -> Choice:
        """Return what is expected to cost least from here."""
        if (net := on_demand_to_the_end(sight)) is not None:
            return net
        if not self._zones:
            self._begin(sight)
        table = self._learn(sight)
        if sight.slack <= sight.reserve:  # on a spot node: there is nothing better
            return Choice(sight.mode, sight.zone, NEVER, "no slack for anything but to stay")
        options = [*self._stay(sight, table), *self._go(sight, table)]
        best = min(options, key=lambda option: option.usd)
        # Not beyond the hour at which the safety net has to be asked.
        until = sight.now + min(table.step, sight.slack - sight.reserve)
        return Choice(best.mode, best.zone, until, _why(sight, best, options))

    def _begin(self, sight: Sight) -> None:
        num_places = 1 + max(zone.place for zone in sight.zones)
        self._zones = [Spells() for _ in sight.zones]
        self._places = [Spells() for _ in range(num_places)]
        self._others = [Spells() for _ in range(num_places)]

    def _learn(self, sight: Sight) -> Table:
        """Return the table for what was known at the last time of learning."""
        at = _last_learning(sight.now)
        if self._known is None or at != self._known.at:
            self._see(sight, at)
            self._known = _Known(
                at=at,
                zones=[spells.at(at) for spells in self._zones],
                places=[spells.at(at) for spells in self._places],
                others=[spells.at(at) for spells in self._others],
            )
            self._tables = {}
        self._see(sight, sight.now)
        spot = _rounded(sight.spot, _PRICE_STEP)
        return _kept(self._tables, spot, lambda: self._solve(sight, self._known, spot))

    def _see(self, sight: Sight, until: float) -> None:
        """Take the sightings up to an hour."""
        while self._num_sightings < len(sight.sightings):
            hour, zone, is_up = sight.sightings[self._num_sightings]
            if hour > until:
                return
            self._num_sightings += 1
            self._zones[zone].see(hour, is_up=is_up)
            place = sight.zones[zone].place
            rooms = [
                bool(spells.is_up)
                for spells, one in zip(self._zones, sight.zones, strict=True)
                if one.place == place
            ]
            self._places[place].see(hour, is_up=any(rooms))
            for other, spells in enumerate(self._others):
                if other != place:
                    spells.see(hour, is_up=self._is_up_beside(other))

    def _is_up_beside(self, place: int) -> bool:
        return any(
            bool(spells.is_up) for other, spells in enumerate(self._places) if other != place
        )

    def _solve(self, sight: Sight, known: _Known | None, spot: Sequence[float]) -> Table:
        assert known is not None
        best = _cheapest_zones(sight, spot)
        shares = np.array([spells.share_up() for spells in known.places])
        outlook = _outlook(
            sight,
            [spot[zone] for zone in best],
            losses=np.array([known.zones[zone].losses() for zone in best]),
            shares=shares,
            place_losses=np.array([spells.losses() for spells in known.places]),
            place_returns=np.array([spells.returns() for spells in known.places]),
            second=np.array(
                [_second(sight, known, place, zone) for place, zone in enumerate(best)]
            ),
            others=np.array([_others_rates(known, place, shares) for place in range(len(best))]),
        )
        rough = _rounded(sight.spot, _USUAL_PRICE_STEP)
        usual = _kept(self._usual, rough, lambda: _solve_usual(sight, rough))
        grid = _grid(sight, sight.deadline - known.at)
        return solve(outlook, grid, usual=usual, turns_per_hour=1 / _MOOD_HOURS)

    def _state(self, sight: Sight, place: int) -> int:
        spells = self._places[place]
        return state_of(
            phase_of(spells.age(sight.now)),
            is_up=bool(spells.is_up),
            others_up=self._is_up_beside(place),
        )

    def _stay(self, sight: Sight, table: Table) -> list[_Option]:
        """Return the options of changing nothing, and of doing nothing."""
        options = []
        cold = max(0.0, sight.ready_at - sight.now)
        if sight.mode is Mode.SPOT:
            usd = self._spot(sight, table, sight.zone, cold)
            return [_Option(usd, Mode.SPOT, sight.zone)]
        if sight.mode is Mode.ON_DEMAND:
            place = sight.zones[sight.zone].place
            state = self._state(sight, place)
            usd = table.if_on_demand(place, sight.left, sight.work_left, state, cold)
            options.append(_Option(usd, Mode.ON_DEMAND, sight.zone))
        places = [sight.checkpoint_place]
        if sight.checkpoint_place == NOWHERE:
            places = list(range(len(self._places)))
        usd = min(
            table.if_waiting(place, sight.left, sight.work_left, self._state(sight, place))
            for place in places
        )
        options.append(_Option(usd, Mode.IDLE, NOWHERE))
        return options

    def _go(self, sight: Sight, table: Table) -> list[_Option]:
        """Return the options of starting a node."""
        options = []
        for zone, is_up in enumerate(sight.is_up):
            if sight.mode is Mode.SPOT:
                is_here = sight.zones[zone].place == sight.zones[sight.zone].place
                # A node that trains is not left for a zone that may have no room.
                if is_here or not is_up:
                    continue
            if is_up is not False:
                usd = self._spot(sight, table, zone, sight.restart) + sight.move(zone)
                options.append(_Option(usd, Mode.SPOT, zone))
        if sight.mode is Mode.IDLE:
            hours = sight.work_left + sight.restart
            zone = min(
                range(len(sight.zones)),
                key=lambda zone: sight.zones[zone].on_demand * hours + sight.move(zone),
            )
            place = sight.zones[zone].place
            usd = table.if_on_demand(
                place, sight.left, sight.work_left, self._state(sight, place), sight.restart
            )
            options.append(_Option(usd + sight.move(zone), Mode.ON_DEMAND, zone))
        return options

    def _spot(self, sight: Sight, table: Table, zone: int, cold: float) -> float:
        place = sight.zones[zone].place
        spells = self._zones[zone]
        age = spells.age(sight.now) if spells.is_up else 0.0
        state = state_of(phase_of(age), is_up=True, others_up=self._is_up_beside(place))
        price = sight.spot[zone]
        return table.if_spot(place, sight.left, sight.work_left, state, cold, price)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What was known at an hour of learning."""

    at: float
    zones: list[Spells]
    places: list[Spells]
    others: list[Spells]


def _kept(
    tables: dict[tuple[float, ...], Table], key: tuple[float, ...], make: Callable[[], Table]
) -> Table:
    """Return the table of a key; few are kept, for each has some megabytes."""
    if key not in tables:
        while len(tables) >= _MOST_TABLES:
            del tables[next(iter(tables))]
        tables[key] = make()
    return tables[key]


def _rounded(prices: Sequence[float], step: float) -> tuple[float, ...]:
    return tuple(math.exp(step * round(math.log(price) / step)) for price in prices)


def _cheapest_zones(sight: Sight, spot: Sequence[float]) -> list[int]:
    """Return the zone of each place whose spot is cheapest."""
    num_places = 1 + max(zone.place for zone in sight.zones)
    return [
        min(
            (zone for zone, one in enumerate(sight.zones) if one.place == place),
            key=lambda zone: (spot[zone], zone),
        )
        for place in range(num_places)
    ]


def _grid(sight: Sight, hours: float) -> Grid:
    step = max(_STEP, sight.deadline / _MOST_STEPS)
    return Grid(
        hours=hours,
        work=min(sight.work, hours),
        step=step,
        restart=min(sight.restart, step),
        reserve=sight.reserve,
    )


def _outlook(
    sight: Sight, spot: Sequence[float], *, losses: Array, shares: Array, **rates: Array
) -> Outlook:
    on_demand = [
        min(zone.on_demand for zone in sight.zones if zone.place == place)
        for place in range(len(spot))
    ]
    prices, moves = np.array(spot), np.array(sight.move_usd, dtype=float)
    return Outlook(
        spot=prices,
        on_demand=np.array(on_demand),
        losses=losses,
        moves=moves,
        odds=_odds(prices, losses, shares, moves, sight.restart),
        **rates,
    )


def _solve_usual(sight: Sight, spot: Sequence[float]) -> Table:
    """Return the table of a market that is as usual from the launch on."""
    best = _cheapest_zones(sight, spot)
    num_places = len(best)
    usual = np.tile(USUAL_LOSSES, (num_places, 1))
    zones_of = [sum(zone.place == place for zone in sight.zones) for place in range(num_places)]
    outlook = _outlook(
        sight,
        [spot[zone] for zone in best],
        losses=usual,
        shares=np.full(num_places, 0.5),
        place_losses=usual,
        place_returns=np.tile(USUAL_RETURNS, (num_places, 1)),
        second=np.array([_USUAL_SECOND if count > 1 else 0.0 for count in zones_of]),
        others=np.tile(_USUAL_OTHERS if num_places > 1 else (1.0, 0.0), (num_places, 1)),
    )
    return solve(outlook, _grid(sight, sight.deadline))


def _second(sight: Sight, known: _Known, place: int, zone: int) -> float:
    """Return the chance that another zone of the place has room."""
    none = 1.0
    for other, one in enumerate(sight.zones):
        if one.place == place and other != zone:
            none *= 1 - known.zones[other].share_up()
    return 1 - none


def _others_rates(known: _Known, place: int, shares: Array) -> tuple[float, float]:
    """Return how often the others lose all room, and have some again, per hour."""
    if len(shares) == 1:
        return 1.0, 0.0
    some = 1 - float(np.prod(np.delete(1 - shares, place)))
    spells = known.others[place]
    down = spells.overall(is_up=True, usual=(1 - some) / 2, weight=_OTHERS_WEIGHT)
    up = spells.overall(is_up=False, usual=some / 2, weight=_OTHERS_WEIGHT)
    return down, up


def _last_learning(now: float) -> float:
    if now < _LEARN_AT[-1]:
        return max(hour for hour in _LEARN_AT if hour <= now)
    return now - (now - _LEARN_AT[-1]) % _LEARN_EVERY


def _odds(spot: Array, losses: Array, shares: Array, moves: Array, restart: float) -> Array:
    """Return which other place one goes to from each: the best that has room.

    Best by the price of an hour's training: of a life that begins there, with the move.
    """
    lives = np.array([mean_life(rates, _LONGEST_LIFE) for rates in losses])
    odds = np.zeros_like(moves)
    for place in range(len(spot)):
        usd = (spot * lives + moves[place]) / np.maximum(lives - restart, 1e-3)
        rest = 1.0
        for other in np.argsort(usd, kind="stable"):
            if other != place:
                odds[place, other] = rest * shares[other]
                rest *= 1 - shares[other]
    total = odds.sum(axis=1, keepdims=True)
    return odds / np.where(total > 0, total, 1)


def _why(sight: Sight, best: _Option, options: list[_Option]) -> str:
    others = [option for option in options if option is not best]
    if not others:
        return f"{_name(sight, best)}, ${best.usd:.2f} expected to the end: no other is possible"
    second = min(others, key=lambda option: option.usd)
    return (
        f"{_name(sight, best)}: ${best.usd:.2f} expected to the end, "
        f"{_name(sight, second)} ${second.usd:.2f}; {sight.slack:.1f} h to spare"
    )


def _name(sight: Sight, option: _Option) -> str:
    match option.mode:
        case Mode.IDLE:
            return "waiting"
        case Mode.SPOT:
            return f"spot in {sight.zones[option.zone].name}"
        case Mode.ON_DEMAND:
            return f"on demand in {sight.zones[option.zone].name}"
