"""What ends an attempt from the run folder, and what does not."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from checkpoints.errors import Fenced, StoreUnreachable
from checkpoints.fence import claim_attempt
from checkpoints.layout import event_key, heartbeat_key
from checkpoints.store import open_store
from orchestrator.agent.config import AgentConfig
from orchestrator.agent.guards import Guards
from orchestrator.agent.joining import claim_for
from orchestrator.attempts import EndReason, StopReason
from orchestrator.ledger.facts import (
    LaunchEnded,
    LaunchReady,
    LaunchStarted,
    QuotedOffer,
    StopRequested,
    TerminatedBy,
)
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import Journal, LedgerReader
from orchestrator.ledger.requests import Request, RequestKind, ask
from orchestrator.policy.situation import situation
from tests.orchestrator.histories import START, at, make_offer, make_record

EVERY_S = 60.0


class SetClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self):
        return at(self.seconds)

    def sleep(self, duration: timedelta) -> None:
        self.seconds += duration.total_seconds()


class Scene:
    """An attempt of a run on clouds, whose node costs $10 an hour."""

    def __init__(self, folder: Path, store=None, **changes: object) -> None:
        self.store = open_store((folder / "store").as_uri())
        self.clock = SetClock()
        record = self.record = make_record(infra=["aws"], local=None, **changes)
        offer = QuotedOffer.quote(make_offer())
        self.journal = Journal(self.store, "controller", self.clock)
        self.journal.note(LaunchStarted(launch="one", offer=offer, num_nodes=1))
        self.journal.note(LaunchReady(launch="one"))
        self.claim()
        config = self.config = AgentConfig(
            store=self.store.url,
            launch="one",
            offer=offer,
            ranks=1,
            scratch=folder,
            owner="boss",
            lease_seconds=900,
            guard_seconds=EVERY_S,
        )
        state = fold(record, LedgerReader(self.store).read())
        self.store.put(heartbeat_key("boss"), b"0")
        self.guards = Guards(
            store or self.store, state, config, self.clock, attempt=1, now=self.clock.seconds
        )

    def claim(self) -> None:
        claim_attempt(self.store, claimed_by="x", claimed_at=START, world_size=1, offer={})

    def look(self, seconds: float):
        """Let time pass and look, with an owner that lives."""
        self.clock.seconds += seconds
        self.store.put(heartbeat_key("boss"), str(self.clock.seconds).encode())
        return self.guards.look(self.clock.seconds)


def test_nothing_ends_an_attempt_that_is_ours_and_within_its_budget(tmp_path):
    scene = Scene(tmp_path)
    assert [scene.look(EVERY_S) for _ in range(5)] == [None] * 5


def test_later_attempt_fences_without_a_save(tmp_path):
    scene = Scene(tmp_path)
    scene.claim()
    leave = scene.look(EVERY_S)
    assert (leave.reason, leave.saves) == (EndReason.FENCED, False)
    assert leave.why == "attempt 2 owns the run"


def test_a_node_that_was_taken_for_lost_may_not_claim_again(tmp_path):
    scene = Scene(tmp_path)
    gone = LaunchEnded(launch="one", reason=EndReason.NODE_LOST, terminated_by=TerminatedBy.CLOUD)
    assert claim_for(scene.config, scene.store, scene.record, scene.clock).attempt == 2
    scene.journal.note(gone)
    with pytest.raises(Fenced):
        claim_for(scene.config, scene.store, scene.record, scene.clock)


def test_budget_ends_the_attempt_with_a_save_before_it_is_used_up(tmp_path):
    scene = Scene(tmp_path, limits={"budget_usd": 10})
    assert scene.look(50 * 60) is None
    leave = scene.look(8 * 60)  # a save and a stop take 3 minutes of this node's hour
    assert leave is not None
    assert (leave.reason, leave.saves) == (EndReason.STOPPED, True)
    assert "of $10" in leave.why


def test_stop_in_the_ledger_is_obeyed(tmp_path):
    scene = Scene(tmp_path)
    scene.journal.note(StopRequested(host="laptop", launched_at=START))
    leave = scene.look(EVERY_S)
    assert (leave.reason, leave.why) == (EndReason.STOPPED, "a stop was requested")


def test_other_decisions_of_the_policy_are_not_the_node_s_business(tmp_path):
    scene = Scene(tmp_path)
    for launch in ("two", "three", "four"):
        offer = QuotedOffer.quote(make_offer())
        scene.journal.note(LaunchStarted(launch=launch, offer=offer, num_nodes=1))
        failed = EndReason.TRAINING_FAILED
        by = TerminatedBy.ITSELF
        scene.journal.note(LaunchEnded(launch=launch, reason=failed, terminated_by=by))
    state = fold(scene.record, LedgerReader(scene.store).read())
    decision = situation(state, None, scene.clock.now()).decide()
    assert decision.reason is StopReason.TOO_MANY_FAILURES
    assert scene.look(EVERY_S) is None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(RequestKind.STOP, EndReason.STOPPED), (RequestKind.DRAIN, EndReason.DRAINED)],
)
def test_requests_are_obeyed_unless_they_were_meant_for_an_earlier_launch(tmp_path, kind, reason):
    scene = Scene(tmp_path)
    ask(scene.store, Request(kind=kind, at=at(-5), by="laptop"))
    assert scene.look(20) is None
    ask(scene.store, Request(kind=kind, at=at(25), by="laptop"))
    leave = scene.look(20)
    assert (leave.reason, leave.saves) == (reason, True)


def test_owner_that_is_gone_ends_the_attempt_as_preempted_with_a_save(tmp_path):
    scene = Scene(tmp_path)
    assert scene.look(100) is None
    scene.clock.seconds += 470
    assert scene.guards.look(scene.clock.seconds) is None
    scene.clock.seconds += 50
    leave = scene.guards.look(scene.clock.seconds)
    assert (leave.reason, leave.saves) == (EndReason.PREEMPTED, True)


class Down:
    url = "file:///down"

    def __getattr__(self, name):
        def fail(*_: object):
            raise StoreUnreachable("down", "Try again.")

        return fail


def test_store_that_fails_ends_nothing_but_the_lease(tmp_path):
    scene = Scene(tmp_path, store=Down())
    assert [scene.look(EVERY_S) for _ in range(10)] == [None] * 10
    leave = scene.look(900)  # whoever owns it may have given it up, and cannot be heard
    assert leave is not None
    assert (leave.reason, leave.saves) == (EndReason.PREEMPTED, True)


def test_ledger_of_a_newer_version_ends_nothing(tmp_path):
    scene = Scene(tmp_path)
    scene.store.put(event_key("controller-new", 0), b'{"schema_version": 99}')
    assert scene.look(EVERY_S) is None
