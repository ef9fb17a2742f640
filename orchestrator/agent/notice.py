"""Hand the node's interruption notice to the trainer, whatever else the agent is waiting for."""

from __future__ import annotations

import threading
from pathlib import Path

from train.spool import Notice, read_notice, write_notice


class NoticeWatch:
    """Looks for a notice in a thread of its own: an upload to a slow store may take a minute.

    Of several deadlines (the cloud's, a stop's, the lost owner's) the trainer sees the earliest.
    """

    def __init__(self, source: Path, target: Path, poll_seconds: float) -> None:
        """Watch the file `source` and write notices to `target`."""
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
        while (notice := read_notice(self._source)) is None:
            pause.wait(self._poll_seconds)
        self.pass_on(notice)
        self._cloud = notice
