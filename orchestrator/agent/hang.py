"""When a trainer that gives no sign of life is taken for hung, and what of it is kept."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from pathlib import Path

from train.spool import read_pulses

# Five times the 99th percentile of steps; fewer than so many steps say nothing of it.
_FACTOR = 5
_FEW_STEPS = 5
_NUM_RECENT = 1000
# What writing the stacks of all threads takes, with a wide margin.
_DUMP_S = 2.0


class HangWatch:
    """Follows one attempt's signs of life; instants are monotonic seconds."""

    def __init__(
        self, spool_dir: Path, *, num_steps: int, slow_s: float, step_s: float, now: float
    ) -> None:
        """Allow `slow_s` without a sign of life, between steps at least `step_s`."""
        self._spool_dir = spool_dir
        self._num_steps = num_steps
        self._slow_s, self._step_s = slow_s, step_s
        self._durations: deque[float] = deque(maxlen=_NUM_RECENT)
        self._is_last_step_done = False
        self._pulses: dict[int, float] = {}
        self._heard_at = self._looked_at = now

    def note_step(self, step: int, seconds: float) -> None:
        """Learn from a step's duration; after the last one comes what is not counted in steps."""
        self._durations.append(seconds)
        self._is_last_step_done = step >= self._num_steps

    def note_life(self, now: float) -> None:
        """Take something that the trainer said for a sign of life."""
        self._heard_at = now

    @property
    def limit_s(self) -> float:
        """How long there may be no sign of life."""
        if len(self._durations) < _FEW_STEPS or self._is_last_step_done:
            return self._slow_s
        slowest = sorted(self._durations)[int(0.99 * (len(self._durations) - 1))]
        return max(_FACTOR * slowest, self._step_s)

    def is_hung(self, now: float) -> bool:
        """Look at the ranks' pulses and say whether none has got on for too long."""
        pulses = read_pulses(self._spool_dir)
        was_stopped = now - self._looked_at > self._step_s / 2  # we were, or the whole machine
        if pulses != self._pulses or was_stopped:
            self._pulses, self._heard_at = pulses, now
        self._looked_at = now
        return now - self._heard_at > self.limit_s

    def dump_stacks(self) -> None:
        """Have every rank write the stacks of its threads to the trainer's log."""
        for process in self._pulses:
            try:
                os.kill(process, signal.SIGUSR1)
            except ProcessLookupError:
                continue
        time.sleep(_DUMP_S)
