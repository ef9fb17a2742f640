"""The ledger that a node keeps itself where no plugin does."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from checkpoints.fence import read_head
from checkpoints.store import open_store
from orchestrator.agent.config import AgentConfig
from orchestrator.attempts import AgentExit, EndReason, StopReason
from orchestrator.cloud.skypilot.solo import (
    new_launch,
    note_start,
    offer_of_this_node,
    status_before_start,
)
from orchestrator.ledger.facts import (
    AttemptEnded,
    FinalState,
    QuotedOffer,
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


def test_budget_that_is_used_up_starts_nothing(store):
    ledger = Ledger()
    ledger.launched()
    spent = record(limits={"budget_usd": 1})
    assert status_before_start(fold(spent, ledger.entries), SetClock(10)) == AgentExit.STOPPED
    assert status_before_start(fold(record(), ledger.entries), SetClock(10)) is None
    assert read_head(store) is None


@pytest.mark.parametrize(
    ("final", "reason", "status"),
    [
        (FinalState.SUCCEEDED, StopReason.DONE, AgentExit.DONE),
        (FinalState.STOPPED, StopReason.BUDGET, AgentExit.STOPPED),
        (FinalState.FAILED, StopReason.TOO_MANY_FAILURES, AgentExit.STOPPED),
    ],
)
def test_run_that_is_over_is_not_started_again_until_it_is_launched_again(final, reason, status):
    ledger = Ledger()
    ledger.launched()
    ledger.ended(50, final, reason)
    assert status_before_start(fold(record(), ledger.entries), SetClock(60)) == status
    ledger.launched(70)
    assert status_before_start(fold(record(), ledger.entries), SetClock(80)) is None


@pytest.mark.parametrize("told", ['{"cloud": "AWS"}', "", "{}", "nonsense"])
def test_offer_is_found_by_what_skypilot_and_the_cloud_say(monkeypatch, told):
    with metadata_service() as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{service.host}")
        service.zone = "us-east-1-c"
        found = offer_of_this_node(record(), {"SKYPILOT_CLUSTER_INFO": told})
    assert (found.region, found.zone) == ("us-east-1", "us-east-1-c")
