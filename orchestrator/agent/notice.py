"""Hand the node's interruption notice to the trainer, whatever else the agent is waiting for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from train.errors import SpoolInvalid
from train.spool import Notice, Risk, keep_room, read_notice, risk_path, write_notice, write_risk

log = logging.getLogger(__name__)

NoticeSource: TypeAlias = Callable[[], Notice | Risk | None]
"""Returns what the cloud says of the node, None while that is nothing; raises SourceSilent."""
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
        self._risk: Risk | None = None
        self._num_failures = 0
        keep_room(target)
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
        while self._cloud is None:
            try:
                self._heed(self._look())
            except OSError as error:  # no room for a small file at this moment
                log.warning("the trainer could not be told, and will be again: %s", error)
            pause.wait(self._poll_seconds)

    def _heed(self, found: Notice | Risk | None) -> None:
        match found:
            case Notice() as notice:
                self.pass_on(notice)
                self._cloud = notice
            case Risk() as risk if risk != self._risk:
                log.info("the cloud may take the node back; a checkpoint is saved")
                write_risk(risk_path(self._target), risk)
                self._risk = risk

    def _look(self) -> Notice | Risk | None:
        """Ask the source; what cannot be learned is no notice: the periodic saves count anyway."""
        try:
            found = self._source()
        except (SourceSilent, SpoolInvalid) as error:
            if self._num_failures % _SAY_EVERY == 0:
                log.warning("no word about interruptions: %s", error)
            self._num_failures += 1
            return None
        self._num_failures = 0
        return found
