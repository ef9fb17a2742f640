"""What a service on clouds is made of: written once where its replicas read it, into a bucket.

The folder that holds it is that of its first model: a run's, or one of its own in the store.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from checkpoints.layout import service_key
from checkpoints.store import ObjectStore
from orchestrator.errors import unreadable
from orchestrator.inputs import InputFile
from orchestrator.ledger.facts import Instant, QuotedOffer

SCHEMA_VERSION = 1
PORT = 8000
"""Of each replica; sky/serve.yaml names it, too."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StagedModel(_Record):
    """A Hugging Face folder in a bucket, which every replica fetches and verifies."""

    name: str
    """By which requests ask for it."""
    folder: str
    """URL of the run folder, or of the model's own."""
    checkpoint: str
    """Which of the folder's exports it is."""
    files: tuple[InputFile, ...]
    is_run: bool
    """Whether the folder has a ledger, to which the replicas' cost belongs."""

    @property
    def num_bytes(self) -> int:
        """Bytes to fetch, nearly all of them weights."""
        return sum(file.size for file in self.files)


class ServiceRecord(_Record):
    """One service, as it was started."""

    schema_version: Literal[1] = 1
    service: str
    service_id: str
    """The service's name and what no other of that name has."""
    created_at: Instant
    models: tuple[StagedModel, ...] = Field(min_length=1)
    offers: tuple[QuotedOffer, ...] = Field(min_length=1)
    """Prices by which replicas are charged, frozen when the service was started."""
    max_concurrent: int = Field(ge=1)
    """Requests that a replica answers at a time."""
    max_queued: int = Field(ge=0)
    """Requests that wait for that; more are refused."""


def create_service(store: ObjectStore, record: ServiceRecord) -> None:
    """Write the record; no other has its id."""
    store.create(service_key(record.service_id), record.model_dump_json().encode())


def read_service(store: ObjectStore, service_id: str) -> ServiceRecord:
    """Return the record.

    Raises:
        ObjectMissing: there is none.
        RecordUnreadable: it is damaged, or of a newer version.
    """
    key = service_key(service_id)
    data = store.get(key).data
    try:
        return ServiceRecord.model_validate_json(data)
    except ValidationError as error:
        raise unreadable(f"The service's record {key}", data, error, SCHEMA_VERSION) from error
