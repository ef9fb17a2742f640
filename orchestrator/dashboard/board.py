"""The runs that a served dashboard shows: looked at again only after a while, and one by one."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field

from checkpoints.errors import CheckpointError
from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError, UnknownRun
from orchestrator.runs import KnownRun, list_runs
from orchestrator.view import RunView, RunViewer

# Seconds after which a run that goes on, one that has ended, and the list of runs are looked at
# again, and a store that could not be read is tried again.
_LIVE, _ENDED, _LIST, _BROKEN = 2.0, 60.0, 5.0, 10.0


@dataclass(slots=True)
class _Watched:
    """One run: what was seen of it last, or why nothing can be."""

    known: KnownRun
    lock: threading.Lock = field(default_factory=threading.Lock)
    viewer: RunViewer | None = None
    view: RunView | None = None
    error: str | None = None
    stale_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A run on the board: its view, or why it cannot be read."""

    key: str
    known: KnownRun
    view: RunView | None
    error: str | None


class Board:
    """Looks at runs for whoever asks, from several threads."""

    def __init__(self, store: str | None, clock: Clock) -> None:
        """Show the runs in `store`, or those that this machine knows."""
        self._store, self._clock = store, clock
        self._lock = threading.Lock()
        self._runs: dict[str, _Watched] = {}
        self._listed_until = 0.0

    def every(self) -> list[Seen]:
        """Return all runs, those launched last first; the ones that cannot be read at the end.

        Raises:
            CheckpointError: the store itself cannot be listed.
        """
        seen = [self._seen(key, one) for key, one in self._list().items()]
        seen.sort(key=lambda one: -one.view.record.created_at.timestamp() if one.view else 0.0)
        return seen

    def one(self, key: str) -> Seen:
        """Return the run of a key.

        Raises:
            UnknownRun: there is none.
            CheckpointError: the store itself cannot be listed.
        """
        found = self._list().get(key)
        if found is None:
            raise UnknownRun("There is no such run.", "See the list of runs.")
        return self._seen(key, found)

    def _list(self) -> dict[str, _Watched]:
        with self._lock:
            if time.monotonic() >= self._listed_until:
                self._runs = {
                    (key := key_of(known)): self._runs.get(key) or _Watched(known)
                    for known in list_runs(self._store)
                }
                self._listed_until = time.monotonic() + _LIST
            return dict(self._runs)

    def _seen(self, key: str, one: _Watched) -> Seen:
        with one.lock:
            if time.monotonic() >= one.stale_at:
                self._look(one)
            return Seen(key=key, known=one.known, view=one.view, error=one.error)

    def _look(self, one: _Watched) -> None:
        try:
            one.viewer = one.viewer or RunViewer(one.known.open())
            one.view, one.error = one.viewer.look(self._clock.now()), None
        except (OrchestratorError, CheckpointError) as error:
            one.view, one.error = None, error.what
            one.stale_at = time.monotonic() + _BROKEN
            return
        is_over = one.view.state.ended is not None
        one.stale_at = time.monotonic() + (_ENDED if is_over else _LIVE)


def key_of(known: KnownRun) -> str:
    """Return what names a run in an address: its name, and a digest of the store that holds it."""
    return f"{known.run}.{hashlib.sha256(known.store_url.encode()).hexdigest()[:8]}"
