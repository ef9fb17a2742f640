"""`orchestrate --version`: what a report of a bug begins with; no package is imported for it."""

from __future__ import annotations

import platform

from orchestrator.program import installed_version, program_version

_PACKAGES = ("skypilot", "torch", "transformers", "wandb", "boto3", "obstore")


def describe() -> str:
    """Return version and commit of this program, Python, platform, and packages that matter."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return "\n".join(
        [
            f"orchestrate {program_version()}",
            f"{python}, {platform.platform()}",
            *(f"{name} {installed_version(name)}" for name in _PACKAGES),
        ]
    )
