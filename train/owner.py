"""End this process when its owner is gone: nothing else would, once the agent was killed."""

from __future__ import annotations

import os
import threading
import time

import psutil

_OWNER_POLL_S = 0.5


def watch_owner(pid: int) -> None:
    """End this process within about a second of the end of process `pid`."""
    try:
        owner = psutil.Process(pid)
    except psutil.NoSuchProcess:
        os._exit(1)
    threading.Thread(target=_exit_after, args=(owner,), name="owner", daemon=True).start()


def _exit_after(owner: psutil.Process) -> None:
    while _is_alive(owner):
        time.sleep(_OWNER_POLL_S)
    # Not sys.exit: the main thread may be inside a collective for minutes.
    os._exit(1)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
