"""How many tokens a trainer trains on per second of processor time, beside what others use.

Run: python -m benchmarks.training --conversations FILE [--repeats 5] [--variants NAME ...]
     [--profile] [--json]

All train the same 21-million-parameter Llama from the same weights, on the same samples of at most
2048 tokens, in fp32, with AdamW and one thread, about 2048 tokens to an optimizer step. What counts
as a token is one of a conversation, supervised or not, never padding. Each run is a process of its
own, which trains for two epochs, of which the second is measured. A round runs each variant once,
in an order that rotates, with a seed of its own for the order of the samples; these are a few of
the file's, of all lengths alike.
  ours         this project's loop, with its defaults
  padding      Hugging Face's Trainer as FastChat sets it up: 2 sequences, each padded to 2048
  hf_trainer   the same with padding to the longer of the two
  trl_packed   TRL's SFTTrainer: packing by best fit, loss on assistants' tokens
The peers' fused AdamW and scaled-dot-product attention are their defaults; logging, saving and
TRL's activation checkpointing (on by default) are off. What TRL reports of each step (entropy,
accuracy) cannot be turned off. With a head of 32,000 rows on a width of 256 the loss weighs more
than in a large model, so the ratios are this model's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.trainers.inputs import PREPARED, read_inputs
from benchmarks.trainers.jobs import PACKAGES, TOKENS_PER_STEP, Figures, Inputs, Job, Variant
from benchmarks.trainers.summary import (
    Row,
    check,
    check_record,
    profile_lines,
    row_record,
    summary_lines,
    table,
)

_SCHEMA_VERSION = 1
# Runs that take longer hang.
_LONGEST_S = 1800.0
_LOG_LINES = 15


def main() -> None:
    """Measure, print, and exit 1 if any variant failed."""
    arguments = _parse(sys.argv[1:])
    variants = [variant for variant in arguments.variants if _is_installed(variant)]
    rows = {variant: Row(variant=variant) for variant in variants}
    with tempfile.TemporaryDirectory() as folder:
        inputs = _prepare(arguments.conversations, arguments.tokens, Path(folder) / "inputs")
        _say(inputs.model_dump_json())
        for number in range(1, arguments.repeats + 1):
            first = (number - 1) % max(1, len(variants))
            for variant in variants[first:] + variants[:first]:
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    job = Job(
                        variant=variant,
                        inputs_dir=Path(folder) / "inputs" / PREPARED,
                        scratch=Path(scratch),
                        inputs=inputs,
                        seed=number,
                        is_profiled=arguments.profile and variant is Variant.OURS,
                    )
                    _run(job, number, rows[variant])
    checks = check(rows.values())
    if arguments.json:
        document = {
            "schema_version": _SCHEMA_VERSION,
            "machine": describe_machine("torch", "transformers", "accelerate", *_peers(variants)),
            "inputs": inputs.model_dump(),
            "tokens_per_step": TOKENS_PER_STEP,
            "rows": [row_record(row) for row in rows.values()],
            "checks": [check_record(one) for one in checks],
        }
        print(json.dumps(document, indent=2))
    else:
        for line in (*table(rows.values()), *summary_lines(checks), *profile_lines(rows.values())):
            print(line)
    has_failed = any(row.errors for row in rows.values())
    sys.exit(1 if has_failed or len(variants) < len(arguments.variants) else 0)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--conversations", type=Path, required=True, metavar="FILE", help="in ShareGPT's format"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=6_000, help="of an epoch, about (6000)")
    names = [variant.value for variant in Variant]
    parser.add_argument(
        "--variants", nargs="+", choices=names, metavar="NAME", help=" ".join(names)
    )
    parser.add_argument("--profile", action="store_true", help="say where our loop's time goes")
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    parsed = parser.parse_args(arguments)
    wanted = parsed.variants or (["ours"] if parsed.profile else names)
    parsed.variants = [variant for variant in Variant if variant.value in wanted]
    return parsed


def _peers(variants: Sequence[Variant]) -> list[str]:
    return [package for variant in variants for package in PACKAGES.get(variant, ())]


def _is_installed(variant: Variant) -> bool:
    missing = [one for one in PACKAGES.get(variant, ()) if importlib.util.find_spec(one) is None]
    if missing:
        command = "pip install -c constraints.txt -e '.[bench]'"
        _say(f"{variant.value}: needs {', '.join(missing)}; run: {command}")
    return not missing


def _prepare(conversations: Path, num_tokens: int, folder: Path) -> Inputs:
    # A process of its own, so that this one stays small.
    arguments = [str(conversations), str(num_tokens), str(folder)]
    subprocess.run([sys.executable, "-m", "benchmarks.trainers.inputs", *arguments], check=True)
    return read_inputs(folder)


def _run(job: Job, number: int, row: Row) -> None:
    """Note one run's figures, or what went wrong, and say it at once."""
    what: dict[str, object] = {"round": number, "variant": row.variant.value}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.trainers.child", job.model_dump_json()],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=_LONGEST_S,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        row.errors.append(f"round {number}: {type(error).__name__}")
        _say(json.dumps({**what, "error": row.errors[-1]}))
        _say("\n".join(str(error.stderr or "").splitlines()[-_LOG_LINES:]))
        return
    figures = Figures.model_validate_json(done.stdout.splitlines()[-1])
    row.rounds[number] = figures
    _say(json.dumps({**what, **figures.model_dump(exclude={"outside", "shares"})}))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
