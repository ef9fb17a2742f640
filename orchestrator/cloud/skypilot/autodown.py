"""Have SkyPilot end this node soon after the agent has left it, whoever is there to see it.

Who owns the node terminates it within seconds, as a rule. Where the owner is gone, SkyPilot's own
autodown does, once the node has had no job for ten minutes; that is what its controller asks for
before the job begins (sky/jobs/recovery_strategy.py, _AUTODOWN_MINUTES).
"""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

_log = logging.getLogger(__name__)
# SkyPilot's controller asks for the job's status each 15 s and has to learn how it ended.
_IDLE_MINUTES = 2
# What its backend has a node do for it (sky/skylet/autostop_lib.py, AutostopCodeGen).
_ASK = f"""
from sky.skylet import autostop_lib as a
a.set_autostop({_IDLE_MINUTES}, "cloudvmray", a.AutostopWaitFor.JOBS, down=True)
"""
_PATIENCE_S = 60.0


def end_soon() -> None:
    """Ask for it; where that cannot be done, a node keeps the minutes that it has."""
    named = Path.home() / ".sky" / "python_path"
    if not named.exists():
        return  # no node of SkyPilot's
    try:
        subprocess.run(
            [named.read_text().strip(), "-I", "-c", _ASK],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=True,
            timeout=_PATIENCE_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        _log.warning("SkyPilot's autodown stays as it is: %s %s", error, said.decode()[-200:])
