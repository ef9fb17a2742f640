"""A run on two clouds in a folder, to compare bills with."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from checkpoints.store import ObjectStore, open_store
from orchestrator.attempts import EndReason
from orchestrator.home import run_home
from orchestrator.ledger.record import create_record
from orchestrator.runs import remember_run
from tests.orchestrator.histories import START, Ledger, make_offer, make_record

RUN_ID = "demo-1"
HOUR = 3600.0


def make_run(folder: Path, *, started_at: datetime = START, **changes: Any) -> ObjectStore:
    """Store, remember and return a run: 2 h on AWS for $20, then 1 h on Google Cloud for $20."""
    url = (folder / "store").as_uri()
    store = open_store(f"{url}/demo")
    record = make_record(infra=["aws", "gcp"], local=None, store="s3://bucket/runs").model_copy(
        update={"simulated": False, "created_at": started_at, **changes}
    )
    create_record(store, record)
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 1, until=2 + 2 * HOUR, attempt=1, offer=make_offer("us-west-2"))
    ledger.commit(600, attempt=1, step=4, num_bytes=10**10)
    there = make_offer("us-central1", usd="20", cloud="gcp")
    reason = EndReason.SUCCEEDED
    begins = 3 * HOUR
    ledger.launch("two", begins, until=begins + 1 + HOUR, attempt=2, reason=reason, offer=there)
    ledger.ended(begins + 2 + HOUR)
    put(store, ledger, started_at - START)
    remember_run(run_home(url, "demo"), "demo", url)
    return store


def put(store: ObjectStore, ledger: Ledger, later: timedelta = timedelta()) -> None:
    """Store a ledger's facts, so much later than they say."""
    for entry in ledger.entries:
        moved = _moved(entry.model_dump(mode="json"), later)
        key = f"events/{entry.writer}/{entry.number:08d}.jsonl"
        store.create(key, type(entry).model_validate(moved).model_dump_json().encode())


def _moved(entry: dict[str, Any], later: timedelta) -> dict[str, Any]:
    body = entry["body"]
    if body.get("launched_at"):
        body["launched_at"] = datetime.fromisoformat(_plain(body["launched_at"])) + later
    return {**entry, "at": datetime.fromisoformat(_plain(entry["at"])) + later}


def _plain(instant: str) -> str:
    return instant.replace("Z", "+00:00")


def days_ago(days: int) -> datetime:
    """Return noon of a day before today, in UTC."""
    today = datetime.now(timezone.utc).replace(hour=12, minute=0, second=0, microsecond=0)
    return today - timedelta(days=days)
