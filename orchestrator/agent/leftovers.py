"""Give up uploads that dead attempts left unfinished; their parts are billed until then."""

from __future__ import annotations

import logging
import threading

from checkpoints.errors import StoreError
from checkpoints.layout import CHECKPOINTS
from checkpoints.retention import is_left_by_lower_attempt
from checkpoints.store import ObjectStore
from orchestrator.places import open_places
from orchestrator.spec import RunSpec

_log = logging.getLogger(__name__)


def start_aborting(store: ObjectStore, spec: RunSpec, attempt: int) -> None:
    """Do it in all stores of the run, in a thread: nothing depends on it."""
    thread = threading.Thread(
        target=_abort_all, args=(store, spec, attempt), name="leftovers", daemon=True
    )
    thread.start()


def abort_leftovers(store: ObjectStore, attempt: int) -> None:
    """Abort the uploads of attempts before this one."""
    try:
        aborted = store.abort_uploads(
            CHECKPOINTS, lambda key: is_left_by_lower_attempt(key, attempt)
        )
    except StoreError as error:
        _log.warning("unfinished uploads in %s were not aborted: %s", store.url, error)
        return
    if aborted:
        _log.info("aborted %d unfinished uploads in %s", len(aborted), store.url)


def _abort_all(store: ObjectStore, spec: RunSpec, attempt: int) -> None:
    places = open_places(store, spec, lambda url, error: _log.warning("%s: %s", url, error))
    for place in places.stores:
        abort_leftovers(place, attempt)
