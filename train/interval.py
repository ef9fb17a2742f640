"""When a checkpoint is due: every n steps, every n seconds, or as Young's formula says."""

from __future__ import annotations

import math
import time

from train.config import Interval

# Until the first save is measured; so small that the first interval is short.
_ASSUMED_STALL_S = 1.0
# Spot A100 nodes in public traces live a few hours; an error of 2x costs 6 % more badput.
_MEAN_TIME_BETWEEN_PREEMPTIONS_S = 2 * 3600.0
_LONGEST_S = 30 * 60.0


def young_interval_s(stall_s: float) -> float:
    """Return the seconds between saves that lose the least time to saves and rework together.

    sqrt(2 * stall * mean time between failures); J. W. Young, CACM 17(9), 1974. At most 30 min; the
    lower bound is one step, since saves lie between steps.
    """
    return min(_LONGEST_S, math.sqrt(2 * stall_s * _MEAN_TIME_BETWEEN_PREEMPTIONS_S))


class SaveClock:
    """Rank 0's view of when the next save is due, and what the last one cost."""

    def __init__(self, interval: Interval, now_s: float) -> None:
        self._interval = interval
        self._last_s = now_s
        self.last_save_s: float | None = None

    def is_step(self, step: int) -> bool:
        """Say whether a save is due after this step whatever the time."""
        return self._interval.steps is not None and step % self._interval.steps == 0

    def is_time(self, now_s: float | None = None) -> bool:
        """Say whether a save is due by the monotonic clock."""
        if self._interval.steps is not None:
            return False
        wait_s = self._interval.seconds
        if wait_s is None:
            stall_s = _ASSUMED_STALL_S if self.last_save_s is None else self.last_save_s
            wait_s = young_interval_s(stall_s)
        return (time.monotonic() if now_s is None else now_s) - self._last_s >= wait_s

    def note_save(self, now_s: float, seconds: float | None) -> None:
        """Record that a save ended and how long it took, None if it failed."""
        self._last_s = now_s
        if seconds is not None:
            self.last_save_s = seconds
