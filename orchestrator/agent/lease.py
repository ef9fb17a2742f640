"""Notice that the node's owner is gone: its heartbeat in the run folder stands still."""

from __future__ import annotations

from checkpoints.errors import StoreError
from checkpoints.layout import heartbeat_key
from checkpoints.store import ObjectStore


class OwnerLease:
    """Runs out when the owner's heartbeat has not changed for `lease_seconds`.

    Measured by this node's own monotonic clock, so clocks that disagree do no harm.
    """

    def __init__(
        self, store: ObjectStore, owner: str, lease_seconds: float, monotonic_now: float
    ) -> None:
        self._store = store
        self._key = heartbeat_key(owner)
        self._lease_seconds = lease_seconds
        self._last_version: str | None = None
        self._changed_at = monotonic_now

    def is_lost(self, monotonic_now: float) -> bool:
        """Look at the heartbeat; an unreachable store counts as a heartbeat that stands still."""
        try:
            version = self._store.get(self._key).version
        except StoreError:
            pass
        else:
            if version != self._last_version:
                self._last_version = version
                self._changed_at = monotonic_now
        return monotonic_now - self._changed_at > self._lease_seconds
