"""When an owner takes an agent for silent, and when it had better not."""

from __future__ import annotations

import secrets
from datetime import timedelta

import pytest

from checkpoints.errors import StoreUnreachable
from checkpoints.store import ObjectStore, open_store
from orchestrator.ledger.heartbeat import Heartbeat, Listener, beat
from tests.orchestrator.histories import START

SILENT_S = 100.0


@pytest.fixture
def store() -> ObjectStore:
    return open_store(f"memory://{secrets.token_hex(8)}")


@pytest.fixture
def listener(store) -> Listener:
    return Listener(store, SILENT_S)


def speak(store, number: int, attempt: int | None = 1, writer: str = "agent") -> None:
    at = START + timedelta(seconds=number)
    beat(store, Heartbeat(writer=writer, at=at, host="node", pid=1, attempt=attempt))


def silent_at(listener: Listener, begin: int, end: int, attempt: int = 1) -> int | None:
    """Look each second; return when the agent was taken for silent, None if it was not."""
    return next((t for t in range(begin, end) if listener.is_silent(attempt, float(t))), None)


def test_an_agent_that_stops_speaking_is_silent_after_the_limit(store, listener):
    for second in range(50):
        speak(store, second)
        assert not listener.is_silent(1, float(second))
    silent = silent_at(listener, 50, 400)
    assert silent is not None
    assert 50 + SILENT_S - SILENT_S / 10 <= silent <= 50 + SILENT_S + SILENT_S / 5


def test_an_agent_that_never_spoke_is_silent_too(listener):
    silent = silent_at(listener, 1000, 1400)
    assert silent is not None
    assert 1000 + SILENT_S < silent <= 1000 + SILENT_S + SILENT_S / 5


def test_an_agent_that_speaks_just_in_time_never_is(store, listener):
    for second in range(1000):
        if second % 80 == 0:
            speak(store, second)
        assert not listener.is_silent(1, float(second))


def test_what_others_say_does_not_count(store, listener):
    silences = []
    for second in range(300):
        speak(store, second, attempt=None, writer="supervisor")
        speak(store, second, attempt=2, writer="another-agent")
        silences.append(listener.is_silent(1, float(second)))
    assert not any(silences[: int(SILENT_S)])
    assert any(silences)


def test_the_next_attempt_has_the_whole_time_again(listener):
    assert silent_at(listener, 0, 90) is None
    assert silent_at(listener, 90, 180, attempt=2) is None


def test_a_store_that_cannot_be_read_is_no_silence(store, listener, monkeypatch):
    speak(store, 0)
    assert silent_at(listener, 0, 90) is None

    def fail(prefix: str):
        raise StoreUnreachable("no answer", "Try again.")

    with monkeypatch.context() as broken:
        broken.setattr(listener._heartbeats._store, "list", fail)
        assert silent_at(listener, 90, 1000) is None
    # The 90 seconds before it count, those in which nothing could be read do not.
    silent = silent_at(listener, 1000, 1300)
    assert silent is not None
    assert silent <= 1000 + SILENT_S / 5


def test_a_listener_that_stood_still_has_not_listened(store, listener):
    speak(store, 0)
    assert silent_at(listener, 0, 60) is None
    assert not listener.is_silent(1, 5000.0)  # a laptop that was closed
    assert silent_at(listener, 5001, 5090) is None
