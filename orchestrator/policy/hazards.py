"""How long zones have room and lack it: rates by age, from what was seen and what is usual.

A spell (of room, or of none) ends the less probably the longer it has lasted, so rates are kept by
phases of age. What was seen counts with a half-life: markets have moods.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Rates = NDArray[np.float64]  # per hour, by phase of age

# Hours of age at which phases begin; the last has no end.
PHASE_STARTS = (0.0, 0.5, 1.5, 4.0, 10.0)
NUM_PHASES = len(PHASE_STARTS)
_PHASE_ENDS = (*PHASE_STARTS[1:], math.inf)
# Losses are near those of public traces of V100s on AWS (Wu et al., NSDI'24), pooled over zones;
# that room comes back in the same way is an assumption.
USUAL_LOSSES: Rates = np.array([1.2, 0.45, 0.25, 0.13, 0.06])
USUAL_RETURNS: Rates = np.array([1.2, 0.5, 0.25, 0.12, 0.06])
# Hours of seeing that weigh as much as what is usual, and after which what was seen weighs half.
_USUAL_WEIGHT = 2.0
_HALF_LIFE = 6.0
# Hours after which most of what was seen last of a zone says nothing of it any more.
_MEMORY = 1.0
# Of room, before anything is seen.
USUAL_SHARE, _SHARE_WEIGHT = 0.5, 6.0


def phase_of(age: float) -> int:
    """Return the phase of a spell that has lasted so long."""
    phase = 0
    while age >= _PHASE_ENDS[phase]:
        phase += 1
    return phase


def mean_life(losses: Rates, most: float) -> float:
    """Return the hours that a new spell of room lasts in the mean, counted up to `most`."""
    alive, age, life = 1.0, 0.0, 0.0
    for phase, rate in enumerate(losses):
        span = min(_PHASE_ENDS[phase], most) - age
        if span <= 0:
            break
        survival = math.exp(-rate * span)
        life += alive * ((1 - survival) / rate if rate > 0 else span)
        alive *= survival
        age += span
    return life


class Spells:
    """The spells of one zone, or of several together, as they are seen."""

    def __init__(self) -> None:
        self.is_up: bool | None = None
        self.since = 0.0
        self._seen_until = 0.0
        self._last_seen: tuple[float, bool] | None = None
        # Of a zone that was out of sight: how many looks found it so, the part that is news.
        self._looks = {True: 0.0, False: 0.0}
        self._ends = {True: np.zeros(NUM_PHASES), False: np.zeros(NUM_PHASES)}
        self._hours = {True: np.zeros(NUM_PHASES), False: np.zeros(NUM_PHASES)}

    def see(self, hour: float, *, is_up: bool | None) -> None:
        """Take what is seen at `hour`; before, it was as it was seen last. None: out of sight."""
        self._pass_to(hour)
        if is_up is not None:
            if self.is_up is None:
                self._looks[is_up] += 1 - self._memory(hour)
            self._last_seen = (hour, is_up)
        if self.is_up is not None and is_up is not None and is_up != self.is_up:
            self._ends[self.is_up][phase_of(hour - self.since)] += 1
        if is_up != self.is_up:
            self.since = hour
        self.is_up = is_up

    def at(self, hour: float) -> Spells:
        """Return what is known at an hour if nothing is seen until then; this stays as it is.

        Only what is seen moves these counts, so that they do not depend on who has asked when.
        """
        later = Spells()
        later.is_up, later.since, later._seen_until = self.is_up, self.since, self._seen_until
        later._last_seen, later._looks = self._last_seen, dict(self._looks)
        later._ends = {up: counts.copy() for up, counts in self._ends.items()}
        later._hours = {up: counts.copy() for up, counts in self._hours.items()}
        later._pass_to(hour)
        return later

    def _pass_to(self, hour: float) -> None:
        """Let time pass without a change."""
        hours = hour - self._seen_until
        if hours <= 0:
            return
        forgotten = 0.5 ** (hours / _HALF_LIFE)
        for counts in (*self._ends.values(), *self._hours.values()):
            counts *= forgotten
        self._looks = {up: count * forgotten for up, count in self._looks.items()}
        if self.is_up is not None:
            self._add(self._hours[self.is_up], self._seen_until - self.since, hours)
        self._seen_until = hour

    def age(self, hour: float) -> float:
        """Return how long the present spell has lasted, as far as is known."""
        return hour - self.since

    def losses(self, pace: float) -> Rates:
        """Return how often room is lost; `pace` times what is usual of single GPUs, if unseen."""
        return self._rates(True, pace * USUAL_LOSSES)

    def returns(self) -> Rates:
        """Return how often room comes back."""
        return self._rates(False, USUAL_RETURNS)

    def overall(self, *, is_up: bool, usual: float, weight: float) -> float:
        """Return how often such a spell ends whatever its age; `usual` weighs as `weight` hours."""
        return float(
            (self._ends[is_up].sum() + usual * weight) / (self._hours[is_up].sum() + weight)
        )

    def share_up(self) -> float:
        """Return the share of time with room."""
        up, down = (self._hours[up].sum() + _MEMORY * self._looks[up] for up in (True, False))
        return float((up + USUAL_SHARE * _SHARE_WEIGHT) / (up + down + _SHARE_WEIGHT))

    def chance_up(self, hour: float) -> float:
        """Return the chance of room in a zone that is out of sight."""
        share = self.share_up()
        if self._last_seen is None:
            return share
        return share + (float(self._last_seen[1]) - share) * self._memory(hour)

    def _memory(self, hour: float) -> float:
        """Return how much of what was seen last is still so for that reason."""
        return math.exp(-(hour - self._last_seen[0]) / _MEMORY) if self._last_seen else 0.0

    def _rates(self, is_up: bool, usual: Rates) -> Rates:  # the key of both tables
        ends, hours = self._ends[is_up], self._hours[is_up]
        return (ends + _USUAL_WEIGHT * usual) / (hours + _USUAL_WEIGHT)

    @staticmethod
    def _add(hours_by_phase: Rates, age: float, hours: float) -> None:
        """Add a stretch of a spell that ends now; its hours have been forgotten as they passed."""
        phase = phase_of(age)
        while hours > 1e-12:
            spent = min(hours, _PHASE_ENDS[phase] - age)
            weights = 0.5 ** ((hours - spent) / _HALF_LIFE) - 0.5 ** (hours / _HALF_LIFE)
            hours_by_phase[phase] += _HALF_LIFE / math.log(2) * weights
            age, hours, phase = age + spent, hours - spent, phase + 1
