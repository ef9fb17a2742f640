"""The list of runs: one row each, with what tells whether it needs attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from orchestrator.charges import node_rate
from orchestrator.comparison import compare
from orchestrator.dashboard.board import Seen
from orchestrator.dashboard.charts import place
from orchestrator.dashboard.formats import (
    NOTHING,
    write_duration,
    write_instant,
    write_saving,
    write_share,
    write_usd,
)
from orchestrator.dashboard.summary import STATES, Tone, budget_tone
from orchestrator.dashboard.tables import Column, Table
from orchestrator.report import cost_document, status_document
from orchestrator.standing import RunStateName, deadline_at, eta_at
from orchestrator.view import RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A number with the share of a whole that it fills, in percent."""

    text: str
    detail: str
    share: float
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run that can be read."""

    key: str
    run: str
    store: str
    state: str
    symbol: str
    tone: Tone
    is_simulated: bool
    progress: Gauge
    spent: Gauge
    burn: str
    end: str
    end_tone: Tone
    preemptions: str
    goodput: str
    saved: str
    usd: Decimal
    usd_per_hour: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenRow:
    """One run that cannot be read now, and why; it may have a row of what was seen before."""

    run: str
    store: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All runs at one instant."""

    as_of: str
    totals: str
    problem: str | None
    """Why the list may lack runs."""
    rows: tuple[RunRow, ...]
    broken: tuple[BrokenRow, ...]

    @property
    def has_several_stores(self) -> bool:
        """Say whether a run's name is not enough to tell it from others."""
        return len({row.store for row in self.rows}) > 1


class Rows:
    """Makes rows, and keeps them while a run's view is the same: a row takes some 10 ms."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[RunView, RunRow]] = {}

    def overview(self, seen: Sequence[Seen], as_of: datetime, problem: str | None) -> Overview:
        """Return the list of runs, in the order given."""
        # Several threads may make one row at once: they make the same.
        kept = {
            one.key: (one.view, self._row(one.key, one.view))
            for one in seen
            if one.view is not None
        }
        self._kept = kept
        rows = tuple(row for _, row in kept.values())
        return Overview(
            as_of=f"{write_instant(as_of)} UTC",
            totals=_totals(rows),
            problem=problem,
            rows=rows,
            broken=tuple(
                BrokenRow(run=one.known.run, store=one.known.store_url, error=one.error)
                for one in seen
                if one.error is not None
            ),
        )

    def _row(self, key: str, view: RunView) -> RunRow:
        kept = self._kept.get(key)
        return kept[1] if kept is not None and kept[0] is view else _row(key, view)


def _totals(rows: Sequence[RunRow]) -> str:
    """Return what real runs cost together; simulated dollars are in no sum with them."""
    real = [row for row in rows if not row.is_simulated]
    usd = sum((row.usd for row in real), Decimal(0))
    rate = sum((row.usd_per_hour for row in real), Decimal(0))
    count = f"{len(rows)} run{'' if len(rows) == 1 else 's'}"
    simulated = len(rows) - len(real)
    note = f", {simulated} of them simulated" if simulated else ""
    if not real:
        return f"{count}{note}"
    return (
        f"{count}{note}. Real ones: {write_usd(float(usd))}, {write_usd(float(rate))} per hour now."
    )


def _row(key: str, view: RunView) -> RunRow:
    status, saved = status_document(view), cost_document(view)["savings_fraction"]
    state = RunStateName(status["state"])
    symbol, tone, _ = STATES[state]
    share = status["usd"] / status["budget_usd"]
    end, end_tone = _end(state, view)
    rate = _usd_per_hour(view)
    return RunRow(
        key=key,
        run=status["run"],
        store=status["store"],
        state=state.value,
        symbol=symbol,
        tone=tone,
        is_simulated=status["simulated"],
        progress=Gauge(
            text=f"{status['step']:,}",
            detail=f"of {status['num_steps']:,} steps",
            share=place(status["step"], 0, status["num_steps"]),
        ),
        spent=Gauge(
            text=write_usd(status["usd"]),
            detail=f"{write_share(share)} of {write_usd(status['budget_usd'])}",
            share=place(status["usd"], 0, status["budget_usd"]),
            tone=budget_tone(share),
        ),
        burn=write_usd(float(rate)) if rate else NOTHING,
        end=end,
        end_tone=end_tone,
        preemptions=f"{status['num_preemptions']:,}",
        goodput=write_share(status["goodput"]),
        saved=NOTHING if saved is None else write_saving(saved),
        usd=view.parts.total,
        usd_per_hour=rate,
    )


def _end(state: RunStateName, view: RunView) -> tuple[str, Tone]:
    ended_at, eta, due = view.state.ended_at, eta_at(view), deadline_at(view.state)
    if ended_at is not None:
        return f"ended {ended_at:%Y-%m-%d %H:%M}", Tone.PLAIN
    if eta is None or state is RunStateName.UNKNOWN:
        return NOTHING, Tone.PLAIN
    left = f"in {write_duration(eta - view.as_of)}"
    is_late = due is not None and eta > due
    return (f"{left}, after the deadline", Tone.WARN) if is_late else (left, Tone.PLAIN)


def _usd_per_hour(view: RunView) -> Decimal:
    """Return what the nodes that are up cost per hour of market time."""
    if view.state.ended is not None or view.billed_until < view.as_of:
        return Decimal(0)
    up = (one for one in view.state.launches if one.ready_at is not None and one.ended_at is None)
    return sum((node_rate(launch) for launch in up), Decimal(0))


def comparison_table(views: Sequence[RunView]) -> Table:
    """Return runs side by side, a column each."""
    measures = compare([(cost_document(view), status_document(view)) for view in views])
    return Table(
        caption="Runs side by side",
        columns=(
            Column(name="Measure"),
            *(Column(name=view.record.run, is_number=True) for view in views),
        ),
        rows=tuple(
            (name, *(NOTHING if value is None else value for value in values))
            for name, values in measures
        ),
        empty="No run was chosen.",
    )


def runs_table(rows: Sequence[RunRow]) -> Table:
    """Return the rows as a table, for programs."""
    names = ("Run", "Store", "State", "Simulated", "Step", "Spent", "$ per hour", "End")
    more = ("Preemptions", "Goodput", "Saved")
    return Table(
        caption="Runs",
        columns=tuple(Column(name=name) for name in (*names, *more)),
        rows=tuple(
            (
                row.run,
                row.store,
                row.state,
                "yes" if row.is_simulated else "no",
                f"{row.progress.text} {row.progress.detail}",
                row.spent.text,
                row.burn,
                row.end,
                row.preemptions,
                row.goodput,
                row.saved,
            )
            for row in rows
        ),
        empty="No runs yet.",
    )
