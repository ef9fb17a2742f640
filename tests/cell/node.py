"""Start one instance: namespaces of its own around sshd, see node.sh."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cell.places import AWS_API, GATEWAY, NODE_HOME, Places, node_paths, store_environment
from tests.cell.records import Instance

_SCRIPT = Path(__file__).with_name("node.sh")
# --kill-child: when `unshare` is killed, so is the node's first process, and with it all others.
_UNSHARE = ("unshare", "--mount", "--uts", "--pid", "--net", "--fork", "--kill-child")


class Node:
    """The process tree of an instance."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def kill(self) -> None:
        """End the instance: nothing in it is told."""
        self._process.kill()

    def wait(self) -> None:
        """Return when the instance has ended."""
        self._process.wait()


def start_node(places: Places, instance: Instance, public_key: str, boot_seconds: float) -> Node:
    """Start an instance; sshd listens after `boot_seconds` and some tenths of one."""
    node_environment = {
        **store_environment(),
        "AWS_ENDPOINT_URL_EC2": f"http://{AWS_API[0]}:{AWS_API[1]}",  # autodown asks it
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "IMAGE": str(places.image.resolve() / "home"),
        "BASE": str(places.base),
        "ID": instance.id,
        "IP": instance.ip,
        "GATEWAY": GATEWAY,
        "NODE_HOME": str(NODE_HOME),
        "NODE_USER": instance.user,
        "PUBLIC_KEY": public_key,
        "HOST_KEY": str(places.host_key),
        "BINDS": "\n".join(map(str, node_paths())),
        "NODE_ENV": " ".join(f"{name}={value}" for name, value in node_environment.items()),
        "BOOT_SECONDS": str(boot_seconds),
    }
    with (places.logs / f"{instance.id}.log").open("ab") as log:
        process = subprocess.Popen(
            [*_UNSHARE, "bash", str(_SCRIPT)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Node(process)
