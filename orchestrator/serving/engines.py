"""What runs a model, where, and with which command: transformers' own server, or vLLM."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never

from orchestrator.errors import MissingDependency
from orchestrator.serving.models import ServedModel

# Without a bound the server takes most of the machine's memory for its cache (9.4 GB for a model of
# 0.5 GB). In blocks of 256 tokens: 16,384 tokens for all requests together.
_CPU_BLOCKS, _CPU_BATCH_TOKENS = 64, 1024
_GPU_SHARE = 0.85


class Engine(str, Enum):
    """What runs a model."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a worker may use: one GPU, shared by so many workers, or the processors."""

    gpu: int | None = None
    num_sharing: int = 1


def choose_engine(wanted: Engine | None, *, num_gpus: int) -> Engine:
    """Return the engine: vLLM where it is installed and has a GPU, unless one is wanted.

    Raises:
        MissingDependency: vLLM is wanted and not installed.
    """
    has_vllm = shutil.which("vllm") is not None
    if wanted is Engine.VLLM and not has_vllm:
        raise MissingDependency(
            "vLLM is not installed here.", "pip install vllm; or --engine transformers"
        )
    if wanted is not None:
        return wanted
    return Engine.VLLM if has_vllm and num_gpus else Engine.TRANSFORMERS


def num_gpus() -> int:
    """Return how many NVIDIA GPUs this machine shows."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def share_out(num_workers: int, num_gpus: int) -> list[Place]:
    """Return where each worker runs: a GPU each in turn, else the processors."""
    if not num_gpus:
        return [Place(num_sharing=num_workers)] * num_workers
    sharing = -(-num_workers // num_gpus)
    return [Place(gpu=one % num_gpus, num_sharing=sharing) for one in range(num_workers)]


def place_variables(place: Place) -> dict[str, str]:
    """Return the environment that keeps a worker to its place."""
    if place.gpu is not None:
        return {"CUDA_VISIBLE_DEVICES": str(place.gpu)}
    # Each would start a thread for every core.
    num_threads = max(1, len(os.sched_getaffinity(0)) // place.num_sharing)
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(num_threads))}


def serve_command(engine: Engine, model: ServedModel, port: int, place: Place) -> list[str]:
    """Return what serves a model at this port, started where the model's name is its folder."""
    match engine:
        case Engine.TRANSFORMERS:
            return _transformers(model.name, port, place)
        case Engine.VLLM:
            return _vllm(model, port, place)
        case _:
            assert_never(engine)


def _transformers(name: str, port: int, place: Place) -> list[str]:
    if place.gpu is None:
        memory = [
            *("--cb-num-blocks", str(_CPU_BLOCKS)),
            *("--cb-max-batch-tokens", str(_CPU_BATCH_TOKENS)),
        ]
    else:
        memory = ["--cb-max-memory-percent", f"{_GPU_SHARE / place.num_sharing:.2f}"]
    return [
        *(sys.executable, "-m", "orchestrator.serving.transformers_server", "serve", name),
        *("--device", "cpu" if place.gpu is None else "cuda:0", "--continuous-batching", *memory),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


def _vllm(model: ServedModel, port: int, place: Place) -> list[str]:
    return [
        *("vllm", "serve", str(model.folder), "--served-model-name", model.name),
        *("--middleware", "orchestrator.serving.held_head.HeldHead"),
        *("--gpu-memory-utilization", f"{_GPU_SHARE / place.num_sharing:.2f}"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
