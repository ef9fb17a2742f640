"""A process' way to the run's store, on which requests and replies are lost.

The objects are those of the store in memory, which passes the contract of all stores. A client
tries again by itself, so that a conditional write that succeeded may be answered with a conflict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from greenlet import GreenletExit

from checkpoints.errors import ObjectExists, StoreRefused, StoreUnreachable, VersionMismatch
from checkpoints.store import ObjectStore
from tests.simulation.loop import Process

# What a client waits before it gives a request up.
_TIMEOUT_S = 60.0
CHANGES = ("put", "create", "replace", "delete")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What becomes of one request."""

    latency_s: float
    """Before it and after it."""
    fault: str | None = None
    stall_s: float = 0.0
    """How long its process stands still before it."""


class SimulatedStore:
    """An ObjectStore for the threads of one process; `weather` decides what goes wrong."""

    def __init__(
        self,
        store: ObjectStore,
        process: Process,
        weather: Callable[[Process, str, str], Weather],
        note_change: Callable[[Process, str, str], None],
        note_conflict: Callable[[], None],
    ) -> None:
        self.url = store.url
        self._store, self._process, self._weather = store, process, weather
        self._note_change, self._note_conflict = note_change, note_conflict

    def get(self, key):
        return self._ask("get", key)

    def read_into(self, key, start, buffers):
        return self._ask("read_into", key, start, buffers)

    def put(self, key, data):
        whole = data if isinstance(data, (bytes, bytearray, memoryview)) else b"".join(data)
        return self._ask("put", key, bytes(whole))

    def create(self, key, data):
        return self._ask("create", key, data)

    def replace(self, key, data, version):
        return self._ask("replace", key, data, version)

    def list(self, prefix):
        return self._ask("list", prefix)

    def delete(self, keys):
        wanted = [*keys]
        return self._ask("delete", " ".join(wanted), given=(wanted,))

    def _ask(self, operation, key, *arguments, given=None):
        process = self._process
        weather = self._weather(process, operation, key)
        process.pause(weather.latency_s + weather.stall_s)
        match weather.fault:
            case "lost request":
                process.pause(_TIMEOUT_S)
                raise StoreUnreachable(f"{key}: no answer", "Try again.")
            case "refused":
                raise StoreRefused(f"{key}: 403 ExpiredToken", "Renew the credentials.")
            case "lost though acknowledged":
                return None
            case "cut though acknowledged":
                (data,) = arguments
                arguments = (data[: len(data) // 2],)
            case "conflict, for no reason":
                raise VersionMismatch(f"{key}: 412", "Read it again.")
            case "killed before":
                process.kill()
                raise GreenletExit
        result = self._do(operation, key, given or (key, *arguments))
        match weather.fault:
            case "killed after":
                process.kill()
                raise GreenletExit
            case "lost reply":
                process.pause(_TIMEOUT_S)
                raise StoreUnreachable(f"{key}: no answer", "Try again.")
            case "tried again by the client":
                process.pause(weather.latency_s)
                result = self._do(operation, key, given or (key, *arguments))
        process.pause(weather.latency_s)
        return result

    def _do(self, operation, key, arguments):
        try:
            result = getattr(self._store, operation)(*arguments)
        except (ObjectExists, VersionMismatch):
            self._note_conflict()
            raise
        if operation in CHANGES:
            self._note_change(self._process, operation, key)
        return result
