"""Hand the node's interruption notice to the trainer, whatever else the agent is waiting for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from train.errors import SpoolInvalid
from train.spool import Notice, read_notice, write_notice

log = logging.getLogger(__name__)

NoticeSource: TypeAlias = Callable[[], Notice | None]
"""Returns the notice, None while there is none; raises SourceSilent or SpoolInvalid."""
# A source that fails again and again is mentioned this seldom.
_SAY_EVERY = 300


class SourceSilent(Exception):
    """The source gave no answer, or none that can be understood."""


def local_notices(file: Path) -> NoticeSource:
    """Return the source of a simulated node's notices, which is a file."""
    return lambda: read_notice(file)


class NoticeWatch:
    """Looks for a notice in a thread of its own: an upload to a slow store may take a minute.

    Of several deadlines (the cloud's, a stop's, the lost owner's) the trainer sees the earliest.
    """

    def __init__(self, source: NoticeSource, target: Path, poll_seconds: float) -> None:
        """Ask the source every `poll_seconds` and write what it says to `target`."""
        self._source = source
        self._target = target
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        self._passed_on: Notice | None = None
        self._cloud: Notice | None = None
        self._thread = threading.Thread(target=self._watch, name="notice", daemon=True)
        self._thread.start()

    @property
    def from_cloud(self) -> Notice | None:
        """The cloud's notice, once there is one."""
        return self._cloud

    def pass_on(self, notice: Notice) -> None:
        """Tell the trainer, unless it knows of an earlier deadline."""
        with self._lock:
            known = self._passed_on
            if known is None or notice.deadline_at < known.deadline_at:
                write_notice(self._target, notice)
                self._passed_on = notice

    def _watch(self) -> None:
        pause = threading.Event()
        num_failures = 0
        while True:
            try:
                notice = self._source()
                num_failures = 0
            except (SourceSilent, SpoolInvalid) as error:
                # Nothing is known then, which is no notice; the periodic saves are the guarantee.
                notice = None
                if num_failures % _SAY_EVERY == 0:
                    log.warning("no word about interruptions: %s", error)
                num_failures += 1
            if notice is not None:
                break
            pause.wait(self._poll_seconds)
        self.pass_on(notice)
        self._cloud = notice
