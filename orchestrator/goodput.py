"""Where every second went: a partition of the run's wall time, in the field's words.

Productive is the time of steps whose result is part of the final model; steps trained again after a
preemption count once as productive and otherwise as lost work. The parts add up to the wall time.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum

from orchestrator.attempts import EndReason
from orchestrator.ledger.fold import LaunchView, RunState
from orchestrator.ledger.measurements import Measured, phases_of
from orchestrator.lineage import lineage
from train.spool import Phase, PhaseName, Step


class Bucket(str, Enum):
    """What a second was spent on."""

    PRODUCTIVE = "productive"
    LOST_WORK = "lost_work"
    STARTUP = "startup"
    RESTORE = "restore"
    CHECKPOINT_STALL = "checkpoint_stall"
    WAITING = "waiting"
    OTHER = "other"


_PHASE_BUCKETS = {
    PhaseName.STARTUP: Bucket.STARTUP,
    PhaseName.RESTORE: Bucket.RESTORE,
    PhaseName.CHECKPOINT: Bucket.CHECKPOINT_STALL,
    PhaseName.EVALUATE: Bucket.OTHER,
}


_GRID = timedelta(seconds=1 / 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of wall time that went to one bucket."""

    launch: str | None
    bucket: Bucket
    start: datetime
    end: datetime
    is_measured: bool = False
    """Somebody recorded it; the rest is what lies between records."""

    @property
    def duration(self) -> timedelta:
        """Length of the span."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """The partition, and the shares of it that were productive."""

    spans: tuple[Span, ...]
    wall: timedelta
    billed: timedelta

    def seconds(self) -> dict[Bucket, timedelta]:
        """Return the time in each bucket; they add up to `wall`."""
        totals = dict.fromkeys(Bucket, timedelta())
        for span in self.spans:
            totals[span.bucket] += span.duration
        return totals

    def productive_by_launch(self) -> dict[str, timedelta]:
        """Return the productive time of each launch."""
        totals: dict[str, timedelta] = {}
        for span in self.spans:
            if span.bucket is Bucket.PRODUCTIVE and span.launch is not None:
                totals[span.launch] = totals.get(span.launch, timedelta()) + span.duration
        return totals

    def undisturbed(self, launches: Sequence[LaunchView]) -> dict[str, timedelta]:
        """Return the time of each launch that a run without preemptions would have taken, too.

        Productive time, and one start-up: that of the first launch that trained, from its nodes
        being up on. Not the time on spot, which would count lost work as a saving.
        """
        useful = self.productive_by_launch()
        first = next((launch for launch in launches if launch.launch in useful), None)
        if first is not None and first.ready_at is not None:
            useful[first.launch] += sum(
                (
                    max(timedelta(), span.end - max(span.start, first.ready_at))
                    for span in self.spans
                    if span.launch == first.launch and span.bucket is Bucket.STARTUP
                ),
                timedelta(),
            )
        return useful

    @property
    def share_of_wall(self) -> float:
        """Productive over wall time (the field's ETTR)."""
        return _share(self.seconds()[Bucket.PRODUCTIVE], self.wall)

    @property
    def share_of_billed(self) -> float:
        """Productive over billed time."""
        return min(1.0, _share(self.seconds()[Bucket.PRODUCTIVE], self.billed))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Undone:
    """A step whose update is no part of the weights any more."""

    step: Step


def account(
    state: RunState,
    measured: Sequence[Measured],
    as_of: datetime,
    nodes_until: datetime | None = None,
) -> Goodput:
    """Partition the time from the first launch of the run to its end, or to `as_of`.

    Nodes of which nobody has heard since `nodes_until` count as gone from then on. Instants are
    rounded to 1/64 s, so that sums are exact as decimals and in binary floating point alike.
    """
    start = state.record.created_at
    end = _snap(max(start, state.ended_at if state.ended_at is not None else as_of), start)
    nodes_end = end if nodes_until is None else min(end, nodes_until)
    kept_until = _last_kept_step_by_attempt(state)
    records = _records_by_attempt(
        measured, state.last_commit_step if state.current_launch is None else None
    )
    wanted: list[Span] = []
    for launch in state.launches:
        wanted += _spans_of_launch(
            launch,
            records.get(launch.attempt or 0, []),
            kept_until.get(launch.attempt or 0),
            nodes_end,
        )
    billed = sum(
        (
            (launch.ended_at or nodes_end) - launch.ready_at
            for launch in state.launches
            if launch.ready_at is not None and launch.ready_at <= (launch.ended_at or nodes_end)
        ),
        timedelta(),
    )
    spans = tuple(_joined(_tile(wanted, start, end)))
    return Goodput(spans=spans, wall=end - start, billed=billed)


def _last_kept_step_by_attempt(state: RunState) -> dict[int, int]:
    """Return up to which step each ended attempt's work is part of the lineage.

    That is where the next attempt resumed; for the last attempt of a run that is over, the last
    commit. An attempt that is not in the result still runs: its work counts as kept.
    """
    attempts = sorted(
        (launch.attempt, launch.resumed_step or 0)
        for launch in state.launches
        if launch.attempt is not None
    )
    kept = {attempt: next_step for (attempt, _), (_, next_step) in itertools.pairwise(attempts)}
    if attempts and state.current_launch is None:
        kept[attempts[-1][0]] = state.last_commit_step
    return kept


def _records_by_attempt(
    measured: Sequence[Measured], last_commit_step: int | None
) -> dict[int, list[Step | Phase | _Undone]]:
    """Return steps and phases of each attempt; steps that others have replaced as undone."""
    records: dict[int, list[Step | Phase | _Undone]] = {}
    kept = lineage(measured, last_commit_step)
    for place, one in enumerate(measured):
        if isinstance(one.record, Step):
            step = one.record if place in kept else _Undone(step=one.record)
            records.setdefault(one.attempt, []).append(step)
    for attempt, phase in phases_of(measured):
        records.setdefault(attempt, []).append(phase)
    return records


def _spans_of_launch(
    launch: LaunchView, records: list[Step | Phase | _Undone], kept_until: int | None, end: datetime
) -> Iterator[Span]:
    """Yield spans that cover the launch from its start to its end without a gap."""
    ended_at = min(launch.ended_at or end, end)
    if launch.ready_at is None and launch.ended_at is not None:
        # Nothing ever came up: asking for it was waiting.
        yield Span(
            launch=launch.launch, bucket=Bucket.WAITING, start=launch.started_at, end=ended_at
        )
        return
    labelled = _cut_out_stalls(_label(launch.launch, record, kept_until) for record in records)
    labelled = _by_our_clock(launch, labelled)
    first_work = next(
        (span.start for span in labelled if span.bucket in (Bucket.PRODUCTIVE, Bucket.LOST_WORK)),
        ended_at,
    )
    was_lost = launch.reason in (EndReason.PREEMPTED, EndReason.NODE_LOST)
    cursor = launch.started_at
    for span in labelled:
        if span.start > cursor:
            gap = Bucket.STARTUP if cursor < first_work else Bucket.OTHER
            yield Span(launch=launch.launch, bucket=gap, start=cursor, end=span.start)
        yield span
        cursor = max(cursor, span.end)
    if cursor < ended_at:
        # What a lost node did after its last record is gone with it.
        tail = Bucket.OTHER
        if first_work >= ended_at:
            tail = Bucket.STARTUP
        elif was_lost:
            tail = Bucket.LOST_WORK
        yield Span(launch=launch.launch, bucket=tail, start=cursor, end=ended_at)


def _by_our_clock(launch: LaunchView, spans: list[Span]) -> list[Span]:
    """Move what an agent recorded into the life of its nodes, if its clock is minutes off.

    It began when its nodes were up, and recorded nothing after they were gone.
    """
    if not spans or launch.attempt_started_at is None or launch.ready_at is None:
        return spans
    offset = max(timedelta(), launch.ready_at - launch.attempt_started_at)
    if not offset and launch.ended_at is not None:
        offset = min(timedelta(), launch.ended_at - max(span.end for span in spans))
    if not offset:
        return spans
    return [replace(one, start=one.start + offset, end=one.end + offset) for one in spans]


def _cut_out_stalls(spans: Iterable[Span]) -> list[Span]:
    """Return the spans in order; where a save stalled a step, that time is not the step's."""
    ordered = sorted(spans, key=lambda span: span.start)
    stalls = [span for span in ordered if span.bucket is Bucket.CHECKPOINT_STALL]
    starts, ends = [span.start for span in stalls], [span.end for span in stalls]
    cut = list(stalls)
    for span in ordered:
        if span.bucket is Bucket.CHECKPOINT_STALL:
            continue
        start = span.start
        for stall in stalls[bisect_right(ends, span.start) : bisect_left(starts, span.end)]:
            cut.append(replace(span, start=start, end=max(start, stall.start)))
            start = min(stall.end, span.end)
        cut.append(span if start == span.start else replace(span, start=start))
    return sorted(cut, key=lambda span: span.start)


def _label(launch: str, record: Step | Phase | _Undone, kept_until: int | None) -> Span:
    if isinstance(record, _Undone):
        return replace(_label(launch, record.step, kept_until), bucket=Bucket.LOST_WORK)
    if isinstance(record, Phase):
        bucket = _PHASE_BUCKETS[record.name]
    else:
        is_kept = kept_until is None or record.step <= kept_until
        bucket = Bucket.PRODUCTIVE if is_kept else Bucket.LOST_WORK
    end = max(record.at, record.started_at)
    return Span(launch=launch, bucket=bucket, start=record.started_at, end=end, is_measured=True)


def _tile(wanted: Iterable[Span], start: datetime, end: datetime) -> Iterator[Span]:
    """Cut overlaps, clip to the run and call the rest waiting, so that nothing counts twice.

    What was recorded comes before what only lies between records: of two launches that were up at
    once, one may have been dead.
    """
    spans = sorted(wanted, key=lambda span: (span.start, span.end))
    measured = [span for span in spans if span.is_measured]
    between = _outside([span for span in spans if not span.is_measured], measured)
    cursor = start
    for span in sorted([*measured, *between], key=lambda span: (span.start, span.end)):
        span_start = max(_snap(span.start, start), cursor)
        span_end = min(_snap(span.end, start), end)
        if span_end <= span_start:
            continue
        if span_start > cursor:
            yield Span(launch=None, bucket=Bucket.WAITING, start=cursor, end=span_start)
        yield Span(launch=span.launch, bucket=span.bucket, start=span_start, end=span_end)
        cursor = span_end
    if cursor < end:
        yield Span(launch=None, bucket=Bucket.WAITING, start=cursor, end=end)


def _outside(spans: Sequence[Span], taken: Sequence[Span]) -> Iterator[Span]:
    """Yield what of the spans no span of `taken` covers; those are in order of their starts."""
    starts = [one.start for one in taken]
    # Until when everything that began before is over.
    covered = list(itertools.accumulate((one.end for one in taken), max))
    for span in spans:
        cursor = span.start
        place = bisect_left(covered, cursor)
        while place < len(taken) and starts[place] < span.end and cursor < span.end:
            if starts[place] > cursor:
                yield replace(span, start=cursor, end=starts[place])
            cursor = max(cursor, taken[place].end)
            place += 1
        if cursor < span.end:
            yield replace(span, start=cursor)


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    """Make one span of those that follow each other alike: most steps do."""
    for _, alike in itertools.groupby(spans, key=lambda span: (span.launch, span.bucket)):
        run = list(alike)
        yield replace(run[0], end=run[-1].end)


def _snap(instant: datetime, origin: datetime) -> datetime:
    return origin + round((instant - origin) / _GRID) * _GRID


def _share(part: timedelta, whole: timedelta) -> float:
    return part / whole if whole else 0.0
