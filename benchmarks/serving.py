"""What the address costs and brings: tokens per second and time to the first of them.

The same load goes to transformers' own server as it comes, to it with its batches, and to ours with
one worker and with two, in turn, round by round, so that a busy machine is busy for all of them.

Run: python -m benchmarks.serving; needs the serve extra and a converted examples/smollm2.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import httpx

from benchmarks.chat_load import Answer, load
from benchmarks.machine import describe_machine
from orchestrator.serving.engines import Engine, Place, serve_command
from orchestrator.serving.group import Group, starter
from orchestrator.serving.models import ServedModel, find_model
from orchestrator.serving.processes import free_port, start_process, stop_process
from orchestrator.serving.router import Address, Limits

_MODEL = Path(__file__).parents[1] / "examples" / "smollm2"
_START_S, _LOOK_S = 120.0, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A server under load: the median of its rounds, and every request's first token."""

    server: str
    tokens_per_s: float
    lowest_tokens_per_s: float
    highest_tokens_per_s: float
    first_p50_s: float
    first_p95_s: float
    num_answers: int
    num_failures: int


@contextmanager
def theirs(model: ServedModel, folder: Path, *options: str) -> Iterator[str]:
    """Yield the URL of `transformers serve` as its users start it."""
    scratch = folder / f"theirs{len(options)}"
    (scratch / "hub").mkdir(parents=True)
    (scratch / model.name).symlink_to(model.folder)
    port = free_port()
    script = str(Path(sys.executable).with_name("transformers"))
    process = start_process(
        [script, "serve", model.name, "--device", "cpu", "--port", str(port), *options],
        folder=scratch,
        log=scratch / "log",
        environment={"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(scratch / "hub")},
    )
    try:
        _await_health(f"http://localhost:{port}/health")
        yield f"http://localhost:{port}/v1"
    finally:
        stop_process(process, timedelta(seconds=5))


def _await_health(url: str) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        try:
            httpx.get(url).raise_for_status()
        except httpx.HTTPError:
            time.sleep(_LOOK_S)
        else:
            return
    raise TimeoutError(url)


@contextmanager
def ours(model: ServedModel, folder: Path, replicas: int) -> Iterator[str]:
    """Yield the URL of the address before so many workers."""
    scratch = folder / f"ours{replicas}"
    scratch.mkdir()
    group = Group(
        models=[model],
        replicas=replicas,
        start=starter(Engine.TRANSFORMERS),
        address=Address(host="127.0.0.1", port=free_port()),
        limits=Limits(max_concurrent=64, max_queued=64),
        folder=scratch,
        say=lambda line: print(line, file=sys.stderr),
    )
    group.open()
    try:
        yield f"{group.address.url}/v1"
    finally:
        group.close()


def measure(
    servers: dict[str, str], rounds: int, load_once: Callable[[str], list[Answer]]
) -> list[Row]:
    """Load each server in turn, and in another order each round."""
    rates: dict[str, list[float]] = {name: [] for name in servers}
    answers: dict[str, list[Answer]] = {name: [] for name in servers}
    names = list(servers)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            got = load_once(servers[name])
            rates[name].append(sum(one.num_tokens for one in got) / (time.perf_counter() - began))
            answers[name] += got
            print(f"round {turn + 1}: {name}: {rates[name][-1]:.1f} tokens/s", file=sys.stderr)
    return [_row(name, rates[name], answers[name]) for name in names]


def _row(name: str, rates: list[float], answers: list[Answer]) -> Row:
    firsts = sorted(one.first_s for one in answers if one.num_tokens)
    return Row(
        server=name,
        tokens_per_s=statistics.median(rates),
        lowest_tokens_per_s=min(rates),
        highest_tokens_per_s=max(rates),
        first_p50_s=statistics.median(firsts),
        first_p95_s=firsts[int(0.95 * (len(firsts) - 1))],
        num_answers=len(firsts),
        num_failures=len(answers) - len(firsts),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each server."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--model", default=str(_MODEL), help="folder")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    model = find_model(options.model)
    command = serve_command(Engine.TRANSFORMERS, model, 0, Place())
    # As much memory as ours, or it takes most of the machine's.
    batches = command[command.index("--continuous-batching") : command.index("--host")]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        servers = {
            "transformers serve": stack.enter_context(theirs(model, folder)),
            "transformers serve, batches": stack.enter_context(theirs(model, folder, *batches)),
            "orchestrate serve, 1 worker": stack.enter_context(ours(model, folder, 1)),
            "orchestrate serve, 2 workers": stack.enter_context(ours(model, folder, 2)),
        }
        rows = measure(
            servers,
            options.rounds,
            lambda url: load(
                url,
                model.name,
                clients=options.clients,
                seconds=options.seconds,
                max_tokens=options.max_tokens,
            ),
        )
    machine = {**describe_machine("transformers", "torch", "smg"), "load": os.getloadavg()}
    if options.json:
        json.dump({"machine": machine, "rows": [asdict(row) for row in rows]}, sys.stdout, indent=1)
        return 0
    print(
        "server                        tokens/s (lowest-highest)  first p50   p95  answers failed"
    )
    for row in rows:
        print(
            f"{row.server:<29} {row.tokens_per_s:8.1f} "
            f"({row.lowest_tokens_per_s:5.1f}-{row.highest_tokens_per_s:5.1f})     "
            f"{row.first_p50_s:7.2f} s {row.first_p95_s:5.2f} s {row.num_answers:5} "
            f"{row.num_failures:6}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
