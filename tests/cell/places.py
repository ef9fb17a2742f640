"""Where things are: the files of a cell below its BASE, and the addresses inside of it.

The addresses are the same in every cell: each has a network of its own.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
# On the path of every Python in the cell, but not on that of nodes.
SITE = Path(__file__).resolve().parent / "site"
# Nodes are 10.77.1.1 and up. All traffic between nodes passes the gateway, which is the cell's own
# network namespace; it has no way on.
GATEWAY = "10.77.0.1"
METADATA = ("169.254.169.254", 80)
AWS_API = (GATEWAY, 4566)
BUCKET_PORT = 8333
BUCKET_ENDPOINT = f"http://{GATEWAY}:{BUCKET_PORT}"
BUCKET = "runs"
STORE_URL = f"s3://{BUCKET}"
ACCESS_KEY = "CELLACCESSKEY"
SECRET_KEY = "cell-secret-key"
# SkyPilot's own default, so that its client needs no variable to find it.
API_SERVER_PORT = 46580
# The home of the node's user, whatever the cloud calls them: venvs hold absolute paths.
NODE_HOME = Path("/home/ubuntu")


@dataclass(frozen=True, slots=True)
class Places:
    """The files of one cell."""

    base: Path

    @property
    def home(self) -> Path:
        """HOME of SkyPilot and of everything that runs in the cell outside of nodes."""
        return self.base / "home"

    @property
    def logs(self) -> Path:
        return self.base / "log"

    @property
    def events(self) -> Path:
        return self.logs / "events.jsonl"

    @property
    def socket(self) -> Path:
        return self.base / "control.sock"

    @property
    def host_key(self) -> Path:
        return self.base / "host_key"

    @property
    def bucket(self) -> Path:
        return self.base / "bucket"

    @property
    def counter(self) -> Path:
        """The number of the latest instance: addresses are new even when the cell has ended."""
        return self.base / "instances"

    @property
    def image(self) -> Path:
        """Where the node image is, as a link: `up` knows, and the daemon follows."""
        return self.base / "image"

    def make(self) -> None:
        """Create the folders."""
        for folder in (self.home / ".sky", self.home / ".aws", self.logs, self.bucket):
            folder.mkdir(parents=True, exist_ok=True)


def node_paths() -> list[Path]:
    """Return what nodes see at the paths that it has here: environment, interpreter, checkout."""
    interpreter = Path(sys.executable).resolve().parents[1]
    wanted = {Path(sys.prefix), Path(sys.base_prefix), interpreter, CHECKOUT}
    # The root file system is the nodes' own, underneath their changes.
    wanted -= {Path("/"), Path("/usr"), Path("/usr/local")}
    return sorted(
        path for path in wanted if not any(path != x and path.is_relative_to(x) for x in wanted)
    )


def cell_environment(places: Places) -> dict[str, str]:
    """Return the environment of SkyPilot, of its clients and of whatever runs beside them."""
    kept = {name: os.environ[name] for name in ("LANG", "TERM", "TZ") if name in os.environ}
    here = str(Path(sys.prefix) / "bin")
    return {
        **kept,
        "HOME": str(places.home),
        "USER": "root",
        "PATH": f"{here}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": f"{SITE}:{CHECKOUT}",
        "CELL_BASE": str(places.base),
        **store_environment(),
        "AWS_ENDPOINT_URL": f"http://{AWS_API[0]}:{AWS_API[1]}",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "NO_GCE_CHECK": "true",
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        # It sizes SkyPilot's pools of processes: with all the memory of a large machine it would
        # start dozens.
        "SKYPILOT_POD_MEMORY_GB_LIMIT": "6",
    }


def store_environment() -> dict[str, str]:
    """Return what clients of the bucket need, on nodes too."""
    return {"AWS_ENDPOINT_URL_S3": BUCKET_ENDPOINT, "AWS_REGION": "us-east-1"}
