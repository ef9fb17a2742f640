"""All workers and their router: started together, restarted one by one, drained as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import httpx

from orchestrator.errors import ModelNotServed
from orchestrator.serving.engines import Engine, Place, num_gpus, share_out
from orchestrator.serving.models import ServedModel
from orchestrator.serving.router import Address, Limits, Router
from orchestrator.serving.slot import Slot
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

# A long prompt on a processor may keep a worker from answering for a while.
_SILENCE_S = 60.0
# Each is a line of the worker's log.
_PROBE_EVERY_S = 5.0

Say = Callable[[str], None]
Start = Callable[[ServedModel, Path, Place], Worker]


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
    _slots: list[Slot] = field(default_factory=list, init=False)
    _router: Router | None = field(default=None, init=False)
    # First answers: one took 45 s, in which nobody would look after the others, or at a notice.
    _pool: ThreadPoolExecutor = field(default_factory=ThreadPoolExecutor, init=False)

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
            Slot(model=model, place=place) for model, place in zip(models, places, strict=True)
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
                    assert slot.worker is not None
                    self._take_up(slot, self.router.add(slot.worker.url, slot.model.name))
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
                slot.number, slot.introduction, slot.is_ready = None, None, False
                slot.started_at = time.monotonic()
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

    def _start(self, slot: Slot) -> None:
        slot.worker = self.start(slot.model, self.folder, slot.place)
        slot.started_at = slot.heard_at = time.monotonic()

    def _what_is_wrong(self, slot: Slot, worker: Worker) -> str | None:
        if slot.introduction is not None:
            return self._finish_start(slot, slot.introduction)
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
            if not slot.is_ready:
                slot.introduction = self._pool.submit(self._introduce, worker)
            return None
        limit = _SILENCE_S if slot.is_ready else START_LIMIT.total_seconds()
        if time.monotonic() - slot.heard_at > limit:
            return f"has not answered for {limit:.0f} s"
        return None

    def _introduce(self, worker: Worker) -> str:
        check_first_answer(worker)
        return self.router.add(worker.url, worker.model.name)

    def _finish_start(self, slot: Slot, introduction: Future[str]) -> str | None:
        if not introduction.done():
            return None
        slot.introduction, slot.heard_at = None, time.monotonic()
        try:
            self._take_up(slot, introduction.result())
        except (ModelNotServed, httpx.HTTPError) as error:
            return str(error)
        took = time.monotonic() - slot.started_at
        self.say(f"A worker of {slot.model.name} is back after {took:.0f} s.")
        return None

    def _take_up(self, slot: Slot, number: str) -> None:
        dead, slot.number, slot.is_ready = slot.number, number, True
        if dead is not None:
            self.router.remove(dead)

    def _bury(self, slot: Slot, worker: Worker, why: str) -> None:
        stop_worker(worker)
        pause = slot.empty(time.monotonic())
        when = f"in {pause:.0f} s" if pause else "now"
        self.say(f"A worker of {slot.model.name} {why}; starting it again {when}. {worker.log}")


def starter(engine: Engine) -> Start:
    """Return what starts workers of this engine."""
    return lambda model, folder, place: start_worker(model, folder, engine=engine, place=place)
