"""What a replica writes of itself, also while the store is down."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest

from checkpoints.errors import StoreUnreachable
from checkpoints.store import open_store
from orchestrator.clock import SystemClock
from orchestrator.ledger.facts import QuotedOffer, ReplicaEndReason
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.replicas import read_replica_beats
from orchestrator.serving.replica_facts import ReplicaFacts
from tests.orchestrator.histories import make_offer, make_record


class Flaky:
    """A store that fails while the test says so."""

    def __init__(self, store):
        self._store = store
        self.is_down = False

    def __getattr__(self, name):
        if self.is_down and name in ("put", "create"):
            raise StoreUnreachable("the store is down", "Wait.")
        return getattr(self._store, name)


@pytest.fixture
def folder():
    return Flaky(open_store(f"memory://{datetime.now(timezone.utc).timestamp()}"))


def replicas(folder):
    return fold(make_record(), LedgerReader(folder).read()).replicas


def test_what_could_not_be_written_is_written_later(folder):
    facts = ReplicaFacts([(folder, 1)], "chat-1", SystemClock())
    folder.is_down = True
    now = datetime.now(timezone.utc)
    facts.started("chat", QuotedOffer.quote(make_offer()), 2, now)
    assert not replicas(folder)
    folder.is_down = False
    facts.noticed(leaves_at := now + timedelta(hours=1))
    facts.ended(ReplicaEndReason.STOPPED)
    (one,) = replicas(folder)
    assert (one.service, one.num_models, one.up_at) == ("chat", 2, now)
    assert (one.leaves_at, one.reason) == (leaves_at, ReplicaEndReason.STOPPED)


def test_it_shows_that_it_lives(folder):
    facts = ReplicaFacts([(folder, 1)], "chat-1", SystemClock())
    facts.started("chat", QuotedOffer.quote(make_offer()), 1, datetime.now(timezone.utc))
    give_up_at = time.monotonic() + 30
    while not read_replica_beats(folder):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    facts.ended(ReplicaEndReason.STOPPED)
    assert list(read_replica_beats(folder)) == ["chat-1"]


def test_each_run_that_is_served_has_its_own_copy(folder):
    other = open_store("memory://other-run")
    facts = ReplicaFacts([(folder, 2), (other, 1)], "chat-1", SystemClock())
    facts.started("chat", QuotedOffer.quote(make_offer()), 3, datetime.now(timezone.utc))
    facts.ended(ReplicaEndReason.FAILED)
    ((two,), (one,)) = replicas(folder), replicas(other)
    assert (two.num_own, one.num_own, one.num_models) == (2, 1, 3)
