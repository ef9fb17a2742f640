"""SkyNomad: what an hour of work is worth now, less what it costs where it is likely to last.

Source: Li et al., "SkyNomad: On Using Multi-Region Spot Instances to Minimize AI Batch Job Cost",
NSDI'27, arXiv 2601.06520. Where the authors' code differs from their text, it is the text that is
followed.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import NamedTuple

from orchestrator.policy.sight import (
    NEVER,
    NOWHERE,
    Choice,
    Mode,
    Sight,
    Sighting,
    on_demand_to_the_end,
)

# What is up is left for what is better by this share of the value of an hour of work. The authors
# add 0.50 USD per hour, which for cheap nodes means never and for gangs nothing.
_HYSTERESIS = 0.05
# Hours after which utilities are looked at anew when nothing is seen: the tick of their traces.
# On public traces half an hour came out 0.3 % dearer, in two thirds of the time.
_LOOK_EVERY = 1 / 6
# Ages are differences of hours: to so many digits equal ones are equal.
_DIGITS = 9


class SkyNomad:
    """For every zone, spot or on demand, U = V eta - C - E / L; for waiting 0. The most is chosen.

    V is the value of an hour of work: the price on demand, times the rate that the deadline asks
    for, over that of the past. L are the hours that a node is likely to last (on demand: to the
    deadline), eta the share of them that is left after a start, C the price per hour, E that of
    moving the checkpoint. Spot is left for spot elsewhere only if what is saved there pays for the
    move. Waiting ends nothing that is up, as in the authors' code.

    Other than in the paper, the safety net is that of all policies here, which keeps a live spot
    node where theirs goes on demand; and no probes are launched. Where every zone is seen, that is
    what probes would find, and more often. Where launches alone show anything, it lives on its own,
    and takes a zone out of sight for one with room.
    """

    looks_around = True

    def __init__(self) -> None:
        self._lives: list[Lives] = []
        self._num_seen = 0

    def choose(self, sight: Sight) -> Choice:
        """Return the choice of the highest utility, or to stay if that is hardly less."""
        if (net := on_demand_to_the_end(sight)) is not None:
            return net
        if sight.slack <= sight.reserve:  # on a spot node: there is nothing better
            return Choice(sight.mode, sight.zone, NEVER, "no slack for anything but to stay")
        self._see(sight)
        value = _value_of_work(sight)
        stay = self._stay(sight, value)
        least = stay.usd_per_hour
        if sight.mode is not Mode.IDLE:
            least += _HYSTERESIS * value
        # A node is not given up for a zone that may have no room, unless it is not worth its price.
        ends = sight.mode is Mode.IDLE or (sight.mode is Mode.ON_DEMAND and least < 0)
        others = self._go(sight, value, may_fail=ends)
        best = max(others, key=lambda option: option.usd_per_hour, default=stay)
        if best.usd_per_hour <= least:
            best = stay
        # Not beyond the hour at which the safety net has to be asked.
        until = sight.now + min(max(_LOOK_EVERY, sight.patience), sight.slack - sight.reserve)
        return Choice(best.mode, best.zone, until, _why(sight, value, best))

    def _see(self, sight: Sight) -> None:
        if len(sight.sightings) < self._num_seen or not self._lives:
            self._lives = [Lives() for _ in sight.zones]
            self._num_seen = 0
        for seen in sight.sightings[self._num_seen :]:
            self._lives[seen.zone].see(seen)
        self._num_seen = len(sight.sightings)

    def _stay(self, sight: Sight, value: float) -> _Option:
        """Return the option of changing nothing: what is up needs no start, or the rest of one."""
        cold = max(0.0, sight.ready_at - sight.now)
        match sight.mode:
            case Mode.SPOT:
                life = self._life(sight, sight.zone)
                usd = value * _share(life, cold) - sight.spot[sight.zone]
                return _Option(usd, Mode.SPOT, sight.zone, life)
            case Mode.ON_DEMAND:
                usd = value * _share(sight.left, cold) - sight.zones[sight.zone].on_demand
                return _Option(usd, Mode.ON_DEMAND, sight.zone, sight.left)
            case Mode.IDLE:
                return _Option(0.0, Mode.IDLE, NOWHERE, sight.left)

    def _go(self, sight: Sight, value: float, *, may_fail: bool) -> Iterator[_Option]:
        """Yield the options of starting a node; `may_fail`: also where there may be no room."""
        for zone, is_up in enumerate(sight.is_up):
            here = sight.mode is Mode.SPOT and sight.zone == zone
            if here or is_up is False or (is_up is None and not may_fail):
                continue
            life = self._life(sight, zone)
            usd = value * _share(life, sight.restart) - sight.spot[zone] - sight.move(zone) / life
            if sight.mode is not Mode.SPOT or _move_pays(sight, zone, life):
                yield _Option(usd, Mode.SPOT, zone, life)
        if sight.mode is Mode.ON_DEMAND:
            return
        share = _share(sight.left, sight.restart)
        for zone, one in enumerate(sight.zones):
            usd = value * share - one.on_demand - sight.move(zone) / sight.left
            yield _Option(usd, Mode.ON_DEMAND, zone, sight.left)

    def _life(self, sight: Sight, zone: int) -> float:
        return min(self._lives[zone].expected(sight.now), sight.left)


class _Option(NamedTuple):
    usd_per_hour: float
    mode: Mode
    zone: int
    life: float


class Lives:
    """How long room has lasted in a zone, and how long what is there now is likely to."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._hours = 0.0
        self._spells: list[tuple[float, bool]] = []
        """Hours, and whether the end was seen; as they came."""
        self._lengths: list[float] = []
        self._losses: list[float] = []
        # Nelson-Aalen: at these ages the hazard has added up to so much.
        self._ages: list[float] = []
        self._hazards: list[float] = []

    def see(self, seen: Sighting) -> None:
        """Take what is seen of the zone."""
        if seen.is_up:
            self._since = seen.hour if self._since is None else self._since
        elif self._since is not None:
            self._end(round(seen.hour - self._since, _DIGITS), is_lost=seen.is_up is False)
            self._since = None

    def expected(self, now: float) -> float:
        """Return the hours that room is likely to last from now on; infinite if none was lost yet.

        The conditional mean given the present age, by the Nelson-Aalen estimate times the
        volatility. Beyond the longest life, losses are as frequent as they were in all.
        """
        if not self._ages:
            return math.inf
        age = 0.0 if self._since is None else round(now - self._since, _DIGITS)
        pace = self._volatility(age)
        life, alive, at = 0.0, 1.0, age
        first = bisect_right(self._ages, age)
        hazard = self._hazards[first - 1] if first else 0.0
        for later, total in zip(self._ages[first:], self._hazards[first:], strict=True):
            life += alive * (later - at)
            alive *= math.exp(-pace * (total - hazard))
            at, hazard = later, total
        return life + alive * (self._hours + age) / (pace * len(self._losses))

    def _end(self, hours: float, *, is_lost: bool) -> None:
        if hours <= 0:
            return
        self._hours += hours
        self._spells.append((hours, is_lost))
        insort(self._lengths, hours)
        if is_lost:
            insort(self._losses, hours)
        self._ages, self._hazards, total = [], [], 0.0
        for length in self._losses:
            at_risk = len(self._lengths) - bisect_left(self._lengths, length)
            total += 1 / at_risk
            self._ages.append(length)
            self._hazards.append(total)

    def _volatility(self, age: float) -> float:
        """Return how often room was lost of late over how often it was to be, and 1 at least.

        Of late: in the last spells, as many as make for one loss that was to be expected.
        """
        expected, seen = self._hazard(age), 0
        for hours, is_lost in reversed(self._spells):
            if expected >= 1:
                break
            expected += self._hazard(hours)
            seen += is_lost
        return max(1.0, seen / expected) if expected >= 1 else 1.0

    def _hazard(self, age: float) -> float:
        place = bisect_right(self._ages, age)
        return self._hazards[place - 1] if place else 0.0


def _value_of_work(sight: Sight) -> float:
    """Return V = C t / (D - t) (W - p) / p, C on demand: USD for an hour of work.

    Before the first progress the past rate is that of the straight line, W / D. Spot at the lowest
    price is always worth it. Both as in the authors' code.
    """
    done = sight.work - sight.work_left
    past = done / sight.now if done > 0 and sight.now > 0 else sight.work / sight.deadline
    value = _on_demand_price(sight) * sight.work_left / sight.left / past
    return max(value, min(sight.spot))


def _on_demand_price(sight: Sight) -> float:
    return min(zone.on_demand for zone in sight.zones)


def _share(life: float, cold: float) -> float:
    """Return eta, the share of a life that is left after a start."""
    return max(0.0, life - cold) / life


def _move_pays(sight: Sight, zone: int, life: float) -> bool:
    saved = (sight.spot[sight.zone] - sight.spot[zone]) * (life - sight.restart)
    return sight.move(zone) <= saved


def _why(sight: Sight, value: float, best: _Option) -> str:
    worth = f"an hour of work is worth ${value:.2f}, {sight.slack:.1f} h to spare"
    match best.mode:
        case Mode.IDLE:
            return f"waiting: {worth}"
        case Mode.SPOT:
            name = sight.zones[best.zone].name
            return f"spot in {name}, likely for {best.life:.1f} h: {worth}"
        case Mode.ON_DEMAND:
            return f"on demand in {sight.zones[best.zone].name}: {worth}"
