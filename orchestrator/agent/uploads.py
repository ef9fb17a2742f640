"""Carry what the trainer leaves on the node's disk to the run folder: records and log lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from checkpoints.layout import log_key, node_log_prefix, steps_key
from checkpoints.store import ObjectStore
from train.spool import (
    Flush,
    Record,
    keep_room,
    read_records,
    spool_path,
    uploaded_path,
    write_uploaded,
)


class SpoolUploader:
    """Uploads the trainer's records as objects of steps/; an object never changes."""

    def __init__(self, store: ObjectStore, attempt: int, spool_dir: Path) -> None:
        self._store = store
        self._attempt = attempt
        self._spool_dir = spool_dir
        keep_room(uploaded_path(spool_dir))
        self._offset = 0
        self._num_objects = 0
        self._pending: list[Record] = []
        self._unsure: bytes | None = None
        self.wants_upload = False
        """The trainer waits for what it wrote to be uploaded."""

    def collect(self) -> Sequence[Record]:
        """Return the records that are new since the last call, and keep them for `upload`."""
        records, self._offset = read_records(spool_path(self._spool_dir), self._offset)
        self.wants_upload |= any(isinstance(record, Flush) for record in records)
        fresh = [record for record in records if not isinstance(record, Flush)]
        self._pending += fresh
        return fresh

    def upload(self) -> None:
        """Store what is pending and tell the trainer how far it is safe.

        Raises:
            StoreError: nothing is lost, and the next call tries again.
        """
        while self._pending or self._unsure is not None:
            if self._unsure is None:
                # Frozen until its put is known to have succeeded: a retry writes the same bytes.
                lines = (record.model_dump_json().encode() for record in self._pending)
                self._unsure, self._pending = b"\n".join(lines), []
            self._store.put(steps_key(self._attempt, self._num_objects), self._unsure)
            self._num_objects += 1
            self._unsure = None
        if self._offset:
            write_uploaded(self._spool_dir, self._offset)
        self.wants_upload = False


class LogUploader:
    """Uploads a growing log file piece by piece; names of nodes but the first tell which."""

    def __init__(self, store: ObjectStore, attempt: int, path: Path, node: int = 0) -> None:
        self._store = store
        self._attempt = attempt
        self._path = path
        self._prefix = node_log_prefix(node)
        self._offset = 0
        self._num_objects = 0
        self._unsure = b""

    def upload(self) -> None:
        """Store what has been added; raises StoreError, and the next call tries again."""
        if not self._unsure:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                self._unsure = file.read()
        if not self._unsure:
            return
        self._store.put(
            log_key(self._attempt, f"{self._prefix}{self._num_objects:08d}.log"), self._unsure
        )
        self._offset += len(self._unsure)
        self._num_objects += 1
        self._unsure = b""
