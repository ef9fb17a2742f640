"""A rank of benchmarks.checkpoints: python -m benchmarks.checkpointing.ranks JOB.

It meets its driver between any two things that the driver measures from outside, and waits there.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import TextIO

import torch
import torch.distributed as dist

from benchmarks.checkpointing.jobs import ASYNC_VARIANTS, PASS_S, Act, Job, Said
from benchmarks.checkpointing.raw import probe
from benchmarks.checkpointing.saving import Checkpointer, Saving, Tensors
from benchmarks.checkpointing.state import build, change, check, fill
from benchmarks.checkpointing.variants import open_variant

_STEP_S = 0.05
_QUIET_S = 4.0
_MATRIX_SIZE = 384


class Driver:
    """The other end of this process's standard streams."""

    def __init__(self) -> None:
        # Libraries print; only what this class writes may reach the driver.
        self._output: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def meet(self, **figures: float) -> None:
        """Tell what was measured, and wait until the driver wants to go on."""
        self._say(Said(figures=figures))
        if not sys.stdin.readline():
            sys.exit("the driver is gone")

    def fail(self, error: Exception) -> None:
        """Tell what went wrong, in one line; the log, which the driver reads at once, has more."""
        traceback.print_exc()
        self._say(Said(error=" ".join(f"{type(error).__name__}: {error}".split())))

    def _say(self, said: Said) -> None:
        self._output.write(said.model_dump_json() + "\n")
        self._output.flush()


def main() -> None:
    """Do the job and exit 1 if it failed."""
    job = Job.model_validate_json(sys.argv[1])
    driver = Driver()
    torch.set_num_threads(1)
    # Tensors in shared memory take a descriptor each, and the usual limit is 1024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    dist.init_process_group(
        "gloo",
        init_method=f"file://{job.meeting_file}",
        rank=job.rank,
        world_size=job.world_size,
    )
    try:
        _act(job, driver)
    except Exception as error:
        driver.fail(error)
        raise
    dist.destroy_process_group()


def _act(job: Job, driver: Driver) -> None:
    if job.act is Act.PROBE:
        driver.meet(**probe(job))
        return
    variant = open_variant(job)
    tensors = build(job.state_bytes)
    if job.act is Act.LOAD:
        driver.meet()
        load_s = variant.load(tensors, step=3 if job.variant in ASYNC_VARIANTS else 2)
        check(tensors, num_changes=1)
        driver.meet(load_s=load_s)
        return
    fill(tensors)
    state_gb = sum(tensor.nbytes for tensor in tensors.values()) / 1e9
    driver.meet(state_gb=state_gb)
    staging_s = _save_twice(variant, tensors, driver)
    if job.act is Act.STEPS:
        _save_beside_steps(variant, tensors, driver)
    elif job.variant in ASYNC_VARIANTS:
        _save_in_training(variant, tensors, driver)
    else:
        driver.meet(stall_s=staging_s, step_extra_s=0.0)
    variant.close()


def _save_twice(variant: Checkpointer, tensors: Tensors, driver: Driver) -> float:
    """Save once to warm up, set-up included, and once more what has changed since.

    Returns how long until the tensors of the second save may change.
    """
    start_s = time.perf_counter()
    variant.set_up(tensors)
    set_up_s = time.perf_counter() - start_s
    stall_s, _ = _save(variant, tensors, step=1)
    change(tensors)
    driver.meet(first_stall_s=set_up_s + stall_s)
    staging_s, durable_s = _save(variant, tensors, step=2)
    driver.meet(staging_s=staging_s, durable_s=durable_s)
    return staging_s


def _save(variant: Checkpointer, tensors: Tensors, step: int) -> tuple[float, float]:
    """Return how long until the tensors may change, and how long until they can be loaded.

    The fence follows at once, so that no copying is hidden behind computing.
    """
    dist.barrier()
    start_s = time.perf_counter()
    saving = variant.begin(tensors, step)
    saving.fence()
    stall_s = time.perf_counter() - start_s
    saving.finish()
    return stall_s, time.perf_counter() - start_s


def _save_in_training(variant: Checkpointer, tensors: Tensors, driver: Driver) -> None:
    """Tell how long a save blocks a trainer, and how much longer its step takes beside staging.

    A trainer begins a save after one optimizer step and reaches the fence before the next one, a
    forward and backward pass later, during which the tensors are only read.
    """
    compute = _calibrated_step(PASS_S)
    dist.barrier()
    quiet_s = _time(compute)
    dist.barrier()
    saving, begin_s = _begin(variant, tensors)
    busy_s = _time(compute)
    fence_s = _time(saving.fence)
    saving.finish()
    driver.meet(stall_s=begin_s + fence_s, step_extra_s=busy_s - quiet_s)


def _save_beside_steps(variant: Checkpointer, tensors: Tensors, driver: Driver) -> None:
    """Time a training-like step alone, and while a save is in flight."""
    change(tensors)
    compute = _calibrated_step(_STEP_S)
    dist.barrier()
    quiet, give_up_s = [], time.perf_counter() + _QUIET_S
    while time.perf_counter() < give_up_s:
        quiet.append(_time(compute))
    dist.barrier()
    saving, begin_s = _begin(variant, tensors)
    busy = [_time(compute)]
    fence_s = _time(saving.fence)
    while not saving.is_durable():
        busy.append(_time(compute))
    saving.finish()
    driver.meet(
        step_s=statistics.median(quiet),
        saving_step_s=statistics.median(busy),
        slowdown=statistics.median(busy) / statistics.median(quiet),
        stall_beside_steps_s=begin_s + fence_s,
    )


def _begin(variant: Checkpointer, tensors: Tensors) -> tuple[Saving, float]:
    start_s = time.perf_counter()
    saving = variant.begin(tensors, step=3)
    return saving, time.perf_counter() - start_s


def _calibrated_step(seconds: float) -> Callable[[], None]:
    """Return matrix products that take about so long on one thread."""
    a = torch.rand(_MATRIX_SIZE, _MATRIX_SIZE)
    out = torch.empty_like(a)
    torch.matmul(a, a, out=out)
    one_s = min(_time(lambda: torch.matmul(a, a, out=out)) for _ in range(10))
    num_products = max(1, round(seconds / one_s))

    def compute() -> None:
        for _ in range(num_products):
            torch.matmul(a, a, out=out)

    return compute


def _time(act: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    act()
    return time.perf_counter() - start_s


if __name__ == "__main__":
    main()
