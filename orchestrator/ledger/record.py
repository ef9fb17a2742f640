"""run.json: what a run is, written once at its first launch and never changed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.errors import ObjectExists, ObjectMissing
from checkpoints.layout import RUN_KEY
from checkpoints.store import ObjectStore
from orchestrator.errors import RunConflict, unreadable
from orchestrator.inputs import InputFile
from orchestrator.ledger.facts import Instant, QuotedOffer
from orchestrator.spec import AMENDABLE, RunSpec

# 2 has the forecast.
SCHEMA_VERSION = 2


class Percentiles(BaseModel):
    """What one run in ten, one in two and nine in ten stay within; None: it does not finish."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    p10: float | None
    p50: float | None
    p90: float | None


class RecordedForecast(BaseModel):
    """What was expected of the run at its launch."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    hours: Percentiles
    usd: Percentiles
    work_hours: float
    """Of training, saves among it, that it was made for."""


class RunRecord(BaseModel):
    """The resolved spec with everything that was decided at launch."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1, 2] = 2
    run: str
    run_id: str
    """Unique over all runs of that name anywhere; also the id in W&B."""
    created_at: Instant
    code_version: str
    spec: RunSpec
    num_steps: int
    offers: tuple[QuotedOffer, ...]
    prices_source: str
    home_place: tuple[str, str]
    """Cloud and region that the run's bucket is counted in, for egress."""
    inputs: tuple[InputFile, ...]
    simulated: bool
    threads_per_rank: int
    """The same for every attempt, or replayed steps would differ in their last bits."""
    forecast: RecordedForecast | None = None
    """None where nothing was known of the work, and in records of version 1."""

    def identity(self) -> dict[str, Any]:
        """Return what two launches must share to be the same run."""
        spec = self.spec.model_dump(mode="json", exclude=set(AMENDABLE))
        inputs = sorted((file.name, file.sha256) for file in self.inputs)
        return {"spec": spec, "num_steps": self.num_steps, "inputs": inputs}


def read_record(store: ObjectStore) -> RunRecord | None:
    """Return the run's record, None if there is no run here.

    Raises:
        RecordUnreadable: it does not parse.
    """
    try:
        data = store.get(RUN_KEY).data
    except ObjectMissing:
        return None
    try:
        return RunRecord.model_validate_json(data)
    except ValidationError as error:
        raise unreadable(f"{store.url}/{RUN_KEY}", data, error, SCHEMA_VERSION) from error


def create_record(store: ObjectStore, record: RunRecord) -> RunRecord:
    """Write the record if the run is new; else return the one that is there.

    Raises:
        RunConflict: the store holds a different run of that name.
    """
    try:
        store.create(RUN_KEY, record.model_dump_json(indent=1).encode())
    except ObjectExists:
        existing = read_record(store)
        assert existing is not None
        require_same_run(store, existing, record)
        return existing
    return record


def require_same_run(store: ObjectStore, existing: RunRecord, wanted: RunRecord) -> None:
    """Raise RunConflict unless both records describe the same run."""
    before, after = existing.identity(), wanted.identity()
    if before == after:
        return
    raise RunConflict(
        f"{store.url} holds a different run of that name ({_first_difference(before, after)}).",
        "Choose another name (--set name=...), or end that one: orchestrate delete "
        f"{existing.run}.",
    )


def _first_difference(before: Any, after: Any, path: str = "") -> str:  # noqa: ANN401  # JSON
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                inner = key if path in ("", "spec") else f"{path}.{key}"
                return _first_difference(before.get(key), after.get(key), inner)
    if path == "inputs":
        return "its prepared data or model files differ"
    return f"{path} was {before!r:.60} and is {after!r:.60}"
