"""What the reports of an attempt's nodes amount to."""

from __future__ import annotations

import pytest

from orchestrator.agent.outcomes import NodeReport, judge
from orchestrator.attempts import EndReason
from tests.orchestrator.histories import at
from train.spool import Outcome, OutcomeKind

DONE, SAVED, FENCED, CUT_OFF, FAILED = OutcomeKind


def outcome(kind: OutcomeKind, seconds: float = 0, error: str | None = None) -> Outcome:
    return Outcome(outcome=kind, step=3, at=at(seconds), error=error)


def report(*outcomes: Outcome | None, node: int = 0, **said: object) -> NodeReport:
    return NodeReport.model_validate({"node": node, "outcomes": outcomes, **said})


@pytest.mark.parametrize(
    ("outcomes", "leaving", "reason", "error"),
    [
        ([outcome(DONE)] * 2, None, EndReason.SUCCEEDED, None),
        ([outcome(SAVED)] * 2, EndReason.STOPPED, EndReason.STOPPED, None),
        ([outcome(SAVED)] * 2, EndReason.DRAINED, EndReason.DRAINED, None),
        ([outcome(SAVED), None], EndReason.PREEMPTED, EndReason.PREEMPTED, None),
        ([outcome(SAVED, error="disk full")] * 2, None, EndReason.PREEMPTED, None),
        ([outcome(DONE), None], None, EndReason.TRAINING_FAILED, "rank 1 died without a word"),
        (
            [outcome(FAILED, 9, "connection closed by peer"), outcome(FAILED, 5, "out of memory")],
            None,
            EndReason.TRAINING_FAILED,
            "out of memory",
        ),
        (
            [outcome(CUT_OFF, 5, "no answer"), outcome(FAILED, 9, "connection closed by peer")],
            None,
            EndReason.PREEMPTED,
            "no answer",
        ),
        (
            [outcome(CUT_OFF, 9, "no answer"), outcome(FAILED, 5, "out of memory")],
            None,
            EndReason.TRAINING_FAILED,
            "out of memory",
        ),
        ([outcome(FAILED, 5, "bad loss"), None], None, EndReason.TRAINING_FAILED, "bad loss"),
        (
            [outcome(FENCED), outcome(DONE)],
            EndReason.PREEMPTED,
            EndReason.FENCED,
            "a later attempt owns the run",
        ),
    ],
)
def test_ranks_outcomes_amount_to_one_reason_and_the_first_cause(outcomes, leaving, reason, error):
    assert judge([report(*outcomes, leaving=leaving)], None) == (reason, error)


BROKEN = outcome(FAILED, 9, "connection closed by peer")


def test_ranks_that_fail_of_a_lost_node_are_the_cloud_s_doing():
    found = judge([report(BROKEN, BROKEN)], "node 1 of 2 is gone")
    assert found == (EndReason.PREEMPTED, "node 1 of 2 is gone")


def test_an_error_of_training_on_another_node_is_told_in_that_rank_s_words():
    nodes = [report(BROKEN, None), report(outcome(FAILED, 5, "loss is nan"), None, node=1)]
    assert judge(nodes, None) == (EndReason.TRAINING_FAILED, "loss is nan")


def test_a_notice_on_another_node_preempts_the_whole_attempt():
    nodes = [report(outcome(SAVED)), report(outcome(SAVED), node=1, leaving=EndReason.PREEMPTED)]
    assert judge(nodes, None) == (EndReason.PREEMPTED, None)


def test_node_that_could_not_start_says_why_for_all():
    sick = report(node=1, leaving=EndReason.PREEMPTED, error="GPU 3 is missing")
    assert judge([report(None, None), sick], None) == (EndReason.PREEMPTED, "GPU 3 is missing")


def test_ranks_that_hang_because_a_node_is_lost_are_not_taken_for_hung():
    hung = report(None, None, is_hung=True)
    assert judge([hung], None)[0] is EndReason.HANG
    assert judge([hung], "node 1 of 2 is gone")[0] is EndReason.PREEMPTED


def test_node_lost_after_the_last_commit_costs_nothing():
    assert judge([report(outcome(DONE))], "node 1 of 2 is gone") == (EndReason.SUCCEEDED, None)
