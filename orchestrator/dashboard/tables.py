"""The page's tables: rows of text, ready to lay out; the first cell names its row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from orchestrator.dashboard.formats import (
    NOTHING,
    write_bytes,
    write_duration,
    write_instant,
    write_number,
    write_seconds,
    write_usd,
    write_words,
)
from orchestrator.dashboard.sources import LaunchSummary, Sources
from orchestrator.goodput import Bucket
from orchestrator.launch_report import priced_at
from orchestrator.ledger.fold import CommitView
from train.spool import Commit, Step

# A page stays readable and small; the run folder holds the rest.
MOST_ROWS = 200
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column's heading; numbers align right."""

    name: str
    is_number: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; `empty` is what to say when it has no rows."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    empty: str
    note: str | None = None


def _columns(*names: str) -> tuple[Column, ...]:
    """Return columns; a name that begins with # holds numbers."""
    return tuple(Column(name=name.lstrip("#"), is_number=name.startswith("#")) for name in names)


def build_attempts(sources: Sources, most: int | None = MOST_ROWS) -> Table:
    """Return every launch with where, when, how far and why it ended."""
    return Table(
        caption="Every launch in order, with its end",
        columns=_columns(
            "Attempt",
            "Zone",
            "#$ per hour",
            "Launched",
            "#Ran",
            "#From step",
            "#To step",
            "#Cost",
            "End",
            "Detail",
        ),
        rows=tuple(_attempt_row(sources, summary) for summary in _last(sources.launches, most)),
        empty="Nothing has been launched yet: the first decision is still to come.",
        note=_cut_note(len(sources.launches), most),
    )


def build_preemptions(sources: Sources) -> Table:
    """Return what each preemption cost."""
    lost = [summary for summary in sources.launches if summary.is_lost]
    return Table(
        caption="What each preemption cost",
        columns=_columns(
            "Attempt",
            "At",
            "Notice",
            "#Checkpoint age, steps",
            "#Steps lost",
            "#Time lost",
            "#Dollars lost",
            "#Cost of the attempt",
            "Detail",
        ),
        rows=tuple(_preemption_row(summary) for summary in lost),
        empty="No node has been taken back or lost.",
        note="Time lost is wall time of steps that were trained again, and of what the node did "
        "after its last report; coming back is counted as start-up and restore.",
    )


def build_checkpoints(sources: Sources, most: int | None = MOST_ROWS) -> Table:
    """Return the committed checkpoints, newest first."""
    records = (one.record for one in sources.view.measured)
    saves = {record.manifest: record for record in records if isinstance(record, Commit)}
    commits = sorted(sources.view.state.commits, key=lambda one: (-one.step, -one.attempt))
    rows = []
    newest = next((one for one in commits if one.damage is None), None)
    for commit in commits:
        save = saves.get(commit.manifest)
        rows.append(
            (
                f"{commit.step:,}",
                str(commit.attempt),
                write_instant(save.at if save is not None else commit.at),
                write_bytes(commit.num_bytes),
                NOTHING if save is None else write_seconds(save.seconds),
                _fate(commit, is_newest=commit is newest),
            )
        )
    return Table(
        caption="Committed checkpoints, newest first",
        columns=_columns("Step", "#Attempt", "Committed", "#Size", "#Save took", "State"),
        rows=tuple(rows[:most]),
        empty="Nothing has been committed: without a checkpoint the next attempt begins at step 0.",
        note=_cut_note(len(rows), most),
    )


def _fate(commit: CommitView, *, is_newest: bool) -> str:
    if commit.deleted_at is not None:
        return f"deleted {commit.deleted_at:%H:%M:%S}"
    if commit.damage is not None:
        return f"damaged: {commit.damage}"
    return "kept, newest" if is_newest else "kept"


def build_decisions(sources: Sources, most: int | None = MOST_ROWS) -> Table:
    """Return what was decided and why, in order."""
    state = sources.view.state
    rows: list[tuple[str, ...]] = []
    for at, decision in state.decisions:
        until = f" Until {write_instant(decision.until)}." if decision.until is not None else ""
        rows.append((write_instant(at), decision.action, f"{decision.why}{until}"))
    if state.ended is not None:
        action = f"end: {state.ended.state.value}"
        rows.append((write_instant(state.ended_at), action, state.ended.why))
    return Table(
        caption="What was decided, and why",
        columns=_columns("Time", "Action", "Why"),
        rows=tuple(_last(rows, most)),
        empty="Nothing has been decided yet.",
        note=_cut_note(len(rows), most),
    )


def build_reconciliation(sources: Sources) -> Table:
    """Return what clouds billed beside what was computed, where a bill was read."""
    found = sources.cost["reconciliation"]
    clouds = [] if found is None else found["clouds"]
    rows = [
        (
            f"{one['cloud']}: {write_words(part)}",
            NOTHING if pair["computed_usd"] is None else write_usd(pair["computed_usd"]),
            write_usd(pair["billed_usd"]),
            NOTHING if pair["difference_usd"] is None else f"{pair['difference_usd']:+,.2f}",
            f"{one['start']} to {one['end']}",
            one["source"],
        )
        for one in clouds
        for part, pair in one["parts"].items()
    ]
    return Table(
        caption="What clouds billed beside what was computed",
        columns=_columns("Part", "#Computed", "#Billed", "#Difference, $", "Days", "Source"),
        rows=tuple(rows),
        empty="No cloud's bill was read yet: orchestrate cost RUN --reconcile aws, or a file of "
        "its billing export.",
    )


def build_serving(sources: Sources) -> Table:
    """Return the nodes that served the run's model, and what each cost."""
    serving = sources.cost["serving"]
    rows = [
        (
            one["replica"],
            f"{one['cloud']} {one['zone']} {write_words(one['market'])}",
            write_instant(datetime.fromisoformat(one["started_at"])),
            f"{one['hours']:,.2f}",
            write_usd(one["usd"]),
            one["end_reason"] or "serving",
        )
        for one in serving["replicas"]
    ]
    return Table(
        caption="Nodes that served the model; no part of the bill above",
        columns=_columns("Replica", "Zone", "Up since", "#Hours", "#Cost", "End"),
        rows=tuple(rows),
        empty="The model has not been served on clouds: orchestrate serve RUN.",
        note=f"In all {write_usd(serving['usd'])}; the same hours on demand "
        f"{write_usd(serving['on_demand_usd'])}."
        if rows
        else None,
    )


def build_replays(sources: Sources, most: int | None = MOST_ROWS) -> Table:
    """Return each replayed value beside the first recorded one, differing ones first."""
    first: dict[int, tuple[int, Step]] = {}
    rows = []
    for attempt, step in sources.view.steps:
        origin, recorded = first.setdefault(step.step, (attempt, step))
        if recorded is step:
            continue
        differs = (recorded.loss, recorded.grad_norm) != (step.loss, step.grad_norm)
        row = (
            f"{step.step:,}",
            f"{origin} → {attempt}",
            repr(recorded.loss),
            repr(step.loss),
            "differs" if differs else "equal",
        )
        rows.append((not differs, row))
    rows.sort(key=lambda pair: pair[0])
    return Table(
        caption="Replayed steps beside their recorded values",
        columns=_columns(
            "Step", "#Attempts", "#Loss recorded", "#Loss again", "Loss and gradient norm"
        ),
        rows=tuple(row for _, row in rows[:most]),
        empty="No step has been trained twice.",
        note=_cut_note(len(rows), most),
    )


def build_losses(sources: Sources, most: int | None = MOST_ROWS) -> Table:
    """Return the loss curve as rows, evenly spaced if there are many."""
    latest = sources.view.latest
    numbers = sorted(latest)
    stride = 1 if most is None else max(1, -(-len(numbers) // most))
    shown = [number for number in numbers if number % stride == 0 or number == numbers[-1]]
    return Table(
        caption="Loss of the final history",
        columns=_columns("Step", "#Loss", "#Gradient norm", "#Learning rate", "#Tokens"),
        rows=tuple(
            (
                f"{number:,}",
                f"{latest[number].loss:.6f}",
                f"{latest[number].grad_norm:.6f}",
                f"{latest[number].learning_rate:.3g}",
                f"{latest[number].num_tokens:,}",
            )
            for number in shown
        ),
        empty="No step has been reported yet.",
        note=None
        if stride == 1
        else f"One step in {stride} is shown; CSV and JSON of a served page have all.",
    )


def build_launch_seconds(sources: Sources) -> Table:
    """Return the timeline as rows: each launch's time by what it was spent on."""
    return Table(
        caption="Seconds of each launch by what they were spent on",
        columns=_columns("Attempt", *(f"#{write_words(bucket.value)}" for bucket in Bucket)),
        rows=tuple(
            (
                summary.label,
                *(
                    write_duration(summary.seconds[bucket])
                    if bucket in summary.seconds
                    else NOTHING
                    for bucket in Bucket
                ),
            )
            for summary in sources.launches
        ),
        empty="Nothing has been launched yet.",
    )


def build_provenance(sources: Sources) -> Table:
    """Return what the page's numbers rest on."""
    record, state = sources.view.record, sources.view.state
    scale = write_number(sources.status["time_scale"])
    nature = f"simulated: 1 s counts as {scale} s" if record.simulated else "real cloud nodes"
    heard_at = max((one.at for one in sources.view.heartbeats), default=None)
    return Table(
        caption="What these numbers rest on",
        columns=_columns("What", "Value"),
        rows=(
            ("Run id", record.run_id),
            ("Prices quoted at launch", record.prices_source),
            *_price_rows(sources),
            ("Nature", nature),
            ("Code version", record.code_version),
            (
                "Schema versions",
                f"run record {record.schema_version}, reports {sources.cost['schema_version']}",
            ),
            ("Ledger", f"{state.num_entries:,} fact{'' if state.num_entries == 1 else 's'}"),
            ("Measurements", f"{len(sources.view.measured):,} records"),
            ("Last sign of life", f"{write_instant(heard_at)}"),
            ("Clocks", _clocks(state.clock_skew)),
            ("Store", sources.status["store"]),
        ),
        empty="",
    )


def _price_rows(sources: Sources) -> Iterator[tuple[str, str]]:
    """Yield how old the prices are that nodes are charged by, and which of them are doubtful."""
    view, basis = sources.view, sources.cost["basis"]
    shares = ", ".join(f"{write_usd(usd)} {name}" for name, usd in basis.items() if usd)
    yield "Of the total", shares or "nothing yet"
    if view.state.launches:
        last = view.state.launches[-1]
        who = last.prices[-1].source if last.prices else "the quote of its launch"
        yield "Last price", f"{write_instant(priced_at(last))}: {who}"
    doubts = sorted(
        {f"{one.offer}: {one.offer.doubt}" for one in view.state.launches if one.offer.doubt}
    )
    if doubts:
        yield "Doubtful prices", "; ".join(doubts)
    for one in view.state.controllers:
        rate = "price unknown, counted as nothing"
        if one.usd_per_hour is not None:
            rate = f"{write_usd(float(one.usd_per_hour))} per hour, as if for this run alone"
        yield "Controller", f"{one.cloud} {one.region} {one.instance_type}: {rate}"


def _clocks(skew: timedelta) -> str:
    if not skew:
        return "no fact is out of order"
    return f"facts are out of order by {write_duration(skew)}: what ends is not before it began"


def _attempt_row(sources: Sources, summary: LaunchSummary) -> tuple[str, ...]:
    launch = summary.launch
    until = launch.ended_at if launch.ended_at is not None else sources.view.as_of
    details = [text for text in (launch.detail, summary.error) if text]
    return (
        NOTHING if launch.attempt is None else str(launch.attempt),
        f"{launch.offer.cloud} {launch.offer.zone} {write_words(launch.offer.market.value)}",
        f"{launch.offer.usd_per_hour * launch.num_nodes:,.4f}",
        f"{launch.started_at:%m-%d %H:%M:%S}",
        write_duration(until - launch.started_at),
        NOTHING if launch.resumed_step is None else f"{launch.resumed_step:,}",
        NOTHING if summary.last_step is None else f"{summary.last_step:,}",
        write_usd(summary.usd),
        summary.end,
        "; ".join(details) or NOTHING,
    )


def _preemption_row(summary: LaunchSummary) -> tuple[str, ...]:
    launch = summary.launch
    notice = "none"
    if launch.notice_at is not None and launch.ended_at is not None:
        notice = f"{write_duration(launch.ended_at - launch.notice_at)} before"
    lost = summary.seconds.get(Bucket.LOST_WORK)
    return (
        NOTHING if launch.attempt is None else str(launch.attempt),
        write_instant(launch.ended_at),
        notice,
        _count(summary.num_uncommitted_steps),
        _count(summary.num_lost_steps),
        "0.0 s" if lost is None else write_duration(lost),
        write_usd(summary.lost_usd),
        write_usd(summary.usd),
        launch.detail or NOTHING,
    )


def _count(number: int | None) -> str:
    return NOTHING if number is None else f"{number:,}"


def _last(rows: Sequence[_Row], most: int | None) -> Sequence[_Row]:
    return rows if most is None else rows[-most:]


def _cut_note(num_rows: int, most: int | None) -> str | None:
    if most is None or num_rows <= most:
        return None
    return f"{most} of {num_rows:,} rows are shown; CSV and JSON of a served page have all."
