"""How much there is to train, and what a checkpoint weighs, from the spec alone: assumptions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from orchestrator.memory import parameters_from_name
from orchestrator.spec import RunSpec
from orchestrator.weather import Weather

# Dense bf16 peak of one accelerator, FLOP/s (vendor data sheets).
PEAK_FLOPS = {"A100": 312e12, "A100-80GB": 312e12, "H100": 989e12, "V100": 125e12}
# What well-tuned FSDP loops reach on A100s (published: 44 to 64 %); an assumption, and shown so.
ASSUMED_MFU = 0.5
# Weights and AdamW's two moments, in fp32.
_BYTES_PER_PARAMETER = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Training without interruptions or saves, and what was assumed for it."""

    productive: timedelta
    assumption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What there is to do, and what saving it takes."""

    productive: timedelta
    interval: timedelta
    """Between saves; half of it is lost with a node in the mean."""
    stall: timedelta
    """Of training, per save."""
    num_nodes: int
    checkpoint_bytes: int
    num_kept: int
    home: tuple[str, str]
    """Place of the store that is used where a place has none of its own."""
    places_with_store: frozenset[tuple[str, str]]


def assumed_workload(spec: RunSpec) -> Workload | None:
    """Apply C = 6 N D (Kaplan et al. 2020) at an assumed MFU; None where N or D is unknown."""
    num_parameters = parameters_from_name(spec.model.base)
    num_tokens = _total_tokens(spec)
    peak = PEAK_FLOPS.get(spec.nodes.accelerators.partition(":")[0])
    if num_parameters is None or num_tokens is None or peak is None:
        return None
    flops_per_s = peak * spec.nodes.num_gpus * spec.nodes.count * ASSUMED_MFU
    return Workload(
        productive=timedelta(seconds=6 * num_parameters * num_tokens / flops_per_s),
        assumption=f"{num_parameters / 1e9:.3g}e9 parameters (from the name), "
        f"{num_tokens:.3g} tokens, {ASSUMED_MFU:.0%} MFU assumed",
    )


def work_hours(work: Work, weather: Weather, restart: timedelta) -> float:
    """Return the hours of training with what saves hold it up, and what failures of nodes take."""
    per_failure = (restart + work.interval / 2) / timedelta(hours=1)
    stalled = (work.productive / timedelta(hours=1)) * (1 + work.stall / work.interval)
    return stalled * (1 + weather.failures_per_hour * per_failure)


def checkpoint_bytes(spec: RunSpec) -> int | None:
    """Return the size of one checkpoint; None where the model's is unknown."""
    num_parameters = parameters_from_name(spec.model.base)
    return None if num_parameters is None else int(num_parameters * _BYTES_PER_PARAMETER)


def _total_tokens(spec: RunSpec) -> float | None:
    if spec.train.num_steps is not None:
        return float(spec.train.num_steps * spec.train.global_batch * spec.model.max_length)
    if spec.data.num_tokens is None or spec.train.epochs is None:
        return None
    return spec.data.num_tokens * spec.train.epochs
