"""Questions of `orchestrate doctor` to SkyPilot's API server; none of them starts one.

They are asked in a process of their own, one JSON line per answer: SkyPilot takes seconds to import
and waits for its server for ever, and what has been answered before it hangs is not lost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.cloud.skypilot.client import list_plugins, queue, require_skypilot

# Importing SkyPilot takes 3 to 6 s, and from a cold disk far more; each answer a second or two.
PATIENCE = timedelta(seconds=60)
_PROGRAM = "from orchestrator.cloud.skypilot.checks import answer_all; answer_all()"


class Server(BaseModel):
    """An API server as its health check describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    is_local: bool
    status: str
    """healthy, unhealthy, version_mismatch or needs_auth, as SkyPilot says."""
    version: str | None
    error: str | None


class Job(BaseModel):
    """A managed job that has not ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    name: str


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    error: str | None = None
    server: Server | None = None
    names: tuple[str, ...] | None = None
    jobs: tuple[Job, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the server said. None: it did not, and `errors` says why, where that is known."""

    server: Server | None = None
    enabled: tuple[str, ...] | None = None
    """Clouds that its last `sky check` found usable, as specs name them."""
    plugins: tuple[str, ...] | None = None
    jobs: tuple[Job, ...] | None = None
    clusters: tuple[str, ...] | None = None
    """This user's; those of managed jobs are not among them."""
    errors: dict[str, str]
    """By question, which are the names above."""


class Inquiry:
    """The questions under way, so that other checks can be made meanwhile."""

    def __init__(self) -> None:
        # Files, not pipes: a process that SkyPilot leaves behind must not keep us waiting.
        self._out = tempfile.TemporaryFile()  # noqa: SIM115  # closed by answers()
        self._process = subprocess.Popen(
            # From the path without this folder: anything called train or sky may lie in it.
            [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else []), "-c", _PROGRAM],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )

    def answers(self, patience: timedelta = PATIENCE) -> Answers:
        """Return what has been answered when all is, or when patience ends."""
        try:
            self._process.wait(patience.total_seconds())
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._out:
            self._out.seek(0)
            lines = [line for text in self._out if (line := _read(text)) is not None]
        return _collected(lines, patience)


def _read(text: bytes) -> _Line | None:
    """Return the answer in a line, None for what SkyPilot prints by itself."""
    try:
        return _Line.model_validate_json(text)
    except ValidationError:
        return None


def _collected(lines: list[_Line], patience: timedelta) -> Answers:
    found = {line.question: line for line in lines}
    silence = f"no answer within {patience.total_seconds():g} s"
    errors = {
        question: silence if question not in found else found[question].error or silence
        for question in _QUESTIONS
        if question not in found or found[question].error is not None
    }

    def names(question: str) -> tuple[str, ...] | None:
        return found[question].names if question in found else None

    return Answers(
        server=found["server"].server if "server" in found else None,
        enabled=names("enabled"),
        plugins=names("plugins"),
        jobs=found["jobs"].jobs if "jobs" in found else None,
        clusters=names("clusters"),
        errors=errors,
    )


def answer_all() -> None:
    """Ask everything and print the answers; the other process."""
    for question, ask in _QUESTIONS.items():
        try:
            answer = ask()
        except Exception as error:  # noqa: BLE001  # SkyPilot's are of many kinds, and all are told
            answer = {"error": (" ".join(str(error).split()) or type(error).__name__)[:300]}
        sys.stdout.write(json.dumps({"question": question, **answer}) + "\n")
        sys.stdout.flush()
        if question == "server" and answer.get("server", {}).get("status") != "healthy":
            return  # the others would start one, or wait for one that is not there


def _server() -> dict[str, Any]:
    require_skypilot()
    from sky.server import common

    url = common.get_server_url()
    found = common.get_api_server_status(url)
    return {
        "server": {
            "url": common.redact_url_password(url),
            "is_local": common.is_api_server_local(url),
            "status": str(found.status.value),
            "version": found.version,
            "error": found.error,
        }
    }


def _enabled() -> dict[str, Any]:
    sky = require_skypilot()
    from sky.client import sdk

    return {"names": [str(name).lower() for name in sky.get(sdk.enabled_clouds())]}


def _plugins() -> dict[str, Any]:
    return {"names": list_plugins()}


def _jobs() -> dict[str, Any]:
    found = queue(skip_finished=True)
    return {"jobs": [{"number": row["job_id"], "name": row["job_name"]} for row in found]}


def _clusters() -> dict[str, Any]:
    sky = require_skypilot()
    return {"names": [str(record["name"]) for record in sky.get(sky.status())]}


_QUESTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "server": _server,
    "enabled": _enabled,
    "plugins": _plugins,
    "jobs": _jobs,
    "clusters": _clusters,
}
