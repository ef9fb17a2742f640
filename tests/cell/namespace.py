"""The sealed namespaces of a cell: started, entered and ended from outside."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cell.places import Places, cell_environment, node_paths

_START_S = 90.0
_LOOK_S = 0.05
# Network, mounts and processes of its own, so killing its first process kills all others.
_UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# bash as the first process: it adopts and reaps what SkyPilot leaves behind.
_FIRST = '"$@" & wait $!'
_PACKAGES = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "sudo": "sudo",
    "ip": "iproute2",
    "ps": "procps",
    "patch": "patch",
    "unshare": "util-linux",
}
_SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CellError(Exception):
    """A cell cannot be had here; the message says what to do."""


def check_machine() -> None:
    """Raise CellError unless cells can be made on this machine."""
    missing = [name for tool, name in _PACKAGES.items() if not shutil.which(tool, path=_SEARCHED)]
    if missing:
        raise CellError(f"The cell needs packages: apt-get install -y {' '.join(missing)}")
    if os.geteuid() != 0:
        raise CellError("The cell needs root, for mount, PID and network namespaces.")
    probe = "ip link add name cell0 type veth peer name cell1 && mount -t tmpfs tmpfs /mnt"
    done = subprocess.run(
        ["unshare", "--net", "--mount", "bash", "-c", probe],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CellError(f"This machine lets nobody have namespaces or veth: {done.stderr.strip()}")
    for path in node_paths():
        if not path.stat().st_mode & 0o005 == 0o005:
            raise CellError(f"Nodes could not read {path}: run chmod o+rx {path}")


def start(places: Places) -> None:
    """Start the cell's namespaces and its daemon in them, and return when it listens."""
    places.socket.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.cell.daemon", str(places.base)]
    with (places.logs / "daemon.log").open("ab") as log:
        subprocess.run(
            # Nobody's child, so it outlives whoever starts it.
            ["setsid", "--fork", *_UNSHARE, "bash", "-c", _FIRST, "cell", *command],
            env=cell_environment(places),
            cwd=places.base,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=True,
        )
    give_up_at = time.monotonic() + _START_S
    has_begun = False
    while time.monotonic() < give_up_at:
        if places.socket.exists():
            return
        is_held = bool(holders(places))
        if has_begun and not is_held:
            break
        has_begun |= is_held
        time.sleep(_LOOK_S)
    end(places)
    raise CellError(f"The cell did not start: see {places.logs}/daemon.log")


def end(places: Places) -> None:
    """Kill everything in the cell, by the process outside that holds it."""
    while found := holders(places):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_S)


def holders(places: Places) -> list[int]:
    """Return the processes outside that hold a cell of this BASE; more than one is a mistake.

    Found by their command, which names BASE: a number in a file below BASE would be lost with it.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0] == b"unshare" and words[-2:-1] == [str(places.base).encode()]:
                found.append(int(path.parent.name))
    return found


def first_process(places: Places) -> int:
    """Return the cell's first process, by its number outside.

    Raises:
        CellError: the cell is not up.
    """
    found = holders(places)
    if not found:
        raise CellError(f"No cell is up at {places.base}: python -m tests.cell up {places.base}")
    pid = found[0]
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


class Inside(subprocess.Popen[str]):
    """A process in the cell; signals reach it rather than the `nsenter` that waits for it."""

    def __init__(
        self,
        places: Places,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        **options: Any,
    ) -> None:
        enter = ["nsenter", "-t", str(first_process(places)), "--net", "--mount", "--pid"]
        super().__init__(
            # nsenter leaves the working directory, so it is named.
            [*enter, f"--wd={cwd or Path.cwd()}", "--", *command],
            env={**cell_environment(places), **(env or {})},
            start_new_session=True,
            text=True,
            **options,
        )

    def send_signal(self, sig: int) -> None:
        """Signal the process inside; SIGKILL takes what it started along."""
        if self.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if sig == signal.SIGKILL:
                os.killpg(self.pid, sig)
            else:
                for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                    os.kill(int(child), sig)
