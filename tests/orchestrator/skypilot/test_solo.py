"""Launches without our plugin: what SkyPilot is told, and when nothing is started."""

from __future__ import annotations

import pytest

from orchestrator.attempts import EndReason, exit_status
from orchestrator.clock import SystemClock
from orchestrator.cloud.skypilot.solo import exit_status_for_skypilot, is_over
from orchestrator.ledger.facts import StopRequested
from orchestrator.ledger.fold import fold
from tests.orchestrator.histories import Ledger, make_record

RECORD = make_record(infra=["aws"], local=None, store="s3://bucket/runs")


@pytest.mark.parametrize("reason", list(EndReason))
def test_skypilot_starts_again_only_what_should_go_on(reason):
    ends = (EndReason.SUCCEEDED, EndReason.STOPPED, EndReason.FENCED)
    status = exit_status_for_skypilot(reason)
    assert status == (0 if reason in ends else exit_status(reason))
    assert (status == 0) == (reason in ends)


def test_a_run_that_goes_on_is_started():
    ledger = Ledger()
    ledger.launched()
    assert not is_over(fold(RECORD, ledger.entries), SystemClock())


def test_nothing_is_started_for_a_run_that_has_ended_or_is_to_stop():
    ended, stopped, spent = Ledger(), Ledger(), Ledger()
    for ledger in (ended, stopped, spent):
        ledger.launched()
    ended.ended(5)
    stopped.add(5, StopRequested(host="laptop", launched_at=stopped.launched_at), writer="cli-2")
    spent.launch("one", 0, until=50_000, attempt=1)  # 13.9 h at $10
    for ledger in (ended, stopped, spent):
        assert is_over(fold(RECORD, ledger.entries), SystemClock())
