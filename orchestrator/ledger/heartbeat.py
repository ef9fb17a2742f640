"""Heartbeats: small objects that their one writer overwrites, proof that it lives."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.errors import ObjectMissing
from checkpoints.layout import HEARTBEATS, heartbeat_key
from checkpoints.store import ObjectStore
from orchestrator.ledger.facts import Instant


class Heartbeat(BaseModel):
    """Who lives, since when it says so and how far it is."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    writer: str
    at: Instant
    host: str
    pid: int
    attempt: int | None = None
    step: int | None = None


def beat(store: ObjectStore, heartbeat: Heartbeat) -> None:
    """Overwrite the writer's heartbeat."""
    store.put(heartbeat_key(heartbeat.writer), heartbeat.model_dump_json().encode())


def read_heartbeats(store: ObjectStore) -> list[Heartbeat]:
    """Return every heartbeat, latest first; one that does not parse proves nothing."""
    heartbeats = []
    for entry in store.list(HEARTBEATS):
        try:
            heartbeats.append(Heartbeat.model_validate_json(store.get(entry.key).data))
        except (ObjectMissing, ValidationError):
            continue
    return sorted(heartbeats, key=lambda heartbeat: heartbeat.at, reverse=True)
