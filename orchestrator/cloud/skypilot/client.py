"""Our end of SkyPilot's API server: submit, find and cancel managed jobs; what it has of ours.

Importing SkyPilot takes seconds, so each function does it when it is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from orchestrator.errors import CloudRefused, MissingDependency

# Jobs of these states have nothing running any more.
_OVER = frozenset(
    {
        "SUCCEEDED",
        "CANCELLED",
        "FAILED",
        "FAILED_SETUP",
        "FAILED_PRECHECKS",
        "FAILED_NO_RESOURCE",
        "FAILED_CONTROLLER",
    }
)
_PLUGINS_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedJob:
    """A managed job as the API server knows it."""

    job_id: int
    name: str
    status: str
    schedule: str | None
    """How far its controller is: SkyPilot tells the status before it has cleaned up."""
    reason: str | None

    @property
    def is_over(self) -> bool:
        """Say whether it has ended, and its controller is done with it and its nodes."""
        return self.status in _OVER and self.schedule in (None, "DONE")


def require_skypilot() -> ModuleType:
    """Return SkyPilot's package.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        sky = import_module("sky")
    except ImportError:
        sky = None
    # A folder sky/ in the current folder is importable, too, as an empty namespace.
    if sky is None or sky.__file__ is None:
        raise MissingDependency(
            "Launching on clouds needs SkyPilot, which is not installed.",
            "Install it: pip install 'spot-orchestrator[sky]'",
        )
    return sky


def has_plugin(name: str) -> bool:
    """Say whether the API server has loaded the plugin `name`."""
    with translated():
        sky = require_skypilot()

        sky.client.sdk.api_info()  # starts a local server where none runs, as every command does
        return name in list_plugins()


def list_plugins() -> list[str]:
    """Return the names of the plugins that the API server, which runs, has loaded."""
    from sky.server import common

    response = common.make_authenticated_request(
        "GET", "/api/plugins", retry=False, timeout=_PLUGINS_TIMEOUT_S
    )
    response.raise_for_status()
    return [str(plugin.get("name")) for plugin in response.json()["plugins"]]


def submit(task: Any, name: str) -> int:  # noqa: ANN401  # sky.Task
    """Submit a managed job and return its number."""
    with translated():
        sky = require_skypilot()
        from sky import jobs

        found, _ = sky.get(jobs.launch(task, name=name, job_group=None))
        return int(found[0])


def find_jobs(name: str) -> list[ManagedJob]:
    """Return the managed jobs of this name, latest first."""
    with translated():
        # Without `fields` the failure's reason is left out.
        found = queue(fields=None, name_match=name)
    rows = [
        ManagedJob(
            job_id=int(row["job_id"]),
            name=str(row["job_name"]),
            status=str(name_of(row["status"])),
            schedule=name_of(row.get("schedule_state")),
            reason=row.get("failure_reason"),
        )
        for row in found
        if row["job_name"] == name
    ]
    return sorted(rows, key=lambda row: row.job_id, reverse=True)


def queue(**wanted: Any) -> list[Any]:  # noqa: ANN401  # as SkyPilot's jobs.queue_v2 takes them
    """Return the rows of SkyPilot's queue of managed jobs; its errors are its own."""
    sky = require_skypilot()
    from sky import exceptions, jobs

    try:
        return list(sky.get(jobs.queue_v2(refresh=False, **wanted))[0])
    except exceptions.ClusterNotUpError as error:
        if getattr(error.cluster_status, "value", None) not in (None, "STOPPED"):
            raise  # there is a jobs controller, which does not answer
        return []  # there has never been one, or it sleeps for want of jobs


def cancel(job: ManagedJob) -> None:
    """Cancel a managed job: its nodes are terminated without a word to them."""
    with translated():
        sky = require_skypilot()
        from sky import jobs

        sky.get(jobs.cancel(job_ids=[job.job_id]))


def name_of(value: object) -> str | None:
    """Return the name of a state that may come as an enum's member."""
    found = getattr(value, "value", value)
    return None if found is None else str(found)


@contextmanager
def translated() -> Iterator[None]:
    """Turn SkyPilot's errors into ours; a server that cannot be reached is a cloud that refuses."""
    try:
        yield
    except (MissingDependency, CloudRefused):
        raise
    except Exception as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise CloudRefused(
            f"SkyPilot refused: {line[:300]}", "See orchestrate doctor, and sky api logs."
        ) from error
