"""W&B: one curve for all attempts by the real client, and a service that fails in every way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from checkpoints.layout import RUN_KEY, event_key, steps_key
from checkpoints.store import open_store
from orchestrator.agent.curve import EVAL_STEP, Curve
from orchestrator.agent.tracking import Mode, Tracker, TrackingConfig
from orchestrator.attempts import EndReason
from orchestrator.ledger.facts import AttemptEnded
from orchestrator.ledger.measurements import Measured
from tests.end_to_end.wandb_runs import scan
from tests.fault_record import record_fault
from tests.orchestrator.histories import Ledger, at, make_record, make_step, measured_step
from tests.wandb_service import serving
from train.spool import Evaluated, Spool, spool_path

NUM_STEPS = 10
# (attempt, first step, last step, start, end of the launch): each replays what came after a commit.
ATTEMPTS = [(1, 1, 6, 0, 40), (2, 5, 8, 100, 140), (3, 7, 10, 200, None)]


def start_of(attempt: int, step: int) -> float:
    _, first, _, start, _ = ATTEMPTS[attempt - 1]
    return start + 10 + step - first


def steps_of_attempt(attempt: int, **more: float):
    _, first, last, _, _ = ATTEMPTS[attempt - 1]
    return [
        measured_step(attempt, step, start_of(attempt, step), loss=1 / step, **more)
        for step in range(first, last + 1)
    ]


def make_ledger(num_attempts: int = 3) -> Ledger:
    ledger = Ledger()
    ledger.launched()
    for attempt, first, _, start, end in ATTEMPTS[:num_attempts]:
        until = end if attempt < num_attempts else None
        ledger.launch(f"launch-{attempt}", start, until=until, attempt=attempt, step=first - 1)
    return ledger


class Folder:
    """A run folder and a node's scratch, as three attempts find and leave them."""

    def __init__(self, tmp_path):
        self.path = tmp_path
        self.store = open_store(f"file://{tmp_path}/run")
        record = make_record(tracking={"wandb": {"project": "tests"}})
        self.store.create(RUN_KEY, record.model_dump_json().encode())

    def past(self, num_attempts: int) -> None:
        """Leave the facts of so many attempts, and the records of all but the last."""
        lines = (one.model_dump_json().encode() for one in make_ledger(num_attempts).entries)
        self.store.put(event_key("everybody", 0), b"\n".join(lines))
        for attempt in range(1, num_attempts):
            steps = (one.record.model_dump_json().encode() for one in steps_of_attempt(attempt))
            self.store.put(steps_key(attempt, 0), b"\n".join(steps))

    def track(self, attempt: int, mode: Mode | None = None) -> Tracker:
        """Start the tracker of an attempt, whose trainer has taken all its steps."""
        scratch = self.path / f"node-{attempt}"
        spool = Spool(spool_path(scratch))
        for one in steps_of_attempt(attempt):
            spool.append(one.record)
        config = TrackingConfig(
            store=self.store.url,
            attempt=attempt,
            spool_dir=scratch,
            directory=scratch / "wandb",
            mode=mode,
        )
        return Tracker(config, scratch / "train.log")


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_an_offline_file_holds_one_curve_over_all_attempts(folder):
    folder.past(3)
    recorded = scan(folder.track(3, Mode.OFFLINE).finish())
    assert recorded.run_id == "demo-1"
    rows = {row["train/step"]: row for row in recorded.rows}
    assert [row["train/step"] for row in recorded.rows] == list(range(1, NUM_STEPS + 1))
    assert [row["train/loss"] for row in rows.values()] == [1 / step for step in rows]
    assert [row["attempt/number"] for row in rows.values()] == [1] * 6 + [2] * 2 + [3] * 2
    assert [row["preemptions/count"] for row in rows.values()] == [0] * 6 + [1] * 2 + [2] * 2
    replays = {step: row["replay/steps"] for step, row in rows.items() if "replay/steps" in row}
    assert replays == {7: 2, 9: 4}
    assert rows[9]["replay/max_abs_diff"] == recorded.summary["replay/max_abs_diff"] == 0
    # Step 6 ended at 16 s, step 7 began at 112 s; 24 s of that on a node for $10 an hour, x 60.
    assert rows[7]["recovery/seconds"] == pytest.approx(96)
    assert rows[7]["recovery/usd"] == pytest.approx((24 + 11) / 3600 * 10 * 60, abs=1e-3)
    looks = [row for row in rows.values() if "cost/usd_total" in row]
    totals = [row["cost/usd_total"] for row in looks]
    assert totals == sorted(totals)
    assert len(looks) >= 3
    parts = {name for name in looks[0] if name.startswith("cost/usd_")}
    assert {"cost/usd_compute", "cost/usd_storage", "cost/usd_per_hour"} <= parts
    by_bucket = [value for name, value in looks[-1].items() if "usd_compute_" in name]
    assert sum(by_bucket) == pytest.approx(looks[-1]["cost/usd_compute"], abs=1e-9)
    # As W&B keeps them for a table of runs.
    for name in ("cost/usd_total", "cost/savings_fraction", "cost/usd_per_million_tokens"):
        assert recorded.summary[name] == looks[-1][name]
    assert recorded.summary["goodput/billed"] >= recorded.summary["goodput/goodput"]
    assert 0 < looks[0]["goodput/goodput"] <= 1
    assert looks[-1]["goodput/seconds_lost_work"] > 0
    told = [title for title in recorded.alerts if "preemption" in title]
    assert told == [f"Attempt {number} goes on after a preemption" for number in (2, 3)]


def test_a_disk_without_room_for_w_and_b_ends_nothing(folder):
    scratch = folder.path / "node-1"
    scratch.mkdir()
    (scratch / "wandb").touch()
    (scratch / "wandb-again").touch()
    assert folder.track(1, Mode.OFFLINE).finish() is None


def curve_of(measured, ledger=None, record=None, **more):
    entries = (ledger or make_ledger()).entries
    curve = Curve(record=record or make_record(), read_ledger=lambda: entries, **more)
    return curve, [row for one in measured if (row := curve.add(one)) is not None]


ALL = [one for attempt in (1, 2, 3) for one in steps_of_attempt(attempt)]


def test_what_was_sent_is_neither_drawn_nor_told_again():
    _, everything = curve_of(ALL)
    _, rest = curve_of(ALL, next_step=8, usd_told=everything[6].values["cost/usd_total"])
    assert [row.step for row in rest] == [8, 9, 10]
    told = [alert.title for row in rest for alert in row.alerts]
    assert told == [alert.title for row in everything[7:] for alert in row.alerts]
    assert rest[1].values == everything[8].values


def evaluated(attempt, step):
    when = at(start_of(attempt, max(step, ATTEMPTS[attempt - 1][1])) + 0.5)
    record = Evaluated(at=when, step=step, loss=step + 0.5, num_trained_tokens=9)
    return Measured(attempt=attempt, record=record)


def eval_rows(rows):
    """Return (row, evaluated step) of what is drawn of evaluations."""
    return [(row.step, row.values[EVAL_STEP]) for row in rows if EVAL_STEP in row.values]


def test_evaluations_are_drawn_once_and_those_made_up_for_with_the_next_row():
    # The first is made before any step, the second again by the attempt that is resumed there, the
    # third by that one alone: a notice had cut it off.
    first, second, third = (steps_of_attempt(attempt) for attempt in (1, 2, 3))
    one = [evaluated(1, 0), *first[:4], evaluated(1, 4), *first[4:]]
    two = [evaluated(2, 4), *second]
    three = [evaluated(3, 8), *third[2:], evaluated(3, 10)]
    _, rows = curve_of([*one, *two, *three])
    assert eval_rows(rows) == [(1, 0), (4, 4), (8, 8), (10, 10)]
    assert rows[0].values["eval/loss"] == 0.5
    # As the third attempt finds it: steps 1 to 8 are there, with the evaluations of 0 and 4.
    _, rows = curve_of([*one, *two, *three], next_step=9)
    assert eval_rows(rows) == [(9, 8), (10, 10)]
    # As the second one finds it, whose first evaluation the attempt before has drawn.
    _, rows = curve_of([*one[:6], evaluated(2, 4), *second[:2], *second[2:]], next_step=5)
    assert eval_rows(rows) == []


def test_the_last_evaluation_made_up_for_is_drawn_at_the_end():
    made_up_for = replace(evaluated(3, 10), attempt=4)
    curve, rows = curve_of([*ALL, made_up_for], next_step=11)
    assert eval_rows(rows) == []
    row = curve.close(4, at(300))
    assert (row.step, row.values[EVAL_STEP], row.values["eval/loss"]) == (11, 10, 10.5)


def test_a_replayed_step_that_differs_is_told_once():
    wrong = make_step(5, start_of(2, 5), loss=0.25)
    measured = [one for one in ALL if (one.attempt, one.record.step) != (2, 5)]
    measured.insert(6, measured_step(2, 5, start_of(2, 5), loss=wrong.loss))
    _, rows = curve_of(measured)
    told = [(row.step, one) for row in rows for one in row.alerts if "differ" in one.title]
    assert [(step, alert.title) for step, alert in told] == [
        (7, "Attempt 2: replayed steps differ")
    ]
    assert "step 5" in told[0][1].text
    assert rows[6].values["replay/max_abs_diff"] == pytest.approx(0.05)


def test_differences_are_no_alarm_where_training_is_not_deterministic():
    measured = [*steps_of_attempt(1), measured_step(2, 5, 110, loss=9), *steps_of_attempt(2)[1:]]
    loose = make_record(train={"num_steps": 10, "deterministic": False})
    _, rows = curve_of(measured, record=loose)
    assert rows[6].values["replay/max_abs_diff"] > 1
    assert not [one for row in rows for one in row.alerts if "differ" in one.title]


@pytest.mark.parametrize(("budget", "told"), [(10_000, []), (12, ["50%", "80%", "100%"])])
def test_shares_of_the_budget_are_told_once_each(budget, told):
    _, rows = curve_of(ALL, record=make_record(limits={"budget_usd": budget}))
    titles = [one.title for row in rows for one in row.alerts if "budget" in one.title]
    assert titles == [f"{share} of the budget is used" for share in told]


def test_a_deadline_at_risk_is_told_once():
    late = make_record(limits={"budget_usd": 100, "deadline": "2h"})
    _, rows = curve_of(ALL, record=late)
    assert sum("deadline" in one.title for row in rows for one in row.alerts) == 1
    in_time = make_record(limits={"budget_usd": 100, "deadline": "90h"})
    _, rows = curve_of(ALL, record=in_time)
    assert not [one for row in rows for one in row.alerts if "deadline" in one.title]


def test_an_attempt_that_fails_is_told_at_its_end():
    ledger = make_ledger()
    body = AttemptEnded(
        attempt=3, reason=EndReason.TRAINING_FAILED, step=10, error="the loss is not finite"
    )
    ledger.add(214, body, writer="agent-3")
    curve, _ = curve_of(ALL, ledger)
    row = curve.close(3, ledger.entries[-1].at)
    assert [one.text for one in row.alerts if "failed" in one.title] == ["the loss is not finite"]


@pytest.fixture
def online(monkeypatch):
    """Have the client speak to the server at a URL."""
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")
    return lambda url: monkeypatch.setenv("WANDB_BASE_URL", url)


def test_online_each_attempt_sends_what_is_missing_and_nothing_twice(folder, online):
    with serving() as service:
        online(service.url)
        for attempt in (1, 2, 3):
            folder.past(attempt)
            assert folder.track(attempt).finish() is None
        rows, alerts = service.rows, service.alerts
    assert [row["train/step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    assert [row["_step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    assert [row["attempt/number"] for row in rows] == [1] * 6 + [2] * 2 + [3] * 2
    assert not service.posted_twice
    assert sorted(set(alerts)) == sorted(alerts)
    # The bill goes on until now, days later: the first attempt tells, the others know from W&B.
    assert sum("budget" in title for title in alerts) == 3
    assert "Attempt 3 goes on after a preemption" in alerts


def never(service):
    service.gone.wait()


ANSWERS = {
    "an error": lambda _: b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops",
    "garbage": lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<html>\x00hi",
    "nothing but the end": lambda _: None,
    "nothing at all": never,
}


@pytest.mark.slow
def test_a_synced_file_takes_the_place_of_what_w_and_b_had(folder, online):
    folder.past(3)
    file = folder.track(3, Mode.OFFLINE).finish()
    with serving() as service:
        online(service.url)
        service.lines = {number: json.dumps({"_step": number + 1}) for number in range(6)}
        wandb = Path(sys.executable).with_name("wandb")
        subprocess.run([wandb, "sync", file], check=True, capture_output=True, cwd=folder.path)
        rows = service.rows
    assert [row["train/step"] for row in rows] == list(range(1, NUM_STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_service_that_fails_costs_bounded_time_and_no_record(folder, online, answer):
    """The agent waits 15 s where W&B hangs."""
    folder.past(2)
    others = set(psutil.Process().children(recursive=True))
    with serving(ANSWERS[answer]) as service:
        online(service.url)
        tracker = folder.track(2)
        assert service.asked.wait(30)
        started = time.monotonic()
        file = tracker.finish()
        assert time.monotonic() - started < 40
    recorded = scan(file)
    assert [row["train/step"] for row in recorded.rows] == list(range(1, 9))
    assert "offline-run-" in str(file)
    left = set(psutil.Process().children(recursive=True)) - others
    assert not left
    what = f"W&B's service: {answer}"
    record_fault("F15", what, injected=service.num_spoiled, orphans=len(left))


def test_history_that_the_service_has_dropped_is_recorded_offline(folder, online):
    """The client's finish() returns as if all were well."""
    folder.past(1)
    with serving(takes_history=False) as service:
        online(service.url)
        file = folder.track(1).finish()
    assert [row["train/step"] for row in scan(file).rows] == list(range(1, 7))


def test_a_service_that_refuses_is_not_waited_for(folder, online):
    with serving() as service:
        online(service.url)
    folder.past(1)
    file = folder.track(1).finish()
    assert file.parent.name.startswith("offline-run-")
    assert [row["train/step"] for row in scan(file).rows] == list(range(1, 7))
