"""Write and read the ledger: immutable event objects in the run folder, many writers."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from checkpoints.errors import ObjectExists
from checkpoints.layout import EVENTS, event_key, is_event_key
from checkpoints.store import ObjectStore
from orchestrator.clock import Clock
from orchestrator.ledger.facts import Entry, Fact, parse_entries
from orchestrator.ledger.fetching import fetch

# The least that one instant can be later than another.
_NEXT = timedelta(microseconds=1)


def new_writer(role: str) -> str:
    """Return a name that no other process writes under."""
    return f"{role}-{secrets.token_hex(4)}"


class Journal:
    """One process's end of the ledger. Facts are kept until `flush` has stored them."""

    def __init__(self, store: ObjectStore, role: str, clock: Clock) -> None:
        self.writer = new_writer(role)
        self._store = store
        self._clock = clock
        self._pending: list[Entry] = []
        self._number = 0
        self._num_objects = 0

    def record(self, body: Fact, *, after: datetime | None = None) -> Entry:
        """Add one fact at the present instant; it is durable after the next `flush`.

        It is later than `after`, even where this machine's clock is behind the one that told that.
        """
        at = self._clock.now()
        if after is not None:
            at = max(at, after + _NEXT)
        entry = Entry(writer=self.writer, number=self._number, at=at, body=body)
        self._number += 1
        self._pending.append(entry)
        return entry

    def flush(self) -> None:
        """Store what is pending as one object.

        Raises:
            StoreError: nothing is lost, and the next flush tries again.
        """
        if not self._pending:
            return
        key = event_key(self.writer, self._num_objects)
        lines = b"\n".join(entry.model_dump_json().encode() for entry in self._pending)
        try:
            self._store.create(key, lines)
        except ObjectExists:
            # Nobody else writes under our name: an earlier try had succeeded with its reply lost.
            # It may have held fewer facts; the rest goes into the next object.
            stored = {entry.number for entry in parse_entries(self._store.get(key).data, key)}
            self._pending = [entry for entry in self._pending if entry.number not in stored]
            self._num_objects += 1
            self.flush()
            return
        self._num_objects += 1
        self._pending = []

    def note(self, body: Fact, *, after: datetime | None = None) -> Entry:
        """Record one fact and make it durable."""
        entry = self.record(body, after=after)
        self.flush()
        return entry


class LedgerReader:
    """Reads the ledger again and again; objects are immutable, so each is fetched once."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._read_keys: set[str] = set()
        self._entries: dict[tuple[str, int], Entry] = {}
        self._ordered: list[Entry] = []

    def read(self) -> list[Entry]:
        """Return every entry that is there now, each once, in the order all readers agree on."""
        there = [one.key for one in self._store.list(EVENTS) if is_event_key(one.key)]
        new = [key for key in there if key not in self._read_keys]
        for key, data in fetch(self._store, new):
            if data is not None:  # else deleted meanwhile, with its run
                self._read_keys.add(key)
                for entry in parse_entries(data, key):
                    self._entries[entry.writer, entry.number] = entry
        if len(self._ordered) != len(self._entries):
            self._ordered = sorted(self._entries.values(), key=lambda entry: entry.order)
        return self._ordered
