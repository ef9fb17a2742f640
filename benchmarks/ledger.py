"""What reports cost as a run grows: `python -m benchmarks.ledger [--most 1000000]`.

One run in a folder, with so many events: per attempt of 1,000 steps a launch, a claim, a notice, an
end, a decision and a commit each 10 steps, and each step's measurements; nine events in ten are
measurements. For each size the time to read them, to fold the facts, to account for every second
(goodput), for the documents of `status` and `cost`, and for the page; and the memory it all takes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from benchmarks.machine import describe_machine
from checkpoints.layout import event_key, steps_key
from checkpoints.store import ObjectStore, open_store
from orchestrator.attempts import EndReason
from orchestrator.dashboard.page import render_page
from orchestrator.ledger.facts import (
    AttemptStarted,
    CheckpointCommitted,
    DecisionMade,
    Entry,
    Fact,
    LaunchEnded,
    LaunchReady,
    LaunchStarted,
    NoticeReceived,
    QuotedOffer,
    RunLaunched,
    TerminatedBy,
)
from orchestrator.ledger.record import RunRecord, create_record
from orchestrator.offers import Market, Offer
from orchestrator.report import cost_document, status_document
from orchestrator.spec import parse_spec
from orchestrator.view import RunView, RunViewer
from train.spool import Step

_BEGAN_AT = datetime(2026, 1, 1, tzinfo=timezone.utc)
_SECOND = timedelta(seconds=1)
_SIZES = (1_000, 10_000, 100_000, 1_000_000)
_STEPS_PER_ATTEMPT, _STEPS_PER_COMMIT, _GAP = 1_000, 10, 120
_FACTS_PER_OBJECT, _STEPS_PER_OBJECT = 200, 1_000
# Facts of an attempt besides its commits.
_FACTS = 6
_EVENTS_PER_ATTEMPT = _STEPS_PER_ATTEMPT + _STEPS_PER_ATTEMPT // _STEPS_PER_COMMIT + _FACTS
_Result = TypeVar("_Result")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each size; every size in a process of its own, for its memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("--most", type=int, default=_SIZES[-1], help="events")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return 0
    rows = []
    for size in (one for one in _SIZES if one <= options.most):
        command = [sys.executable, "-m", "benchmarks.ledger", "--one", str(size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        rows.append(json.loads(done.stdout))
        if not options.json:
            _print(rows[-1])
    if options.json:
        json.dump({"machine": describe_machine(), "rows": rows}, sys.stdout, indent=1)
    return 0


def measure(num_events: int) -> dict[str, float]:
    """Return the seconds that each report takes, and the most memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder).as_uri() + "/run")
        as_of = write_run(store, num_events)
        viewer = RunViewer(store)
        view, read_s = _timed(lambda: viewer.look(as_of))
        _, again_s = _timed(lambda: viewer.look(as_of))
    seconds: dict[str, float] = {"read": read_s, "look_again": again_s}
    reports: dict[str, Callable[[RunView], object]] = {
        "goodput": lambda view: view.goodput,
        "status": status_document,
        "cost": cost_document,
        "page": render_page,
    }
    for name, report in reports.items():
        _, seconds[name] = _timed(lambda report=report: report(view))  # type: ignore[misc]
    num_read = view.state.num_entries + len(view.measured)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"events": num_read, **seconds, "memory_mb": memory}


def write_run(store: ObjectStore, num_events: int) -> datetime:
    """Write a run that is under way, and return the instant at which it has so many events."""
    num_attempts = max(1, round(num_events / _EVENTS_PER_ATTEMPT))
    share = min(1.0, num_events / _EVENTS_PER_ATTEMPT)
    num_steps = round(share * _STEPS_PER_ATTEMPT)
    create_record(store, _record(num_attempts * num_steps))
    facts: list[tuple[datetime, Fact]] = [(_BEGAN_AT, RunLaunched(host="laptop"))]
    now = _BEGAN_AT
    for number in range(1, num_attempts + 1):
        first = (number - 1) * num_steps + 1
        ready = now + 60 * _SECOND
        records = [_step(first + one, ready + one * _SECOND) for one in range(num_steps)]
        for index in range(0, num_steps, _STEPS_PER_OBJECT):
            lines = [one.model_dump_json().encode() for one in records[index:][:_STEPS_PER_OBJECT]]
            store.create(steps_key(number, index // _STEPS_PER_OBJECT), b"\n".join(lines))
        facts += _attempt(number, first, num_steps, now, is_last=number == num_attempts)
        now = ready + (num_steps + _GAP) * _SECOND
    entries = [
        Entry(writer="supervisor-1", number=number, at=at, body=body)
        for number, (at, body) in enumerate(facts)
    ]
    for index in range(0, len(entries), _FACTS_PER_OBJECT):
        lines = [one.model_dump_json().encode() for one in entries[index:][:_FACTS_PER_OBJECT]]
        store.create(event_key("supervisor-1", index // _FACTS_PER_OBJECT), b"\n".join(lines))
    return now


def _attempt(
    number: int, first: int, num_steps: int, began: datetime, *, is_last: bool
) -> Iterator[tuple[datetime, Fact]]:
    launch, ready = f"launch-{number}", began + 60 * _SECOND
    yield began, DecisionMade(action="launch", why="the cheapest spot on offer")
    yield began, LaunchStarted(launch=launch, offer=QuotedOffer.quote(_OFFER), num_nodes=1)
    yield ready, LaunchReady(launch=launch)
    yield (
        ready,
        AttemptStarted(
            attempt=number,
            launch=launch,
            world_size=8,
            step=first - 1,
            manifest=None,
            host="node",
        ),
    )
    for step in range(first + _STEPS_PER_COMMIT - 1, first + num_steps, _STEPS_PER_COMMIT):
        yield (
            ready + (step - first + 1) * _SECOND,
            CheckpointCommitted(
                attempt=number,
                step=step,
                manifest=f"checkpoints/step-{step:08d}.a{number:03d}/manifest.json",
                num_bytes=10**9,
                num_objects=8,
            ),
        )
    if not is_last:
        over = ready + num_steps * _SECOND
        yield over, NoticeReceived(attempt=number, deadline_at=over + _SECOND)
        yield (
            over + _SECOND,
            LaunchEnded(
                launch=launch, reason=EndReason.PREEMPTED, terminated_by=TerminatedBy.CLOUD
            ),
        )


def _step(step: int, began: datetime) -> Step:
    return Step(
        at=began + _SECOND,
        step=step,
        started_at=began,
        seconds=1.0,
        loss=2.0,
        grad_norm=1.0,
        num_tokens=4096,
        num_trained_tokens=2048,
        learning_rate=2e-5,
    )


_OFFER = Offer(
    cloud="aws",
    region="us-east-1",
    zone="us-east-1a",
    instance_type="p4de.24xlarge",
    accelerators="A100-80GB:8",
    market=Market.SPOT,
    usd_per_hour=Decimal(10),
    on_demand_usd_per_hour=Decimal(30),
)


def _record(num_steps: int) -> RunRecord:
    document = {
        "name": "run",
        "store": "memory://run",
        "infra": ["aws"],
        "nodes": {"count": 1, "accelerators": "A100-80GB:8"},
        "model": {"base": "owner/model"},
        "data": {"train": "s3://bucket/data.json"},
        "train": {"num_steps": num_steps},
        "limits": {"budget_usd": 10_000},
    }
    return RunRecord(
        run="run",
        run_id="run-1",
        created_at=_BEGAN_AT,
        code_version="0",
        spec=parse_spec(document),
        num_steps=num_steps,
        offers=(QuotedOffer.quote(_OFFER),),
        prices_source="a benchmark",
        home_place=("aws", "us-east-1"),
        inputs=(),
        simulated=False,
        threads_per_rank=1,
    )


def _timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def _print(row: dict[str, float]) -> None:
    reports = {name: one for name, one in row.items() if name not in ("events", "memory_mb")}
    per_event = sum(reports.values()) / row["events"] * 1e6
    parts = "  ".join(f"{name} {seconds:7.3f} s" for name, seconds in reports.items())
    print(
        f"{row['events']:>9,.0f} events  {parts}  {per_event:5.1f} us/event, "
        f"{row['memory_mb']:,.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
