"""SkyPilot's API server and its controllers inside the cell: started, ended and found by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil

from tests.cell.places import API_SERVER_PORT, Places, cell_environment

_START_S = 120.0
_LOOK_S = 0.1
_CONTROLLER = "sky.jobs.controller"


class ApiServer:
    """The API server of this cell; in consolidation mode it has the controllers start, too."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it as `sky api start` does, and return when it answers."""
        url = f"http://127.0.0.1:{API_SERVER_PORT}/api/health"
        log_path = self._places.home / ".sky" / "api_server" / "server.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "sky.server.server"),
                    *("--host=127.0.0.1", f"--port={API_SERVER_PORT}"),
                ],
                env={**cell_environment(self._places), "IS_SKYPILOT_SERVER": "true"},
                cwd=self._places.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        give_up_at = time.monotonic() + _START_S
        while self.is_running and time.monotonic() < give_up_at:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(url, timeout=5).close()
                return
            time.sleep(_LOOK_S)
        last = log_path.read_text(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"SkyPilot's API server did not start: {log_path} ends in {last}")

    def stop(self) -> tuple[int, ...]:
        """Kill it, what it started and the controllers: nothing of SkyPilot is told."""
        found = set(controllers())
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                server = psutil.Process(self._process.pid)
                found |= {one.pid for one in server.children(recursive=True)} | {server.pid}
        kill(found)
        if self._process is not None:
            self._process.wait()
            self._process = None
        return tuple(sorted(found))


def controllers() -> list[int]:
    """Return the managed-jobs controllers that run in this PID namespace."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(_CONTROLLER in word for word in process.cmdline()):
                found.append(process.pid)
    return found


def kill(pids: set[int]) -> None:
    """Kill these processes and return when they are gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(psutil.pid_exists(pid) and _is_alive(pid) for pid in pids):
        time.sleep(_LOOK_S)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
