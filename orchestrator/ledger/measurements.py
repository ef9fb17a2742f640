"""What trainers measured: the records that agents uploaded to steps/, attempt by attempt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from checkpoints.layout import STEPS
from checkpoints.store import ObjectStore
from orchestrator.errors import RecordUnreadable
from train.spool import Evaluated, Phase, Record, Step

_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One trainer record and the attempt that it comes from."""

    attempt: int
    record: Record


class MeasurementReader:
    """Reads steps/ again and again; its objects are immutable, so each is fetched once."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._by_key: dict[str, list[Measured]] = {}
        self._ordered: list[Measured] = []

    def read(self) -> list[Measured]:
        """Return every record, in the order of attempts and of writing."""
        fresh = [entry.key for entry in self._store.list(STEPS) if entry.key not in self._by_key]
        for key in fresh:
            self._by_key[key] = _parse(key, self._store.get(key).data)
        if fresh:
            in_order = sorted(self._by_key)
            self._ordered = [measured for key in in_order for measured in self._by_key[key]]
        return self._ordered


def steps_of(measured: Sequence[Measured]) -> list[tuple[int, Step]]:
    """Return (attempt, step record) in order."""
    return [(one.attempt, one.record) for one in measured if isinstance(one.record, Step)]


def phases_of(measured: Sequence[Measured]) -> list[tuple[int, Phase]]:
    """Return (attempt, phase record) in order."""
    return [(one.attempt, one.record) for one in measured if isinstance(one.record, Phase)]


def evaluations_of(measured: Sequence[Measured]) -> list[Evaluated]:
    """Return the evaluations in order."""
    return [one.record for one in measured if isinstance(one.record, Evaluated)]


def latest_by_step(measured: Sequence[Measured]) -> dict[int, Step]:
    """Return the record of each step from the last attempt that took it."""
    return {record.step: record for _, record in steps_of(measured)}


def _parse(key: str, data: bytes) -> list[Measured]:
    attempt = int(key.split("/")[1])
    try:
        return [
            Measured(attempt=attempt, record=_RECORD.validate_json(line))
            for line in data.splitlines()
        ]
    except ValidationError as error:
        raise RecordUnreadable(
            f"{key} holds a record that does not parse: {error.errors()[0]['msg']}.",
            "Read the run with the version that wrote it, or a newer one.",
        ) from error
