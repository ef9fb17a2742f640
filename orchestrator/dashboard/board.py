"""The runs that a served dashboard shows: looked at again only after a while, each by itself."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from checkpoints.errors import CheckpointError
from checkpoints.store import ObjectStore
from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError, UnknownRun
from orchestrator.ledger.record import read_record
from orchestrator.runs import KnownRun, list_runs
from orchestrator.standing import RunStateName, state_name
from orchestrator.view import RunView, RunViewer

# Seconds after which a run that goes on, one that nobody reports on, and one that has ended is
# looked at again, and what could not be read is tried again.
_LIVE, _SILENT, _ENDED, _BROKEN = 2.0, 10.0, 60.0, 10.0
# The same for the list of runs: this machine's is a few files, a store's are all of its keys.
_LIST_HERE, _LIST_STORE = 5.0, 60.0
# How long a visitor waits for a new list; after that the last one is shown.
_LIST_PATIENCE = 0.5
# Looks at once: a look is some requests to a store.
_NUM_THREADS = 8

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Watched:
    """One run: what was seen of it last, and why it cannot be looked at now."""

    known: KnownRun
    lock: threading.Lock = field(default_factory=threading.Lock)
    store: ObjectStore | None = None
    viewer: RunViewer | None = None
    view: RunView | None = None
    error: str | None = None
    stale_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A run on the board: the last view of it, None if there is none, and what is wrong now."""

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
        self._runs: dict[str, _Watched] | None = None
        self._listed_until = 0.0
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="look")
        self.problem: str | None = None
        """Why new runs cannot be looked for now."""

    def every(self) -> list[Seen]:
        """Return all runs, those launched last first; the ones never seen at the end.

        Raises:
            CheckpointError: the store has never been listed, and cannot be now.
        """
        seen = list(self._pool.map(lambda item: self._seen(*item), self._list().items()))
        seen.sort(key=lambda one: -one.view.record.created_at.timestamp() if one.view else 0.0)
        return seen

    def is_new(self, key: str | None = None) -> bool:
        """Say whether nothing was seen yet of a run, or of any: the first look takes longest."""
        if self._runs is None:
            return True
        asked = list(self._runs.values()) if key is None else [self._runs.get(key)]
        return any(one and one.view is None and one.error is None for one in asked)

    def one(self, key: str) -> Seen:
        """Return the run of a key.

        Raises:
            UnknownRun: there is none.
            CheckpointError: the store has never been listed, and cannot be now.
        """
        found = self._list().get(key)
        if found is None:
            raise UnknownRun("There is no such run.", "See the list of runs.")
        return self._seen(key, found)

    def store(self, key: str) -> ObjectStore:
        """Return the folder of a run, for what is read only when asked for.

        Raises:
            UnknownRun: there is no such run.
            CheckpointError: its store cannot be opened.
        """
        return self.one(key).known.open()

    def _list(self) -> dict[str, _Watched]:
        """Return the runs as listed last; whoever comes when that is old has it listed anew."""
        if self._runs is None:
            with self._lock:
                if self._runs is None:
                    self._list_again()
        elif time.monotonic() >= self._listed_until and self._lock.acquire(blocking=False):
            # A store that is silent for a minute holds nobody up who asks for what is known.
            listing = threading.Thread(target=self._relist, name="list", daemon=True)
            listing.start()
            listing.join(_LIST_PATIENCE)
        return dict(self._runs or {})

    def _relist(self) -> None:
        try:
            self._list_again()
        finally:
            self._lock.release()

    def _list_again(self) -> None:
        known_before = self._runs or {}
        try:
            runs = {
                known.key: known_before.get(known.key) or _Watched(known)
                for known in list_runs(self._store)
            }
        except (OrchestratorError, CheckpointError) as error:
            if self._runs is None:
                raise
            self.problem = error.what
            self._listed_until = time.monotonic() + _BROKEN
            return
        self._runs, self.problem = runs, None
        self._listed_until = time.monotonic() + (_LIST_HERE if self._store is None else _LIST_STORE)

    def _seen(self, key: str, one: _Watched) -> Seen:
        # Whoever comes while another looks gets what was seen before, if anything was.
        if one.lock.acquire(blocking=one.view is None):
            try:
                if time.monotonic() >= one.stale_at:
                    self._look(one)
            finally:
                one.lock.release()
        return Seen(key=key, known=one.known, view=one.view, error=one.error)

    def _look(self, one: _Watched) -> None:
        one.stale_at = time.monotonic() + _BROKEN
        try:
            one.view, one.error = self._view(one), None
        except UnknownRun as error:
            one.viewer, one.view, one.error = None, None, error.what
            return
        except (OrchestratorError, CheckpointError) as error:
            one.viewer, one.error = None, error.what
            return
        except Exception:  # noqa: BLE001  # one run's folder must not take the others from sight
            _log.exception("Cannot look at %s", one.known)
            one.viewer, one.error = None, "It cannot be read; the dashboard's log says more."
            return
        one.stale_at = time.monotonic() + _lasts(one.view)

    def _view(self, one: _Watched) -> RunView:
        if one.store is None:
            one.store = one.known.open()
        record = read_record(one.store)
        # A run may have been deleted, and another of its name launched: its keys are the same.
        known = one.view.record.run_id if one.view is not None else None
        if one.viewer is None or record is None or record.run_id != known:
            one.viewer = RunViewer(one.store)
        return one.viewer.look(self._clock.now())


def _lasts(view: RunView) -> float:
    if view.state.ended is not None:
        return _ENDED
    return _SILENT if state_name(view) is RunStateName.UNKNOWN else _LIVE
