"""What is measured while the soak runs, and when that counts as a leak."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from benchmarks.soaking.site import Site

_SUPERVISOR = "orchestrator.cloud.local"
_AGENT = "orchestrator.agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look; of the agent 0 where there is none at this moment."""

    at_s: float
    num_processes: int
    supervisor_bytes: int
    supervisor_files: int
    agent_bytes: int
    agent_files: int
    num_facts: int
    num_temporary: int


def take(site: Site, started_s: float) -> Sample:
    """Look at every process and folder of the site."""
    memory = {_SUPERVISOR: 0, _AGENT: 0}
    files = {_SUPERVISOR: 0, _AGENT: 0}
    num_processes = 0
    for process, _ in site.processes():
        with suppress(psutil.Error):
            num_processes += 1
            command = process.cmdline()
            for module in memory:
                if module in command:
                    # Not RSS: pages that are shared with other processes come and go.
                    memory[module] = process.memory_full_info().uss
                    files[module] = process.num_fds()
    return Sample(
        at_s=time.monotonic() - started_s,
        num_processes=num_processes,
        supervisor_bytes=memory[_SUPERVISOR],
        supervisor_files=files[_SUPERVISOR],
        agent_bytes=memory[_AGENT],
        agent_files=files[_AGENT],
        num_facts=sum(1 for _ in (site.store / "events").rglob("*.jsonl")),
        num_temporary=sum(1 for _ in site.temporary.iterdir()),
    )


def slope(samples: Sequence[Sample], name: str, per: str = "at_s") -> float:
    """Return by how much a figure grows per second, or per unit of another figure.

    Theil and Sen's estimate, the median over all pairs: single peaks do not count. Only of samples
    in which the process was there, and without the first fifth, in which caches are filled.
    """
    steady = [one for one in samples[len(samples) // 5 :] if getattr(one, name)]
    slopes = [
        (getattr(b, name) - getattr(a, name)) / (getattr(b, per) - getattr(a, per))
        for number, a in enumerate(steady)
        for b in steady[number + 1 :]
        if getattr(b, per) > getattr(a, per)
    ]
    return statistics.median(slopes) if slopes else 0.0
