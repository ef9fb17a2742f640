"""When a checkpoint is due, and what is still worth saving once the node is to go.

Pure: instants are passed in, as seconds of one monotonic clock. Ages and rates are per hour, as
they are published.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median, median_low

from train.config import Interval, RunHazard

# (age in hours up to which it holds, preemptions per hour of one node): pooled over the V100 zones
# of the spot traces of Wu et al., "Can't Be Late", NSDI'24. A node is lost most often soon after
# its start, so a rate that ignores age saves too rarely at first and too often later.
_HAZARD_BY_AGE = (
    (1 / 3, 1.54), (1.0, 0.77), (3.0, 0.32), (8.0, 0.16), (24.0, 0.11), (math.inf, 0.03),
)  # fmt: skip
# The table counts as much as this many preemptions. Zones of the traces (V100, H100; 16 of them)
# have 0.4 to 2.2 times the table's number, with the spread of a gamma distribution of shape 4.
_PRIOR_PREEMPTIONS = 4.0
# Until a save is measured; so small that the first one comes early, when the hazard is highest.
_ASSUMED_COST_S = 1.0
# What a save costs at least: requests, traffic, and slower steps that noise hides.
_LEAST_COST_S = 0.1
# At a hazard near zero, work lost to a failing node or to a bug of ours is what remains.
_LONGEST_S = 30 * 60.0
# Saves and steps that an estimate looks back on; medians, since one slow reply says nothing.
_NUM_SAVES = 5
_NUM_STEPS = 50

# A save begun on a notice must fit this many times: the usual time is a median, and nodes that
# leave together share the network. One in flight gets no such margin: waiting costs nothing more.
_START_MARGIN = 1.5
# A save that is late already is given this share of its usual time more.
_LATE_SHARE = 0.25
# Kept for leaving in order: outcome files, and the agent's last upload.
_LEAVE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticePlan:
    """What to do before the node goes."""

    finish: bool
    """Wait for the save in flight."""
    start: bool
    """Begin one more, after it."""


def preemptions_per_hour(age_h: float) -> float:
    """Return the published hazard of one node that is `age_h` old."""
    return next(rate for until_h, rate in _HAZARD_BY_AGE if age_h < until_h)


def expected_preemptions(age_h: float) -> float:
    """Return the published hazard of one node summed up to `age_h`."""
    total = begin_h = 0.0
    for until_h, rate in _HAZARD_BY_AGE:
        total += rate * max(0.0, min(age_h, until_h) - begin_h)
        begin_h = until_h
    return total


def young_interval_s(cost_s: float, per_hour: float) -> float:
    """Return the seconds between saves that lose the least to saves and rework together.

    sqrt(2 x cost of a save / hazard); J. W. Young, CACM 17(9), 1974, with the hazard at this age in
    place of a constant. Being wrong by a factor of 2 in the hazard costs 6 % of what is lost.
    """
    return math.sqrt(2 * cost_s * 3600 / per_hour)


class SaveClock:
    """Rank 0's view of when the next save is due, learned from the saves before."""

    def __init__(self, interval: Interval, hazard: RunHazard, num_nodes: int, now_s: float) -> None:
        """Begin an attempt; its nodes count as new at `now_s`."""
        self._interval = interval
        self._hazard = hazard
        self._num_nodes = num_nodes
        self._started_s = self._begun_s = now_s
        self._earlier = sum(
            expected_preemptions(self._hours(life_s)) for life_s in hazard.exposure_seconds
        )
        self._stalls: deque[float] = deque(maxlen=_NUM_SAVES)
        self._durables: deque[float] = deque(maxlen=_NUM_SAVES)
        self._quiet_steps: deque[float] = deque(maxlen=_NUM_STEPS)
        self._saving_steps: deque[float] = deque(maxlen=_NUM_STEPS)

    @property
    def durable_s(self) -> float | None:
        """How long a save takes until it is committed; None before the first."""
        return median(self._durables) if self._durables else None

    @property
    def cost_s(self) -> float:
        """Training time that a save takes: the stall, and what it slows the steps beside it."""
        if not self._stalls:
            return _ASSUMED_COST_S
        # The first save pays the set-up once, which says nothing of those to come.
        return max(_LEAST_COST_S, median_low(self._stalls) + self._slowdown_s())

    def is_step(self, step: int) -> bool:
        """Say whether a save is due after this step whatever the time."""
        return self._interval.steps is not None and step % self._interval.steps == 0

    def is_time(self, now_s: float) -> bool:
        """Say whether a save is due by the clock."""
        return now_s - self._begun_s >= self.interval_s(now_s)

    def interval_s(self, now_s: float) -> float:
        """Return the seconds from the begin of a save to that of the next; infinite for steps."""
        if self._interval.steps is not None:
            return math.inf
        if self._interval.seconds is not None:
            return self._interval.seconds
        best_s = min(_LONGEST_S, young_interval_s(self.cost_s, self.preemptions_per_hour(now_s)))
        # One save in flight: the next cannot begin before this one is durable.
        return max(best_s, self.durable_s or 0.0)

    def preemptions_per_hour(self, now_s: float) -> float:
        """Return the hazard of the whole job now: the table at this age x the run's own level.

        The level is the mean of a gamma posterior: preemptions seen against those that the table
        expects of the same nodes over the same ages, this attempt's survival so far included.
        """
        age_h = self._hours(now_s - self._started_s)
        expected = self._num_nodes * (self._earlier + expected_preemptions(age_h))
        seen = self._hazard.num_preemptions
        level = (_PRIOR_PREEMPTIONS + seen) / (_PRIOR_PREEMPTIONS + expected)
        return preemptions_per_hour(age_h) * level * self._num_nodes * self._hazard.time_scale

    def note_begun(self, now_s: float) -> None:
        """Record that a save begins."""
        self._begun_s = now_s

    def note_stall(self, seconds: float) -> None:
        """Record how long a save kept training from going on."""
        self._stalls.append(seconds)

    def note_durable(self, seconds: float) -> None:
        """Record how long after its begin a save was committed."""
        self._durables.append(seconds)

    def note_failed(self, now_s: float) -> None:
        """Record that a save failed; the next try waits a whole interval, for the store's sake."""
        self._begun_s = now_s

    def note_step(self, seconds: float, is_saving: bool) -> None:
        """Record a step without its stall, and whether a save was in flight beside it."""
        (self._saving_steps if is_saving else self._quiet_steps).append(seconds)

    def has_time_for_step(self, left_s: float, elapsed_s: float) -> bool:
        """Say whether a step that began `elapsed_s` ago ends, and can be saved, in what is left."""
        steps_s = [*self._quiet_steps, *self._saving_steps]
        if not steps_s or self.durable_s is None:
            return False
        rest_s = max(0.0, median(steps_s) - elapsed_s)
        return left_s - _LEAVE_S >= _START_MARGIN * (rest_s + self.durable_s)

    def _slowdown_s(self) -> float:
        """Return what a save adds to the steps beside it; it always is beside at least one."""
        if not (self._quiet_steps and self._saving_steps and self._durables):
            return 0.0
        quiet_s = median(self._quiet_steps)
        if quiet_s <= 0.0:
            return 0.0
        slowdown = max(0.0, median(self._saving_steps) / quiet_s - 1.0)
        return slowdown * max(median(self._durables), quiet_s)

    def _hours(self, seconds: float) -> float:
        return seconds * self._hazard.time_scale / 3600


def on_notice(
    *, left_s: float, durable_s: float | None, in_flight_s: float | None, has_new_steps: bool
) -> NoticePlan:
    """Decide by what saves took so far; with no figure both are tried, for waiting is all it costs.

    `in_flight_s` is how long the save in flight has been going, None without one; `has_new_steps`
    says whether steps were trained that neither it nor the last commit holds.
    """
    if durable_s is None:
        return NoticePlan(finish=in_flight_s is not None, start=has_new_steps)
    left_s -= _LEAVE_S
    if in_flight_s is not None:
        left_s -= max(durable_s - in_flight_s, _LATE_SHARE * durable_s)
        if left_s < 0:
            return NoticePlan(finish=False, start=False)  # a whole one takes longer still
    is_worth_it = has_new_steps and _START_MARGIN * durable_s <= left_s
    return NoticePlan(finish=in_flight_s is not None, start=is_worth_it)
