"""What is to be expected of a run under way: its forecast at launch, for the part that is left.

A fold over the run, as cheap as any other: nothing is replayed anew.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import timedelta

from orchestrator.charges import scale_of
from orchestrator.ledger.record import Percentiles
from orchestrator.view import RunView

# Steps from which the speed is measured; the first ones warm up.
_FEWEST_STEPS = 20
# Enough for a median; a long run has a hundred thousand.
_RECENT_STEPS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Market hours from the launch to the end, and USD in all."""

    hours: Percentiles
    usd: Percentiles


def outlook(view: RunView) -> Outlook | None:
    """Return what was spent and the forecast of what is left; None without one, or at the end.

    What is left takes the share of the forecast that its steps are, times how much slower steps
    are than was assumed. So the range narrows as the run goes on, in proportion to what is left.
    """
    launched = view.record.forecast
    if launched is None or view.state.ended is not None:
        return None
    left = (1 - view.step / view.record.num_steps) * _slowness(view, launched.work_hours)
    return Outlook(
        hours=_add(hours_so_far(view), left, launched.hours),
        usd=_add(
            float(view.parts.total),
            left,
            launched.usd,
            most=float(view.state.spec.limits.budget_usd),
        ),
    )


def hours_so_far(view: RunView) -> float:
    """Return the market hours since the launch, until the run's end; not those it was stopped."""
    until = view.state.ended_at or view.as_of
    took = max(timedelta(), until - view.record.created_at - view.state.paused)
    return took / timedelta(hours=1) * float(scale_of(view.state))


def _add(
    spent: float, left: float, launched: Percentiles, most: float = float("inf")
) -> Percentiles:
    def add(found: float | None) -> float | None:
        # The budget ends a run, and what it has cost is not taken back.
        return None if found is None else max(spent, min(most, spent + left * found))

    return Percentiles(p10=add(launched.p10), p50=add(launched.p50), p90=add(launched.p90))


def _slowness(view: RunView, work_hours: float) -> float:
    """Return how much longer a step takes than was assumed; 1 before enough were measured."""
    steps = view.steps[-_RECENT_STEPS:]
    if len(steps) < _FEWEST_STEPS:
        return 1.0
    seconds = statistics.median(step.seconds for _, step in steps) * float(scale_of(view.state))
    return seconds * view.record.num_steps / 3600 / work_hours
