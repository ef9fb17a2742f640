"""What the two coroutines of a managed job share: its strategy, and the attendant beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Concatenate, ParamSpec, TypeVar

from sky import sky_logging

from checkpoints.errors import StoreRefused, StoreUnreachable
from orchestrator.cloud.skypilot.clusters import up_since, zone_of
from orchestrator.cloud.skypilot.conductor import Conductor, Loss

# Under SkyPilot's own logger, or nothing of it would be in the job's log.
log = sky_logging.init_logger("sky.jobs.orchestrate")

P = ParamSpec("P")
T = TypeVar("T")

# A store that fails for this long is not coming back, and the job ends resumable.
_STORE_PATIENCE_S = 1800.0
# The same of one that refuses: keys are renewed, and roles take minutes to be known everywhere.
_REFUSAL_PATIENCE_S = 600.0
_STORE_RETRY_S = 10.0


@dataclass(slots=True)
class Underway:
    """A launch that SkyPilot was asked for and has not answered yet."""

    launch: str
    since: float
    request: asyncio.Task[float | None]
    is_called_off: bool = False
    up_at: datetime | None = None
    num_alive: int | None = None
    """Nodes that were left of it when SkyPilot gave up, None while nobody has looked."""
    error: BaseException | None = None


class Job:
    """One managed job in this process, and the way to its conductor."""

    def __init__(self, conductor: Conductor, job_id: int, task_id: int, cluster_name: str) -> None:
        self.job_id = job_id
        self.task_id = task_id
        self.cluster_name = cluster_name
        self.owner = conductor.owner
        self.run_id = conductor.run_id
        self.underway: Underway | None = None
        self.failure: Loss | None = None
        """How the job on the nodes failed, until that is written down."""
        self._conductor = conductor
        self._one_at_a_time = asyncio.Lock()

    async def tell(
        self, act: Callable[Concatenate[Conductor, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Have the conductor do something, in a thread: the event loop serves other jobs, too.

        Raises:
            CheckpointError: the store has refused for ten minutes, or been silent for thirty.
        """
        async with self._one_at_a_time:
            return await patiently(lambda: act(self._conductor, *args, **kwargs))

    async def note_up(self, underway: Underway) -> None:
        """Write down when and where the nodes of a launch came up; the bill starts there."""
        if underway.up_at is None:
            underway.up_at = await self._note_up(underway.launch, underway.since)

    async def note_missed(self) -> None:
        """Do so for a launch whose controller died before it could.

        SkyPilot's events outlive its clusters, so this may be asked when they are gone.
        """
        launch = await self.tell(Conductor.unready)
        if launch is not None:
            await self._note_up(launch.launch, launch.started_at.timestamp())

    async def _note_up(self, launch: str, since: float) -> datetime | None:
        up_at = await asyncio.to_thread(up_since, self.cluster_name, since)
        if up_at is not None:
            zone = await asyncio.to_thread(zone_of, self.cluster_name)
            await self.tell(Conductor.came_up, launch, up_at, zone)
        return up_at


async def patiently(act: Callable[[], T]) -> T:
    """Return what `act` returns in a thread, trying again while the store is silent or refuses."""
    began_at = time.monotonic()
    refused_since: float | None = None
    while True:
        try:
            return await asyncio.to_thread(act)
        except (StoreUnreachable, StoreRefused) as error:
            now = time.monotonic()
            # From the first refusal: the silence before it says nothing of the keys.
            if not isinstance(error, StoreRefused):
                refused_since = None
            elif refused_since is None:
                refused_since = now
            is_refused = refused_since is not None and now - refused_since >= _REFUSAL_PATIENCE_S
            if is_refused or now - began_at >= _STORE_PATIENCE_S:
                raise
            log.warning("the store fails, trying again: %s", error)
        await asyncio.sleep(_STORE_RETRY_S)
