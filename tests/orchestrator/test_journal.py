"""The ledger's journal: durable, repeated safely, read completely."""

from __future__ import annotations

import secrets
from datetime import timedelta

import pytest

from checkpoints.errors import StoreUnreachable
from checkpoints.store import ObjectStore, open_store
from orchestrator.clock import SystemClock
from orchestrator.ledger.facts import RunLaunched, StopRequested
from orchestrator.ledger.journal import Journal, LedgerReader
from tests.orchestrator.histories import START


def fact(host: str) -> StopRequested:
    return StopRequested(host=host, launched_at=START)


class LosesReplies:
    """A store whose first `num_lost` creations succeed although they raise."""

    def __init__(self, inner: ObjectStore, num_lost: int) -> None:
        self.inner = inner
        self.num_lost = num_lost

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def create(self, key: str, data: bytes) -> str:
        version = self.inner.create(key, data)
        if self.num_lost:
            self.num_lost -= 1
            raise StoreUnreachable("the reply was lost", "Try again.")
        return version


@pytest.fixture
def store(tmp_path) -> ObjectStore:
    return open_store(tmp_path.as_uri())


def test_facts_are_read_once_each_by_everyone(store):
    one, two = Journal(store, "cli", SystemClock()), Journal(store, "agent", SystemClock())
    reader = LedgerReader(store)
    one.note(fact("a"))
    two.record(fact("b"))
    two.record(fact("c"))
    two.flush()
    two.flush()
    assert sorted(entry.body.host for entry in reader.read()) == ["a", "b", "c"]
    one.note(fact("d"))
    assert reader.read() == LedgerReader(store).read()
    assert len(reader.read()) == 4


def test_lost_reply_neither_loses_nor_doubles_a_fact(store):
    journal = Journal(LosesReplies(store, num_lost=1), "agent", SystemClock())
    journal.record(fact("a"))
    with pytest.raises(StoreUnreachable):
        journal.flush()
    journal.record(fact("b"))
    journal.flush()
    journal.note(fact("c"))
    assert [entry.body.host for entry in LedgerReader(store).read()] == ["a", "b", "c"]


def test_writers_of_one_role_never_share_a_name(store):
    names = {Journal(store, "agent", SystemClock()).writer for _ in range(100)}
    assert len(names) == 100


def test_a_clock_that_is_behind_writes_later_than_what_it_follows():
    store = open_store(f"memory://{secrets.token_hex(8)}")
    first = Journal(store, "ahead", SystemClock()).note(RunLaunched(host="ahead"))
    later = first.at + timedelta(hours=1)
    second = Journal(store, "behind", SystemClock()).note(RunLaunched(host="behind"), after=later)
    assert second.at > later
    third = Journal(store, "right", SystemClock()).note(RunLaunched(host="right"), after=first.at)
    assert third.at < later
