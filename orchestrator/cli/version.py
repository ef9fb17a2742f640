"""`orchestrate --version`: what a report of a bug begins with; no package is imported for it."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import orchestrator

_PACKAGES = ("skypilot", "torch", "transformers", "wandb", "boto3", "obstore")


def describe() -> str:
    """Return version and commit of this program, Python, platform, and packages that matter."""
    # The wheel that nodes get says in its version, after a plus, what a hash of its content is.
    installed = _installed("spot-orchestrator")
    ours = installed if installed.startswith(orchestrator.__version__) else orchestrator.__version__
    commit = _commit(Path(orchestrator.__file__).parents[1])
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return "\n".join(
        [
            f"orchestrate {ours}{f' ({commit})' if commit else ''}",
            f"{python}, {platform.platform()}",
            *(f"{name} {_installed(name)}" for name in _PACKAGES),
        ]
    )


def _installed(package: str) -> str:
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
