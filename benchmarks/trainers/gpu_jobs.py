"""What the ranks of benchmarks.gpu are told, and what rank 0 says."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from benchmarks.trainers.jobs import Variant

# Kernels are chosen, and memory is claimed, within the first ones.
GPU_WARMUP_STEPS = 5
GPU_VARIANTS = (Variant.OURS, Variant.HF_TRAINER)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GpuJob(_Record):
    """One run of a variant; the batch is one micro-batch on each GPU."""

    variant: Variant
    inputs_dir: Path
    scratch: Path
    max_length: int
    micro_batch: int
    num_steps: int
    num_gpus: int
    is_checkpointing: bool
    """Whether layers drop their activations and compute them again."""


class GpuFigures(_Record):
    """What was measured after the warm-up; `mfu` is None for an unknown GPU."""

    gpu: str
    tokens_per_s_per_gpu: float
    mfu: float | None
    peak_gpu_gb: float
