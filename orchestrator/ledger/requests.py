"""Requests to whoever runs the job: stop (save and end) or drain (save and go elsewhere)."""

from __future__ import annotations

from datetime import datetime
from enum import Enum

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.errors import ObjectMissing
from checkpoints.layout import REQUESTS, request_key
from checkpoints.store import ObjectStore
from orchestrator.ledger.facts import Instant


class RequestKind(str, Enum):
    """What is asked for."""

    STOP = "stop"
    DRAIN = "drain"


class Request(BaseModel):
    """One request; it stands until the run is launched again."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: RequestKind
    at: Instant
    by: str
    launched_at: Instant | None = None
    """Which launch of the run it is meant for, whatever the clocks say; None: by the clocks."""

    def is_meant_for(self, launched_at: datetime) -> bool:
        """Say whether this concerns the launch of the run at that instant."""
        if self.launched_at is not None:
            return self.launched_at == launched_at
        return self.at >= launched_at


def ask(store: ObjectStore, request: Request) -> None:
    """Leave a request; asking twice for the same is the same."""
    store.put(request_key(request.kind.value), request.model_dump_json().encode())


def read_requests(store: ObjectStore) -> list[Request]:
    """Return the standing requests; one that does not parse asks for nothing."""
    requests = []
    for entry in store.list(REQUESTS):
        try:
            requests.append(Request.model_validate_json(store.get(entry.key).data))
        except (ObjectMissing, ValidationError):
            continue
    return requests


def withdraw(store: ObjectStore, kind: RequestKind) -> None:
    """Withdraw a request that has been met; that none stands is no error."""
    store.delete([request_key(kind.value)])


def clear_requests(store: ObjectStore) -> None:
    """Withdraw every request, when the run is launched again."""
    store.delete([entry.key for entry in store.list(REQUESTS)])
