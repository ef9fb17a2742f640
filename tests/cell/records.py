"""What crosses the cell's control socket: instances, events and requests for them."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A message of the control socket, or a line of the event log."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class State(str, Enum):
    """What the cloud says of an instance."""

    PENDING = "pending"
    RUNNING = "running"
    TERMINATED = "terminated"


class Reason(str, Enum):
    """Why an instance ended."""

    PREEMPTED = "preempted"
    REQUESTED = "requested"
    CRASHED = "crashed"


class Instance(Record):
    """One node as the cloud knows it; `deadline` is when an announced preemption takes it."""

    id: str
    cluster: str
    cloud: str
    region: str
    zone: str
    instance_type: str
    spot: bool
    user: str
    ip: str
    head: bool
    state: State
    launched: datetime
    deadline: datetime | None = None
    warned: datetime | None = None
    ended: datetime | None = None
    reason: Reason | None = None

    @property
    def is_alive(self) -> bool:
        return self.state is not State.TERMINATED


class Event(Record):
    """What happened in the cell, by its own clock: the ground truth that tests compare with."""

    at: datetime
    kind: str
    instance: str | None = None
    cluster: str | None = None
    detail: dict[str, Any] = Field(default={})


class Launch(Record):
    """Ask for `count` instances in the first of these zones that has them all."""

    cluster: str
    cloud: str
    region: str
    zones: tuple[str, ...]
    instance_type: str
    spot: bool
    count: int
    user: str
    public_key: str


class Refusal(Record):
    """No zone has the capacity; `code` is the cloud's own word for that."""

    code: str
    message: str


class Terminate(Record):
    """End a cluster's instances, as its owner asks."""

    cluster: str
    cloud: str
    worker_only: bool = False


class Preempt(Record):
    """Take instances back, by id or by cluster; None means the usual notice."""

    target: str
    notice_seconds: float | None = None
    capacity: dict[str, int] = Field(default={})


class Warn(Record):
    """Say that an instance is at risk (AWS' rebalance recommendation)."""

    target: str


class Nothing(Record):
    """Neither asks nor tells anything."""


class ServerStart(Record):
    """Start SkyPilot's API server, unless it runs; `restart` ends the one that does."""

    restart: bool = False


class Pids(Record):
    """The processes that a request ended or found, by their numbers inside the cell."""

    pids: tuple[int, ...]
