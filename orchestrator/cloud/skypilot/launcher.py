"""Hand a run over to SkyPilot, once: the same launch again finds the job that is there."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from checkpoints.store import ObjectStore
from orchestrator.clock import Clock
from orchestrator.cloud.skypilot import client
from orchestrator.cloud.skypilot.environment import STRATEGY
from orchestrator.cloud.skypilot.task import build_task
from orchestrator.cloud.skypilot.wheel import build_wheel
from orchestrator.errors import GaveUp
from orchestrator.inputs import InputFile, describe_file, stage_files
from orchestrator.ledger.fold import RunState
from orchestrator.ledger.record import RunRecord
from orchestrator.notify.addresses import find_addresses
from orchestrator.offers import Offer

# A job that was submitted a moment ago may not be in the queue yet.
_APPEARS_WITHIN = timedelta(seconds=20)
_LOOK_EVERY = timedelta(seconds=2)
_GONE_WITHIN = timedelta(minutes=5)


def live_job(record: RunRecord) -> client.ManagedJob | None:
    """Return the managed job that carries the run out, None where none does."""
    return next((job for job in client.find_jobs(record.run_id) if not job.is_over), None)


def await_job(record: RunRecord, clock: Clock) -> client.ManagedJob | None:
    """Return the run's job, giving one whose submission had no reply time to appear.

    One that appears later still does no harm where our plugin is: of two jobs for one launch, the
    second to claim the run ends without asking for a node. Without it, one fences the other.
    """
    give_up_at = clock.now() + _APPEARS_WITHIN
    while (job := live_job(record)) is None and clock.now() < give_up_at:
        clock.sleep(_LOOK_EVERY)
    return job


def cancel_job(record: RunRecord, clock: Clock) -> None:
    """Have SkyPilot terminate what the run has, and return when it has.

    Raises:
        GaveUp: it takes longer than that should.
    """
    give_up_at = clock.now() + _GONE_WITHIN
    asked: set[int] = set()
    while (job := live_job(record)) is not None:
        if job.job_id not in asked:  # two, where a launch was sent again after a lost reply
            client.cancel(job)
            asked.add(job.job_id)
        if clock.now() > give_up_at:
            raise GaveUp(
                f"SkyPilot has not terminated job {job.job_id} yet: {job.status}.",
                "Look again: sky jobs queue; its clusters: sky status.",
            )
        clock.sleep(_LOOK_EVERY)


def has_strategy() -> bool:
    """Say whether the API server has our plugin.

    Raises:
        MissingDependency: SkyPilot is not installed.
        CloudRefused: its API server cannot be reached.
    """
    return client.has_plugin(STRATEGY)


def start_job(
    store: ObjectStore, state: RunState, offers: Sequence[Offer], *, has_strategy: bool
) -> int:
    """Stage this project's wheel, submit the run as a managed job and return its number."""
    wheel = stage_wheel(store)
    task = build_task(
        state.record,
        wheel,
        offers,
        launched_at=state.launched_at,
        has_strategy=has_strategy,
        addresses=None if state.spec.tracking.notify is None else find_addresses(),
    )
    return client.submit(task, state.record.run_id)


def stage_wheel(store: ObjectStore) -> InputFile:
    """Put this version's wheel where nodes find it, unless it is there."""
    with tempfile.TemporaryDirectory() as scratch:
        wheel = describe_file(build_wheel(Path(scratch)))
        stage_files(Path(scratch), [wheel], store)
    return wheel
