"""SIGTERM on a node: the machine shuts down or its job ends, which is a notice like any other.

A shutdown sends it to every process. It stays blocked in all that the agent and the ranks start,
and these two wait for it. Torch-free: both read with this module.
"""

from __future__ import annotations

import os
import signal
import threading
from datetime import datetime, timedelta, timezone

from train.spool import Notice

# What Kubernetes and torchrun leave between SIGTERM and SIGKILL; systemd leaves 90 s.
_LEFT = timedelta(seconds=30)
_EXIT_STATUS = 128 + signal.SIGTERM


class _Asked:
    """Whether this process was asked to end; of the process, as signals are."""

    at: datetime | None = None
    heeds_launcher = True


def watch_termination(launcher: int | None = None) -> None:
    """Take SIGTERM for a notice from here on; call it before there are other threads.

    Sent by process `launcher` it ends this one at once: torchrun ends ranks whose peer has failed.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait, args=(launcher,), name="termination", daemon=True).start()


def defy_launcher() -> None:
    """Outlive the launcher's SIGTERM, for what must still be written."""
    _Asked.heeds_launcher = False


def termination_notice() -> Notice | None:
    """Return the notice that a SIGTERM is, None while there was none."""
    return None if _Asked.at is None else Notice(deadline_at=_Asked.at + _LEFT)


def _wait(launcher: int | None) -> None:
    while True:
        sent = signal.sigwaitinfo({signal.SIGTERM})
        if sent.si_pid == launcher:
            if _Asked.heeds_launcher:
                os._exit(_EXIT_STATUS)
        elif _Asked.at is None:
            _Asked.at = datetime.now(timezone.utc)
