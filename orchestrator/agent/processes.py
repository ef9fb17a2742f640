"""Start the trainer under torchrun, and end it with every process that it started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from orchestrator.agent.config import AgentConfig

_KILL_WAIT_S = 10.0


def start_torchrun(
    config_file: Path, agent: AgentConfig, *, threads_per_rank: int, log: Path
) -> subprocess.Popen[bytes]:
    """Start `torchrun -m train CONFIG` in the scratch folder, its output in `log`.

    It starts in a folder of its own with PYTHONSAFEPATH, or a user's train.py in the current folder
    would shadow our package.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--max-restarts", "0", "--nproc-per-node", str(agent.ranks)),
        *_meeting_place(agent),
        *("-m", "train", str(config_file)),
    ]
    environment = {
        **os.environ,
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads_per_rank),
        **_interface_for_gloo(agent),
    }
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=agent.scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _meeting_place(agent: AgentConfig) -> list[str]:
    if agent.num_nodes == 1:
        return ["--standalone"]
    return [
        *("--nnodes", str(agent.num_nodes), "--node-rank", str(agent.node)),
        *("--master-addr", agent.head, "--master-port", str(agent.port)),
    ]


def _interface_for_gloo(agent: AgentConfig) -> dict[str, str]:
    """Name the interface that the other nodes reach.

    Gloo takes the one that the host's own name resolves to, which on Debian is the loopback.
    """
    if agent.num_nodes == 1 or "GLOO_SOCKET_IFNAME" in os.environ:
        return {}
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == agent.address for one in addresses):
            return {"GLOO_SOCKET_IFNAME": name}
    return {}


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL `process` and all its descendants; torchrun gives each rank a session of its own."""
    try:
        root = psutil.Process(process.pid)
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(timeout=_KILL_WAIT_S)
    psutil.wait_procs([member for member in family if member.pid != process.pid], _KILL_WAIT_S)
