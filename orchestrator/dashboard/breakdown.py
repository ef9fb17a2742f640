"""Where the money and the time went: bars whose amounts add up to the total."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from orchestrator.dashboard.charts import Segment, place, stack_segments
from orchestrator.dashboard.formats import write_exact_usd, write_seconds, write_share, write_words
from orchestrator.dashboard.sources import Sources
from orchestrator.goodput import Bucket

# Narrower segments have no room for their percentage, even on a wide screen.
_LABEL_FROM_PERCENT = 10

_PARTS = {
    "compute": "Nodes, from up to gone, per second.",
    "storage": "Checkpoints, for as long as they are kept.",
    "requests": "Reads and writes of the run folder; an upper bound.",
    "egress": "Checkpoints moved between regions or clouds.",
    "controller": "The machine that watches the run.",
    "failed_launches": "Nodes that were asked for and never came up.",
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


def build_cost(sources: Sources) -> Breakdown:
    """Return the bill by part."""
    parts, total = sources.cost["parts"], sources.cost["total_usd"]
    largest = max(parts.values(), default=0.0)
    rows = tuple(
        BreakdownRow(
            kind="cost",
            name=write_words(name).capitalize(),
            description=_PARTS[name],
            amount=write_exact_usd(usd),
            share=write_share(usd / total) if total else "0%",
            bar=place(usd, 0, largest),
        )
        for name, usd in parts.items()
    )
    return Breakdown(
        caption="Adds up to the total exactly; prices as quoted at launch",
        rows=rows,
        total=write_exact_usd(total),
        stack=(),
        summary="",
    )


def build_places(sources: Sources) -> Breakdown:
    """Return the compute part by cloud, region and market, dearest first."""
    usd_by_place: dict[str, float] = {}
    for summary in sources.launches:
        usd_by_place[summary.where] = usd_by_place.get(summary.where, 0.0) + summary.usd
    total, largest = sources.cost["parts"]["compute"], max(usd_by_place.values(), default=0.0)
    num_launches = Counter(summary.where for summary in sources.launches)
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
