"""Heartbeats: small objects that their one writer overwrites, proof that it lives."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.errors import ObjectMissing
from checkpoints.layout import HEARTBEATS, heartbeat_key
from checkpoints.store import ObjectStore
from orchestrator.ledger.facts import Instant

# When a node on a cloud is gone whose owner is silent: the lease is 15 minutes, a save two, and
# SkyPilot takes an idle node down after 10 more.
SILENT_NODE_STOPS_AFTER = timedelta(minutes=27)


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


def last_beat_at(store: ObjectStore, attempt: int | None) -> datetime | None:
    """Return when the agent of an attempt was last heard, None if it never was."""
    beats = [
        one.at for one in read_heartbeats(store) if attempt is not None and one.attempt == attempt
    ]
    return max(beats, default=None)
