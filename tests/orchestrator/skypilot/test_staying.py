"""A node that the cloud will not charge for waits to be taken; every other one leaves at once."""

from __future__ import annotations

import secrets
from datetime import timedelta

import pytest

from checkpoints.layout import event_key
from checkpoints.store import open_store
from orchestrator.attempts import EndReason
from orchestrator.charges import charge
from orchestrator.cloud.skypilot.staying import stay_while_free
from orchestrator.ledger.facts import (
    LaunchEnded,
    LaunchStarted,
    NoticeReceived,
    TerminatedBy,
)
from orchestrator.ledger.fold import fold
from orchestrator.offers import Market
from tests.orchestrator.histories import Ledger, at, make_offer, make_record

REAL = make_record(infra=["aws", "gcp"], local=None).model_copy(update={"simulated": False})


class HandClock:
    """A clock that only sleeping moves."""

    def __init__(self, seconds: float) -> None:
        self.at = at(seconds)

    def now(self):
        return self.at

    def sleep(self, duration: timedelta) -> None:
        self.at += duration


def noticed(minutes: float, num_nodes: int = 1, **offer) -> Ledger:
    """Return a launch that was told after so many minutes that it leaves two minutes later."""
    ledger = Ledger()
    ledger.launch("one", -1, attempt=1, offer=make_offer(**offer))
    seconds = minutes * 60
    deadline_at = at(seconds + 120)
    ledger.add(seconds, NoticeReceived(attempt=1, deadline_at=deadline_at), writer="agent-1")
    started = ledger.entries[0]
    assert isinstance(started.body, LaunchStarted)
    several = started.body.model_copy(update={"num_nodes": num_nodes})
    ledger.entries[0] = started.model_copy(update={"body": several})
    return ledger


def stayed(ledger: Ledger, since: float) -> float:
    """Return for how many seconds a node stays that has saved by `since`."""
    store = open_store(f"memory://{secrets.token_hex(8)}")
    for number, entry in enumerate(ledger.entries):
        store.create(event_key(entry.writer, number), entry.model_dump_json().encode())
    clock = HandClock(since)
    stay_while_free(store, REAL, "one", clock)
    return (clock.at - at(since)).total_seconds()


def test_a_node_in_its_first_hour_on_aws_stays_until_it_is_taken_and_costs_nothing():
    ledger = noticed(minutes=30)
    seconds = stayed(ledger, since=30 * 60 + 20)
    assert 100 <= seconds <= 100 + 65  # and a minute more, should the cloud be late
    reason, by = EndReason.PREEMPTED, TerminatedBy.CLOUD
    taken = LaunchEnded(launch="one", reason=reason, terminated_by=by, was_watched=True)
    ledger.add(32 * 60 + 5, taken)
    state = fold(REAL, ledger.entries)
    assert charge(state, state.launches[0], at(9_999)).usd == 0


@pytest.mark.parametrize(
    "ledger",
    [
        noticed(minutes=59),  # taken in its 61st minute, it is charged from the first
        noticed(minutes=30, market=Market.ON_DEMAND),
        noticed(minutes=30, cloud="gcp"),
        noticed(minutes=30, num_nodes=2),  # the other is charged, and waits for nothing
    ],
)
def test_a_node_that_is_charged_anyway_leaves_at_once(ledger):
    assert stayed(ledger, since=61 * 60) == 0


def test_a_node_that_nobody_warned_leaves_at_once():
    ledger = Ledger()
    ledger.launch("one", -1, attempt=1)
    assert stayed(ledger, since=600) == 0
    assert stayed(Ledger(), since=600) == 0
