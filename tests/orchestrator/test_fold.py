"""The fold: order-independent, idempotent, and true to the facts."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.attempts import EndReason, StopReason
from orchestrator.errors import RecordUnreadable
from orchestrator.ledger.facts import (
    SCHEMA_VERSION,
    AmendedBy,
    CheckpointDeleted,
    Entry,
    FinalState,
    LaunchEnded,
    NoticeReceived,
    StopRequested,
    TerminatedBy,
    parse_entries,
)
from orchestrator.ledger.fold import fold
from orchestrator.policy.answers import Keep, Stop
from orchestrator.policy.situation import seconds_per_step, situation
from tests.orchestrator.histories import Ledger, at, make_record, measured_step

RECORD = make_record()


def a_life() -> Ledger:
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 1, until=20, attempt=1)
    ledger.commit(10, attempt=1, step=5)
    ledger.launch("two", 21, until=22, reason=EndReason.NO_CAPACITY)
    ledger.launch("three", 23, until=60, attempt=2, step=5, reason=EndReason.SUCCEEDED)
    ledger.commit(50, attempt=2, step=10)
    ledger.ended(61)
    return ledger


@given(st.randoms(use_true_random=False), st.integers(0, 40))
def test_order_and_repetition_of_facts_do_not_matter(dice: random.Random, num_repeats: int):
    entries = a_life().entries
    shuffled = entries + [dice.choice(entries) for _ in range(num_repeats)]
    dice.shuffle(shuffled)
    assert fold(RECORD, shuffled) == fold(RECORD, entries)


def test_launch_without_an_agent_is_not_an_attempt():
    state = fold(RECORD, a_life().entries)
    assert [launch.attempt for launch in state.launches] == [1, None, 2]
    assert state.num_preemptions == 1


def test_last_commit_and_end_are_read_off_the_facts():
    state = fold(RECORD, a_life().entries)
    assert state.last_commit_step == 10
    assert state.ended is not None
    assert state.ended.state is FinalState.SUCCEEDED
    assert state.current_launch is None


def test_launching_again_after_the_end_reopens_the_run():
    ledger = a_life()
    ledger.amended(69, limits={"budget_usd": "500"})
    ledger.launched(70)
    state = fold(RECORD, ledger.entries)
    assert state.ended is None
    assert state.spec.limits.budget_usd == 500
    assert state.record.spec.limits.budget_usd == 100


def test_stop_request_before_the_last_launch_is_over():
    ledger = Ledger()
    ledger.launched(0)
    ledger.add(5, StopRequested(host="laptop", launched_at=at(0)), writer="cli-2")
    assert fold(RECORD, ledger.entries).is_stop_requested
    ledger.launched(10)
    assert not fold(RECORD, ledger.entries).is_stop_requested


def test_amending_leaves_the_launch_and_a_requested_stop_as_they_are():
    ledger = Ledger()
    ledger.launched(0)
    ledger.launch("one", 1, attempt=1)
    ledger.add(5, StopRequested(host="laptop", launched_at=at(0)), writer="cli-2")
    ledger.amended(6, limits={"budget_usd": "500"})
    state = fold(RECORD, ledger.entries)
    assert state.launched_at == at(0)
    assert state.is_stop_requested
    assert state.spec.limits.budget_usd == 500


def test_what_resume_amends_is_not_taken_for_the_spec_file():
    ledger = Ledger()
    ledger.amended(1, by=AmendedBy.SPEC_FILE, limits={"budget_usd": "200"})
    ledger.amended(2, by=AmendedBy.RESUME, limits={"budget_usd": "500"})
    state = fold(RECORD, ledger.entries)
    assert (state.file_spec.limits.budget_usd, state.spec.limits.budget_usd) == (200, 500)


def test_end_counts_although_the_clock_was_set_back_since_the_launch():
    ledger = Ledger()
    ledger.launched(100)
    ledger.ended(50)
    assert fold(RECORD, ledger.entries).ended is not None


def test_nodes_that_nobody_saw_go_end_when_they_must_have_been_gone():
    ledger = Ledger()
    ledger.launch("one", 0, attempt=1)
    gone = LaunchEnded(
        launch="one",
        reason=EndReason.NODE_LOST,
        terminated_by=TerminatedBy.US,
        gone_at=at(40),
    )
    ledger.add(9000, gone)
    assert fold(RECORD, ledger.entries).launches[0].ended_at == at(40)


def test_launch_that_is_up_stays_in_sight_when_the_run_is_launched_again():
    ledger = Ledger()
    ledger.launched(0)
    ledger.launch("one", 1, attempt=1)
    ledger.launched(5)
    assert isinstance(situation(fold(RECORD, ledger.entries), None, at(6)).decide(), Keep)


def test_run_whose_last_step_is_committed_is_done_although_its_node_was_lost():
    ledger = Ledger()
    ledger.launched(0)
    ledger.launch("one", 1, until=20, attempt=1)
    ledger.commit(19, attempt=1, step=RECORD.num_steps)
    decision = situation(fold(RECORD, ledger.entries), None, at(21)).decide()
    assert isinstance(decision, Stop)
    assert decision.reason is StopReason.DONE


def test_work_left_counts_what_saves_cost_between_steps():
    ledger = Ledger()
    ledger.launched(0)
    ledger.launch("one", 1, attempt=1)
    ledger.commit(9, attempt=1, step=4)
    state = fold(RECORD, ledger.entries)
    # Steps of a second, and a second and a half after the second of them.
    starts = (2.0, 3.0, 5.5, 6.5)
    measured = [measured_step(1, step, start) for step, start in enumerate(starts, start=1)]
    asked = situation(state, seconds_per_step(measured), at(10))
    assert asked.history.work_left == timedelta(seconds=1.5 * 6 * RECORD.spec.time_scale)


def test_commit_reported_by_two_agents_counts_once_at_its_first_instant():
    ledger = Ledger()
    ledger.commit(10, attempt=1, step=5)
    late = Ledger()
    late.commit(30, attempt=1, step=5)
    repeated = late.entries[0].model_copy(update={"writer": "agent-2"})
    commits = fold(RECORD, [*ledger.entries, repeated]).commits
    assert [commit.at for commit in commits] == [at(10)]


def test_deletion_ends_the_storage_of_one_checkpoint_only():
    ledger = a_life()
    ledger.add(55, CheckpointDeleted(checkpoint="checkpoints/step-00000005.a001"))
    deleted = {one.step: one.deleted_at for one in fold(RECORD, ledger.entries).commits}
    assert deleted == {5: at(55), 10: None}


def test_agents_clock_that_is_minutes_behind_ends_nothing_before_it_began():
    ledger = Ledger()
    ledger.launch("one", 100, until=90, attempt=1)
    launch = fold(RECORD, ledger.entries).launches[0]
    assert launch.ended_at is not None
    assert launch.ready_at is not None
    assert launch.started_at <= launch.ready_at <= launch.ended_at


def test_notice_belongs_to_the_launch_of_its_attempt():
    ledger = a_life()
    ledger.add(15, NoticeReceived(attempt=1, deadline_at=at(19)), writer="agent-1")
    notices = [launch.notice_at for launch in fold(RECORD, ledger.entries).launches]
    assert notices == [at(15), None, None]


def test_newer_schema_is_refused_with_its_version():
    newer = SCHEMA_VERSION + 1
    entry = a_life().entries[0].model_copy(update={"schema_version": newer})
    with pytest.raises(RecordUnreadable, match=f"schema_version {newer}"):
        parse_entries(entry.model_dump_json().encode(), "events/x/0.jsonl")


@pytest.mark.parametrize("garbage", [b"{", b"[]", b'{"fact": "nonsense"}', b"\xff\xfe"])
def test_torn_or_foreign_event_objects_are_refused_by_name(garbage):
    with pytest.raises(RecordUnreadable, match=r"events/x/0\.jsonl"):
        parse_entries(garbage, "events/x/0.jsonl")


def test_facts_survive_the_trip_through_json():
    entries = a_life().entries
    data = b"\n".join(entry.model_dump_json().encode() for entry in entries)
    assert parse_entries(data, "events/x/0.jsonl") == entries
    assert all(isinstance(entry, Entry) for entry in entries)
