"""Heartbeats: small objects that their one writer overwrites, proof that it lives."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.errors import ObjectMissing, StoreError
from checkpoints.layout import HEARTBEATS, heartbeat_key
from checkpoints.store import ObjectStore
from orchestrator.ledger.facts import Instant

# When a node on a cloud is gone whose owner and agent are silent: the lease is 15 minutes at most,
# a save two, and SkyPilot takes a node down that the agent has left within three.
SILENT_NODE_STOPS_AFTER = timedelta(minutes=20)
# When an owner gives up a node on a cloud whose agent is silent. By then an agent that is only cut
# off from the store has left by itself: the lease is 15 minutes, a save two.
SILENT_AGENT_S = 20 * 60.0
# The same where it has not spoken yet: what it needs is being installed.
MUTE_AGENT_S = 60 * 60.0
# Looks at an agent's heartbeat in that time: each is a LIST that somebody pays for.
_LOOKS = 10


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
    found = [_get(store, entry.key) for entry in store.list(HEARTBEATS)]
    heartbeats = [heartbeat for heartbeat in found if heartbeat is not None]
    return sorted(heartbeats, key=lambda heartbeat: heartbeat.at, reverse=True)


class HeartbeatReader:
    """Reads the heartbeats again and again; those of writers that are gone are fetched once."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._read: dict[tuple[str, datetime], Heartbeat | None] = {}

    def read(self) -> list[Heartbeat]:
        """Return every heartbeat that is there now; one that does not parse proves nothing."""
        listed = [(entry.key, entry.modified_at) for entry in self._store.list(HEARTBEATS)]
        self._read = {
            one: self._read[one] if one in self._read else _get(self._store, one[0])
            for one in listed
        }
        return [found for found in self._read.values() if found is not None]


class Listener:
    """Notices that the agent of an attempt has been silent for `silent_s`, while we could hear it.

    Measured by the listener's own monotonic clock. Time in which the store could not be read does
    not count, and after one in which the listener itself stood still the wait begins anew.
    """

    def __init__(self, store: ObjectStore, silent_s: float) -> None:
        self._heartbeats = HeartbeatReader(store)
        self._silent_s = silent_s
        self._attempt: int | None = None
        self._beat: datetime | None = None
        self._heard_at = self._looked_at = 0.0

    def is_silent(self, attempt: int, now: float) -> bool:
        """Say whether the agent has been silent for too long at `now`, in monotonic seconds."""
        is_new, since_s = attempt != self._attempt, now - self._looked_at
        if not is_new and since_s < self._silent_s / _LOOKS:
            return False
        self._looked_at = now
        if is_new or since_s > self._silent_s / 2:
            self._attempt, self._heard_at = attempt, now
        try:
            beats = [one.at for one in self._heartbeats.read() if one.attempt == attempt]
        except StoreError:
            self._heard_at = min(now, self._heard_at + since_s)
            return False
        latest = max(beats, default=None)
        if latest != self._beat:
            self._beat, self._heard_at = latest, now
        return now - self._heard_at > self._silent_s


def silent_detail(seconds: float) -> str:
    """Return what the ledger says of a launch that was ended for its agent's silence."""
    return f"its agent was silent for {seconds:g} s"


def mute_detail(seconds: float) -> str:
    """Return the same of one whose agent never spoke."""
    return f"its agent said nothing within {seconds:g} s"


def last_beat_at(store: ObjectStore, attempt: int | None) -> datetime | None:
    """Return when the agent of an attempt was last heard, None if it never was."""
    beats = [
        one.at for one in read_heartbeats(store) if attempt is not None and one.attempt == attempt
    ]
    return max(beats, default=None)


def _get(store: ObjectStore, key: str) -> Heartbeat | None:
    try:
        return Heartbeat.model_validate_json(store.get(key).data)
    except (ObjectMissing, ValidationError):
        return None
