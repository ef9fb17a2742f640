"""All workers and their router: started together, restarted one by one, drained as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import httpx

from orchestrator.errors import ModelNotServed
from orchestrator.serving.engines import Engine, Place, num_gpus, share_out
from orchestrator.serving.models import ServedModel
from orchestrator.serving.router import Address, Limits, Router
from orchestrator.serving.worker import (
    START_LIMIT,
    Health,
    Worker,
    await_first_answer,
    check_first_answer,
    health,
    start_worker,
    stop_worker,
)

# The first restart comes at once, then after 1, 2, 4 ... seconds, until a worker has lasted.
_LONGEST_PAUSE_S, _LASTED_S = 60.0, 120.0
# A long prompt on a processor may keep a worker from answering for a while.
_SILENCE_S = 60.0
# Each is a line of the worker's log.
_PROBE_EVERY_S = 5.0

Say = Callable[[str], None]
Start = Callable[[ServedModel, Path, Place], Worker]


@dataclass(kw_only=True)
class _Slot:
    """A place for one worker, whichever fills it; instants of time.monotonic()."""

    model: ServedModel
    place: Place
    worker: Worker | None = None
    # The worker that the router knows here: a dead one stays until the next has answered, for what
    # is routed to it waits, and what no worker is there for would be refused.
    number: str | None = None
    is_ready: bool = False
    started_at: float = 0.0
    heard_at: float = 0.0
    start_at: float = 0.0
    num_ends: int = 0


@dataclass(kw_only=True)
class Group:
    """Models x replicas behind one address; `tick` it often, from the thread that started it."""

    models: Sequence[ServedModel]
    replicas: int
    start: Start
    address: Address
    limits: Limits
    folder: Path
    say: Say
    _slots: list[_Slot] = field(default_factory=list, init=False)
    _router: Router | None = field(default=None, init=False)

    def open(self) -> None:
        """Start everything; return when every model has answered once.

        Raises:
            UsageError: the router cannot listen at its address.
            ModelNotServed: a worker does not start.
        """
        self._router = Router(self.address, self.limits, self.folder)
        models = [model for model in self.models for _ in range(self.replicas)]
        places = share_out(len(models), num_gpus())
        self._slots = [
            _Slot(model=model, place=place) for model, place in zip(models, places, strict=True)
        ]
        with ThreadPoolExecutor(len(self._slots)) as pool:
            try:
                # From this thread, which lives as long as the workers are to.
                for slot in self._slots:
                    self._start(slot)
                waiting = [pool.submit(await_first_answer, one) for one in self.workers()]
                for one in as_completed(waiting):
                    one.result()
                for slot in self._slots:
                    self._take_up(slot)
            except BaseException:
                # Within the pool, which waits for those that still load.
                self.close()
                raise

    @property
    def is_ready(self) -> bool:
        """Whether each model has a worker that can answer."""
        ready = {slot.model.name for slot in self._slots if slot.is_ready}
        return self._router is not None and all(model.name in ready for model in self.models)

    @property
    def router(self) -> Router:
        """The router of an open group."""
        assert self._router is not None, "the group is not open"
        return self._router

    def workers(self) -> list[Worker]:
        """Return the workers that there are, able to answer or not."""
        return [slot.worker for slot in self._slots if slot.worker is not None]

    def tick(self) -> None:
        """Look after every worker once: bury, restart, put before clients."""
        if not self.router.is_alive:
            self.say("The router ended; starting it again.")
            self.router.restart()
            for slot in self._slots:
                slot.number, slot.is_ready, slot.started_at = None, False, time.monotonic()
        for slot in self._slots:
            if slot.worker is None:
                if time.monotonic() >= slot.start_at:
                    self._start(slot)
            elif (why := self._what_is_wrong(slot, slot.worker)) is not None:
                self._bury(slot, slot.worker, why)

    def drain(self, patience: timedelta) -> bool:
        """Take nothing more, finish what runs, end everything; tell whether all was finished."""
        is_finished = self._router is None or self._router.drain(patience)
        self.close()
        return is_finished

    def close(self) -> None:
        """End everything now; what is being answered is cut."""
        if self._router is not None:
            self._router.kill()
        workers = self.workers()
        with ThreadPoolExecutor(max(1, len(workers))) as pool:
            list(pool.map(stop_worker, workers))

    def _start(self, slot: _Slot) -> None:
        slot.worker = self.start(slot.model, self.folder, slot.place)
        slot.started_at = slot.heard_at = time.monotonic()

    def _what_is_wrong(self, slot: _Slot, worker: Worker) -> str | None:
        ended = worker.process.poll()
        if ended is not None:
            return f"ended with {ended}"
        if slot.is_ready and time.monotonic() - slot.heard_at < _PROBE_EVERY_S:
            return None
        state = health(worker)
        if state is Health.BROKEN and slot.is_ready:
            return "says that it is broken"
        if state is Health.WELL:
            slot.heard_at = time.monotonic()
            return None if slot.is_ready else self._finish_start(slot, worker)
        limit = _SILENCE_S if slot.is_ready else START_LIMIT.total_seconds()
        if time.monotonic() - slot.heard_at > limit:
            return f"has not answered for {limit:.0f} s"
        return None

    def _finish_start(self, slot: _Slot, worker: Worker) -> str | None:
        try:
            check_first_answer(worker)
            self._take_up(slot)
        except (ModelNotServed, httpx.HTTPError) as error:
            return str(error)
        took = time.monotonic() - slot.started_at
        self.say(f"A worker of {slot.model.name} is back after {took:.0f} s.")
        return None

    def _take_up(self, slot: _Slot) -> None:
        assert slot.worker is not None
        dead, slot.number = slot.number, self.router.add(slot.worker.url, slot.model.name)
        slot.is_ready = True
        if dead is not None:
            self.router.remove(dead)

    def _bury(self, slot: _Slot, worker: Worker, why: str) -> None:
        stop_worker(worker)
        now = time.monotonic()
        slot.num_ends = 1 if now - slot.started_at > _LASTED_S else slot.num_ends + 1
        pause = pause_before(slot.num_ends)
        slot.worker, slot.is_ready, slot.start_at = None, False, now + pause
        when = f"in {pause:.0f} s" if pause else "now"
        self.say(f"A worker of {slot.model.name} {why}; starting it again {when}. {worker.log}")


def pause_before(num_ends: int) -> float:
    """Return the seconds to wait before a worker that ended so often in a row starts again."""
    return 0.0 if num_ends <= 1 else min(_LONGEST_PAUSE_S, 2.0 ** (num_ends - 2))


def starter(engine: Engine) -> Start:
    """Return what starts workers of this engine."""
    return lambda model, folder, place: start_worker(model, folder, engine=engine, place=place)
