"""What lost time is called elsewhere, and what it cost: the compute part of the bill by bucket."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal

from orchestrator.charges import Charge, round_usd
from orchestrator.cost import is_failed
from orchestrator.goodput import Bucket, Goodput, Span
from orchestrator.ledger.fold import LaunchView, RunState

_MICROSECOND = timedelta(microseconds=1)
# The words of ml-goodput-measurement (`BadputType` in its goodput_utils.py).
BADPUT_TYPES = {
    Bucket.LOST_WORK: "WASTED_PROGRESS_FROM_DISRUPTION",
    Bucket.STARTUP: "PROGRAM_STARTUP",
    Bucket.RESTORE: "UNPRODUCTIVE_CHECKPOINT_RESTORE_TIME",
    Bucket.CHECKPOINT_STALL: "UNPRODUCTIVE_CHECKPOINT_SAVE_TIME",
    Bucket.WAITING: "INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION",
    Bucket.OTHER: "OTHER",
}


def compute_by_launch(
    state: RunState, goodput: Goodput, charges: Mapping[str, Charge]
) -> dict[str, dict[Bucket, Decimal]]:
    """Return what each launch of the compute part was charged for, in USD; adds up to its charge.

    A charge is shared out by the time for which the nodes were up; what is left of rounding is in
    the largest bucket.
    """
    spans: dict[str | None, list[Span]] = {}
    for span in goodput.spans:
        spans.setdefault(span.launch, []).append(span)
    return {
        launch.launch: _shared(charges[launch.launch].usd, launch, spans.get(launch.launch, []))
        for launch in state.launches
        if charges[launch.launch].usd and not is_failed(launch)
    }


def _shared(usd: Decimal, launch: LaunchView, spans: list[Span]) -> dict[Bucket, Decimal]:
    assert launch.ready_at is not None, "what was never up is not charged"
    durations: dict[Bucket, timedelta] = {}
    for span in spans:
        up = _within(span, launch.ready_at)
        if up > timedelta():
            durations[span.bucket] = durations.get(span.bucket, timedelta()) + up
    whole = sum(durations.values(), timedelta())
    if not whole:
        return {Bucket.OTHER: usd}
    shares = {
        bucket: round_usd(usd * (duration // _MICROSECOND) / (whole // _MICROSECOND))
        for bucket, duration in durations.items()
    }
    largest = max(shares, key=lambda bucket: shares[bucket])
    shares[largest] += usd - sum(shares.values(), Decimal(0))
    return shares


def _within(span: Span, ready_at: datetime) -> timedelta:
    return span.end - max(span.start, ready_at)
