"""What goes wrong in one simulation: drawn from its seed, and counted where it happens."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from checkpoints.layout import CHECKPOINTS, HEAD_KEY
from tests.simulation.loop import Process
from tests.simulation.store import CHANGES, Weather
from tests.simulation.trainer import Pace

_HOUR = 3600.0
_NEVER_DONE = 1000
# Which row of the fault matrix each belongs to; docs/reliability.md.
ROWS = {
    "killed before": "F1",
    "killed after": "F1",
    "object flipped": "F3",
    "object cut": "F3",
    "object deleted": "F3",
    "lost though acknowledged": "F3",
    "cut though acknowledged": "F3",
    "lost request": "F5",
    "lost reply": "F6",
    "tried again by the client": "F6",
    "slow store": "F6",
    "refused": "F7",
    "conflict, by a race": "F8",
    "conflict, for no reason": "F8",
    "taken, but lives on": "F8",
    "lost before it moves HEAD, lives on": "F8",
    "clock skew": "F10",
    "agent killed": "F11",
    "ranks killed": "F11",
    "frozen": "F12",
    "agent stopped": "F12",
    "taken without notice": "F16",
    "taken with notice": "F16",
    "false notice": "F16",
    "lost while set up": "F17",
    "controller killed": "F19",
    "controller gone for good": "F19",
    "status unreadable": "F19",
    "stop requested": "F20",
    "launched twice": "F21",
    "facts read twice and in another order": "F22",
    "budget used up": "F23",
    "prices times three": "F23",
    "no room": "F24",
    "set-up failed": "F24",
    "set-up hangs": "F12",
}
_LATENCY_S, _SLOW_S = (0.005, 0.3), (1.0, 60.0)
_STALL_S = (10.0, 1800.0)
# The minute after which a request is given up, and what lies between it and the next try.
_TRIED_AGAIN_WITHIN_S = 130.0
_TRIED_AGAIN = "tried again by the client"
_NO_REASON = "conflict, for no reason"
_REQUEST_FAULTS = ("lost request", "lost reply", _TRIED_AGAIN, _NO_REASON)
_FATES = (
    "taken without notice",
    "taken with notice",
    "false notice",
    "frozen",
    "agent stopped",
    "agent killed",
    "ranks killed",
    "taken, but lives on",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spell:
    """A time in which requests of some processes fail or are slow."""

    start: float
    end: float
    who: str
    """Beginning of the processes' names."""
    what: str
    rate: float


class Plan:
    """One seed's faults; after `calm_from` nothing goes wrong any more."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.injected: Counter[str] = Counter()
        rng = random.Random(f"{seed} plan")
        self._rng = random.Random(f"{seed} faults")
        self.calm_from = rng.uniform(1, 4) * _HOUR
        self.num_steps = rng.choice((12, 24, 40))
        self.pace = Pace(
            startup_s=rng.uniform(10, 60),
            step_s=rng.uniform(30, 120),
            save_every=rng.choice((1, 3, 5)),
        )
        self.mean_life_s = rng.choice((300.0, 900.0, 1800.0))
        self.spot_share = rng.choice((0.2, 0.5, 0.9))
        self._fates = [one for one in _FATES if rng.random() < 0.5] or [_FATES[0]]
        self._request_rate = rng.choice((0.0, 0.0, 0.01, 0.05))
        self._kill_rate = rng.choice((0.0, 0.0, 0.002))
        self._skew_s = rng.choice((0.0, 0.0, 5.0, 600.0))
        self._rates = {
            "lost while set up": rng.choice((0.0, 0.0, 0.3)),
            "set-up failed": rng.choice((0.0, 0.0, 0.15)),
            "set-up hangs": rng.choice((0.0, 0.0, 0.05)),
        }
        self.spells = [_spell(rng) for _ in range(rng.choice((0, 0, 1, 3)))]
        if rng.random() < 0.2:
            self.spells.append(_refusals(rng))
        self.controller_dies_at = [
            rng.uniform(0, self.calm_from) for _ in range(rng.choice((0, 0, 1, 4)))
        ]
        self.controller_stays_away = bool(self.controller_dies_at) and rng.random() < 0.2
        if self.controller_stays_away:
            # Neither its end nor the cloud ends the node: what is left is its lease.
            self.num_steps, self.mean_life_s = _NEVER_DONE, 10 * _HOUR
        self.status_unreadable = [
            (start, start + rng.uniform(60, 1800))
            for start in (rng.uniform(0, self.calm_from) for _ in range(rng.choice((0, 0, 2))))
        ]
        self.damage_at = [rng.uniform(0, self.calm_from) for _ in range(rng.choice((0, 0, 1, 2)))]
        self.second_job_after = rng.choice((None, None, None, 0.0, 30.0, 900.0))
        self.stop_at = rng.choice((None, None, None, None, rng.uniform(0, self.calm_from)))
        self.budget_usd = Decimal(rng.choice(("1000", "1000", "1000", "40", "12")))
        self.deadline_h = rng.choice((None, None, None, 3, 8))
        self.policy = rng.choice(("uniform_progress", "uniform_progress", "auto"))
        self._loss_rate = rng.choice((0.0, 0.0, 0.1))
        self._stall_rate = rng.choice((0.0, 0.0, 0.2))
        self._hindrances: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        self.tell: Callable[[str], None] = lambda what: None
        self.when_stalled: Callable[[Process, float], None] = lambda process, seconds: None
        self._surge_at = rng.choice((None, None, rng.uniform(0, self.calm_from)))

    def count(self, what: str, about: str = "") -> None:
        self.injected[what] += 1
        self.tell(f"FAULT {what} {about}".rstrip())

    def happens(self, what: str, about: str) -> bool:
        """Draw whether something happens, and count it."""
        found = self._rng.random() < self._rates[what]
        if found:
            self.count(what, about)
        return found

    def choose_fate(self, rng: random.Random, about: str) -> str:
        fate = rng.choice(self._fates)
        self.count(fate, about)
        return fate

    def is_calm(self, seconds: float) -> bool:
        return seconds >= self.calm_from

    def skew(self, rng: random.Random) -> timedelta:
        """Return by how much a machine's clock is wrong."""
        skew = rng.uniform(-self._skew_s, self._skew_s)
        if skew:
            self.count("clock skew")
        return timedelta(seconds=skew)

    def hindered_s(self, who: str, start: float, end: float) -> float:
        """Return how late may have come what that process, or its ranks, did in that time."""
        told = (*self._hindrances[who], *self._hindrances[f"{who}/ranks"])
        return sum(seconds for at, seconds in told if start <= at <= end)

    def unreadable_s(self, start: float, end: float) -> float:
        """Return for how long SkyPilot cannot read its jobs' status in that time."""
        spells = self.status_unreadable
        return sum(max(0.0, min(end, until) - max(start, since)) for since, until in spells)

    @property
    def most_skew(self) -> timedelta:
        return timedelta(seconds=self._skew_s)

    def price_factor(self, seconds: float) -> Decimal:
        if self._surge_at is None or seconds < self._surge_at:
            return Decimal(1)
        self.injected["prices times three"] = 1
        return Decimal(3)

    def weather(self, process: Process, operation: str, key: str) -> Weather:
        """Return what becomes of a request."""
        if self.is_calm(process.loop.seconds):
            return Weather(latency_s=self._rng.uniform(*_LATENCY_S))
        if key == HEAD_KEY and operation != "get" and self._rng.random() < self._stall_rate:
            # The worst moment: it has read HEAD, and writes when another has the run.
            self.count("lost before it moves HEAD, lives on", process.name)
            stall_s = self._rng.uniform(*_STALL_S)
            self.when_stalled(process, stall_s)
            self._hinder(process, stall_s)
            return Weather(latency_s=1.0, stall_s=stall_s)
        slow = self._spell_over(process, is_slow=True)
        fault = self._fault(process, operation, key)
        for what in ("slow store" if slow else None, fault):
            if what is not None:
                self.count(what, f"{process.name} {operation} {key}")
                self._hinder(process, _TRIED_AGAIN_WITHIN_S)
        latency_s = self._rng.uniform(*(_SLOW_S if slow else _LATENCY_S))
        return Weather(latency_s=latency_s, fault=fault)

    def _hinder(self, process: Process, seconds: float) -> None:
        self._hindrances[process.name].append((process.loop.seconds, seconds))

    def _fault(self, process: Process, operation: str, key: str) -> str | None:
        rng, spell = self._rng, self._spell_over(process, is_slow=False)
        fault = None
        if spell is not None and rng.random() < spell.rate:
            fault = spell.what
        elif rng.random() < self._request_rate:
            fault = rng.choice(_REQUEST_FAULTS)
        elif rng.random() < self._kill_rate:
            fault = rng.choice(("killed before", "killed after"))
        elif operation == "put" and key.startswith(CHECKPOINTS) and rng.random() < self._loss_rate:
            fault = rng.choice(("lost though acknowledged", "cut though acknowledged"))
        is_possible = {_TRIED_AGAIN: operation in CHANGES, _NO_REASON: operation == "replace"}
        return fault if is_possible.get(fault, True) else None

    def _spell_over(self, process: Process, *, is_slow: bool) -> Spell | None:
        seconds = process.loop.seconds
        found = (
            spell
            for spell in self.spells
            if (spell.what == "slow store") is is_slow
            and spell.start <= seconds < spell.end
            and process.name.startswith(spell.who)
        )
        return next(found, None)


def _spell(rng: random.Random) -> Spell:
    start = rng.uniform(0, 2 * _HOUR)
    what = rng.choice((*_REQUEST_FAULTS, "slow store"))
    return Spell(
        start=start,
        end=start + rng.uniform(30, 1500),
        who=rng.choice(("", "node", "controller")),
        what=what,
        rate=rng.choice((0.3, 0.8, 1.0)),
    )


def _refusals(rng: random.Random) -> Spell:
    """Return a time in which credentials are refused: shorter than a controller's patience."""
    start = rng.uniform(0, 2 * _HOUR)
    who = rng.choice(("", "node", "controller"))
    return Spell(start=start, end=start + rng.uniform(30, 540), who=who, what="refused", rate=1.0)
