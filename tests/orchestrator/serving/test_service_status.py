"""How a service on clouds is, for people and for programs."""

from __future__ import annotations

from orchestrator.cli.serving_texts import render_status, status_document
from orchestrator.cloud.skypilot.service import ReplicaStatus, ServiceStatus
from tests.orchestrator.histories import START

READY = ReplicaStatus(replica=1, status="READY", place="AWS (us-east-1a)", is_spot=True)
COMING = ReplicaStatus(replica=2, status="PROVISIONING", place=None, is_spot=False)


def make_service(**changes: object) -> ServiceStatus:
    known = {
        "service": "chat",
        "status": "READY",
        "endpoint": "http://1.2.3.4:30001",
        "ready_since": START,
        "replicas": (READY, COMING),
    }
    return ServiceStatus(**{**known, **changes})


def test_people_see_where_replicas_are_and_how_they_were_bought():
    first, *rows = render_status(make_service()).splitlines()
    assert first.startswith("chat READY since 2026-11-22")
    assert first.endswith("http://1.2.3.4:30001")
    assert [row.split() for row in rows] == [
        ["1", "READY", "spot", "AWS", "(us-east-1a)"],
        ["2", "PROVISIONING", "on_demand", "-"],
    ]


def test_one_without_an_address_yet_says_so():
    coming = make_service(endpoint=None, ready_since=None, status="CONTROLLER_INIT", replicas=())
    assert render_status(coming) == "chat CONTROLLER_INIT · no address yet"


def test_programs_read_one_document():
    document = status_document([make_service()])
    assert next(iter(document)) == "schema_version"
    (service,) = document["services"]
    assert service["ready_since"] == START.isoformat()
    assert [one["market"] for one in service["replicas"]] == ["spot", "on_demand"]
