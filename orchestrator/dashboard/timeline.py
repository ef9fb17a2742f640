"""Attempts over time: one row per launch on a shared axis, coloured by what its time went to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from orchestrator.dashboard.breakdown import BUCKETS
from orchestrator.dashboard.charts import (
    Axis,
    Interval,
    Segment,
    dominant_segments,
    make_axis,
    place,
)
from orchestrator.dashboard.formats import (
    write_duration,
    write_number,
    write_seconds,
    write_words,
)
from orchestrator.dashboard.sources import LaunchSummary, Sources
from orchestrator.goodput import Bucket
from orchestrator.ledger.fold import CommitView
from train.spool import Commit

# Seven labels fit a plot of 260 pixels, the narrowest that the page has.
_NUM_TICKS = 6
# Rows that the chart shows without scrolling.
_MOST_AT_ONCE = 13
# Key of the row for launches that never began an attempt; no launch is named so.
_NEVER_UP = ""
# (unit, seconds per unit, largest number of seconds shown in it)
_UNITS = (("s", 1, 180), ("min", 60, 10_800), ("h", 3600, 345_600), ("d", 86400, float("inf")))


class MarkKind(str, Enum):
    """What happened at an instant; each has its own shape."""

    COMMIT = "commit"
    NOTICE = "notice"
    KILL = "kill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An event in a row."""

    kind: MarkKind
    at: float
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineSegment:
    """A stretch of a row."""

    segment: Segment
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineRow:
    """One launch, or the time without any."""

    label: str
    where: str
    end: str
    detail: str
    summary: str
    segments: tuple[TimelineSegment, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LegendEntry:
    """A colour and its name."""

    kind: str
    name: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """All rows over one axis."""

    axis: Axis
    rows: tuple[TimelineRow, ...]
    legend: tuple[LegendEntry, ...]
    note: str | None


def time_axis(elapsed: float) -> Axis:
    """Return an axis of wall time since the run's start, in a unit that suits its length."""
    unit, size = next((unit, size) for unit, size, most in _UNITS if elapsed <= most)
    axis = make_axis(
        f"wall time since the launch ({unit})",
        0,
        max(elapsed, 1e-6) / size,
        _NUM_TICKS,
        write_number,
    )
    return Axis(title=axis.title, low=0, high=max(elapsed, 1e-6), ticks=axis.ticks)


def build_timeline(sources: Sources) -> Timeline:
    """Return the rows in order of launch, and one for the time without a node if there was any."""
    axis = time_axis(sources.elapsed)
    never_up = [one for one in sources.launches if _never_came_up(one)]
    segments = _segments_by_row(sources, axis, {one.launch.launch for one in never_up})
    marks = _marks_by_launch(sources, axis)
    rows = [
        _row(
            sources,
            summary,
            segments.get(summary.launch.launch, ()),
            marks.get(summary.launch.launch, ()),
        )
        for summary in sources.launches
        if not _never_came_up(summary)
    ]
    if never_up:
        rows.append(_never_up_row(never_up, segments.get(_NEVER_UP, ())))
    if rows and sources.goodput.seconds()[Bucket.WAITING]:
        rows.append(_waiting_row(sources, segments.get(None, ())))
    return Timeline(
        axis=axis,
        rows=tuple(rows),
        legend=tuple(
            LegendEntry(kind=bucket.value, name=write_words(bucket.value), description=words)
            for bucket, words in BUCKETS.items()
        ),
        note=f"{len(rows)} rows, newest last: scroll inside the chart."
        * (len(rows) > _MOST_AT_ONCE)
        or None,
    )


def _row(
    sources: Sources,
    summary: LaunchSummary,
    segments: tuple[TimelineSegment, ...],
    marks: tuple[Mark, ...],
) -> TimelineRow:
    launch = summary.launch
    seconds = ", ".join(
        f"{write_words(bucket.value)} {write_duration(duration)}"
        for bucket, duration in summary.seconds.items()
    )
    began = write_seconds(sources.seconds_at(launch.started_at))
    return TimelineRow(
        label=summary.label,
        where=summary.where,
        end=summary.end,
        detail=launch.detail or "",
        summary=f"{summary.label} on {summary.where} from {began}: {seconds}; {summary.end}",
        segments=segments,
        marks=marks,
    )


def _waiting_row(sources: Sources, segments: tuple[TimelineSegment, ...]) -> TimelineRow:
    waited = write_duration(sources.goodput.seconds()[Bucket.WAITING])
    return TimelineRow(
        label="no node",
        where="nothing is billed",
        end=f"{waited} in all",
        detail="",
        summary=f"No node for {waited} in all",
        segments=segments,
        marks=(),
    )


def _never_came_up(summary: LaunchSummary) -> bool:
    return summary.launch.attempt is None and summary.launch.ended_at is not None


def _never_up_row(
    summaries: list[LaunchSummary], segments: tuple[TimelineSegment, ...]
) -> TimelineRow:
    num_by_reason = Counter(
        one.launch.reason.value for one in summaries if one.launch.reason is not None
    )
    reasons = ", ".join(
        f"{write_words(name)} ({number})" for name, number in sorted(num_by_reason.items())
    )
    launches = f"{len(summaries)} launch{'' if len(summaries) == 1 else 'es'}"
    return TimelineRow(
        label="no attempt",
        where=launches,
        end="never began",
        detail=reasons,
        summary=f"{launches} that never began an attempt: {reasons}",
        segments=segments,
        marks=(),
    )


def _segments_by_row(
    sources: Sources, axis: Axis, never_up: set[str]
) -> dict[str | None, tuple[TimelineSegment, ...]]:
    """Return each launch's segments; those that never began share one row, None has no node."""
    intervals: dict[str | None, list[Interval]] = {}
    for span in sources.goodput.spans:
        interval = Interval(
            kind=span.bucket.value,
            start=sources.seconds_at(span.start),
            end=sources.seconds_at(span.end),
        )
        row = _NEVER_UP if span.launch in never_up else span.launch
        intervals.setdefault(row, []).append(interval)
    return {
        launch: tuple(
            TimelineSegment(segment=segment, title=_segment_title(segment, axis))
            for segment in dominant_segments(several, axis.low, axis.high)
        )
        for launch, several in intervals.items()
    }


def _segment_title(segment: Segment, axis: Axis) -> str:
    start, end = (
        axis.high * percent / 100 for percent in (segment.start, segment.start + segment.width)
    )
    return (
        f"{write_words(segment.kind)}, about {write_seconds(end - start)} "
        f"(from {write_seconds(start)} to {write_seconds(end)})"
    )


def _marks_by_launch(sources: Sources, axis: Axis) -> dict[str, tuple[Mark, ...]]:
    measured = _commit_instants(sources)
    commits: dict[int, list[Mark]] = {}
    for commit in sources.view.state.commits:
        at = _commit_at(commit, measured)
        mark = _mark(sources, axis, MarkKind.COMMIT, at, f"step {commit.step}")
        commits.setdefault(commit.attempt, []).append(mark)
    return {
        summary.launch.launch: (
            *commits.get(summary.launch.attempt or 0, []),
            *_marks_of_end(sources, axis, summary),
        )
        for summary in sources.launches
    }


def _marks_of_end(sources: Sources, axis: Axis, summary: LaunchSummary) -> list[Mark]:
    launch, marks = summary.launch, []
    if launch.notice_at is not None:
        words = "of the node's end received"
        marks.append(_mark(sources, axis, MarkKind.NOTICE, launch.notice_at, words))
    if summary.is_lost and launch.ended_at is not None and launch.reason is not None:
        words = write_words(launch.reason.value)
        marks.append(_mark(sources, axis, MarkKind.KILL, launch.ended_at, words))
    return marks


def _mark(sources: Sources, axis: Axis, kind: MarkKind, at: datetime, words: str) -> Mark:
    seconds = sources.seconds_at(at)
    return Mark(
        kind=kind,
        at=place(seconds, axis.low, axis.high),
        title=f"{kind.value}: {words}, at {write_seconds(seconds)}",
    )


def _commit_instants(sources: Sources) -> dict[str, datetime]:
    """Return when trainers committed; the ledger learns of a lost node's last commit later."""
    records = (one.record for one in sources.view.measured)
    return {record.manifest: record.at for record in records if isinstance(record, Commit)}


def _commit_at(commit: CommitView, measured: dict[str, datetime]) -> datetime:
    return measured.get(commit.manifest, commit.at)
