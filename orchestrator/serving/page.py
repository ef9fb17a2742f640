"""The chat page's process beside the router: started once models answer, ended with them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from orchestrator.errors import MissingDependency, ServerUnusable
from orchestrator.serving.processes import last_line, start_process, stop_process

_ADDRESS = re.compile(r"^http://\S+$", re.MULTILINE)
# Importing gradio takes 2 s, on a machine that has just loaded models some more.
_START_WITHIN_S, _LOOK_EVERY_S = 60.0, 0.1
_PATIENCE = timedelta(seconds=3)


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page that listens."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def is_alive(self) -> bool:
        """Whether it is still served."""
        return self.process.poll() is None

    def close(self) -> None:
        """End it."""
        stop_process(self.process, _PATIENCE)


def check_page_installed() -> None:
    """Raise MissingDependency before models are loaded rather than after."""
    for name in ("gradio", "openai"):
        if importlib.util.find_spec(name) is None:
            raise MissingDependency(
                f"The chat page needs {name}, which is not installed.",
                "pip install 'spot-orchestrator[serve,ui]'",
            )


def open_page(server_url: str, folder: Path) -> Page:
    """Start the page before a server that answers; return when it listens.

    The key is in this process's environment, and goes on from there. Raises ServerUnusable.
    """
    log = folder / "page.log"
    command = [sys.executable, "-m", "orchestrator.chat.page", server_url]
    process = start_process(command, folder=folder, log=log, environment={})
    give_up_at = time.monotonic() + _START_WITHIN_S
    while time.monotonic() < give_up_at and process.poll() is None:
        found = _ADDRESS.search(log.read_text(errors="replace"))
        if found is not None:
            return Page(process=process, url=found[0], log=log)
        time.sleep(_LOOK_EVERY_S)
    stop_process(process, _PATIENCE)
    raise ServerUnusable(f"The chat page does not start: {last_line(log)}", f"See {log}")
