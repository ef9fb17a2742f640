"""Where this machine keeps what can be thrown away: caches, the index of runs, local nodes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def home() -> Path:
    """Return the state folder: $ORCHESTRATE_HOME, else ~/.local/share/orchestrate."""
    chosen = os.environ.get("ORCHESTRATE_HOME")
    return Path(chosen).resolve() if chosen else Path.home() / ".local" / "share" / "orchestrate"


def run_home(store_url: str, run: str) -> Path:
    """Return this machine's folder for one run in one store (lock, supervisor log, nodes)."""
    digest = hashlib.sha256(f"{store_url}/{run}".encode()).hexdigest()[:12]
    return home() / "runs" / f"{run}-{digest}"
