"""What trainers measured: the records that agents uploaded to steps/, attempt by attempt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from checkpoints.layout import STEPS, parse_steps_key
from checkpoints.store import ObjectStore
from orchestrator.errors import unreadable
from orchestrator.ledger.fetching import fetch
from train.spool import Evaluated, Phase, Record, Step

_FIELDS: dict[type, set[str]] = {}
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One trainer record and the attempt that it comes from."""

    attempt: int
    record: Record


class MeasurementReader:
    """Reads steps/ again and again; its objects are immutable, so each is fetched once."""

    def __init__(self, store: ObjectStore, attempt: int | None = None) -> None:
        """Read all attempts, or one."""
        self._store = store
        self._prefix = STEPS if attempt is None else f"{STEPS}{attempt:06d}/"
        self._by_key: dict[str, list[Measured]] = {}
        self._ordered: list[Measured] = []
        self._last_key = ""

    def read(self) -> Sequence[Measured]:
        """Return every record, in the order of attempts and of writing."""
        there = {e.key: parse_steps_key(e.key) for e in self._store.list(self._prefix)}
        new = {
            key: attempt
            for key, attempt in there.items()
            if attempt is not None and key not in self._by_key
        }
        for key, data in fetch(self._store, list(new)):
            if data is not None:  # else deleted meanwhile, with its run
                self._add(key, _parse(key, new[key], data))
        return self._ordered

    def _add(self, key: str, records: list[Measured]) -> None:
        self._by_key[key] = records
        if key > self._last_key:
            self._ordered += records
            self._last_key = key
        else:
            # A zombie of an earlier attempt wrote late: rare, so everything is put in order again.
            in_order = sorted(self._by_key)
            self._ordered = [measured for one in in_order for measured in self._by_key[one]]


def steps_of(measured: Sequence[Measured]) -> list[tuple[int, Step]]:
    """Return (attempt, step record) in order."""
    return [(one.attempt, one.record) for one in measured if isinstance(one.record, Step)]


def phases_of(measured: Sequence[Measured]) -> list[tuple[int, Phase]]:
    """Return (attempt, phase record) in order."""
    return [(one.attempt, one.record) for one in measured if isinstance(one.record, Phase)]


def evaluations_of(measured: Sequence[Measured]) -> list[Evaluated]:
    """Return the evaluations by step; one that was made again counts once."""
    by_step = {one.record.step: one.record for one in measured if isinstance(one.record, Evaluated)}
    return [by_step[step] for step in sorted(by_step)]


def latest_by_step(measured: Sequence[Measured]) -> dict[int, Step]:
    """Return the record of each step from the last attempt that took it."""
    return {record.step: record for _, record in steps_of(measured)}


def _parse(key: str, attempt: int, data: bytes) -> list[Measured]:
    try:
        records = [_slim(_RECORD.validate_json(line)) for line in data.splitlines()]
        return [Measured(attempt=attempt, record=record) for record in records]
    except ValidationError as error:
        raise unreadable(key, data, error, schema_version=1) from error


def _slim(record: Record) -> Record:
    """Have records of a kind share the set of fields that pydantic keeps with each one.

    Nothing asks which fields were given: of 100,000 steps these sets are 65 MB of 180.
    """
    fields = _FIELDS.setdefault(type(record), record.__pydantic_fields_set__)
    object.__setattr__(record, "__pydantic_fields_set__", fields)
    return record
