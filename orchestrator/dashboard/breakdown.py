"""Where the money and the time went: bars whose amounts add up to the total."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.cost import is_failed
from orchestrator.dashboard.charts import Segment, place, stack_segments
from orchestrator.dashboard.formats import (
    write_exact_usd,
    write_seconds,
    write_share,
    write_usd,
    write_words,
)
from orchestrator.dashboard.sources import Sources
from orchestrator.dashboard.tables import Column, Table
from orchestrator.goodput import Bucket

# Narrower segments have no room for their percentage, even on a wide screen.
_LABEL_FROM_PERCENT = 10

_PARTS = {
    "failed_launches": "Nodes that came up and never got to training.",
    "storage": "Checkpoints, for as long as they are kept.",
    "requests": "Reads and writes of the run folder, as far as they follow from the facts.",
    "egress": "Checkpoints moved between regions or clouds.",
    "controller": "The machine that watches the run.",
}
BUCKETS = {
    Bucket.PRODUCTIVE: "Steps that are part of the final model.",
    Bucket.LOST_WORK: "Steps trained again after a preemption, and what a lost node did last.",
    Bucket.STARTUP: "From the launch to the first step: nodes, programs, model, data.",
    Bucket.RESTORE: "Reading a checkpoint.",
    Bucket.CHECKPOINT_STALL: "Training held up by a save.",
    Bucket.WAITING: "No node: before the first launch, between two, or for lack of capacity.",
    Bucket.OTHER: "Evaluation, shutting down, and gaps between steps.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakdownRow:
    """One part; `bar` is its size in percent of the largest part."""

    kind: str
    name: str
    description: str
    amount: str
    share: str
    bar: float
    start: float = 0.0
    """Where the bar begins, in percent: in a waterfall where the last one ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedSegment:
    """A part in the stacked bar, with a label where there is room."""

    segment: Segment
    title: str
    label: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """A total and its parts."""

    caption: str
    rows: tuple[BreakdownRow, ...]
    total: str
    stack: tuple[StackedSegment, ...]
    summary: str
    """The stacked bar in words; empty without one."""
    note: str = ""

    def as_table(self) -> Table:
        """Return the same as rows of text, for programs."""
        return Table(
            caption=self.caption,
            columns=tuple(Column(name=name) for name in ("What", "Amount", "Share", "Meaning")),
            rows=tuple((row.name, row.amount, row.share, row.description) for row in self.rows),
            empty="Nothing yet.",
        )


def build_cost(sources: Sources) -> Breakdown:
    """Return the bill as a waterfall: what nodes were paid for, then everything else."""
    cost = sources.cost
    total, done = cost["total_usd"], 0.0
    rows = []
    for kind, name, description, usd in _cost_rows(cost):
        rows.append(
            BreakdownRow(
                kind=kind,
                name=name,
                description=description,
                amount=write_exact_usd(usd),
                share=write_share(usd / total) if total else "0%",
                bar=place(usd, 0, total),
                start=place(done, 0, total),
            )
        )
        done += usd
    return Breakdown(
        caption=f"Adds up to the total exactly; {_basis(cost)}",
        rows=tuple(rows),
        total=write_exact_usd(total),
        stack=(),
        summary="",
        note=_storage_note(cost),
    )


def _storage_note(cost: dict[str, Any]) -> str:
    usd = cost["storage_usd_per_day"]
    if not usd:
        return ""
    return (
        f"Checkpoints that are kept cost {write_usd(usd)} a day, also after the end; "
        f"orchestrate delete {cost['run']} ends that."
    )


def _cost_rows(cost: dict[str, Any]) -> Iterator[tuple[str, str, str, float]]:
    """Yield kind, name, description and USD of each row, what trained the model first."""
    for bucket in Bucket:
        usd = cost["compute_by_bucket"][bucket.value]
        if usd or bucket is Bucket.PRODUCTIVE:
            name = f"Nodes: {write_words(bucket.value)}"
            yield bucket.value, name, BUCKETS[bucket], usd
    for part, description in _PARTS.items():
        yield "cost", write_words(part).capitalize(), description, cost["parts"][part]


def _basis(cost: dict[str, Any]) -> str:
    """Say how well the amounts are known."""
    sampled, total = cost["basis"]["sampled"], cost["total_usd"]
    waived = cost["waived_usd"]
    notes = ["estimated, by the prices quoted at launch"]
    if sampled:
        notes = [f"{write_share(sampled / total)} by prices that were asked again each hour"]
        notes.append("the rest estimated, by quotes and list prices")
    if waived:
        notes.append(f"{write_usd(waived)} not charged for nodes that the cloud took back early")
    return ", ".join(notes)


def build_places(sources: Sources) -> Breakdown:
    """Return the compute part by cloud, region and market, dearest first."""
    usd_by_place: dict[str, float] = {}
    trained = [one for one in sources.launches if not is_failed(one.launch)]
    for summary in trained:
        usd_by_place[summary.where] = usd_by_place.get(summary.where, 0.0) + summary.usd
    total, largest = sources.cost["parts"]["compute"], max(usd_by_place.values(), default=0.0)
    num_launches = Counter(summary.where for summary in trained)
    rows = tuple(
        BreakdownRow(
            kind="cost",
            name=where,
            description=f"{num_launches[where]} launch{'' if num_launches[where] == 1 else 'es'}",
            amount=write_exact_usd(usd),
            share=write_share(usd / total) if total else "0%",
            bar=place(usd, 0, largest),
        )
        for where, usd in sorted(usd_by_place.items(), key=lambda item: (-item[1], item[0]))
    )
    return Breakdown(
        caption="Adds up to the compute part",
        rows=rows,
        total=write_exact_usd(total),
        stack=(),
        summary="",
    )


def build_seconds(sources: Sources) -> Breakdown:
    """Return the wall time by what it was spent on."""
    seconds: dict[str, float] = sources.cost["seconds"]
    total, largest = sources.cost["wall_seconds"], max(seconds.values(), default=0.0)
    rows = tuple(
        BreakdownRow(
            kind=bucket.value,
            name=write_words(bucket.value).capitalize(),
            description=BUCKETS[bucket],
            amount=write_seconds(seconds[bucket.value]),
            share=write_share(seconds[bucket.value] / total) if total else "0%",
            bar=place(seconds[bucket.value], 0, largest),
        )
        for bucket in Bucket
    )
    by_kind = {row.kind: row for row in rows}
    stack = tuple(
        StackedSegment(
            segment=segment,
            title=f"{by_kind[segment.kind].name}: {by_kind[segment.kind].amount} "
            f"({by_kind[segment.kind].share})",
            label=by_kind[segment.kind].share if segment.width >= _LABEL_FROM_PERCENT else None,
        )
        for segment in stack_segments([(bucket.value, seconds[bucket.value]) for bucket in Bucket])
    )
    words = ", ".join(f"{row.name.lower()} {row.amount}" for row in rows)
    return Breakdown(
        caption="Adds up to the wall time since the launch",
        rows=rows,
        total=write_seconds(total),
        stack=stack,
        summary=f"Wall time by what it was spent on: {words}; total {write_seconds(total)}.",
    )
