"""One simulated job: where it was when, its work against the deadline, and its decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.dashboard.charts import (
    Axis,
    Interval,
    dominant_segments,
    make_axis,
    polyline,
    thin,
)
from orchestrator.dashboard.curves import LegendItem, Line, Plot, Rule
from orchestrator.dashboard.formats import write_number, write_seconds, write_usd, write_words
from orchestrator.dashboard.tables import Column, Table
from orchestrator.dashboard.timeline import (
    LegendEntry,
    Mark,
    MarkKind,
    Timeline,
    TimelineRow,
    TimelineSegment,
)
from orchestrator.policy.sight import Mode
from orchestrator.simulate.market import Market
from orchestrator.simulate.spans import Doing, Stretch, progress, stretches
from orchestrator.simulate.terms import Ended, Terms

_NUM_TICKS = 6
_MOST_DECISIONS = 200
# A deadline further off than this many times the job's length would leave the job no room.
_IN_SIGHT = 1.6
_LEGEND = {
    Doing.SPOT: "trains on spot capacity",
    Doing.ON_DEMAND: "trains on demand",
    Doing.STARTUP: "from a launch to the first new step; billed",
    Doing.WAITING: "no node, nothing is billed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStory:
    """A job as it went."""

    title: str
    summary: str
    timeline: Timeline
    progress: Plot
    decisions: Table


def build_story(title: str, market: Market, start: int, terms: Terms, ended: Ended) -> JobStory:
    """Return the story of a job that remembers, and began at a tick of the market."""
    bill, begun = ended.bill, start * market.tick_hours
    high = max(ended.hours, min(terms.deadline, _IN_SIGHT * ended.hours)) * 1.01
    x = make_axis("hours since the launch", 0, high, _NUM_TICKS, write_number)
    return JobStory(
        title=title,
        summary=f"{write_usd(bill.usd)}, {ended.hours:.1f} of {terms.deadline:g} h"
        f"{', late' if ended.is_late else ''}; {_count(bill.num_launches, 'launch', 'es')}, "
        f"{_count(bill.num_preemptions, 'preemption', 's')}. "
        f"It begins {begun:.1f} h into the record.",
        timeline=_timeline(market, start, ended, x),
        progress=_progress(terms, ended, x),
        decisions=_decisions(market, ended),
    )


def _count(number: int, word: str, more: str) -> str:
    return f"{number} {word}{more if number != 1 else ''}"


def _timeline(market: Market, start: int, ended: Ended, x: Axis) -> Timeline:
    found = stretches(ended.spans)
    places = list(dict.fromkeys((one.mode, one.zone) for one in found if one.mode is Mode.SPOT))
    rows = [
        _row(
            market.names[zone],
            "spot",
            [one for one in found if (one.mode, one.zone) == (mode, zone)],
            x,
            _losses(market, start, ended, zone, x),
        )
        for mode, zone in places
    ]
    for mode, label in ((Mode.ON_DEMAND, "on demand"), (Mode.IDLE, "waiting")):
        several = [one for one in found if one.mode is mode]
        zones = dict.fromkeys(market.names[one.zone] for one in several if mode is not Mode.IDLE)
        if several:
            rows.append(_row(label, ", ".join(zones), several, x, ()))
    return Timeline(
        axis=x,
        rows=tuple(rows),
        legend=tuple(
            LegendEntry(kind=doing.value, name=_name(doing), description=words)
            for doing, words in _LEGEND.items()
        ),
        note=None,
    )


def _name(doing: Doing) -> str:
    return "start" if doing is Doing.STARTUP else write_words(doing.value)


def _row(
    label: str, where: str, several: Sequence[Stretch], x: Axis, marks: tuple[Mark, ...]
) -> TimelineRow:
    intervals = [Interval(kind=one.doing.value, start=one.start, end=one.end) for one in several]
    hours = sum(one.end - one.start for one in several)
    lost = f", {_count(len(marks), 'preemption', 's')}" if marks else ""
    return TimelineRow(
        label=label,
        where=where,
        end=f"{hours:.1f} h",
        detail=lost.removeprefix(", "),
        summary=f"{label} {where}: {hours:.1f} h{lost}; "
        + "; ".join(
            f"{_name(one.doing)} from {one.start:.1f} to {one.end:.1f} h"
            for one in several[:_NUM_TICKS]
        )
        + ("; and so on" if len(several) > _NUM_TICKS else ""),
        segments=tuple(
            TimelineSegment(
                segment=segment,
                title=f"{_name(Doing(segment.kind))}, about "
                f"{write_seconds(segment.width / 100 * x.high * 3600)} "
                f"from {segment.start / 100 * x.high:.1f} h on",
            )
            for segment in dominant_segments(intervals, x.low, x.high)
        ),
        marks=marks,
    )


def _losses(market: Market, start: int, ended: Ended, zone: int, x: Axis) -> tuple[Mark, ...]:
    """Return a mark where a zone took its node back: it has no room at the end of a span."""
    ends = [span.end for span in ended.spans if (span.mode, span.zone) == (Mode.SPOT, zone)]
    ticks = [round(start + end / market.tick_hours, 6) for end in ends]
    return tuple(
        Mark(kind=MarkKind.KILL, at=x.place(end), title=f"preempted at {end:.1f} h")
        for end, tick in zip(ends, ticks, strict=True)
        if tick < market.num_ticks and not market.up[zone, int(tick)]
    )


def _progress(terms: Terms, ended: Ended, x: Axis) -> Plot:
    corners = progress(ended.spans)
    y = make_axis("hours of work done", 0, terms.work * 1.06, _NUM_TICKS, write_number)
    even = [(0.0, 0.0), (x.high, min(1.0, x.high / terms.deadline) * terms.work)]
    if x.high > terms.deadline:
        even.insert(1, (terms.deadline, terms.work))
    is_in_sight = terms.deadline <= x.high
    rule = Rule(
        at=x.place(terms.deadline),
        label="deadline",
        level=0,
        title=f"deadline at {terms.deadline:g} h",
        band_start=x.place(terms.deadline),
    )
    return Plot(
        x=x,
        y=y,
        lines=(
            Line(kind="pace", points=polyline(even, x, y), title="even pace to the deadline"),
            Line(kind="progress", points=polyline(thin(corners), x, y), title="work done"),
        ),
        dots=(),
        rules=(rule,) if is_in_sight else (),
        legend=(
            LegendItem(kind="progress", name="work done"),
            LegendItem(kind="pace", name="even pace to the deadline"),
        ),
        summary=f"Work over time: {corners[-1][1]:.1f} of {terms.work:g} h done after "
        f"{ended.hours:.1f} h, the deadline is at {terms.deadline:g} h.",
        note="" if is_in_sight else f"The deadline, {terms.deadline:g} h, is beyond this chart.",
    )


def _decisions(market: Market, ended: Ended) -> Table:
    rows, before = [], None
    for hour, choice in ended.decisions:
        what = (choice.mode, choice.zone)
        if what != before:
            where = market.names[choice.zone] if choice.mode is not Mode.IDLE else ""
            rows.append((f"{hour:.2f} h", write_words(choice.mode.value), where, choice.why))
        before = what
    cut = len(rows) > _MOST_DECISIONS
    return Table(
        caption="Decisions that changed what is up",
        columns=(
            Column(name="At"),
            Column(name="Choice"),
            Column(name="Zone"),
            Column(name="Why"),
        ),
        rows=tuple(rows[:_MOST_DECISIONS]),
        empty="No decisions.",
        note=f"The first {_MOST_DECISIONS} of {len(rows)}." if cut else None,
    )
