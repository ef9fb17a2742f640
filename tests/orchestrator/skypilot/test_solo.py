"""Launches without our plugin: the ledger that the node keeps, and what SkyPilot is told."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from checkpoints.store import open_store
from orchestrator.agent.config import AgentConfig
from orchestrator.attempts import EndReason, exit_status
from orchestrator.cloud.skypilot.solo import (
    exit_status_for_skypilot,
    is_over,
    new_launch,
    note_start,
)
from orchestrator.cloud.skypilot.this_node import offer_of_this_node
from orchestrator.ledger.facts import (
    AttemptEnded,
    QuotedOffer,
    StopRequested,
    TerminatedBy,
)
from orchestrator.ledger.fold import fold
from orchestrator.ledger.heartbeat import Heartbeat, beat
from orchestrator.ledger.journal import LedgerReader
from tests.metadata_service import metadata_service
from tests.orchestrator.histories import Ledger, at, make_offer, make_record


class SetClock:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def now(self):
        return at(self.seconds)

    def sleep(self, duration: timedelta) -> None:
        self.seconds += duration.total_seconds()


def record(**changes: object):
    return make_record(**{"infra": ["aws"], "local": None, **changes})


def config(folder: Path, store) -> AgentConfig:
    return AgentConfig(
        store=store.url,
        launch="two",
        offer=QuotedOffer.quote(make_offer()),
        ranks=1,
        scratch=folder,
    )


@pytest.fixture
def store(tmp_path):
    return open_store((tmp_path / "store").as_uri())


def start_second(store, folder, ledger: Ledger, seconds: float):
    state = fold(record(), ledger.entries)
    note_start(config(folder, store), store, state, SetClock(seconds))
    return fold(record(), [*ledger.entries, *LedgerReader(store).read()])


def first_launch(*, is_told: bool) -> Ledger:
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 1, attempt=1)
    if is_told:
        ledger.add(500, AttemptEnded(attempt=1, reason=EndReason.DRAINED, step=4))
    return ledger


def test_launch_that_nobody_ended_is_lost_soon_after_its_agent_s_last_beat(store, tmp_path):
    for attempt, seconds in ((1, 600), (None, 3000)):  # the second is another writer's
        beat(
            store, Heartbeat(writer=f"w{attempt}", at=at(seconds), host="h", pid=1, attempt=attempt)
        )
    state = start_second(store, tmp_path, first_launch(is_told=False), 4000)
    first, second = state.launches
    assert (first.reason, first.terminated_by) == (EndReason.NODE_LOST, TerminatedBy.CLOUD)
    assert first.ended_at == at(660)
    assert second.ended_at is None
    assert second.ready_at == at(4000)
    assert second.num_nodes == 1


def test_launch_whose_agent_told_its_end_ended_so(store, tmp_path):
    beat(store, Heartbeat(writer="w", at=at(500), host="h", pid=1, attempt=1))
    first, _ = start_second(store, tmp_path, first_launch(is_told=True), 4000).launches
    assert (first.reason, first.ended_at) == (EndReason.DRAINED, at(560))


def test_launch_is_gone_when_the_next_one_has_come_up(store, tmp_path):
    beat(store, Heartbeat(writer="w", at=at(590), host="h", pid=1, attempt=1))
    first, second = start_second(store, tmp_path, first_launch(is_told=False), 600).launches
    assert first.ended_at == second.ready_at == at(600)


def test_names_of_launches_differ():
    assert new_launch(record()) != new_launch(record())


@pytest.mark.parametrize("told", ['{"cloud": "AWS"}', "", "{}", "nonsense"])
def test_offer_is_found_by_what_skypilot_and_the_cloud_say(monkeypatch, told):
    with metadata_service() as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{service.host}")
        service.zone = "us-east-1-c"
        found = offer_of_this_node(record().offers, {"SKYPILOT_CLUSTER_INFO": told})
    assert (found.region, found.zone) == ("us-east-1", "us-east-1-c")


@pytest.mark.parametrize("reason", list(EndReason))
def test_skypilot_starts_again_only_what_should_go_on(reason):
    ends = (EndReason.SUCCEEDED, EndReason.STOPPED, EndReason.FENCED)
    status = exit_status_for_skypilot(reason)
    assert status == (0 if reason in ends else exit_status(reason))
    assert (status == 0) == (reason in ends)


def test_a_run_that_goes_on_is_started():
    ledger = Ledger()
    ledger.launched()
    assert not is_over(fold(record(), ledger.entries), SetClock(60))


def test_nothing_is_started_for_a_run_that_has_ended_or_is_to_stop():
    ended, stopped, spent = Ledger(), Ledger(), Ledger()
    for ledger in (ended, stopped, spent):
        ledger.launched()
    ended.ended(5)
    stopped.add(5, StopRequested(host="laptop", launched_at=stopped.launched_at), writer="cli-2")
    spent.launch("one", 0, until=50_000, attempt=1)  # 13.9 h at $10
    for ledger in (ended, stopped, spent):
        assert is_over(fold(record(), ledger.entries), SetClock(60))
