"""Memory and processor time of processes and all that they started, from /proc (Linux)."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

_PERIOD_S = 0.05
# The kernel walks every page table for one sample: 3.4 ms per GB and process that maps it. At 2 GB,
# every 50 ms, that would take a good part of a core from what is measured.
_MAX_SHARE = 0.05
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# In /proc/PID/stat behind the command: utime, stime, and both of the children waited for.
_CPU_FIELDS = slice(11, 15)


def cpu_seconds(roots: Iterable[int]) -> float:
    """Return user and system time so far; of processes that ended too, once they are waited for."""
    return sum(_ticks(pid) for pid in _with_descendants(roots)) / _TICKS_PER_S


class PeakMemory:
    """Samples the summed PSS of process trees; shared memory counts once, page cache never."""

    def __init__(self, roots: Iterable[int]) -> None:
        """Note what the trees have now."""
        self._roots = list(roots)
        self._start = self._peak = self._sample()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def extra_bytes(self) -> int:
        """Return how far the sum rose above that at the start."""
        return self._peak - self._start

    def _watch(self) -> None:
        pause_s = _PERIOD_S
        while not self._over.wait(pause_s):
            started_s = time.thread_time()
            self._peak = max(self._peak, self._sample())
            pause_s = max(_PERIOD_S, (time.thread_time() - started_s) / _MAX_SHARE)

    def _sample(self) -> int:
        return sum(_pss_bytes(pid) for pid in _with_descendants(self._roots))


def _with_descendants(roots: Iterable[int]) -> list[int]:
    found = list(roots)
    for pid in found:  # grows while it is walked
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in children.read_text().split()]
    return found


def _pss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):  # it may have ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _ticks(pid: int) -> int:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(field) for field in fields[_CPU_FIELDS])
    return 0
