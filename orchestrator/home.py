"""Where this machine keeps what can be thrown away: caches, the index of runs, local nodes."""

from __future__ import annotations

import glob
import hashlib
import os
from pathlib import Path

from orchestrator.errors import UsageError

KNOWN_NAME = "known.json"
"""The note in a run's folder here that says where the run is."""


def home() -> Path:
    """Return the state folder: $ORCHESTRATE_HOME, else ~/.local/share/orchestrate."""
    chosen = os.environ.get("ORCHESTRATE_HOME")
    return Path(chosen).resolve() if chosen else Path.home() / ".local" / "share" / "orchestrate"


def make_folder(folder: Path) -> None:
    """Make a folder of this machine's state.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"Cannot make {folder}: {error.strerror}.", "Set ORCHESTRATE_HOME to a folder of yours."
        ) from error


def known_names(beginning: str) -> list[str]:
    """Return the names of runs known here that begin so, read off folders' names alone.

    Completion must not wait for what reading the notes imports (`orchestrator.runs`, 0.1 s).
    """
    found = home().glob(f"runs/{glob.escape(beginning)}*/{KNOWN_NAME}")
    return sorted({path.parent.name.rpartition("-")[0] for path in found})


def run_home(store_url: str, run: str) -> Path:
    """Return this machine's folder for one run in one store (lock, supervisor log, nodes)."""
    return home() / "runs" / run_key(store_url, run)


def run_key(store_url: str, run: str) -> str:
    """Return what tells a run from those of its name in other stores."""
    return f"{run}-{hashlib.sha256(f'{store_url}/{run}'.encode()).hexdigest()[:12]}"
