"""What is told of a run: from facts and heartbeats alone, under keys that name the fact."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.attempts import EndReason, StopReason
from orchestrator.ledger.facts import (
    AttemptEnded,
    Entry,
    FinalState,
    LaunchEnded,
    NoticeReceived,
    TerminatedBy,
)
from orchestrator.ledger.fold import fold
from orchestrator.ledger.heartbeat import Heartbeat
from orchestrator.news import News, news
from orchestrator.spec import NewsKind
from orchestrator.view import RunView
from tests.orchestrator.histories import START, Ledger, at, make_record

# 60 market seconds per wall second, $10 per hour: a dollar in 6 wall seconds.
LIMITS = {"budget_usd": 100}


def heard(attempt: int, step: int, seconds: float) -> Heartbeat:
    return Heartbeat(
        writer=f"agent-{attempt}", at=at(seconds), host="node", pid=1, attempt=attempt, step=step
    )


def look(
    ledger: Ledger | list[Entry], now: float, *beats: Heartbeat, limits: object = LIMITS
) -> list[News]:
    entries = ledger.entries if isinstance(ledger, Ledger) else ledger
    state = fold(make_record(limits=limits), entries)
    own = heard(0, 0, now).model_copy(update={"attempt": None, "step": None})
    return news(RunView(state=state, measured=(), heartbeats=(*beats, own), as_of=at(now)))


def of(found: list[News], kind: NewsKind) -> list[News]:
    return [one for one in found if one.kind is kind]


def preempted_once() -> Ledger:
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 1, until=20, attempt=1)
    ledger.commit(10, attempt=1, step=4)
    return ledger


def test_nothing_is_told_of_a_run_that_goes_well():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 1, attempt=1)
    ledger.commit(10, attempt=1, step=4)
    assert look(ledger, 15, heard(1, 5, 15)) == []


def test_a_preemption_says_where_and_what_is_lost_and_spent():
    (told,) = look(preempted_once(), 21, heard(1, 7, 19))
    assert told.kind is NewsKind.PREEMPTION
    assert told.title == "demo: attempt 1 was preempted"
    assert told.text == (
        "Attempt 1 on aws us-east-1 us-east-1-a spot was lost without notice after step 7 of 10; "
        "3 steps since its last checkpoint are lost. So far: $3.00 of $100 (simulated)."
    )


def test_a_notice_and_a_saved_step_are_told():
    ledger = preempted_once()
    ledger.add(15, NoticeReceived(attempt=1, deadline_at=at(20)), writer="agent-1")
    (told,) = look(ledger, 21, heard(1, 4, 19))
    assert "after a notice after step 4 of 10; nothing is lost" in told.text


def test_later_checkpoints_do_not_change_what_a_preemption_has_lost():
    ledger = preempted_once()
    before = look(ledger, 21, heard(1, 7, 19))[0].text.partition("So far")[0]
    ledger.launch("two", 22, attempt=2, step=4)
    ledger.commit(30, attempt=2, step=6)
    after = look(ledger, 31, heard(1, 7, 19), heard(2, 6, 31))[0].text.partition("So far")[0]
    assert before == after


def test_nodes_that_are_lost_before_training_are_a_preemption():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 1, until=5, reason=EndReason.NODE_LOST)
    (told,) = look(ledger, 6)
    assert told.kind is NewsKind.PREEMPTION
    assert "while they were set up" in told.text


def test_nodes_that_we_ended_are_no_preemption_and_what_follows_no_recovery():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 1, attempt=1)
    ended = LaunchEnded(
        launch="one", reason=EndReason.NODE_LOST, terminated_by=TerminatedBy.US, detail="supervisor"
    )
    ledger.add(20, ended)
    ledger.launch("two", 22, attempt=2)
    assert look(ledger, 30) == []


def test_a_recovery_is_the_first_attempt_after_a_loss_however_many_launches_it_took():
    ledger = preempted_once()
    ledger.launch("two", 21, until=22, reason=EndReason.NO_CAPACITY)
    ledger.launch("three", 23, attempt=2, step=4)
    recoveries = of(look(ledger, 30), NewsKind.RECOVERY)
    assert [one.key for one in recoveries] == ["recovery three"]
    assert "goes on after step 4, 5s after the loss" in recoveries[0].text


def test_a_failed_attempt_says_why_and_where_to_look():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 1, until=20, attempt=1, reason=EndReason.TRAINING_FAILED)
    error = "CUDA error\n" + "x" * 2000
    ledger.add(19, AttemptEnded(attempt=1, reason=EndReason.TRAINING_FAILED, step=6, error=error))
    (told,) = look(ledger, 21)
    assert told.kind is NewsKind.FAILURE
    assert "failed after step 6: CUDA error x" in told.text
    assert "orchestrate logs demo --attempt 1" in told.text
    assert len(told.text) < 800


@pytest.mark.parametrize(
    ("state", "reason", "kind", "following"),
    [
        (FinalState.SUCCEEDED, StopReason.DONE, NewsKind.FINISH, "orchestrate cost demo"),
        (FinalState.STOPPED, StopReason.REQUESTED, NewsKind.FINISH, "orchestrate resume demo"),
        (FinalState.STOPPED, StopReason.BUDGET, NewsKind.FAILURE, "--set limits.budget_usd="),
        (FinalState.STOPPED, StopReason.NO_CAPACITY, NewsKind.FAILURE, "orchestrate resume demo"),
        (FinalState.FAILED, StopReason.TOO_MANY_FAILURES, NewsKind.FAILURE, "orchestrate logs"),
    ],
)
def test_the_end_says_how_why_and_what_to_do(state, reason, kind, following):
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 1, until=40, attempt=1, reason=EndReason.SUCCEEDED)
    ledger.commit(39, attempt=1, step=10)
    ledger.ended(41, state, reason, why="it is over")
    (told,) = look(ledger, 50)
    assert told.kind is kind
    assert f"{state.value} after 41s: step 10 of 10" in told.text
    assert "$6.33 of $100 (simulated). Why: it is over." in told.text
    assert following in told.text


def test_a_missed_deadline_is_said_at_the_end():
    ledger = Ledger()
    ledger.launched()
    ledger.ended(120)
    limits = {**LIMITS, "deadline": "1h"}  # a wall minute
    (told,) = look(ledger, 130, limits=limits)
    assert told.kind is NewsKind.FINISH
    assert "The deadline was missed by 1m00s." in told.text


def shares(found: list[News]) -> list[str]:
    return [one.title.partition(": ")[2][:4].strip("% o") for one in of(found, NewsKind.BUDGET)]


def test_each_share_of_the_budget_is_told_from_when_it_is_used():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, attempt=1)
    seen = {now: shares(look(ledger, now)) for now in (299, 303, 480, 484, 603)}
    fifty, eighty = ["50"], ["50", "80"]
    assert seen == {299: [], 303: fifty, 480: fifty, 484: eighty, 603: [*eighty, "100"]}


def test_more_budget_is_another_fact_and_what_was_used_up_before_is_history():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, until=541, attempt=1, reason=EndReason.STOPPED)
    before = of(look(ledger, 550), NewsKind.BUDGET)
    ledger.launched(600)
    ledger.amended(600, limits={"budget_usd": "110"})
    ledger.launch("two", 601, attempt=2)
    after = of(look(ledger, 602), NewsKind.BUDGET)
    assert [one.key for one in before] == ["budget 50% of 100", "budget 80% of 100"]
    # 90 of 110: that 80 % are used is how matters stand; when it was 50 %, nobody needs to know.
    assert [one.key for one in after] == ["budget 80% of 110"]


def test_a_budget_is_the_same_however_it_is_written():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, attempt=1)
    keys = [one.key for one in look(ledger, 700)]
    ledger.amended(650, limits={"budget_usd": "100.00"})
    assert [one.key for one in look(ledger, 700)] == keys


def test_a_deadline_is_at_risk_at_this_pace_from_a_twentieth_of_the_steps_on():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, attempt=1)
    limits = {"budget_usd": 1000, "deadline": "100min"}  # 100 wall seconds
    assert look(ledger, 50, limits=limits) == []  # no step yet
    assert look(ledger, 50, heard(1, 5, 50), limits=limits) == []
    (told,) = look(ledger, 50, heard(1, 4, 50), limits=limits)
    assert told.kind is NewsKind.DEADLINE
    assert "25s after its deadline, 22 Nov 12:01 UTC" in told.text


def test_a_deadline_that_has_passed_is_the_same_fact_as_one_at_risk():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, attempt=1)
    limits = {"budget_usd": 1000, "deadline": "100min"}
    (risk,) = look(ledger, 50, heard(1, 4, 50), limits=limits)
    (passed,) = look(ledger, 101, limits=limits)
    assert risk.key == passed.key == f"deadline {(START + timedelta(seconds=100)).isoformat()}"
    assert "passed" in passed.title
    longer = {**limits, "deadline": "110min"}
    assert look(ledger, 111, limits=longer)[0].key != risk.key


def test_what_an_earlier_launch_of_the_run_went_through_is_history():
    ledger = preempted_once()
    ledger.launch("two", 21, until=30, attempt=2, step=4, reason=EndReason.HANG)
    ledger.ended(31, FinalState.STOPPED, StopReason.REQUESTED)
    assert len(look(ledger, 32)) == 4
    ledger.launched(40)
    ledger.launch("three", 41, attempt=3, step=4)
    assert look(ledger, 45) == []


def a_life() -> Ledger:
    ledger = preempted_once()
    ledger.launch("two", 21, until=60, attempt=2, step=4, reason=EndReason.HANG)
    ledger.launch("three", 61, until=400, attempt=3, step=4)
    ledger.launch("four", 401, until=700, attempt=4, step=4, reason=EndReason.SUCCEEDED)
    ledger.commit(690, attempt=4, step=10)
    ledger.ended(701)
    return ledger


@given(st.permutations(a_life().entries), st.lists(st.sampled_from(a_life().entries)))
def test_any_order_and_number_of_the_facts_tells_the_same(entries, again):
    told = look([*entries, *again], 710)
    assert told == look(a_life(), 710)
    assert len(told) == len({one.key for one in told}) == 9


@given(st.integers(min_value=0, max_value=710))
def test_what_was_told_is_told_later_under_the_same_key(now):
    entries = [entry for entry in a_life().entries if entry.at <= at(now)]
    keys = [one.key for one in look(a_life(), 710)]
    assert {one.key for one in look(entries, now)} <= set(keys)
