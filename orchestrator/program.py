"""Which version of this program runs; no package is imported for it."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import orchestrator


def program_version() -> str:
    """Return the version, and in a checkout git's word for it: `0.1.0 (8ef3f0012345-dirty)`."""
    # The wheel that nodes get says in its version, after a plus, what a hash of its content is.
    installed = installed_version("spot-orchestrator")
    ours = installed if installed.startswith(orchestrator.__version__) else orchestrator.__version__
    commit = _commit(Path(orchestrator.__file__).parents[1])
    return f"{ours} ({commit})" if commit else ours


def installed_version(package: str) -> str:
    """Return a package's version, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit(checkout: Path) -> str | None:
    """Return git's word for what is checked out, and whether it was changed; None elsewhere."""
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
