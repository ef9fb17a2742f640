"""Our recovery strategy inside SkyPilot's jobs controller: `decide()` says, SkyPilot does.

Written against sky/jobs/recovery_strategy.py and sky/jobs/controller.py of 0.14.1. Only the plugin
imports this file, in SkyPilot's own processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Concatenate, ParamSpec, TypeVar

from sky import exceptions, global_user_state, sky_logging
from sky.jobs import recovery_strategy, state
from sky.utils import context, registry

from checkpoints.errors import CheckpointError, StoreUnreachable
from checkpoints.store import open_store
from orchestrator.attempts import AgentExit, EndReason, StopReason
from orchestrator.clock import SystemClock
from orchestrator.cloud.skypilot.clusters import count_instances, describe, up_since, zone_of
from orchestrator.cloud.skypilot.conductor import Conductor, Loss, Superseded
from orchestrator.cloud.skypilot.environment import (
    JOB,
    LAUNCH,
    OFFER,
    OWNER,
    RUN_FOLDER,
    STORE_SETTINGS,
)
from orchestrator.cloud.skypilot.offers import TodaysOffers, resources_for
from orchestrator.errors import OrchestratorError
from orchestrator.policy.decide import Decision, Drain, Keep, Launch, Stop, Wait

# Under SkyPilot's own logger, or nothing of it would be in the job's log.
log = sky_logging.init_logger("sky.jobs.orchestrate")

P = ParamSpec("P")
T = TypeVar("T")

NAME = "orchestrate"
# How long nodes may take to save when the run is to stop; then they are terminated.
_STOP_GRACE = timedelta(minutes=3)
# A store that fails for this long is not coming back, and the job ends resumable.
_STORE_PATIENCE_S = 1800.0
_STORE_RETRY_S = 10.0
# SkyPilot terminates a finished job's nodes within seconds, unless the cloud is broken.
_GONE_PATIENCE_S = 900.0
_GONE_LOOK_S = 2.0
# One watcher per job and process: SkyPilot makes a new strategy when it takes a job up again.
_attendants: dict[int, asyncio.Task[None]] = {}


@dataclass(slots=True)
class _Underway:
    """A launch that SkyPilot was asked for and has not answered yet."""

    launch: str
    since: float
    request: asyncio.Task[float | None]
    is_called_off: bool = False
    up_at: datetime | None = None
    num_alive: int = 0
    """Nodes that were left of it when SkyPilot gave up."""
    error: BaseException | None = None


class OrchestrateStrategy(recovery_strategy.FailoverStrategyExecutor):  # type: ignore[misc]
    """Launches where the policy says, one offer at a time, and keeps the run's ledger."""

    tick_seconds = 15.0
    """How often the run folder is looked at; each look is a few requests that somebody pays for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # SkyPilot's own
        super().__init__(*args, **kwargs)
        self._conductor: Conductor | None = None
        self._one_at_a_time = asyncio.Lock()
        self._underway: _Underway | None = None
        self._exit_codes: tuple[int, ...] = ()
        self._asked_at: float | None = None

    async def launch(self) -> float:
        """Bring the run up for the first time; returns when its job was submitted."""
        await self._open()
        return await self._until_up(recovery=False)

    async def recover(self) -> float:
        """Bring the run up again; the nodes that it had are terminated first."""
        await self._open()
        await asyncio.to_thread(self._cleanup_cluster)
        exit_codes, self._exit_codes = self._exit_codes, ()
        await self._note_gone(Loss(exit_codes=exit_codes))
        if AgentExit.FENCED in exit_codes:
            raise exceptions.ManagedJobReachedMaxRetriesError("a later attempt owns the run")
        return await self._until_up(recovery=True)

    async def on_resume(self, cluster_name: str) -> None:
        """Take a job up again after the controller was restarted."""
        await self._open()

    async def monitor_task(self, **kwargs: Any) -> bool | None:  # noqa: ANN401  # SkyPilot's own
        """Leave the watching of nodes to SkyPilot; the run folder is watched beside it."""
        await self._open()
        self._asked_at = None
        return None

    def should_restart_on_failure(self, exit_codes: list[int] | None = None) -> bool:
        """Let `recover` decide, which knows the ledger: it ends the job where nothing follows."""
        self._exit_codes = tuple(exit_codes or (AgentExit.FAILED,))
        return True

    async def _open(self) -> None:
        if self._conductor is not None:
            return
        try:
            self._conductor = await self._patiently(self._make_conductor)
        except (CheckpointError, OrchestratorError) as error:
            raise exceptions.ProvisionPrechecksError([error]) from error
        previous = _attendants.pop(self.job_id, None)
        if previous is not None:
            previous.cancel()
        _attendants[self.job_id] = asyncio.create_task(self._attend())

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
        clock = SystemClock()
        return Conductor(store, job, clock, TodaysOffers(clock))

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
                    await self._finish(decision)
                    raise exceptions.ManagedJobReachedMaxRetriesError(decision.why)
                case Keep() | Drain():
                    # A launch that is open in the ledger, although none of its nodes is left.
                    await asyncio.to_thread(self._cleanup_cluster)
                    await self._note_gone(Loss(detail="its controller was restarted"))
                    decision = await self._decide()

    async def _decide(self) -> Decision:
        try:
            return await self._tell(Conductor.decide)
        except Superseded as error:
            raise exceptions.ManagedJobReachedMaxRetriesError(str(error)) from error

    async def _try(self, decision: Launch, *, recovery: bool) -> float | None:
        """Ask for nodes under one offer; None when that came to nothing, which is written down."""
        launch, quoted = await self._tell(Conductor.launching, decision)
        assert self._conductor is not None
        log.info("%s: %s", launch, decision.why)
        task = self.dag.tasks[0]
        requested = task.resources
        task.set_resources({resources_for(decision.offer, next(iter(requested)))})
        task.update_envs(
            {LAUNCH: launch, OFFER: quoted.model_dump_json(), OWNER: self._conductor.owner}
        )
        since = time.time()
        request = asyncio.create_task(
            self._launch(max_retry=1, raise_on_failure=False, recovery=recovery)
        )
        underway = self._underway = _Underway(launch, since, request)
        submitted_at: float | None
        try:
            submitted_at = await request
        except asyncio.CancelledError:
            if not underway.is_called_off:
                raise  # the job is cancelled; the attendant writes down how it ended
            submitted_at = None
            await asyncio.to_thread(self._cleanup_cluster)
        finally:
            self._underway = None
            task.set_resources(requested)
        await self._note_up(underway)
        if submitted_at is None:
            reason, detail = self._why_refused(underway)
            await self._tell(Conductor.refused, launch, reason, detail)
        return submitted_at

    def _why_refused(self, underway: _Underway) -> tuple[EndReason, str | None]:
        """Say why a launch came to nothing: a broken image must not look like missing capacity."""
        detail = None if underway.error is None else describe(underway.error)
        if underway.is_called_off:
            return EndReason.STOPPED, "stopped while it was launched"
        if underway.up_at is None:
            see = f"no cloud was asked; see sky jobs logs --controller {self.job_id}"
            return EndReason.NO_CAPACITY, detail or see
        if underway.num_alive < self.dag.tasks[0].num_nodes:
            return EndReason.NODE_LOST, "lost while it was set up or started"
        return EndReason.SETUP_FAILED, detail

    async def _await_launch_request(self, request_id: str, stream_task: Any) -> None:  # noqa: ANN401
        """Keep the failure of a launch, which SkyPilot only logs."""
        try:
            await super()._await_launch_request(request_id, stream_task)
        except Exception as error:
            if self._underway is not None:
                self._underway.error = error
            raise

    def _cleanup_cluster(self) -> None:
        """Terminate the nodes; before that, see how many of a failed launch are left."""
        if self._underway is not None:
            self._underway.num_alive = count_instances(self.cluster_name)
        super()._cleanup_cluster()

    async def _wait(self, decision: Wait, *, recovery: bool) -> Decision:
        """Return what the policy says when it no longer says wait; hold no launch slot meanwhile.

        It is asked again at each tick: a stop, or another deadline, is to be heeded.
        """
        await self._release_launch_slot()
        await state.set_backoff_pending_async(self.job_id, self.task_id, reason=decision.why)
        following: Decision = decision
        while isinstance(following, Wait):
            await self._tell(Conductor.waiting, following)
            left_s = (following.until - datetime.now(timezone.utc)).total_seconds()
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

    async def _attend(self) -> None:
        """Keep the lease, look for stops and better offers, until the job is over."""
        while True:
            await asyncio.sleep(self.tick_seconds)
            status = await state.get_job_status_with_task_id_async(self.job_id, self.task_id)
            is_over = status is None or status.is_terminal()
            if is_over or status is state.ManagedJobStatus.CANCELLING:
                await self._conclude(status)
                return
            try:
                await self._tick(is_running=status is state.ManagedJobStatus.RUNNING)
            except Exception:  # whatever it is, the agents' lease and SkyPilot's watch go on
                log.exception("job %s: looking at the run failed", self.job_id)

    async def _tick(self, *, is_running: bool) -> None:
        await self._tell(Conductor.beat)
        underway = self._underway
        if underway is not None:
            await self._note_up(underway)
        elif not is_running:
            return
        try:
            decision = await self._tell(Conductor.decide)
        except Superseded as error:
            log.info("terminating our nodes: %s", error)
            await self._terminate()
            return
        if underway is None and isinstance(decision, (Stop, Drain)):
            await self._have_left(decision)
        elif isinstance(decision, Stop):
            log.info("calling the launch off: %s", decision.why)
            await self._terminate()

    async def _terminate(self) -> None:
        """End a launch that is under way, or the nodes; `_until_up` then asks what is next."""
        if self._underway is not None:
            self._underway.is_called_off = True
            self._underway.request.cancel()
        else:
            await asyncio.to_thread(self._cleanup_cluster)

    async def _have_left(self, decision: Stop | Drain) -> None:
        """Ask the nodes to save and leave; terminate them if they do not."""
        if self._asked_at is None:
            self._asked_at = time.time()
            log.info("asking the nodes to leave: %s", decision.why)
        await self._tell(Conductor.ask_to_leave, decision)
        if time.time() - self._asked_at > _STOP_GRACE.total_seconds():
            await self._terminate()

    async def _note_up(self, underway: _Underway) -> None:
        """Write down when and where the nodes of a launch came up; the bill starts there."""
        if underway.up_at is not None:
            return
        up_at = await asyncio.to_thread(up_since, self.cluster_name, underway.since)
        if up_at is not None:
            underway.up_at = up_at
            zone = await asyncio.to_thread(zone_of, self.cluster_name)
            await self._tell(Conductor.came_up, underway.launch, up_at, zone)

    async def _conclude(self, status: state.ManagedJobStatus | None) -> None:
        """Write down the end of the last launch and of the run, once the nodes are gone."""
        give_up_at = time.monotonic() + _GONE_PATIENCE_S
        while time.monotonic() < give_up_at and await asyncio.to_thread(
            global_user_state.get_handle_from_cluster_name, self.cluster_name
        ):
            await asyncio.sleep(_GONE_LOOK_S)
        is_done = status is state.ManagedJobStatus.SUCCEEDED
        await self._note_gone(Loss(exit_codes=(0,) if is_done else self._exit_codes))
        with contextlib.suppress(Superseded):
            await self._finish_after(status, is_done=is_done)
        _attendants.pop(self.job_id, None)

    async def _finish_after(self, status: state.ManagedJobStatus | None, *, is_done: bool) -> None:
        decision = await self._tell(Conductor.decide)
        if not isinstance(decision, Stop):
            decision = Stop(
                reason=StopReason.DONE if is_done else StopReason.REQUESTED,
                why=f"the managed job is {'gone' if status is None else status.value}",
            )
        await self._finish(decision)

    async def _note_gone(self, loss: Loss) -> None:
        await self._tell(Conductor.gone, loss)

    async def _finish(self, stop: Stop) -> None:
        await self._tell(Conductor.finish, stop)

    async def _tell(
        self,
        act: Callable[Concatenate[Conductor, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Have the conductor do something, in a thread: the loop serves other jobs, too."""
        conductor = self._conductor
        assert conductor is not None
        async with self._one_at_a_time:
            return await self._patiently(lambda: act(conductor, *args, **kwargs))

    async def _patiently(self, act: Callable[[], T]) -> T:
        give_up_at = time.monotonic() + _STORE_PATIENCE_S
        while True:
            try:
                return await asyncio.to_thread(act)
            except StoreUnreachable as error:
                if time.monotonic() > give_up_at:
                    raise
                log.warning("the store fails, trying again: %s", error)
            await asyncio.sleep(_STORE_RETRY_S)


def register(tick_seconds: float) -> None:
    """Make the strategy known to SkyPilot; doing it twice is fine, some processes do."""
    OrchestrateStrategy.tick_seconds = tick_seconds
    strategies = registry.JOBS_RECOVERY_STRATEGY_REGISTRY
    if NAME not in strategies:
        strategies.type_register(name=NAME)(OrchestrateStrategy)
