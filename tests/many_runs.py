"""Fill a store with runs as months of use leave them, for tests and pictures of whole lists."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta

from pydantic import BaseModel

from checkpoints.layout import RUN_KEY, event_key, log_key, steps_key
from checkpoints.store import open_store
from orchestrator.attempts import EndReason, StopReason
from orchestrator.ledger.facts import (
    AttemptEnded,
    DecisionMade,
    FinalState,
    LaunchEnded,
    NoticeReceived,
    terminated_by,
)
from orchestrator.ledger.heartbeat import Heartbeat, beat
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
    """Write runs that began before `now` and are not under way; return names, launched last first.

    Some ended in one way or another, on some nobody reports any more.
    """
    dice = random.Random(seed)
    launched: dict[str, datetime] = {}
    for number in range(num_runs):
        name = f"run-{number:02d}"
        launched[name] = now - timedelta(hours=dice.uniform(30, 24 * 20))
        run = _Run(launched[name], dice)
        give_up_after = timedelta(hours=dice.uniform(2, 30))
        while run.step < _NUM_STEPS and run.now < launched[name] + give_up_after:
            run.add_attempt(timedelta(seconds=900 + dice.expovariate(1 / 7000)))
        run.end(_ENDS[number % len(_ENDS)])
        run.write(url, name, is_simulated=number % 3 > 0)
    return sorted(launched, key=lambda name: launched[name], reverse=True)


def add_odd_runs(url: str, now: datetime) -> None:
    """Add a run whose every text is hostile, launched a day before, and one that is unreadable."""
    run = _Run(now - timedelta(days=1), random.Random(1), HOSTILE_TEXT)
    for hours in (3, 1, 2):
        run.add_attempt(timedelta(hours=hours))
    run.end((FinalState.FAILED, StopReason.TOO_MANY_FAILURES, HOSTILE_TEXT))
    run.write(url, HOSTILE, is_simulated=True)
    log = f"{HOSTILE_TEXT}\n".encode() * 40 + b"\xff\x00"
    open_store(f"{url}/{HOSTILE}").create(log_key(1, "00000000.log"), log)
    open_store(f"{url}/{BROKEN}").create(RUN_KEY, b"{not json")


def add_run_under_way(url: str, name: str, now: datetime) -> None:
    """Add a real run that trains at `now`, its third attempt after two preemptions."""
    lasts = [timedelta(hours=hours) for hours in (2.2, 1.4, 3.1)]
    run = _Run(now - sum(lasts, timedelta(minutes=20)), random.Random(5))
    for one in lasts[:-1]:
        run.add_attempt(one)
    run.add_attempt(now - run.now, goes_on=True)
    run.write(url, name, is_simulated=False)
    report(url, name, now)


def report(url: str, name: str, now: datetime) -> None:
    """Say that somebody still looks after a run."""
    beat(
        open_store(f"{url}/{name}"), Heartbeat(writer="supervisor-1", at=now, host="laptop", pid=1)
    )


class _Run:
    """A run as it grows: what its writers reported up to `now`."""

    def __init__(self, began_at: datetime, dice: random.Random, text: str | None = None) -> None:
        self.now, self.step = began_at, 0
        self._began_at, self._dice, self._text = began_at, dice, text
        self._ledger, self._measured = Ledger(), list[list[Measured]]()
        # Steps that are trained again have the loss that they had.
        self._losses = [3 * 0.996**step + dice.uniform(0, 0.08) for step in range(_NUM_STEPS + 1)]
        self._ledger.launched(self._second)

    @property
    def _second(self) -> float:
        return (self.now - START).total_seconds()

    def add_attempt(self, lasts: timedelta, *, goes_on: bool = False) -> None:
        """Go on at the last commit, until the end or a preemption."""
        attempt, began = len(self._measured) + 1, self._second
        until = began + lasts.total_seconds()
        resumed = self.step - self.step % _STEPS_PER_COMMIT
        steps_began = began + _STARTUP_S
        last = min(_NUM_STEPS, resumed + int((until - steps_began) / _STEP_S))
        region, usd = self._dice.choice(_REGIONS), f"{self._dice.uniform(7, 12):.2f}"
        self._ledger.add(began, DecisionMade(action="launch", why=self._text or _WHY))
        offer = make_offer(region=region, usd=usd)
        self._ledger.launch(f"launch-{attempt}", began, attempt=attempt, step=resumed, offer=offer)
        for step in range(resumed + _STEPS_PER_COMMIT, last + 1, _STEPS_PER_COMMIT):
            if step % 100 == 0 or step > last - _STEPS_PER_COMMIT:
                self._ledger.commit(steps_began + (step - resumed) * _STEP_S, attempt, step)
        self._measured.append(
            [
                measured_step(
                    attempt,
                    step,
                    steps_began + _STEP_S * (step - resumed - 1),
                    loss=self._losses[step],
                    seconds=_STEP_S,
                )
                for step in range(resumed + 1, last + 1)
            ]
        )
        self.step = max(self.step, last)
        if not goes_on:
            self._end_attempt(attempt, last, until)
        self.now += lasts + timedelta(seconds=self._dice.uniform(30, 1200))

    def _end_attempt(self, attempt: int, step: int, until: float) -> None:
        reason = EndReason.SUCCEEDED if step == _NUM_STEPS else EndReason.PREEMPTED
        if self._text is not None:
            reason = EndReason.TRAINING_FAILED
        writer = f"agent-{attempt}"
        if reason is not EndReason.PREEMPTED:
            body = AttemptEnded(attempt=attempt, reason=reason, step=step, error=self._text)
            self._ledger.add(until - 1, body, writer)
        elif self._dice.random() < 0.6:
            notice = NoticeReceived(attempt=attempt, deadline_at=at(until))
            self._ledger.add(until - 120, notice, writer)
        ended = LaunchEnded(
            launch=f"launch-{attempt}",
            reason=reason,
            terminated_by=terminated_by(reason),
            detail=self._text,
        )
        self._ledger.add(until, ended)

    def end(self, otherwise: tuple[FinalState, StopReason, str] | None) -> None:
        """End it: well if all steps are done, else as told."""
        if self.step == _NUM_STEPS:
            self._ledger.ended(self._second)
        elif otherwise is not None:
            self._ledger.ended(self._second, *otherwise)

    def write(self, url: str, name: str, *, is_simulated: bool) -> None:
        """Write the run folder."""
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
                "created_at": self._began_at,
                "simulated": is_simulated,
                "num_steps": _NUM_STEPS,
                "prices_source": self._text or "a test",
            }
        )
        store = open_store(f"{url}/{name}")
        create_record(store, record)
        by_writer: dict[str, list[BaseModel]] = {}
        for entry in self._ledger.entries:
            by_writer.setdefault(entry.writer, []).append(entry)
        for writer, entries in by_writer.items():
            store.create(event_key(writer, 0), _lines(entries))
        for attempt, measured in enumerate(self._measured, 1):
            if measured:
                store.create(steps_key(attempt, 0), _lines([one.record for one in measured]))


def _lines(records: Sequence[BaseModel]) -> bytes:
    return "\n".join(one.model_dump_json() for one in records).encode()
