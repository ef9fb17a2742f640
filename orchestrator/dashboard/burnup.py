"""Steps and dollars over time, against the deadline and the budget, and where they are heading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from orchestrator.dashboard.charts import NUM_BINS, Axis, make_axis, polyline
from orchestrator.dashboard.curves import Dot, LegendItem, Line, Plot, Rule, draw_dot
from orchestrator.dashboard.formats import write_number, write_seconds, write_usd
from orchestrator.dashboard.sources import LaunchSummary, Sources
from orchestrator.dashboard.timeline import time_axis

_NUM_Y_TICKS = 6
# A deadline this many times as far away as the end is would press the curve into a corner.
_FARTHEST = 3.0
# Below this share of the budget the spend would be a flat line at the bottom of the chart.
_BUDGET_IN_SIGHT = 0.1


def build_progress(sources: Sources) -> Plot | None:
    """Return the steps over wall time; None before the first step."""
    num_steps, elapsed = sources.view.record.num_steps, sources.elapsed
    taken = _some_steps(sources)
    if not taken or not elapsed:
        return None
    points = [(0.0, 0.0), *taken, (elapsed, float(sources.view.step))]
    x = time_axis(_horizon(sources))
    y = make_axis("optimizer steps", 0, num_steps * 1.04, _NUM_Y_TICKS, write_number)
    lines = [Line(kind="progress", points=polyline(points, x, y), title="steps")]
    legend = [LegendItem(kind="progress", name="steps; back to the checkpoint where work was lost")]
    due = _seconds_at(sources, "deadline_at")
    if due is not None and due > 0:
        seen = min(1.0, x.high / due)
        ends = [(0.0, 0.0), (due * seen, num_steps * seen)]
        lines.append(Line(kind="pace", points=polyline(ends, x, y), title="even pace"))
        legend.append(LegendItem(kind="pace", name="even pace towards the deadline"))
    heading = _heading(sources, x, y, points[-1], float(num_steps))
    summary = f"{sources.view.step:,} of {num_steps:,} steps after {write_seconds(elapsed)}"
    return Plot(
        x=x,
        y=y,
        lines=(*lines, *heading),
        dots=(),
        rules=_deadline(x, due),
        legend=(*legend, *_expected(heading)),
        summary=f"Steps over time: {summary}.",
        note=_out_of_sight(x, due),
    )


def build_spend(sources: Sources) -> Plot | None:
    """Return what was spent over wall time; None before anything was billed.

    Nodes as they were up; the rest of the bill in proportion to them, since most of it comes with
    checkpoints.
    """
    billed = [one for one in sources.launches if one.launch.ready_at is not None]
    for_nodes = sum(one.usd for one in billed)
    if not for_nodes or not sources.elapsed:
        return None
    whole = sources.cost["total_usd"] / for_nodes
    points = _spent_over_time(
        sources.elapsed, [(*_billed_between(sources, one), one.usd * whole) for one in billed]
    )
    total, budget, expected = points[-1][1], sources.status["budget_usd"], _expected_usd(sources)
    most = max(total, expected or 0.0)
    shows_budget = most >= _BUDGET_IN_SIGHT * budget
    x = time_axis(_horizon(sources))
    top = max(most, budget) if shows_budget else most
    y = make_axis("US dollars", 0, top * 1.06 or 1.0, _NUM_Y_TICKS, lambda usd: f"${usd:,.12g}")
    lines = [Line(kind="spend", points=polyline(points, x, y), title="spent")]
    legend = [LegendItem(kind="spend", name="spent, all attempts")]
    if shows_budget:
        ends = [(0.0, budget), (x.high, budget)]
        lines.append(Line(kind="budget", points=polyline(ends, x, y), title="budget"))
        legend.append(LegendItem(kind="budget", name=f"budget {write_usd(budget)}"))
    heading = () if expected is None else _heading(sources, x, y, points[-1], expected)
    due = _seconds_at(sources, "deadline_at")
    spent_by = dict(points)
    out_of_sight = "" if shows_budget else f"The budget of {write_usd(budget)} lies far above. "
    return Plot(
        x=x,
        y=y,
        lines=(*lines, *heading),
        dots=tuple(_end_dot(sources, x, y, one, spent_by) for one in billed),
        rules=_deadline(x, due),
        legend=(
            *legend,
            LegendItem(kind="attempt_end", name="end of an attempt"),
            *_expected(heading),
        ),
        summary=f"Spent over time: {write_usd(total)} after "
        f"{write_seconds(sources.elapsed)}, of a budget of {write_usd(budget)}.",
        note=f"{out_of_sight}{_out_of_sight(x, due)}Billing runs from nodes up to nodes gone; what "
        "is not nodes is drawn in proportion to them.",
    )


def _some_steps(sources: Sources) -> list[tuple[float, float]]:
    """Return seconds and number of steps, in order of time: enough of them to draw.

    With the first and the last step of each attempt, between which it only rises.
    """
    steps = sources.view.steps
    stride = max(1, len(steps) // NUM_BINS)
    shown = [
        step
        for place, (attempt, step) in enumerate(steps)
        if place % stride == 0
        or place + 1 == len(steps)
        or not steps[place - 1][0] == attempt == steps[place + 1][0]
    ]
    return sorted((sources.seconds_at(step.at), float(step.step)) for step in shown)


def _seconds_at(sources: Sources, name: str) -> float | None:
    """Return when the status says that something is, in seconds since the start."""
    said = sources.status[name]
    return None if said is None else sources.seconds_at(datetime.fromisoformat(said))


def _expected_usd(sources: Sources) -> float | None:
    forecast = sources.status["forecast"]
    return None if forecast is None else forecast["usd"]["p50"]


def _horizon(sources: Sources) -> float:
    """Return until when the charts go: the end or what is expected of it, and a near deadline."""
    end = max(sources.elapsed, _seconds_at(sources, "eta_at") or 0.0)
    due = _seconds_at(sources, "deadline_at") or 0.0
    return max(end, due) if due <= _FARTHEST * end else end


def _heading(
    sources: Sources, x: Axis, y: Axis, here: tuple[float, float], there: float
) -> tuple[Line, ...]:
    """Return the way from where the run is to its expected end, if it goes on."""
    eta = _seconds_at(sources, "eta_at")
    if eta is None or eta <= here[0]:
        return ()
    points = polyline([here, (eta, max(there, here[1]))], x, y)
    return (Line(kind="expected", points=points, title="expected"),)


def _expected(heading: Sequence[Line]) -> tuple[LegendItem, ...]:
    return (LegendItem(kind="expected", name="expected from here on"),) if heading else ()


def _deadline(x: Axis, due: float | None) -> tuple[Rule, ...]:
    if due is None or not 0 <= due <= x.high:
        return ()
    at = x.place(due)
    title = f"deadline, {write_seconds(due)} after the launch"
    return (Rule(at=at, label="deadline", level=0, title=title, band_start=at),)


def _out_of_sight(x: Axis, due: float | None) -> str:
    if due is None or due <= x.high:
        return ""
    return f"The deadline, {write_seconds(due)} after the launch, lies far to the right. "


def _billed_between(sources: Sources, summary: LaunchSummary) -> tuple[float, float]:
    """Return between which seconds of the chart a launch was billed."""
    launch, elapsed = summary.launch, sources.elapsed
    start = sources.seconds_at(launch.ready_at or launch.started_at)
    end = elapsed if launch.ended_at is None else sources.seconds_at(launch.ended_at)
    start = min(max(0.0, start), elapsed)
    return start, min(max(start, end), elapsed)


def _spent_over_time(
    elapsed: float, stretches: Sequence[tuple[float, float, float]]
) -> list[tuple[float, float]]:
    """Add up (start, end, USD), each spent evenly; return what was spent until each edge."""
    rates: dict[float, float] = defaultdict(float)
    at_once: dict[float, float] = defaultdict(float)
    for start, end, usd in stretches:
        if end > start:
            rates[start] += usd / (end - start)
            rates[end] -= usd / (end - start)
        else:
            at_once[end] += usd
    points, rate, spent = [(0.0, 0.0)], 0.0, 0.0
    for at in sorted({*rates, *at_once, elapsed}):
        spent += rate * (at - points[-1][0]) + at_once[at]
        rate += rates[at]
        points.append((at, spent))
    return points


def _end_dot(
    sources: Sources, x: Axis, y: Axis, summary: LaunchSummary, spent_by: dict[float, float]
) -> Dot:
    end = _billed_between(sources, summary)[1]
    usd = spent_by[end]
    title = f"{summary.label}: {write_usd(summary.usd)}; {write_usd(usd)} in all by then"
    return draw_dot("attempt_end", x, y, (end, usd), title)
