"""The default policy: the choice whose expected cost to the end is least, by a learned market.

What is seen of zones becomes an outlook (`learning`); a table of expected costs follows from it
(`values`), anew after some hours or when prices change; and a choice is a comparison of its
entries. The safety net is not among them: no learning can switch it off.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from orchestrator.policy.hazards import phase_of
from orchestrator.policy.learning import Seen, usual_outlook
from orchestrator.policy.sight import (
    NEVER,
    NOWHERE,
    Choice,
    Mode,
    Sight,
    cheapest_on_demand,
    on_demand_to_the_end,
)
from orchestrator.policy.values import Grid, Table, solve, state_of

# Hours after the launch at which what was learned is put to use; then every _LEARN_EVERY.
_LEARN_AT = (0.0, 1.0, 2.0, 4.0, 8.0, 12.0, 18.0, 24.0)
_LEARN_EVERY = 8.0
# Of the table, in hours; and as many steps at most. Half of it takes three times as long, and was
# hardly better on the public traces.
_STEP, _MOST_STEPS = 0.5, 160
# More slack than so many hours, and this share of the work, makes no difference.
_MOST_SLACK, _MOST_SLACK_SHARE = 24.0, 1.0
# After so many hours in the mean, a market is as usual again.
_MOOD_HOURS = 12.0
# What is up is left for spot elsewhere if that saves this many times its price above that price.
_HYSTERESIS = 1.0
# Hours that differ by less are the same: dates have microseconds.
_SAME = 1e-6
# Prices that differ by less are the same to the table, and to that of a usual market.
_PRICE_STEP, _USUAL_PRICE_STEP = 0.02, 0.1


class Auto:
    """One run's policy; what it keeps between calls follows from the sightings it was shown."""

    looks_around = True

    def __init__(self) -> None:
        self._seen: Seen | None = None
        self._known: tuple[float, Seen] | None = None
        # The last one, by prices.
        self._tables: dict[tuple[float, ...], Table] = {}

    def choose(self, sight: Sight) -> Choice:
        """Return what is expected to cost least from here."""
        if (net := on_demand_to_the_end(sight)) is not None:
            return net
        if sight.slack <= sight.reserve:  # on a spot node: there is nothing better
            return Choice(sight.mode, sight.zone, NEVER, "no slack for anything but to stay")
        seen = self._seen = self._seen or Seen(sight)
        question = _Question(sight=sight, table=self._learn(sight, seen), seen=seen)
        stay = list(question.stay())
        options = [*stay, *question.go(stay)]
        best = min(options, key=lambda option: option.usd)
        # Not beyond the hour at which the safety net has to be asked.
        until = sight.now + min(question.table.step, sight.slack - sight.reserve)
        return Choice(best.mode, best.zone, until, _why(sight, best, options))

    def _learn(self, sight: Sight, seen: Seen) -> Table:
        """Return the table for what was known at the last hour of learning, and present prices."""
        at = _last_learning(sight.now)
        if self._known is None or self._known[0] != at:
            # Others of that very hour may come after this question.
            seen.see(sight, before=at - _SAME)
            self._known = (at, copy.deepcopy(seen))
            self._tables = {}
        seen.see(sight, before=math.inf)
        spot = _rounded(sight.spot, _PRICE_STEP)
        if spot not in self._tables:
            grid = _grid(sight)
            usual = solve(usual_outlook(sight, _rounded(sight.spot, _USUAL_PRICE_STEP)), grid)
            outlook = self._known[1].outlook(sight, at, spot)
            hours = min(grid.hours, sight.deadline - at)
            table = solve(outlook, replace(grid, hours=hours), usual, 1 / _MOOD_HOURS)
            self._tables = {spot: table}
        return self._tables[spot]


class _Option(NamedTuple):
    usd: float
    mode: Mode
    zone: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What each option is expected to cost to the end."""

    sight: Sight
    table: Table
    seen: Seen

    def stay(self) -> Iterator[_Option]:
        """Yield the options of changing nothing, and of doing nothing."""
        sight = self.sight
        cold = max(0.0, sight.ready_at - sight.now)
        if sight.mode is Mode.SPOT:
            yield _Option(self._spot(sight.zone, cold), Mode.SPOT, sight.zone)
            return
        if sight.mode is Mode.ON_DEMAND:
            yield _Option(self._on_demand(sight.zone, cold), Mode.ON_DEMAND, sight.zone)
        yield _Option(self._waiting(), Mode.IDLE, NOWHERE)

    def go(self, stay: Sequence[_Option]) -> Iterator[_Option]:
        """Yield the options of starting a node, where those of staying are these."""
        sight = self.sight
        away = self._away()
        # What is left to do where a zone out of sight turns out to have no room; on demand that is
        # up has been left by then.
        left = [away] if sight.mode is Mode.ON_DEMAND else [*stay, away]
        failing = min(option.usd for option in left)
        for zone, is_up in enumerate(sight.is_up):
            # A node that trains is not left for a zone that may have no room.
            if is_up is False or (sight.mode is Mode.SPOT and (zone == sight.zone or not is_up)):
                continue
            usd = self._spot(zone, sight.restart) + sight.move(zone)
            usd += self._hysteresis(zone, sight.spot[zone])
            if is_up is None:
                chance = self.seen.zones[zone].chance_up(sight.now)
                usd = chance * usd + (1 - chance) * failing
            yield _Option(usd, Mode.SPOT, zone)
        if sight.mode is not Mode.ON_DEMAND:  # from spot where its price has risen
            price = sight.zones[away.zone].on_demand
            yield away._replace(usd=away.usd + self._hysteresis(away.zone, price))

    def _waiting(self) -> float:
        sight = self.sight
        every = range(len(sight.zones))
        here = [zone for zone in every if sight.zones[zone].place == sight.checkpoint_place]
        # A checkpoint may lie where no zone is: it moves in any case.
        return min(
            self.table.if_waiting(zone, sight.work_left, sight.slack, self._state(zone))
            + sight.move(zone)
            for zone in here or every
        )

    def _hysteresis(self, zone: int, price: float) -> float:
        """Return what leaving what is up has to save beyond its price: from on demand, and back."""
        sight = self.sight
        if sight.mode is Mode.IDLE:
            return 0.0
        usd = sight.restart * price + sight.move(zone)
        if sight.mode is Mode.ON_DEMAND:
            usd += sight.restart * sight.zones[sight.zone].on_demand
        return _HYSTERESIS * usd

    def _away(self) -> _Option:
        """Return the option of starting on demand where that is cheapest."""
        zone = cheapest_on_demand(self.sight)
        usd = self._on_demand(zone, self.sight.restart) + self.sight.move(zone)
        return _Option(usd, Mode.ON_DEMAND, zone)

    def _spot(self, zone: int, cold: float) -> float:
        sight, spells = self.sight, self.seen.zones[zone]
        age = spells.age(sight.now) if spells.is_up else 0.0
        state = state_of(phase_of(age), is_up=True, others_up=self.seen.is_up_beside(zone))
        price = sight.spot[zone]
        return self.table.if_spot(zone, sight.work_left, sight.slack, state, cold, price)

    def _on_demand(self, zone: int, cold: float) -> float:
        sight, state = self.sight, self._state(zone)
        return self.table.if_on_demand(zone, sight.work_left, sight.slack, state, cold)

    def _state(self, zone: int) -> int:
        spells = self.seen.zones[zone]
        return state_of(
            phase_of(spells.age(self.sight.now)),
            is_up=bool(spells.is_up),
            others_up=self.seen.is_up_beside(zone),
        )


def _rounded(prices: Sequence[float], step: float) -> tuple[float, ...]:
    return tuple(math.exp(step * round(math.log(price) / step)) for price in prices)


def _grid(sight: Sight) -> Grid:
    most = max(_MOST_SLACK, _MOST_SLACK_SHARE * sight.work)
    # Slack never grows, unless the work turns out to be less than was thought.
    ample = math.ceil(sight.slack) if sight.slack > sight.deadline - sight.work + _SAME else 0
    slack = min(max(sight.deadline - sight.work, ample), most)
    hours = sight.work + slack
    step = max(_STEP, hours / _MOST_STEPS, sight.restart)
    return Grid(hours=hours, slack=slack, step=step, restart=sight.restart, reserve=sight.reserve)


def _last_learning(now: float) -> float:
    now += _SAME
    if now < _LEARN_AT[-1]:
        return max(hour for hour in _LEARN_AT if hour <= now)
    return _LEARN_AT[-1] + _LEARN_EVERY * math.floor((now - _LEARN_AT[-1]) / _LEARN_EVERY)


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
