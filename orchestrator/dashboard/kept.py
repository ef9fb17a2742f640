"""Pages that take long to make are answered with the last one at once, and made anew meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

# Where making a page took longer than this, a visitor sees the last one first.
_LONG_S = 0.3
# One that was made in a moment, of what others had just looked at, says little of the next one.
_FORGETS = 0.9

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Kept:
    page: str
    took_s: float
    busy: threading.Lock = field(default_factory=threading.Lock)


class KeptPages:
    """The last page of each address."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def forget(self, address: str) -> None:
        """Drop what is not there any more."""
        self._kept.pop(address, None)

    def get(self, address: str, make: Callable[[], str], *, waits: bool) -> str:
        """Return the page: made now, or the last one if that took long and nobody `waits`.

        Pages say how old they are, and renew themselves a few seconds later.
        """
        kept = self._kept.get(address)
        if waits or kept is None or kept.took_s < _LONG_S:
            return self._make(address, make)
        if kept.busy.acquire(blocking=False):
            threading.Thread(target=self._renew, args=(address, make, kept), daemon=True).start()
        return kept.page

    def _make(self, address: str, make: Callable[[], str]) -> str:
        began = time.monotonic()
        page = make()
        took_s = time.monotonic() - began
        known = self._kept.setdefault(address, _Kept(page, took_s))
        known.page, known.took_s = page, max(took_s, known.took_s * _FORGETS)
        return page

    def _renew(self, address: str, make: Callable[[], str], kept: _Kept) -> None:
        try:
            self._make(address, make)
        except Exception:  # noqa: BLE001  # the next request meets it, and says so
            _log.info("%s could not be made anew", address, exc_info=True)
            self._kept.pop(address, None)
        finally:
            kept.busy.release()
