"""All that a run's page says, as one value: whatever serves pages fills the same templates."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.dashboard.breakdown import Breakdown, build_cost, build_places, build_seconds
from orchestrator.dashboard.burnup import build_progress, build_spend
from orchestrator.dashboard.curves import Plot, build_loss
from orchestrator.dashboard.evaluations import evaluations_table
from orchestrator.dashboard.sources import Sources, gather
from orchestrator.dashboard.summary import Header, Indicator, build_header, build_indicators
from orchestrator.dashboard.tables import (
    Table,
    build_attempts,
    build_checkpoints,
    build_decisions,
    build_launch_seconds,
    build_losses,
    build_preemptions,
    build_provenance,
    build_reconciliation,
    build_replays,
    build_serving,
)
from orchestrator.dashboard.timeline import Timeline, build_timeline
from orchestrator.view import RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One run at one instant."""

    header: Header
    indicators: tuple[Indicator, ...]
    cost: Breakdown
    places: Breakdown
    seconds: Breakdown
    timeline: Timeline
    launch_seconds: Table
    attempts: Table
    logged: tuple[int, ...]
    """Attempts that may have a log."""
    loss: Plot | None
    losses: Table
    replays: Table
    progress: Plot | None
    spend: Plot | None
    preemptions: Table
    checkpoints: Table
    decisions: Table
    evaluations: Table
    reconciliation: Table
    serving: Table
    provenance: Table


_BREAKDOWNS = {"cost": build_cost, "places": build_places, "seconds": build_seconds}
_LONG_TABLES = {
    "attempts": build_attempts,
    "losses": build_losses,
    "replays": build_replays,
    "checkpoints": build_checkpoints,
    "decisions": build_decisions,
}


def _build_evaluations(sources: Sources) -> Table:
    return evaluations_table(sources.view.state.judged)


_TABLES = {
    "launch_seconds": build_launch_seconds,
    "preemptions": build_preemptions,
    "evaluations": _build_evaluations,
    "reconciliation": build_reconciliation,
    "serving": build_serving,
    "provenance": build_provenance,
}


def build_table(view: RunView, name: str) -> Table | None:
    """Return one table of a run's page with all of its rows; None if there is none of that name."""
    if name in _BREAKDOWNS:
        return _BREAKDOWNS[name](gather(view)).as_table()
    if name in _LONG_TABLES:
        return _LONG_TABLES[name](gather(view), most=None)
    return _TABLES[name](gather(view)) if name in _TABLES else None


def build_page(view: RunView) -> Page:
    """Return the page's content; the same view gives the same page."""
    sources = gather(view)
    return Page(
        header=build_header(sources),
        indicators=build_indicators(sources),
        cost=build_cost(sources),
        places=build_places(sources),
        seconds=build_seconds(sources),
        timeline=build_timeline(sources),
        launch_seconds=build_launch_seconds(sources),
        attempts=build_attempts(sources),
        logged=tuple(
            one.launch.attempt for one in sources.launches if one.launch.attempt is not None
        ),
        loss=build_loss(sources),
        losses=build_losses(sources),
        replays=build_replays(sources),
        progress=build_progress(sources),
        spend=build_spend(sources),
        preemptions=build_preemptions(sources),
        checkpoints=build_checkpoints(sources),
        decisions=build_decisions(sources),
        evaluations=_build_evaluations(sources),
        reconciliation=build_reconciliation(sources),
        serving=build_serving(sources),
        provenance=build_provenance(sources),
    )
