"""SkyPilot's part: managed jobs whose controller runs our real strategy and attendant.

What sky/jobs/controller.py of 0.14.1 does with a strategy, in its order: launch, watch, recover,
restart on failure, give up; and after a crash of its process, take the job up again.
"""

from __future__ import annotations

import asyncio
import warnings
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from unittest.mock import patch

from orchestrator.attempts import AgentExit
from orchestrator.cloud.skypilot.conductor import Conductor, Machine
from orchestrator.cloud.skypilot.environment import LAUNCH, OFFER, OWNER
from orchestrator.ledger.facts import QuotedOffer
from orchestrator.offers import PriceTable
from tests.simulation.cloud import Cloud, LostWhileSetUp, Node, NoRoom, instant
from tests.simulation.loop import Process, current_process

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what SkyPilot and its libraries say when they are imported
    from sky import exceptions
    from sky.jobs import recovery_strategy, state

    from orchestrator.cloud.skypilot import attendant, strategy

Status = state.ManagedJobStatus
# How often SkyPilot's controller asks for the status of a job, and how long it bears no answer.
_STATUS_GAP_S = 15.0
_UNREADABLE_PATIENCE_S = 120.0
_TICK_S = 60.0
_RESTART_GAP_S = 30.0


class ManagedJob:
    """One managed job: what SkyPilot's database says of it, and its controller's process."""

    def __init__(self, number: int, cloud: Cloud, store_of, launched_at: datetime) -> None:
        self.number = number
        self.cloud, self.store_of = cloud, store_of
        self.launched_at = launched_at
        self.name = f"run-{number}"
        self.status = Status.STARTING
        self.node: Node | None = None
        self.ups: list[tuple[float, Node]] = []
        self.skew = cloud.plan.skew(cloud.rng)
        """Of the machine that its controllers run on, one after the other."""
        self.controller: Process | None = None
        self.dead_since: float | None = None
        self._absences: list[tuple[float, float]] = []
        self.provisioning: asyncio.Task | None = None
        self.torn_down_unseen: list[tuple[Node, float, float]] = []
        """Nodes that nothing had happened to; between which instants nobody saw them."""

    @property
    def loop(self):
        return self.cloud.loop

    def start(self, *, is_resumed: bool = False) -> None:
        """Start its controller, in a process of its own."""
        self.controller = Process(self.loop, f"controller-{self.number}", skew=self.skew)
        if self.dead_since is not None:
            self._absences.append((self.dead_since, self.loop.seconds))
        self.dead_since = None
        self.controller.spawn(self._control(is_resumed=is_resumed))

    def watch(self) -> None:
        """Note that the controller is dead, and start another after a while, as SkyPilot does."""
        if self.status.is_terminal() and self.dead_since is not None:
            return
        if self.controller.is_dead and self.dead_since is None:
            self.dead_since = self.loop.seconds
            if self.cloud.plan.controller_stays_away:
                self.cloud.plan.count("controller gone for good")
                return
            self.cloud.plan.count("controller killed")
            self.loop.call_later(_RESTART_GAP_S, lambda: self.start(is_resumed=True))

    def away_s(self, start: float, end: float) -> float:
        """Return for how long there was no controller in that time."""
        now_away = [] if self.dead_since is None else [(self.dead_since, end)]
        spells = [*self._absences, *now_away]
        return sum(max(0.0, min(end, until) - max(start, since)) for since, until in spells)

    def num_absences(self, start: float, end: float) -> int:
        return sum(start <= until <= end for _, until in self._absences)

    def came_up(self, node: Node) -> None:
        self.node = node
        self.ups.append((self.loop.seconds, node))

    def terminate(self) -> None:
        """As `sky down`; called by a thread of the controller."""
        if self.provisioning is not None:
            self.provisioning.cancel()  # as core.down does, by kill_cluster_requests
        node = self.node
        self.controller.pause(self.cloud.rng.uniform(2, 20))
        if node is not None:
            self.cloud.terminate(node)
        if self.node is node:
            self.node = None

    async def _control(self, *, is_resumed: bool) -> None:
        executor = Strategy(self)
        try:
            await self._launch(executor, is_resumed=is_resumed)
            while not self.status.is_terminal():
                await executor.monitor_task()
                await asyncio.sleep(_STATUS_GAP_S)
                await self._look(executor)
        except exceptions.ManagedJobReachedMaxRetriesError:
            self.status = Status.FAILED_NO_RESOURCE
        except exceptions.ProvisionPrechecksError:
            self.status = Status.FAILED_PRECHECKS
        except Exception:  # noqa: BLE001  # as SkyPilot's own controller
            self.status = Status.FAILED_CONTROLLER
        await asyncio.to_thread(self.terminate)

    async def _launch(self, executor, *, is_resumed: bool) -> None:
        if not is_resumed:
            await executor.launch()
            self.status = Status.RUNNING
            return
        await executor.on_resume(self.name)
        if self.status is not Status.RUNNING and not self.status.is_terminal():
            self.status = Status.RECOVERING
            await executor.recover()
            self.status = Status.RUNNING

    async def _look(self, executor) -> None:
        node = self.node
        if node is not None and node.is_up and self._is_unreadable():
            began_at = self.loop.seconds
            if await self._bear_it():
                return
            await self._recover(executor)
            if self.node is not node and node.exit_code is None and not node.was_disturbed:
                self.torn_down_unseen.append((node, began_at, self.loop.seconds))
        elif node is None or not node.is_up:
            await self._recover(executor)
        elif node.exit_code == AgentExit.DONE:
            self.status = Status.SUCCEEDED
        elif node.exit_code is not None and executor.should_restart_on_failure([node.exit_code]):
            await self._recover(executor)

    async def _bear_it(self) -> bool:
        """Wait while a job's status cannot be read; return whether it can be again."""
        self.cloud.plan.count("status unreadable")
        give_up_at = self.loop.seconds + _UNREADABLE_PATIENCE_S
        while self.loop.seconds < give_up_at:
            await asyncio.sleep(_STATUS_GAP_S)
            if not self._is_unreadable():
                return True
        return False

    def _is_unreadable(self) -> bool:
        now = self.loop.seconds
        return any(start <= now < end for start, end in self.cloud.plan.status_unreadable)

    async def _recover(self, executor) -> None:
        self.status = Status.RECOVERING
        await executor.recover()
        self.status = Status.RUNNING


class Strategy(strategy.OrchestrateStrategy):
    """Ours, on a cloud that is simulated."""

    tick_seconds = _TICK_S
    RETRY_INIT_GAP_SECONDS = 60

    def __init__(self, job: ManagedJob) -> None:
        self._managed = job
        task = SimpleNamespace(resources={"any"}, num_nodes=1, secrets={}, envs={})
        task.set_resources, task.update_envs = (lambda _: None), task.envs.update
        self.dag = SimpleNamespace(tasks=[task])
        self.job_id, self.task_id, self.cluster_name = job.number, 0, job.name
        self._job, self._attendant = None, None
        self.starting: set[int] = set()

    def _make_conductor(self) -> Conductor:
        job = self._managed
        return Conductor(
            job.store_of(job.controller),
            f"job-{job.number}",
            job.controller,
            job.cloud.offers,
            job.launched_at,
            ask_prices=lambda spec: PriceTable(
                offers=job.cloud.offers(), source="simulated", as_of=None
            ),
        )

    async def _launch(self, max_retry, raise_on_failure, recovery):
        job, envs = self._managed, self.dag.tasks[0].envs
        offer = QuotedOffer.model_validate_json(envs[OFFER])
        # Provisioning is the API server's: it goes on when this process is killed.
        request = job.provisioning = job.cloud.service.spawn(
            job.cloud.provision(job, envs[LAUNCH], offer, envs[OWNER])
        )
        try:
            return await asyncio.shield(request)
        except asyncio.CancelledError:
            if not job.controller.is_dead:
                request.cancel()
            raise
        except NoRoom:
            refused = exceptions.ResourcesUnavailableError("no room in the zone")
            self._job.underway.error = exceptions.ResourcesUnavailableError(
                "refused", failover_history=[refused]
            )
        except LostWhileSetUp as error:
            self._job.underway.error = error
        return None


@contextmanager
def standing_in(jobs: dict[int, ManagedJob], cloud: Cloud):
    """Have SkyPilot's database and clients answer for these jobs; its clocks are virtual."""
    by_name = lambda name: next(one for one in jobs.values() if one.name == name)  # noqa: E731

    async def status_of(job_id, task_id):
        return jobs[job_id].status

    async def nothing(*arguments, **named):
        return None

    def up_since(name, since):
        job = by_name(name)
        told = [instant(int(at)) + job.skew for at, _ in job.ups]
        fresh = [up_at for up_at in told if up_at.timestamp() >= int(since)]
        return min(fresh, default=None)

    def zone_of(name):
        node = by_name(name).node
        return None if node is None else node.offer.zone

    def count_instances(name):
        node = by_name(name).node
        return int(node is not None and node.is_up)

    def handle(name):
        node = by_name(name).node
        return None if node is None or not node.is_up else node

    def now(*_):
        process = current_process()
        skew = timedelta() if process is None else process.skew
        return (instant(cloud.loop.seconds) + skew).timestamp()

    machine = Machine(cloud="aws", region="us-east-1", instance_type="m6i", usd_per_hour=None)
    with ExitStack() as stack:
        for target, name, stand_in in (
            (state, "get_job_status_with_task_id_async", status_of),
            (state, "set_backoff_pending_async", nothing),
            (state, "set_restarting_async", nothing),
            (attendant.global_user_state, "get_handle_from_cluster_name", handle),
            (attendant, "find_machine", lambda: machine),
            (strategy, "count_instances", count_instances),
            (strategy, "resources_for", lambda offer, requested, tags: requested),
            (
                recovery_strategy.StrategyExecutor,
                "_cleanup_cluster",
                lambda executor: executor._managed.terminate(),
            ),
        ):
            stack.enter_context(patch.object(target, name, stand_in))
        stack.enter_context(patch("orchestrator.cloud.skypilot.job.up_since", up_since))
        stack.enter_context(patch("orchestrator.cloud.skypilot.job.zone_of", zone_of))
        stack.enter_context(patch("time.time", now))
        stack.enter_context(patch("time.monotonic", lambda: cloud.loop.seconds))
        yield
