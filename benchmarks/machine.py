"""What machine and what versions a benchmark's figures come from."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import psutil


def describe_machine(*packages: str) -> dict[str, object]:
    """Return the date, the machine, and the versions of Python and `packages`."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": models[0] if models else platform.machine(),
        "num_cores": num_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))
