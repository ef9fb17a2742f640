"""What was computed beside what a cloud says that it billed, as far as its bill can hold it.

Billed amounts are facts of their own: they correct nothing, and no part of the bill contains them.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

from orchestrator.billing.kinds import BillKind
from orchestrator.charges import Basis, charge
from orchestrator.cost import Parts, bill
from orchestrator.ledger.facts import BillRead
from orchestrator.ledger.fold import LaunchView, RunState
from orchestrator.view import RunView

# Clouds say within 24 h; some of their lines come a day later.
_SETTLED = timedelta(hours=48)
# The bucket carries no tag of a run, so these come only where somebody tagged it by hand.
_OF_THE_BUCKET = (BillKind.STORAGE, BillKind.REQUESTS)
_ZERO = Decimal(0)


def reconciliation_document(view: RunView) -> dict[str, Any] | None:
    """Return the latest reading of each cloud beside what was computed; None without any."""
    latest = {reading.cloud: reading for reading in view.state.bills}
    if not latest:
        return None
    return {"clouds": [_cloud_document(view, latest[cloud]) for cloud in sorted(latest)]}


def _cloud_document(view: RunView, reading: BillRead) -> dict[str, Any]:
    until = min(view.billed_until, _midnight(reading.end))
    state = part_on(view.state, reading)
    computed = bill(state, until)
    hours = sum((charge(state, one, until).hours * one.num_nodes for one in state.launches), _ZERO)
    return {
        "cloud": reading.cloud,
        "basis": Basis.BILLED.value,
        "source": reading.source,
        "read_at": reading.read_at.isoformat(),
        "start": reading.start.isoformat(),
        "end": reading.end.isoformat(),
        "currency": reading.currency,
        "num_lines": reading.num_lines,
        "is_final": reading.is_final,
        "is_last_day_incomplete": _is_fresh(view, reading),
        "is_whole_run": _is_whole(view, reading),
        "billed_usd": float(sum(reading.usd.values(), _ZERO)),
        "parts": _parts_document(computed, reading),
        "not_in_bill": _not_in_bill(view, reading),
        "instance_hours": None
        if reading.instance_hours is None
        else _pair(hours, reading.instance_hours, "hours"),
    }


def _not_in_bill(view: RunView, reading: BillRead) -> list[str]:
    """Return the parts whose things carry no run's tag: the bucket, and SkyPilot's controller."""
    absent = [kind.value for kind in _OF_THE_BUCKET if kind not in reading.usd]
    return [*absent, *(["controller"] if view.parts.controller else [])]


def part_on(state: RunState, reading: BillRead) -> RunState:
    """Return the state with only what a cloud bills on its nodes, within the days that were read.

    What nodes restore leaves the bucket, which has no tag; what they save leaves them.
    """
    first, last = _midnight(reading.start), _midnight(reading.end)
    launches = [
        _within(state, launch, first, last)
        for launch in state.launches
        if launch.offer.cloud == reading.cloud and _overlaps(launch, first, last)
    ]
    commits = tuple(commit for commit in state.commits if first <= commit.at < last)
    return replace(state, launches=tuple(launches), commits=commits, restores=(), controllers=())


def _overlaps(launch: LaunchView, first: datetime, last: datetime) -> bool:
    if launch.ready_at is None or launch.ready_at >= last:
        return False
    return launch.ended_at is None or launch.ended_at > first


def _within(state: RunState, launch: LaunchView, first: datetime, last: datetime) -> LaunchView:
    """Cut what lies outside off a launch; whether it is waived goes by the whole of it.

    What goes on after the days is open at their end: no minute at least is charged for it there.
    """
    assert launch.ready_at is not None
    ready_at, ended_at = max(launch.ready_at, first), launch.ended_at
    goes_on = ended_at is None or ended_at > last
    if ready_at == launch.ready_at and not goes_on:
        return launch
    if charge(state, launch, last).waived_usd > 0:
        until = last if ended_at is None else min(ended_at, last)
        return replace(launch, ready_at=ready_at, ended_at=until, leaves_at=until)
    ended_at = None if goes_on else ended_at
    return replace(launch, ready_at=ready_at, ended_at=ended_at, reason=None, leaves_at=None)


def _parts_document(computed: Parts, reading: BillRead) -> dict[str, Any]:
    """Return the parts that are on either side; those of the bucket only where they are billed."""
    ours = {
        # A cloud's bill knows nothing of whether an agent ever spoke.
        BillKind.COMPUTE: computed.compute + computed.failed_launches,
        BillKind.EGRESS: computed.egress,
        **{kind: getattr(computed, kind.value) for kind in _OF_THE_BUCKET if kind in reading.usd},
    }
    shown = [
        kind
        for kind in BillKind
        if kind is BillKind.COMPUTE or ours.get(kind) or reading.usd.get(kind)
    ]
    return {
        kind.value: _pair(ours.get(kind), reading.usd.get(kind, _ZERO), "usd") for kind in shown
    }


def _pair(computed: Decimal | None, billed: Decimal, unit: str) -> dict[str, float | None]:
    """Return both and by how much more was billed, None where nothing is computed to compare."""
    more = None if computed is None else billed - computed
    return {
        f"computed_{unit}": None if computed is None else float(computed),
        f"billed_{unit}": float(billed),
        f"difference_{unit}": None if more is None else float(more),
        "difference_fraction": None
        if more is None or not computed
        else round(float(more / computed), 6),
    }


def _is_fresh(view: RunView, reading: BillRead) -> bool:
    """Say whether lines of the last day that was read may have been yet to come."""
    last = min(_midnight(reading.end), view.state.ended_at or view.as_of)
    return not reading.is_final and reading.read_at - last < _SETTLED


def _is_whole(view: RunView, reading: BillRead) -> bool:
    """Say whether the days that were read are all on which the run had nodes of this cloud."""
    ready = [
        launch
        for launch in view.state.launches
        if launch.offer.cloud == reading.cloud and launch.ready_at is not None
    ]
    first, last = _midnight(reading.start), _midnight(reading.end)
    return all(
        launch.ready_at is not None
        and launch.ready_at >= first
        and launch.ended_at is not None
        and launch.ended_at <= last
        for launch in ready
    )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), timezone.utc)
