"""Fill a store with runs as months of use leave them, for tests and pictures of whole lists."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta

from checkpoints.layout import RUN_KEY, event_key, steps_key
from checkpoints.store import open_store
from orchestrator.attempts import EndReason, StopReason
from orchestrator.ledger.facts import (
    AttemptEnded,
    DecisionMade,
    FinalState,
    LaunchEnded,
    NoticeReceived,
    TerminatedBy,
)
from orchestrator.ledger.measurements import Measured
from orchestrator.ledger.record import create_record
from tests.orchestrator.histories import START, Ledger, at, make_offer, make_record, measured_step

BROKEN, HOSTILE = "broken", "hostile"
# Markup, both quotes, a right-to-left override with Hebrew, a word wider than any phone, a control
# character, what a spreadsheet takes for a formula, and an address elsewhere.
HOSTILE_TEXT = (
    "=HYPERLINK(\"http://evil.example/\") <script>alert('1')</script> <img src=x onerror=alert(1)> "
    "{{ 7 * 7 }} & &amp; \u202e\u05e9\u05dc\u05d5\u05dd\u202c \x07 " + "long" * 60
)
_NUM_STEPS, _STEP_S, _STARTUP_S, _STEPS_PER_COMMIT = 600, 60, 300, 10
_REGIONS = ("us-east-1", "us-west-2", "eu-west-1")
_WHY = "spot in us-east-1-a: $84.10 expected to the end, waiting $90.20; 3.0 h to spare"
# Every third run is real; of those that did not get to their end, these say how they ended.
_ENDS = (
    (FinalState.STOPPED, StopReason.BUDGET, "the budget of $300.00 is used up"),
    (FinalState.FAILED, StopReason.TOO_MANY_FAILURES, "training failed 3 times"),
    None,
    (FinalState.STOPPED, StopReason.REQUESTED, "asked to by laptop"),
)


def fill_store(url: str, now: datetime, num_runs: int, seed: int = 3) -> list[str]:
    """Write `num_runs` runs before `now`, the last one hostile, and one that cannot be read.

    Returns the names of those that can, launched last first.
    """
    dice = random.Random(seed)
    launched: dict[str, datetime] = {}
    for number in range(num_runs):
        is_hostile = number == num_runs - 1
        name = HOSTILE if is_hostile else f"run-{number:02d}"
        began_at = launched[name] = now - timedelta(hours=dice.uniform(30, 24 * 20))
        _write_run(url, name, number, began_at, dice, HOSTILE_TEXT if is_hostile else None)
    open_store(f"{url}/{BROKEN}").create(RUN_KEY, b"{not json")
    return sorted(launched, key=lambda name: launched[name], reverse=True)


def _write_run(
    url: str, name: str, number: int, began_at: datetime, dice: random.Random, text: str | None
) -> None:
    ledger, measured = Ledger(), list[Measured]()
    second = (began_at - START).total_seconds()
    give_up_at = second + dice.uniform(2, 30) * 3600
    ledger.launched(second)
    step = attempt = 0
    while step < _NUM_STEPS and second < give_up_at:
        attempt += 1
        until = second + 900 + dice.expovariate(1 / 7000)
        records = _add_attempt(ledger, attempt, step, (second, until), dice, text)
        measured += records
        step = records[-1].record.step if records else step
        second = until + dice.uniform(30, 1200)
    end = _ENDS[number % len(_ENDS)]
    if step == _NUM_STEPS:
        ledger.ended(second)
    elif text is not None:
        ledger.ended(second, FinalState.FAILED, StopReason.TOO_MANY_FAILURES, text)
    elif end is not None:
        ledger.ended(second, *end)
    record = make_record(
        name=name,
        store=url,
        train={"num_steps": _NUM_STEPS},
        limits={"budget_usd": 300, "deadline": "60h"},
        local={"time_scale": 1},
    ).model_copy(
        update={
            "run": name,
            "run_id": name,
            "created_at": began_at,
            "simulated": number % 3 > 0,
            "num_steps": _NUM_STEPS,
            "prices_source": text or "a test",
        }
    )
    store = open_store(f"{url}/{name}")
    create_record(store, record)
    for writer in {entry.writer for entry in ledger.entries}:
        store.create(event_key(writer, 0), _lines(_of(ledger, writer)))
    for one in range(1, attempt + 1):
        lines = [item.record.model_dump_json() for item in measured if item.attempt == one]
        if lines:
            store.create(steps_key(one, 0), _lines(lines))


def _add_attempt(
    ledger: Ledger,
    attempt: int,
    done: int,
    lasts: tuple[float, float],
    dice: random.Random,
    text: str | None,
) -> list[Measured]:
    """Add an attempt that goes on at the last commit; return what it measured."""
    began, until = lasts
    launch, resumed = f"launch-{attempt}", done - done % _STEPS_PER_COMMIT
    num_steps = int((until - began - _STARTUP_S) / _STEP_S)
    last = min(_NUM_STEPS, resumed + num_steps)
    reason = EndReason.SUCCEEDED if last == _NUM_STEPS else EndReason.PREEMPTED
    if text is not None and attempt == 1:
        reason = EndReason.TRAINING_FAILED
    offer = make_offer(region=dice.choice(_REGIONS), usd=f"{dice.uniform(7, 12):.2f}")
    ledger.add(began, DecisionMade(action="launch", why=text or _WHY))
    ledger.launch(launch, began, attempt=attempt, step=resumed, offer=offer)
    writer = f"agent-{attempt}"
    if reason is EndReason.PREEMPTED and dice.random() < 0.6:
        deadline_at = at(until)
        ledger.add(until - 120, NoticeReceived(attempt=attempt, deadline_at=deadline_at), writer)
    for step in range(resumed + _STEPS_PER_COMMIT, last + 1, _STEPS_PER_COMMIT):
        if step % 100 == 0 or step > last - _STEPS_PER_COMMIT:
            ledger.commit(began + _STARTUP_S + (step - resumed) * _STEP_S, attempt, step)
    if reason is not EndReason.PREEMPTED:
        body = AttemptEnded(attempt=attempt, reason=reason, step=last, error=text)
        ledger.add(until - 1, body, writer)
    ended = LaunchEnded(launch=launch, reason=reason, terminated_by=TerminatedBy.CLOUD, detail=text)
    ledger.add(until, ended)
    return [
        measured_step(
            attempt,
            step,
            began + _STARTUP_S + _STEP_S * (step - resumed - 1),
            loss=3.0 * 0.996**step + dice.uniform(0, 0.08),
            seconds=_STEP_S,
        )
        for step in range(resumed + 1, last + 1)
    ]


def _of(ledger: Ledger, writer: str) -> list[str]:
    return [entry.model_dump_json() for entry in ledger.entries if entry.writer == writer]


def _lines(lines: Sequence[str]) -> bytes:
    return "\n".join(lines).encode()
