"""Notice that the node's owner is gone: its heartbeat in the run folder stands still."""

from __future__ import annotations

from checkpoints.errors import StoreError
from checkpoints.layout import heartbeat_key
from checkpoints.store import ObjectStore


class OwnerLease:
    """Runs out when the owner's heartbeat has stood still for too long.

    That is `silent_seconds` during which it could be read, or `lease_seconds` in any case: an owner
    cannot write, either, where the store is down, and it is likely to be back when that is.
    Measured by this node's own monotonic clock, so clocks that disagree do no harm.
    """

    def __init__(
        self,
        store: ObjectStore,
        owner: str,
        *,
        lease_seconds: float,
        silent_seconds: float,
        monotonic_now: float,
    ) -> None:
        self._store = store
        self._key = heartbeat_key(owner)
        self._lease_seconds, self._silent_seconds = lease_seconds, silent_seconds
        self._last_version: str | None = None
        self._changed_at = self._looked_at = monotonic_now
        self._silent_s = 0.0
        self._could_read = True

    def is_lost(self, monotonic_now: float) -> bool:
        """Look at the heartbeat."""
        since_s, self._looked_at = monotonic_now - self._looked_at, monotonic_now
        could_read = self._could_read
        try:
            version = self._store.get(self._key).version
        except StoreError:
            self._could_read = False
        else:
            self._could_read = True
            if version != self._last_version:
                self._last_version = version
                self._changed_at, self._silent_s = monotonic_now, 0.0
            elif could_read:
                self._silent_s += since_s
        is_over = monotonic_now - self._changed_at > self._lease_seconds
        return is_over or self._silent_s > self._silent_seconds
