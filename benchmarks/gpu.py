"""Tokens per second and MFU of our trainer on the GPUs of this machine, beside Hugging Face's.

Run: python -m benchmarks.gpu --model FOLDER --conversations FILE [--gpus N] [--json]

Starts torchrun by itself, once for each variant, with one rank per GPU: all GPUs of the machine, or
--gpus of them. `ours` is this project's loop, `hf_trainer` Hugging Face's Trainer under FSDP2 with
padding to the longest; both in bf16 with activation checkpointing, from the model folder's weights,
or random ones where it has none. Tokens are those of conversations, never padding. Exits 3 where
there is no GPU. Not yet run on one: no figures of it are claimed anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from benchmarks.trainers.gpu_jobs import GPU_VARIANTS, GPU_WARMUP_STEPS, GpuFigures, GpuJob
from benchmarks.trainers.jobs import Variant
from benchmarks.trainers.ours import claim

_SCHEMA_VERSION = 1
_NO_GPU_STATUS = 3


def main() -> None:
    """Measure and print; exit 3 without a GPU, 1 if a variant failed."""
    arguments = _parse(sys.argv[1:])
    if torch.cuda.device_count() == 0:
        print("There is no GPU here; benchmarks.training measures on a processor.", file=sys.stderr)
        sys.exit(_NO_GPU_STATUS)
    num_gpus = arguments.gpus or torch.cuda.device_count()
    found: dict[Variant, GpuFigures | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs_dir = _prepare(arguments, Path(folder) / "inputs")
        for variant in GPU_VARIANTS:
            scratch = Path(folder) / variant.value
            scratch.mkdir()
            job = GpuJob(
                variant=variant,
                inputs_dir=inputs_dir,
                scratch=scratch,
                max_length=arguments.max_length,
                micro_batch=arguments.micro_batch,
                num_steps=GPU_WARMUP_STEPS + arguments.steps,
                num_gpus=num_gpus,
                is_checkpointing=arguments.activation_checkpointing,
            )
            found[variant] = _run(job)
    if arguments.json:
        print(json.dumps(_document(found, num_gpus), indent=2))
    else:
        for variant, figures in found.items():
            print(_line(variant, figures))
    sys.exit(0 if all(found.values()) else 1)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json")
    parser.add_argument(
        "--conversations", type=Path, required=True, metavar="FILE", help="in ShareGPT's format"
    )
    parser.add_argument("--gpus", type=int, help="all of this machine's by default")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens per sequence")
    parser.add_argument("--micro-batch", type=int, default=4, help="sequences per GPU and step")
    parser.add_argument("--steps", type=int, default=30, help="to measure, after the warm-up")
    parser.add_argument(
        "--activation-checkpointing", action=argparse.BooleanOptionalAction, default=True
    )
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    return parser.parse_args(arguments)


def _prepare(arguments: argparse.Namespace, output: Path) -> Path:
    options: dict[str, object] = {
        "--model": arguments.model,
        "--train": arguments.conversations,
        "--max-length": arguments.max_length,
        "--eval-fraction": 0,
        "--seed": 0,
        "--output": output,
    }
    words = [str(word) for pair in options.items() for word in pair]
    done = subprocess.run(
        [sys.executable, "-m", "train.data.prepare", *words], stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        sys.exit(done.returncode)
    return output


def _run(job: GpuJob) -> GpuFigures | None:
    """Return what rank 0 says, None where the run failed; torchrun has said why."""
    if job.variant is Variant.OURS:
        claim(job.scratch, job.num_gpus)
    print(f"{job.variant.value}: {job.num_steps} steps on {job.num_gpus} GPUs", file=sys.stderr)
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={job.num_gpus}"]
    rank = ["-m", "benchmarks.trainers.gpu_rank", job.model_dump_json()]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *rank],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        return None
    return GpuFigures.model_validate_json(lines[-1])


def _document(found: dict[Variant, GpuFigures | None], num_gpus: int) -> dict[str, object]:
    return {
        "schema_version": _SCHEMA_VERSION,
        "machine": {
            **describe_machine("torch", "transformers", "accelerate"),
            "num_gpus": num_gpus,
        },
        "rows": [
            {"variant": variant.value, **figures.model_dump()}
            for variant, figures in found.items()
            if figures is not None
        ],
        "failed": [variant.value for variant, figures in found.items() if figures is None],
    }


def _line(variant: Variant, figures: GpuFigures | None) -> str:
    if figures is None:
        return f"{variant.value:<12}failed"
    mfu = "unknown" if figures.mfu is None else f"{figures.mfu:.1%}"
    return (
        f"{variant.value:<12}{figures.tokens_per_s_per_gpu:>10,.0f} tok/s/GPU  mfu {mfu}  "
        f"{figures.peak_gpu_gb:.1f} GB at most on {figures.gpu}"
    )


if __name__ == "__main__":
    main()
