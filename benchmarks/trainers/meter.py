"""Tokens, processor time and memory of a training run, from the end of its warm-up on."""

from __future__ import annotations

import resource
import time

from benchmarks.trainers.jobs import Figures


class Meter:
    """A trainer tells it of tokens and of ended steps.

    Processor time is that of all threads of this process: what else runs on the machine changes it
    less than the clock. Memory is the process's peak, imports included.
    """

    def __init__(self, warmup_steps: int) -> None:
        self.num_steps = 0
        self.warmup_steps = warmup_steps
        self._num_tokens = 0
        self._cpu_s = self._wall_s = 0.0
        self._figures: Figures | None = None

    def see_tokens(self, count: int) -> None:
        """Note tokens of conversations; padding is none."""
        self._num_tokens += count

    def end_step(self) -> None:
        """Note that an optimizer update is done."""
        self.num_steps += 1
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        if self.num_steps <= self.warmup_steps:
            self._num_tokens = 0
            self._cpu_s, self._wall_s = cpu_s, wall_s
            return
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._figures = Figures(
            tokens_per_cpu_s=self._num_tokens / (cpu_s - self._cpu_s),
            tokens_per_s=self._num_tokens / (wall_s - self._wall_s),
            peak_rss_mb=peak_kib * 1024 / 1e6,
            cpu_s=cpu_s - self._cpu_s,
            num_tokens=self._num_tokens,
            num_steps=self.num_steps - self.warmup_steps,
        )

    def figures(self) -> Figures:
        """Return what was measured until the last step's end."""
        if self._figures is None:
            raise RuntimeError(f"{self.num_steps} steps are too few to measure")
        return self._figures
