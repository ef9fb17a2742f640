"""Beside a managed job as long as it lives: the lease, stops, better offers, the last facts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from sky import global_user_state
from sky.jobs import state

from orchestrator.attempts import StopReason
from orchestrator.cloud.skypilot.conductor import Conductor, Loss, Superseded
from orchestrator.cloud.skypilot.controller import find_machine
from orchestrator.cloud.skypilot.job import Job, log
from orchestrator.notify.notifier import Notifier
from orchestrator.policy.answers import Drain, Stop

# How long nodes may take to save when the run is to stop; then they are terminated.
_STOP_GRACE_S = 180.0
# SkyPilot terminates a finished job's nodes within seconds, unless the cloud is broken.
_GONE_PATIENCE_S = 900.0
_GONE_LOOK_S = 2.0
# A store that refuses the facts of a job that is over for so long is not going to take them.
_LAST_WORDS_PATIENCE_S = 3600.0


class Attendant:
    """Looks at the run folder at each tick; SkyPilot itself watches the nodes."""

    def __init__(
        self,
        job: Job,
        tick_seconds: float,
        terminate: Callable[[], Awaitable[None]],
        notifier: Notifier | None = None,
    ) -> None:
        """`terminate` ends a launch that is under way, or the nodes; `notifier` ends with this."""
        self._job = job
        self._notifier = notifier
        self._tick_seconds = tick_seconds
        self._terminate = terminate
        self._asked: tuple[str, float] | None = None
        self._has_noted_machine = False
        self._task = asyncio.create_task(self._attend())

    @property
    def is_alive(self) -> bool:
        """Say whether it still looks."""
        return not self._task.done()

    def dismiss(self) -> None:
        """Stop looking: another strategy has taken the job up."""
        self._task.cancel()
        if self._notifier is not None:
            self._notifier.dismiss()

    async def _attend(self) -> None:
        await self._look_until_over()
        if self._notifier is not None:
            await asyncio.to_thread(self._notifier.close)

    async def _look_until_over(self) -> None:
        over_since: float | None = None
        while over_since is None or time.monotonic() - over_since < _LAST_WORDS_PATIENCE_S:
            await asyncio.sleep(self._tick_seconds)
            try:
                status = await state.get_job_status_with_task_id_async(
                    self._job.job_id, self._job.task_id
                )
                if _is_over(status):
                    over_since = over_since or time.monotonic()
                    await self._conclude(status)
                    return
                await self._tick(is_running=status is state.ManagedJobStatus.RUNNING)
            except Exception:  # noqa: BLE001  # the agents' lease and SkyPilot's watch go on
                log.exception("job %s: looking at the run failed", self._job.job_id)

    async def _tick(self, *, is_running: bool) -> None:
        job = self._job
        await job.tell(Conductor.beat)
        await self._note_machine()
        underway = job.underway
        if underway is not None:
            await job.note_up(underway)
        elif not is_running:
            return  # the strategy itself waits or asks for nodes
        try:
            decision = await job.tell(Conductor.decide)
        except Superseded as error:
            log.info("terminating our nodes: %s", error)
            await self._terminate()
            return
        await job.tell(Conductor.sample_price)
        silence = await job.tell(Conductor.silence) if underway is None else None
        if silence is not None:
            log.warning("terminating our nodes: %s", silence.detail)
            job.failure = silence
            await self._terminate()
        elif underway is None and isinstance(decision, (Stop, Drain)):
            await self._have_left(decision)
        elif isinstance(decision, Stop):
            log.info("calling the launch off: %s", decision.why)
            await self._terminate()

    async def _note_machine(self) -> None:
        if not self._has_noted_machine:
            machine = await asyncio.to_thread(find_machine)
            await self._job.tell(Conductor.note_controller, machine)
            self._has_noted_machine = True

    async def _have_left(self, decision: Stop | Drain) -> None:
        """Ask the nodes of this launch to save and leave; terminate them if they do not."""
        launch = await self._job.tell(Conductor.ask_to_leave, decision)
        if launch is None:
            return
        if self._asked is None or self._asked[0] != launch:
            self._asked = (launch, time.monotonic())
            log.info("asking the nodes to leave: %s", decision.why)
        if time.monotonic() - self._asked[1] > _STOP_GRACE_S:
            await self._terminate()

    async def _conclude(self, status: state.ManagedJobStatus | None) -> None:
        """Write down the end of the last launch and of the run, once the nodes are gone."""
        job = self._job
        give_up_at = time.monotonic() + _GONE_PATIENCE_S
        while time.monotonic() < give_up_at and await asyncio.to_thread(
            global_user_state.get_handle_from_cluster_name, job.cluster_name
        ):
            await asyncio.sleep(_GONE_LOOK_S)
        is_done = status is state.ManagedJobStatus.SUCCEEDED
        await job.note_missed()
        await job.tell(Conductor.gone, _loss(job, status))
        with contextlib.suppress(Superseded):
            decision = await job.tell(Conductor.decide)
            if not isinstance(decision, Stop):
                decision = Stop(
                    reason=StopReason.DONE if is_done else StopReason.REQUESTED,
                    why=f"the managed job is {'gone' if status is None else status.value}",
                )
            await job.tell(Conductor.finish, decision)


def _loss(job: Job, status: state.ManagedJobStatus | None) -> Loss:
    if status is state.ManagedJobStatus.SUCCEEDED:
        return Loss(exit_codes=(0,))
    if status in (state.ManagedJobStatus.CANCELLING, state.ManagedJobStatus.CANCELLED):
        return Loss(is_cancelled=True)
    return job.failure or Loss()


def _is_over(status: state.ManagedJobStatus | None) -> bool:
    is_ending = status is state.ManagedJobStatus.CANCELLING
    return status is None or status.is_terminal() or is_ending
