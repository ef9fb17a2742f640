"""SkyPilot's managed jobs, read from its own database.

`sky.jobs.queue` says the same, but each call starts processes of three seconds of CPU: on a small
machine a test that asks every second doubles the time that its job takes to start.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

from tests.cell.records import Record

_JOBS = """
SELECT spot.spot_job_id AS id, job_info.name AS name, spot.status AS status,
  spot.recovery_count AS recoveries, spot.failure_reason AS failure_reason,
  job_info.schedule_state AS schedule_state, job_info.current_cluster_name AS cluster,
  job_info.cloud AS cloud, job_info.region AS region, job_info.zone AS zone,
  job_info.controller_pid AS controller_pid
FROM spot JOIN job_info ON spot.spot_job_id = job_info.spot_job_id
WHERE spot.task_id = 0 ORDER BY spot.spot_job_id
"""
_STEPS = """
SELECT new_status AS status, timestamp AS at, reason FROM job_events
WHERE spot_job_id = ? AND new_status IS NOT NULL ORDER BY id
"""
_TERMINAL = ("SUCCEEDED", "CANCELLED", "FAILED")


class Step(Record):
    """A job's change of status."""

    status: str
    at: datetime
    reason: str | None


class Job(Record):
    """A managed job with one task; the words are SkyPilot's."""

    id: int
    name: str
    status: str
    recoveries: int
    failure_reason: str | None
    schedule_state: str | None
    cluster: str | None
    cloud: str | None
    region: str | None
    zone: str | None
    controller_pid: int | None
    history: tuple[Step, ...]

    @property
    def is_over(self) -> bool:
        return self.status.startswith(_TERMINAL)


def read_jobs(home: Path) -> list[Job]:
    """Return all managed jobs, oldest first; none where SkyPilot has not had one yet."""
    path = home / ".sky" / "spot_jobs.db"
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as database:
        database.row_factory = sqlite3.Row
        return [
            Job.model_validate({**row, "history": _history(database, row["id"])})
            for row in database.execute(_JOBS).fetchall()
        ]


def _history(database: sqlite3.Connection, job: int) -> tuple[Step, ...]:
    return tuple(
        Step(status=row["status"], at=_utc(row["at"]), reason=row["reason"])
        for row in database.execute(_STEPS, (job,)).fetchall()
    )


def _utc(text: str) -> datetime:
    """Return what SkyPilot wrote as the machine's local time, without saying so."""
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.astimezone()).astimezone(timezone.utc)
