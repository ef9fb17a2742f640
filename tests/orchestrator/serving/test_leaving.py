"""A replica at the cloud's notice: real router, workers without a model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
import pytest

from checkpoints.store import open_store
from orchestrator.clock import SystemClock
from orchestrator.ledger.facts import QuotedOffer, ReplicaEndReason
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.serving.group import Group
from orchestrator.serving.leaving import serve_until_told
from orchestrator.serving.models import ServedModel
from orchestrator.serving.processes import free_port
from orchestrator.serving.replica_facts import ReplicaFacts
from orchestrator.serving.router import Address, Limits
from tests.orchestrator.histories import make_offer, make_record
from tests.orchestrator.serving.small_server import start

# Half of it is for what still comes, 5 s for the router to close its port.
NOTICE = timedelta(seconds=16)


class Client:
    """A load balancer's view of the replica."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        return httpx.get(f"{self._url}/readiness").status_code == 200

    def ask(self, seconds: float = 0) -> str:
        what = json.dumps({"first": seconds, "words": 0, "pause": 0})
        body = {"model": "one", "messages": [{"role": "user", "content": what}]}
        answer = httpx.post(f"{self._url}/v1/chat/completions", json=body, timeout=60)
        return str(answer.raise_for_status().json()["choices"][0]["message"]["content"])

    def wait_until(self, is_so) -> None:
        give_up_at = time.monotonic() + 30
        while not self._is(is_so):
            assert time.monotonic() < give_up_at
            time.sleep(0.1)

    def _is(self, is_so) -> bool:
        try:
            return bool(is_so())
        except httpx.ConnectError:
            return False


def make_group(folder: Path, *, replicas: int = 1, say: Callable[[str], None] = print) -> Group:
    return Group(
        models=[ServedModel(name="one", folder=folder)],
        replicas=replicas,
        start=start,
        address=Address(host="127.0.0.1", port=free_port()),
        limits=Limits(max_concurrent=8, max_queued=8),
        folder=folder,
        say=say,
    )


@pytest.mark.slow
def test_at_the_notice_readiness_ends_first_and_no_answer_is_lost(tmp_path):
    store, clock, stop = open_store("memory://leaving"), SystemClock(), threading.Event()
    facts = ReplicaFacts([(store, 1)], "chat-1", clock)
    facts.started("chat", QuotedOffer.quote(make_offer()), 1, clock.now())
    told: list[datetime] = []
    heard: list[object] = []
    client = Client(port := free_port())

    def use() -> None:
        client.wait_until(client.is_ready)
        told.append(datetime.now(timezone.utc) + NOTICE)
        slow = threading.Thread(target=lambda: heard.append(client.ask(seconds=9)))
        slow.start()
        client.wait_until(lambda: not client.is_ready())
        heard.append(client.ask())
        slow.join()  # it goes on while connections are refused
        with pytest.raises(httpx.ConnectError):
            client.ask()
        heard.append("refused")
        stop.set()

    group = make_group(tmp_path)
    group.open()
    user = threading.Thread(target=use)
    user.start()
    reason = serve_until_told(group, port, lambda: told[0] if told else None, facts, stop, clock)
    user.join()
    facts.ended(reason)
    group.close()
    (worker,) = {one for one in heard if one != "refused"}
    assert heard == [worker, worker, "refused"]
    (replica,) = fold(make_record(), LedgerReader(store).read()).replicas
    assert (replica.leaves_at, reason) == (told[0], ReplicaEndReason.STOPPED)


@pytest.mark.slow
def test_a_notice_is_heeded_while_a_worker_is_looked_after(tmp_path):
    store, clock, stop = open_store("memory://busy"), SystemClock(), threading.Event()
    facts = ReplicaFacts([(store, 1)], "chat-1", clock)
    facts.started("chat", QuotedOffer.quote(make_offer()), 1, clock.now())
    told: list[datetime] = []
    client = Client(port := free_port())
    is_busy, may_go_on = threading.Event(), threading.Event()

    def look_after(line: str) -> None:
        is_busy.set()
        assert may_go_on.wait(30)

    group = make_group(tmp_path, replicas=2, say=look_after)
    group.open()

    def use() -> None:
        client.wait_until(client.is_ready)
        group.workers()[0].process.kill()
        assert is_busy.wait(30)
        told.append(datetime.now(timezone.utc) + NOTICE)
        client.wait_until(lambda: not client.is_ready())
        while fold(make_record(), LedgerReader(store).read()).replicas[0].leaves_at is None:
            assert datetime.now(timezone.utc) < told[0]
            time.sleep(0.1)
        stop.set()
        may_go_on.set()

    user = threading.Thread(target=use)
    user.start()
    serve_until_told(group, port, lambda: told[0] if told else None, facts, stop, clock)
    user.join()
    facts.ended(ReplicaEndReason.STOPPED)
    group.close()
    (replica,) = fold(make_record(), LedgerReader(store).read()).replicas
    assert replica.leaves_at == told[0]
