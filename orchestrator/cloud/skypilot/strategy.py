"""Our recovery strategy inside SkyPilot's jobs controller: `decide()` says, SkyPilot does.

Written against sky/jobs/recovery_strategy.py and sky/jobs/controller.py of 0.14.1. Only the plugin
imports this file, in SkyPilot's own processes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import weakref
from dataclasses import replace
from datetime import datetime
from typing import Any

from sky import exceptions
from sky.jobs import recovery_strategy, state
from sky.utils import context, registry

from checkpoints.errors import CheckpointError
from checkpoints.store import open_store
from orchestrator.attempts import AgentExit, EndReason
from orchestrator.billing.tags import tags_of
from orchestrator.clock import SystemClock
from orchestrator.cloud.skypilot.attendant import Attendant
from orchestrator.cloud.skypilot.clusters import Refusal, count_instances, describe, why_refused
from orchestrator.cloud.skypilot.conductor import Conductor, Loss, Superseded
from orchestrator.cloud.skypilot.environment import (
    JOB,
    LAUNCH,
    LAUNCHED_AT,
    OFFER,
    OWNER,
    RUN_FOLDER,
    STORE_SETTINGS,
    STRATEGY,
)
from orchestrator.cloud.skypilot.job import Job, Underway, log, patiently
from orchestrator.cloud.skypilot.offers import TodaysOffers, resources_for
from orchestrator.errors import OrchestratorError
from orchestrator.notify.addresses import NOTIFY
from orchestrator.policy.answers import Decision, Drain, Keep, Launch, Stop, Wait

# Times, a tick apart, that a silent agent is listened for: it speaks every 20 s.
_NUM_LISTENS = 4
# A lack of room mends itself in time; anything else would fail again.
_NEVER_UP = {
    Refusal.NO_ROOM: EndReason.NO_CAPACITY,
    Refusal.NO_QUOTA: EndReason.NO_CAPACITY,
    Refusal.NO_ACCESS: EndReason.NO_ACCESS,
    Refusal.OTHER: EndReason.SETUP_FAILED,
}
# One per job in a process: SkyPilot makes a new strategy when it takes a job up again.
_attendants: weakref.WeakValueDictionary[int, Attendant] = weakref.WeakValueDictionary()


class OrchestrateStrategy(recovery_strategy.FailoverStrategyExecutor):  # type: ignore[misc]
    """Launches where the policy says, one offer at a time, and keeps the run's ledger."""

    tick_seconds = 15.0
    """How often the run folder is looked at; each look is a few requests that somebody pays for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # SkyPilot's own
        super().__init__(*args, **kwargs)
        self._job: Job | None = None
        self._attendant: Attendant | None = None

    async def launch(self) -> float:
        """Bring the run up for the first time; returns when its job was submitted."""
        await self._open()
        # Those of a job before this one, whose controller did not live to close them.
        await self._opened.tell(Conductor.gone, Loss(detail="its controller is gone"))
        return await self._until_up(recovery=False)

    async def recover(self) -> float:
        """Bring the run up again; the nodes that it had are terminated first.

        SkyPilot asks for it also when it could not read a job's status for a minute. Nodes whose
        agent still speaks are left as they are; SkyPilot then goes on watching them.
        """
        await self._open()
        await self._opened.note_missed()
        loss = self._opened.failure
        if loss is None:
            if await self._is_only_unseen():
                log.warning("the job's status cannot be read, but its agent speaks: it trains on")
                return time.time()
            loss = Loss(is_ours=bool(await asyncio.to_thread(self._count_alive)))
        await asyncio.to_thread(self._cleanup_cluster)
        self._opened.failure = None
        await self._opened.tell(Conductor.gone, loss)
        if AgentExit.FENCED in loss.exit_codes:
            raise exceptions.ManagedJobReachedMaxRetriesError("a later attempt owns the run")
        return await self._until_up(recovery=True)

    async def on_resume(self, cluster_name: str) -> None:
        """Take a job up again after the controller was restarted."""
        await self._open()

    async def monitor_task(self, **kwargs: Any) -> bool | None:  # noqa: ANN401  # SkyPilot's own
        """Leave the watching of nodes to SkyPilot; the run folder is watched beside it."""
        await self._open()
        return None

    def should_restart_on_failure(self, exit_codes: list[int] | None = None) -> bool:
        """Let `recover` decide, which knows the ledger: it ends the job where nothing follows."""
        see = f"see sky jobs logs {self.job_id}"
        codes = tuple(exit_codes or ())
        self._opened.failure = Loss(has_failed=True, exit_codes=codes, detail=see)
        return True

    @property
    def _opened(self) -> Job:
        assert self._job is not None, "a hook opens it first"
        return self._job

    async def _open(self) -> None:
        if self._job is None:
            try:
                conductor = await patiently(self._make_conductor)
            except (CheckpointError, OrchestratorError) as error:
                raise exceptions.ProvisionPrechecksError([error]) from error
            self._job = Job(conductor, self.job_id, self.task_id, self.cluster_name)
        elif self._attendant is not None and self._attendant.is_alive:
            return
        previous = _attendants.pop(self.job_id, None)
        if previous is not None:
            previous.dismiss()
        notifier = await self._job.tell(Conductor.notify, self._addresses(), log)
        self._attendant = Attendant(self._job, self.tick_seconds, self._terminate, notifier)
        _attendants[self.job_id] = self._attendant

    def _addresses(self) -> str | None:
        """Return where the run's notifications go: a secret of the task, as it was submitted."""
        secret = self.dag.tasks[0].secrets.get(NOTIFY)
        return None if secret is None else str(secret.get_secret_value())

    def _make_conductor(self) -> Conductor:
        envs = self.dag.tasks[0].envs
        # Where the bucket is, for a controller that has not been told; in this job's context only.
        settings = {name: envs[name] for name in STORE_SETTINGS if envs.get(name)}
        ours = context.get()
        if ours is not None:
            missing = {k: v for k, v in settings.items() if k not in os.environ}
            ours.override_envs(missing)
        store = open_store(envs[RUN_FOLDER])
        job = envs.get(JOB) or f"{socket.gethostname()}-{self.job_id}"
        told, clock = envs.get(LAUNCHED_AT), SystemClock()
        launched_at = datetime.fromisoformat(told) if told else None
        return Conductor(store, job, clock, TodaysOffers(), launched_at)

    async def _until_up(self, *, recovery: bool) -> float:
        decision = await self._decide()
        while True:
            match decision:
                case Launch():
                    submitted_at = await self._try(decision, recovery=recovery)
                    if submitted_at is not None:
                        return submitted_at
                    decision = await self._decide()
                case Wait():
                    decision = await self._wait(decision, recovery=recovery)
                case Stop():
                    await self._opened.tell(Conductor.finish, decision)
                    raise exceptions.ManagedJobReachedMaxRetriesError(decision.why)
                case Keep() | Drain():
                    # A launch that is open in the ledger, although none of its nodes is left.
                    await asyncio.to_thread(self._cleanup_cluster)
                    await self._opened.note_missed()
                    await self._opened.tell(
                        Conductor.gone, Loss(detail="its controller was restarted")
                    )
                    decision = await self._decide()

    async def _is_only_unseen(self) -> bool:
        """Say whether the cloud has all nodes, and their agent is heard in the run folder."""
        num_alive = await asyncio.to_thread(self._count_alive)
        if (num_alive or 0) < self.dag.tasks[0].num_nodes:
            return False
        heard_at = await self._opened.tell(Conductor.last_heard)
        for _ in range(_NUM_LISTENS if heard_at is not None else 0):
            await asyncio.sleep(self.tick_seconds)
            if await self._opened.tell(Conductor.last_heard) != heard_at:
                return True
        return False

    async def _decide(self) -> Decision:
        try:
            return await self._opened.tell(Conductor.decide)
        except Superseded as error:
            raise exceptions.ManagedJobReachedMaxRetriesError(str(error)) from error

    async def _try(self, decision: Launch, *, recovery: bool) -> float | None:
        """Ask for nodes under one offer; None when that came to nothing, which is written down."""
        launch, quoted = await self._opened.tell(Conductor.launching, decision)
        log.info("%s: %s", launch, decision.why)
        task = self.dag.tasks[0]
        requested = task.resources
        tags = tags_of(self._opened.run_id, launch)
        task.set_resources({resources_for(decision.offer, next(iter(requested)), tags)})
        task.update_envs(
            {LAUNCH: launch, OFFER: quoted.model_dump_json(), OWNER: self._opened.owner}
        )
        since = time.time()
        request = asyncio.create_task(
            self._launch(max_retry=1, raise_on_failure=False, recovery=recovery)
        )
        underway = self._opened.underway = Underway(launch, since, request)
        try:
            # Not awaited itself: a cancelled job and a launch that was called off would look alike.
            await asyncio.wait({request})
            submitted_at = None if request.cancelled() else request.result()
            if submitted_at is None:
                await asyncio.to_thread(self._cleanup_cluster)  # SkyPilot does not always
        except asyncio.CancelledError:
            request.cancel()
            await asyncio.wait({request})
            raise  # the attendant writes down how it ended
        finally:
            self._opened.underway = None
            task.set_resources(requested)
        await self._opened.note_up(underway)
        if submitted_at is None:
            reason, detail = self._why_refused(underway)
            await self._opened.tell(Conductor.refused, launch, reason, detail)
            if reason in (EndReason.SETUP_FAILED, EndReason.NO_ACCESS):
                await asyncio.sleep(self.RETRY_INIT_GAP_SECONDS)
        return submitted_at

    def _why_refused(self, underway: Underway) -> tuple[EndReason, str | None]:
        """Say why a launch came to nothing: a broken image must not look like missing capacity."""
        see = f"see sky jobs logs --controller {self.job_id}"
        detail = see if underway.error is None else describe(underway.error)
        if underway.is_called_off:
            return EndReason.STOPPED, "stopped while it was launched"
        if underway.up_at is None:
            return _NEVER_UP[why_refused(underway.error)], detail
        if (underway.num_alive or 0) < self.dag.tasks[0].num_nodes:
            return EndReason.NODE_LOST, "lost while it was set up or started"
        return EndReason.SETUP_FAILED, detail

    async def _await_launch_request(self, request_id: str, stream_task: Any) -> None:  # noqa: ANN401
        """Keep the failure of a launch, which SkyPilot only logs."""
        try:
            await super()._await_launch_request(request_id, stream_task)
        except Exception as error:
            if self._opened.underway is not None:
                self._opened.underway.error = error
            raise

    def _cleanup_cluster(self) -> None:
        """Terminate the nodes; before that, see how many of a failed launch are left."""
        underway = None if self._job is None else self._job.underway
        if underway is not None and underway.num_alive is None:
            underway.num_alive = self._count_alive()
        super()._cleanup_cluster()

    def _count_alive(self) -> int | None:
        """Return how many nodes the cloud has of the cluster, None where it cannot be asked."""
        try:
            return count_instances(self.cluster_name)
        except Exception as error:  # noqa: BLE001  # whatever it is, nothing is known of the nodes
            log.warning("cannot count the nodes that are left: %s", error)
            return None

    async def _wait(self, decision: Wait, *, recovery: bool) -> Decision:
        """Return what the policy says when it no longer says wait; hold no launch slot meanwhile.

        It is asked again at each tick: a stop, or another deadline, is to be heeded.
        """
        await self._release_launch_slot()
        await state.set_backoff_pending_async(self.job_id, self.task_id, reason=decision.why)
        following: Decision = decision
        while isinstance(following, Wait):
            await self._opened.tell(Conductor.waiting, following)
            left_s = following.until.timestamp() - time.time()
            await asyncio.sleep(min(max(left_s, 1.0), self.tick_seconds))
            following = await self._decide()
        await state.set_restarting_async(self.job_id, self.task_id, recovery)
        return following

    async def _release_launch_slot(self) -> None:
        """Give back the slot that a new job starts with; others are held only while launching."""
        if self.job_id not in self.starting:
            return
        await state.scheduler_set_alive_async(self.job_id)
        async with self.starting_lock:
            self.starting.discard(self.job_id)
            self.starting_signal.notify()

    async def _terminate(self) -> None:
        """End a launch that is under way, or the nodes; `_until_up` then asks what is next."""
        underway = self._opened.underway
        if underway is not None:
            underway.is_called_off = True
            underway.request.cancel()
            return
        job = self._opened
        if await asyncio.to_thread(self._count_alive):
            job.failure = replace(job.failure or Loss(), is_ours=True)
        await asyncio.to_thread(self._cleanup_cluster)


def register(tick_seconds: float) -> None:
    """Make the strategy known to SkyPilot; doing it twice is fine, some processes do."""
    OrchestrateStrategy.tick_seconds = tick_seconds
    strategies = registry.JOBS_RECOVERY_STRATEGY_REGISTRY
    if STRATEGY not in strategies:
        strategies.type_register(name=STRATEGY)(OrchestrateStrategy)
