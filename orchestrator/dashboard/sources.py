"""What every part of the page is built from: the reports' documents and one summary per launch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from orchestrator.cost import is_failed
from orchestrator.dashboard.formats import write_words
from orchestrator.goodput import Bucket, Goodput
from orchestrator.ledger.fold import LaunchView
from orchestrator.report import cost_document, status_document
from orchestrator.view import RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSummary:
    """One launch with what the ledger and the measurements together say about it."""

    launch: LaunchView
    usd: float
    lost_usd: float
    """How much of it went to steps that were trained again, and to what a lost node did last."""
    seconds: dict[Bucket, timedelta]
    last_step: int | None
    """Last step that it reported, or resumed from; None without an attempt."""
    next_attempt: int | None
    """Number of the attempt that followed; None if there is none yet."""
    next_step: int | None
    """Where that attempt resumed."""
    committed_step: int | None
    """Newest commit up to the end of this attempt; 0 if there was none."""
    error: str | None

    @property
    def is_lost(self) -> bool:
        """Say whether the cloud took the nodes back, or they vanished."""
        return self.launch.is_lost

    @property
    def label(self) -> str:
        """Name for people: the attempt, or that there was none."""
        attempt = self.launch.attempt
        return "no attempt" if attempt is None else f"attempt {attempt}"

    @property
    def end(self) -> str:
        """Why it ended, or how it is."""
        if self.launch.reason is not None:
            return write_words(self.launch.reason.value)
        return "coming up" if self.launch.attempt is None else "running"

    @property
    def where(self) -> str:
        """Cloud, region and market."""
        offer = self.launch.offer
        return f"{offer.cloud}/{offer.region}/{write_words(offer.market.value)}"

    @property
    def num_lost_steps(self) -> int | None:
        """Steps that the next attempt trained again; None until it has resumed."""
        if self.last_step is None or self.next_step is None:
            return None
        return max(0, self.last_step - self.next_step)

    @property
    def num_uncommitted_steps(self) -> int | None:
        """Age of the newest checkpoint, in steps, when the launch ended."""
        if self.last_step is None or self.committed_step is None:
            return None
        return max(0, self.last_step - self.committed_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The run at one instant, each fold computed once."""

    view: RunView
    status: dict[str, Any]
    cost: dict[str, Any]
    goodput: Goodput
    launches: tuple[LaunchSummary, ...]

    @property
    def start(self) -> datetime:
        """When the run's time begins to count."""
        return self.view.record.created_at

    @property
    def elapsed(self) -> float:
        """Wall seconds from the start to the end, or to now."""
        return self.goodput.wall.total_seconds()

    def seconds_at(self, instant: datetime) -> float:
        """Return the wall seconds from the run's start to `instant`."""
        return (instant - self.start).total_seconds()


def gather(view: RunView) -> Sources:
    """Fold the view into everything that the page shows."""
    goodput = view.goodput
    return Sources(
        view=view,
        status=status_document(view),
        cost=cost_document(view),
        goodput=goodput,
        launches=_summarize(view, goodput),
    )


def _summarize(view: RunView, goodput: Goodput) -> tuple[LaunchSummary, ...]:
    seconds: dict[str | None, dict[Bucket, timedelta]] = {}
    for span in goodput.spans:
        buckets = seconds.setdefault(span.launch, {})
        buckets[span.bucket] = buckets.get(span.bucket, timedelta()) + span.duration
    last_steps: dict[int, int] = {}
    for attempt, step in view.steps:
        last_steps[attempt] = max(step.step, last_steps.get(attempt, 0))
    numbered = sorted(
        (launch.attempt, launch.resumed_step or 0)
        for launch in view.state.launches
        if launch.attempt is not None
    )
    following = {one: after for (one, _), after in itertools.pairwise(numbered)}
    errors = {end.attempt: end.error for end in view.state.attempt_ends}
    return tuple(
        LaunchSummary(
            launch=launch,
            usd=float(view.charges[launch.launch].usd),
            lost_usd=_lost_usd(view, launch),
            seconds=seconds.get(launch.launch, {}),
            last_step=_last_step(launch, last_steps),
            next_attempt=following.get(launch.attempt or 0, (None, None))[0],
            next_step=following.get(launch.attempt or 0, (None, None))[1],
            committed_step=_committed_step(view, launch),
            error=errors.get(launch.attempt or 0),
        )
        for launch in view.state.launches
    )


def _lost_usd(view: RunView, launch: LaunchView) -> float:
    """Return what was paid for work that was done again, or for nodes that never trained."""
    if is_failed(launch):
        return float(view.charges[launch.launch].usd)
    shares = view.compute_by_launch.get(launch.launch, {})
    return float(shares.get(Bucket.LOST_WORK, Decimal(0)))


def _last_step(launch: LaunchView, last_steps: dict[int, int]) -> int | None:
    if launch.attempt is None:
        return None
    return max(last_steps.get(launch.attempt, 0), launch.resumed_step or 0)


def _committed_step(view: RunView, launch: LaunchView) -> int | None:
    if launch.attempt is None:
        return None
    return max(
        (
            commit.step
            for commit in view.state.commits
            if commit.attempt <= launch.attempt and commit.damage is None
        ),
        default=0,
    )
