"""Processes that serve: with a log, out of reach of the terminal's Ctrl-C, never outliving us."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil

from orchestrator.agent.processes import kill_tree

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_TAIL_BYTES, _MOST_LETTERS = 4000, 300


def start_process(
    command: Sequence[str], *, folder: Path, log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process that is killed when the thread that called this ends."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # one system call, which takes no lock
        )


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def stop_process(process: subprocess.Popen[bytes], patience: timedelta) -> bool:
    """Ask a process to end, kill it if it does not, and what it leaves; tell whether it did."""
    is_ended = True
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience.total_seconds())
        except subprocess.TimeoutExpired:
            kill_tree(process)
            is_ended = False
    _kill_orphans(process.pid)
    return is_ended


def _kill_orphans(leader: int) -> None:
    """Kill what an ended process left in its group: vLLM's engine, which keeps the GPU."""
    # A process with this number is another's by now; so is its group.
    if not psutil.pid_exists(leader):
        with suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)


def free_port() -> int:
    """Return a port that nobody listens at; another process may take it before ours does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def is_free(host: str, port: int) -> bool:
    """Tell whether a server of ours could listen there."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError:
        return False
    return True


def last_line(log: Path) -> str:
    """Return how a log ends; of a traceback that is what was raised."""
    text = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_MOST_LETTERS] if lines else "it wrote nothing"
