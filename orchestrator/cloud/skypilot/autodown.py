"""Have SkyPilot end this node soon after the agent has left it, whoever is there to see it.

Who owns the node terminates it within seconds, as a rule. Where the owner is gone, SkyPilot's own
autodown does, after the minutes that were last asked for: by train.yaml, which leaves a script for
it here, then by SkyPilot (ten of them), and at last by us.
"""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

_log = logging.getLogger(__name__)
_SCRIPT = "orchestrate-autodown"
# SkyPilot's controller asks for the job's status each 15 s and has to learn how it ended.
_IDLE_MINUTES = 2
_PATIENCE_S = 60.0


def end_soon() -> None:
    """Ask for it; a node without the script, or that cannot, keeps the minutes that it has."""
    script = Path.home() / _SCRIPT
    if not script.exists():
        return
    command = ["bash", str(script), str(_IDLE_MINUTES)]
    try:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=True,
            timeout=_PATIENCE_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        _log.warning("SkyPilot's autodown stays as it is: %s %s", error, said.decode()[-200:])
