"""What a simulated job did, stretch by stretch, for whoever wants to draw or read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from orchestrator.policy.sight import Mode


class Span(NamedTuple):
    """The time between two questions to a policy; hours from the job's launch."""

    start: float
    end: float
    mode: Mode
    zone: int
    ready_at: float
    """When what is up trains: until then it starts."""
    done: float
    """Hours of work that were done at its start, less what was lost before it."""
    done_at_end: float


class Doing(str, Enum):
    """What a job's time went to."""

    SPOT = "spot"
    ON_DEMAND = "on_demand"
    STARTUP = "startup"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The same thing for a while; `zone` is that of the node, or NOWHERE."""

    doing: Doing
    mode: Mode
    zone: int
    start: float
    end: float


def stretches(spans: Iterable[Span]) -> list[Stretch]:
    """Return spans with starts apart from training, and equal neighbours joined."""
    joined: list[Stretch] = []
    for one in (part for span in spans for part in _parts(span) if part.end > part.start):
        last = joined[-1] if joined else None
        if last and (last.doing, last.mode, last.zone) == (one.doing, one.mode, one.zone):
            joined.pop()
            one = Stretch(
                doing=one.doing, mode=one.mode, zone=one.zone, start=last.start, end=one.end
            )
        joined.append(one)
    return joined


def progress(spans: Iterable[Span]) -> list[tuple[float, float]]:
    """Return the corners of work done over time, both in hours; it falls where work was lost."""
    corners = [(0.0, 0.0)]
    for span in spans:
        corners.append((span.start, span.done))
        if span.mode is not Mode.IDLE and span.start < span.ready_at < span.end:
            corners.append((span.ready_at, span.done))
        corners.append((span.end, span.done_at_end))
    return [one for one, after in zip(corners, [*corners[1:], None], strict=True) if one != after]


def _parts(span: Span) -> Iterator[Stretch]:
    """Yield a span's start, if it has one, and the rest."""
    if span.mode is Mode.IDLE:
        yield _stretch(span, Doing.WAITING, span.start, span.end)
        return
    training = Doing.SPOT if span.mode is Mode.SPOT else Doing.ON_DEMAND
    ready = min(max(span.ready_at, span.start), span.end)
    yield _stretch(span, Doing.STARTUP, span.start, ready)
    yield _stretch(span, training, ready, span.end)


def _stretch(span: Span, doing: Doing, start: float, end: float) -> Stretch:
    return Stretch(doing=doing, mode=span.mode, zone=span.zone, start=start, end=end)
