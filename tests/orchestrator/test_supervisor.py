"""The local supervisor beside a node that is stood in for."""

from __future__ import annotations

import secrets
from types import SimpleNamespace

from checkpoints.store import open_store
from orchestrator.clock import SystemClock
from orchestrator.cloud.local import supervisor
from orchestrator.ledger.facts import RunLaunched
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.record import create_record
from orchestrator.ledger.requests import Request, RequestKind, ask, read_requests
from tests.orchestrator.histories import make_record


def test_a_new_node_does_not_obey_what_was_asked_of_the_one_before(tmp_path, monkeypatch):
    """As when more budget is given while a node that was to stop for the old one saves."""
    store, clock = open_store(f"memory://{secrets.token_hex(4)}"), SystemClock()
    record = make_record(local={"time_scale": 600, "preemptions": []})
    record = record.model_copy(update={"created_at": clock.now()})
    create_record(store, record)
    launched = Journal(store, "cli", clock).note(RunLaunched(host="laptop"))
    for kind in RequestKind:
        ask(store, Request(kind=kind, at=clock.now(), by="supervisor", launched_at=launched.at))
    started = []
    monkeypatch.setattr(
        supervisor,
        "start_node",
        lambda nodes, config: started.append(config) or SimpleNamespace(launch=config.launch),
    )
    supervisor.Supervisor(store, record, tmp_path, clock)._tick()
    assert len(started) == 1
    assert read_requests(store) == []
