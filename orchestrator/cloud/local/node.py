"""A local node: a process tree, found by a mark in its environment, and a scratch disk.

Losing the node is real: SIGKILL for every process that bears the mark, whatever session it moved to
or parent it lost, and the disk is deleted, with what its processes keep as temporary files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from orchestrator.agent.config import AgentConfig
from train.spool import Notice, write_notice

_MARK = "ORCHESTRATE_NODE"
_ROUNDS = 50
_KILL_WAIT_S = 2.0


class LocalNode:
    """One running node."""

    def __init__(self, folder: Path, launch: str, process: subprocess.Popen[bytes]) -> None:
        self.launch = launch
        self._folder = folder
        self._process = process

    def poll(self) -> int | None:
        """Return the agent's exit status, None while it runs."""
        return self._process.poll()

    def give_notice(self, notice: Notice) -> None:
        """Say what a cloud's metadata service says before it takes a node back."""
        write_notice(metadata_folder(self._folder) / "notice.json", notice)

    def freeze(self) -> None:
        """Stop every process of the node where it stands, to look before deciding.

        Again until nobody is new: a process may start another between listing and SIGSTOP.
        """
        stopped: set[int] = set()
        for _ in range(_ROUNDS):
            moving = [one for one in _marked(self.launch) if one.pid not in stopped]
            if not moving:
                return
            for process in moving:
                _signal(process.suspend)
                stopped.add(process.pid)

    def thaw(self) -> None:
        """Let a frozen node go on."""
        for process in _marked(self.launch):
            _signal(process.resume)

    def destroy(self) -> None:
        """Kill every process of the node and delete its disk."""
        _kill_marked(self.launch)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_KILL_WAIT_S)
        _delete_disk(self._folder)


def start_node(nodes: Path, config: AgentConfig) -> LocalNode:
    """Start the agent on a new node whose disk lies in `nodes`."""
    folder = nodes / config.launch
    for needed in (scratch_folder(folder), metadata_folder(folder)):
        needed.mkdir(parents=True)
    # Not below scratch: the path of a Unix socket has 107 bytes, and W&B's are made here.
    temporary = tempfile.mkdtemp(prefix="orchestrate-")
    _temporary_link(folder).symlink_to(temporary)
    config_file = folder / "agent.json"
    config_file.write_text(config.model_dump_json(indent=1))
    with (folder / "agent.log").open("ab") as console:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.agent", str(config_file)],
            cwd=scratch_folder(folder),
            env={**os.environ, _MARK: config.launch, "TMPDIR": temporary},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return LocalNode(folder, config.launch, process)


def destroy_leftovers(nodes: Path) -> list[str]:
    """Destroy what a supervisor that died left running; return the launches that had processes."""
    if not nodes.is_dir():
        return []
    found = []
    for folder in sorted(nodes.iterdir()):
        if _marked(folder.name):
            found.append(folder.name)
            _kill_marked(folder.name)
        _delete_disk(folder)
    return found


def scratch_folder(folder: Path) -> Path:
    """Return the node's disk."""
    return folder / "scratch"


def metadata_folder(folder: Path) -> Path:
    """Return where the node finds what a metadata service would say."""
    return folder / "metadata"


def _temporary_link(folder: Path) -> Path:
    return folder / "tmp"


def _delete_disk(folder: Path) -> None:
    shutil.rmtree(scratch_folder(folder), ignore_errors=True)
    link = _temporary_link(folder)
    shutil.rmtree(link.resolve(), ignore_errors=True)
    link.unlink(missing_ok=True)


def _marked(launch: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == launch and process.pid != os.getpid():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, OSError):
            continue
    return found


def _kill_marked(launch: str) -> None:
    """Kill until nobody is left: a process may start another between listing and SIGKILL."""
    for _ in range(_ROUNDS):
        family = _marked(launch)
        if not family:
            return
        for process in family:
            _signal(process.kill)
        psutil.wait_procs(family, _KILL_WAIT_S)


def _signal(send: object) -> None:
    assert callable(send)
    try:
        send()
    except psutil.NoSuchProcess:
        return
