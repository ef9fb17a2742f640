"""Virtual time: an event loop whose clock jumps to what is next, and processes that run on it.

Code of the product that blocks runs in greenlets, which give way at each operation of the store: so
a seed decides how processes interleave, and one that is killed stops between two operations.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import selectors
from collections.abc import Callable
from datetime import datetime, timedelta

from greenlet import GreenletExit, getcurrent, greenlet

from tests.orchestrator.histories import START

_process: contextvars.ContextVar[Process] = contextvars.ContextVar("process")


def current_process() -> Process | None:
    """Return the process that a coroutine belongs to, None outside all."""
    return _process.get(None)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop whose time passes only when nothing is left to do at an instant."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.greenlet = getcurrent()
        super().__init__(_Jump(self))
        self.set_task_factory(_make_task)

    def time(self) -> float:
        return self.seconds

    def run_in_executor(self, executor, func, *args):  # what asyncio.to_thread calls
        done = self.create_future()
        process = _process.get()
        if not process.is_dead:  # else nobody will ever answer
            process.start(lambda: func(*args), done)
        return done


def _make_task(loop, coroutine, **options):
    task = asyncio.Task(coroutine, loop=loop, **options)
    process = _process.get(None)
    if process is not None:
        process.tasks.append(task)
    return task


class _Jump(selectors.SelectSelector):
    """Instead of waiting for what cannot come, let the time pass."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        assert timeout is not None, "everybody waits for somebody else"
        self._loop.seconds += timeout
        return []


class Process:
    """What lives and dies together: greenlets, tasks, and a clock of its own."""

    def __init__(self, loop: VirtualLoop, name: str, skew: timedelta = timedelta()) -> None:
        self.loop, self.name, self.skew = loop, name, skew
        self.is_dead = False
        self.when_killed: Callable[[], None] = lambda: None
        self.frozen_until = 0.0
        self._threads: list[greenlet] = []
        self.tasks: list[asyncio.Task] = []

    def now(self) -> datetime:
        """Return what this machine's clock says; with `sleep` the product's Clock."""
        return START + timedelta(seconds=self.loop.seconds) + self.skew

    def sleep(self, duration: timedelta) -> None:
        self.pause(duration.total_seconds())

    def start(self, act, done: asyncio.Future | None = None) -> None:
        """Run `act` as a thread of this process; `done` is told what it returns or raises."""

        def body():
            try:
                result = act()
            except GreenletExit:
                return
            except BaseException as error:
                if done is None:
                    raise
                if not done.done():
                    done.set_exception(error)
            else:
                if done is not None and not done.done():
                    done.set_result(result)

        thread = greenlet(body, parent=self.loop.greenlet)
        self._threads = [one for one in self._threads if not one.dead]
        self._threads.append(thread)
        self.loop.call_soon(self._resume, thread)

    def pause(self, seconds: float) -> None:
        """Let other processes go on for so long; called by a thread of this process."""
        if self.is_dead:
            raise GreenletExit
        thread = getcurrent()
        self.loop.call_later(seconds, self._resume, thread)
        thread.parent.switch()
        if self.is_dead:
            raise GreenletExit

    def _resume(self, thread: greenlet) -> None:
        if self.is_dead or thread.dead:
            return
        if self.frozen_until == math.inf:
            return
        if self.loop.seconds < self.frozen_until:
            self.loop.call_at(self.frozen_until, self._resume, thread)
            return
        thread.switch()

    def spawn(self, coroutine) -> asyncio.Task:
        """Run a coroutine as this process: what it starts belongs to it."""
        context = contextvars.copy_context()
        context.run(_process.set, self)
        return context.run(self.loop.create_task, coroutine)

    def kill(self) -> None:
        """As SIGKILL: nothing of it runs again, whoever of its threads calls this."""
        if not self.is_dead:
            self.is_dead = True
            self.loop.call_soon(self._cancel)
            self.when_killed()

    def _cancel(self) -> None:
        for task in self.tasks:
            task.cancel()

    def bury(self) -> None:
        """Unwind what is left of it, when the simulation is over."""
        self.is_dead = True
        for thread in self._threads:
            if not thread.dead:
                thread.throw(GreenletExit)
