"""A place for one worker, and how soon the next comes where one has ended."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from orchestrator.serving.engines import Place
from orchestrator.serving.models import ServedModel
from orchestrator.serving.worker import Worker

# The first restart comes at once, then after 1, 2, 4 ... seconds, until a worker has lasted.
_LONGEST_PAUSE_S, _LASTED_S = 60.0, 120.0


@dataclass(kw_only=True)
class Slot:
    """A place for one worker, whichever fills it; instants of time.monotonic()."""

    model: ServedModel
    place: Place
    worker: Worker | None = None
    # The worker that the router knows here: a dead one stays until the next has answered, for what
    # is routed to it waits, and what no worker is there for would be refused.
    number: str | None = None
    # Of one that has loaded: its first answer, and the router's number for it then.
    introduction: Future[str] | None = None
    is_ready: bool = False
    started_at: float = 0.0
    heard_at: float = 0.0
    start_at: float = 0.0
    num_ends: int = 0

    def empty(self, now: float) -> float:
        """Note that the worker ended; return the seconds until the next is to start."""
        self.num_ends = 1 if now - self.started_at > _LASTED_S else self.num_ends + 1
        pause = pause_before(self.num_ends)
        self.worker, self.introduction, self.is_ready = None, None, False
        self.start_at = now + pause
        return pause


def pause_before(num_ends: int) -> float:
    """Return the seconds to wait before a worker that ended so often in a row starts again."""
    return 0.0 if num_ends <= 1 else min(_LONGEST_PAUSE_S, 2.0 ** (num_ends - 2))
