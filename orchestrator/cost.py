"""One run, one bill: what every launch, byte and request cost, from the facts alone.

Amounts are Decimal USD, each part rounded to a millionth, so that parts add up exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import reduce
from operator import add

from orchestrator.charges import MICRO_USD, charge, hours, round_usd, scale_of
from orchestrator.ledger.fold import (
    CommitView,
    ControllerView,
    LaunchView,
    RestoreView,
    RunState,
)
from orchestrator.places import split_place

_GB = Decimal(10**9)
# List prices (S3 Standard, us-east-1; they hardly differ between clouds).
STORAGE_USD_PER_GB_MONTH = Decimal("0.023")
HOURS_PER_MONTH = Decimal(730)
PUT_USD = Decimal("0.000005")
GET_USD = Decimal("0.0000004")
# Per GB: between regions of one cloud, and from one cloud to another (internet egress).
SAME_CLOUD_EGRESS_USD_PER_GB = Decimal("0.02")
CROSS_CLOUD_EGRESS_USD_PER_GB = Decimal("0.09")
# Of the budget, at which users are told.
BUDGET_SHARES = (0.5, 0.8, 1.0)
# SkyPilot stops its controller when no job was left for so long (sky/jobs/constants.py).
_CONTROLLER_IDLES = timedelta(minutes=10)
# Objects that a commit writes besides its shards: the manifest and HEAD.
_OBJECTS_PER_COMMIT = 2
# A node uploads its measurements, its log and its heartbeat every 20 s at most; the controller
# beats once a minute, and lists facts and measurements every 15 s.
_PUTS_PER_NODE_HOUR = Decimal(3 * 180)
_LOOKS_PER_HOUR = Decimal(60 + 2 * 240)
# Tries until the float sums agree; without one the decimals are right all the same.
_MOST_MICRO_USD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the money went to, in USD."""

    compute: Decimal
    storage: Decimal
    requests: Decimal
    egress: Decimal
    controller: Decimal
    failed_launches: Decimal

    @property
    def total(self) -> Decimal:
        """The sum of all parts."""
        return sum((getattr(self, part.name) for part in fields(self)), Decimal(0))


def bill(state: RunState, as_of: datetime) -> Parts:
    """Return what the run has cost until `as_of`; after its end only what it cost until then."""
    until = billed_until(state, as_of)
    scale = scale_of(state)
    return _settled(
        Parts(
            compute=_launches_usd(state, until, failed=False),
            storage=_storage_usd(state, until, scale),
            requests=_requests_usd(state, until),
            egress=_egress_usd(state),
            controller=_controllers_usd(state, until),
            failed_launches=_launches_usd(state, until, failed=True),
        )
    )


def billed_until(state: RunState, as_of: datetime) -> datetime:
    """Return until when anything is billed: `as_of`, or the run's end if that was before."""
    return as_of if state.ended_at is None else min(as_of, state.ended_at)


def _settled(parts: Parts) -> Parts:
    """Round requests up by millionths until the parts add up in binary floating point as well.

    Requests are an estimate from above; readers of JSON who add floats get the total to the bit,
    one after the other or compensated, as Python's sum does since 3.12.
    """
    for extra in range(_MOST_MICRO_USD):
        settled = replace(parts, requests=parts.requests + extra * MICRO_USD)
        amounts = [float(getattr(settled, part.name)) for part in fields(settled)]
        if reduce(add, amounts) == math.fsum(amounts) == float(settled.total):
            return settled
    return parts


def _launches_usd(state: RunState, until: datetime, *, failed: bool) -> Decimal:
    """Add up launches that trained, or those that ended before an agent spoke.

    Nodes that never came up are not billed by any cloud in the table.
    """
    wanted = (launch for launch in state.launches if failed == is_failed(launch))
    return sum((charge(state, launch, until).usd for launch in wanted), Decimal(0))


def is_failed(launch: LaunchView) -> bool:
    """Say whether a launch ended before an agent spoke: a part of its own in the bill."""
    return launch.attempt is None and launch.ended_at is not None


def on_demand_usd(state: RunState, useful_by_launch: Mapping[str, timedelta]) -> Decimal:
    """Return what so much time of each launch's nodes would have cost on demand in its region."""
    total = sum(
        (
            hours(useful_by_launch[launch.launch])
            * launch.offer.on_demand_usd_per_hour
            * launch.num_nodes
            for launch in state.launches
            if launch.launch in useful_by_launch
        ),
        Decimal(0),
    )
    return round_usd(total * scale_of(state))


def storage_usd_per_day(state: RunState) -> Decimal:
    """Return what the checkpoints that are there cost a day, also after the run's end."""
    kept = sum(commit.num_bytes for commit in state.commits if commit.deleted_at is None)
    return round_usd(Decimal(kept) / _GB * 24 / HOURS_PER_MONTH * STORAGE_USD_PER_GB_MONTH)


def _controllers_usd(state: RunState, until: datetime) -> Decimal:
    """Return what the machines cost that carried the run out, each as if for this run alone."""
    return sum((_controller_usd(one, until) for one in state.controllers), Decimal(0))


def _controller_usd(controller: ControllerView, until: datetime) -> Decimal:
    """Bill from the launch command to ten minutes after the end, when SkyPilot stops it.

    No longer than until the run is launched again: what carries that out is billed from then on.
    """
    rate, began_at = controller.usd_per_hour or Decimal(0), controller.launched_at
    last_at = until if controller.ended_at is None else controller.ended_at + _CONTROLLER_IDLES
    if controller.followed_at is not None:
        last_at = min(last_at, controller.followed_at)
    return round_usd(hours(max(timedelta(), last_at - began_at)) * rate)


def _storage_usd(state: RunState, until: datetime, scale: Decimal) -> Decimal:
    gb_hours = sum(
        (
            Decimal(commit.num_bytes)
            / _GB
            * hours(max(timedelta(), min(commit.deleted_at or until, until) - commit.at))
            * scale
            for commit in state.commits
        ),
        Decimal(0),
    )
    return round_usd(gb_hours / HOURS_PER_MONTH * STORAGE_USD_PER_GB_MONTH)


def _requests_usd(state: RunState, until: datetime) -> Decimal:
    """Count a PUT per fact, shard, manifest and HEAD, and on clouds what goes on by the clock."""
    puts = Decimal(
        state.num_entries
        + sum(commit.num_objects + _OBJECTS_PER_COMMIT for commit in state.commits)
    )
    if not state.record.simulated:
        puts += _requests_by_the_clock(state, until)
    gets = len(state.restores) * max(
        (launch.world_size or 1 for launch in state.launches), default=1
    )
    return round_usd(puts * PUT_USD + gets * GET_USD)


def _requests_by_the_clock(state: RunState, until: datetime) -> Decimal:
    """Return the PUTs and LISTs of nodes that are up, and of who watches the run; a bound."""
    node_hours = sum(
        (charge(state, one, until).hours * one.num_nodes for one in state.launches), Decimal(0)
    )
    watched = max(timedelta(), until - state.record.created_at - state.paused)
    return (node_hours * _PUTS_PER_NODE_HOUR + hours(watched) * _LOOKS_PER_HOUR).quantize(
        Decimal(1)
    )


def _egress_usd(state: RunState) -> Decimal:
    """Price bytes between each store's region and that of the attempt's nodes, both ways."""
    offers = {launch.attempt: launch.offer for launch in state.launches}
    moves: list[CommitView | RestoreView] = [*state.commits, *state.restores]
    total = Decimal(0)
    for moved in moves:
        offer = offers.get(moved.attempt)
        if offer is not None:
            place = split_place(moved.place) if moved.place else state.record.home_place
            total += egress_usd(moved.num_bytes, place, offer.place)
    return round_usd(total)


def egress_usd(num_bytes: int, place: tuple[str, str], other: tuple[str, str]) -> Decimal:
    """Return the price of moving bytes between two places, each a cloud and a region."""
    if place == other:
        return Decimal(0)
    is_same_cloud = place[0] == other[0]
    rate = SAME_CLOUD_EGRESS_USD_PER_GB if is_same_cloud else CROSS_CLOUD_EGRESS_USD_PER_GB
    return Decimal(num_bytes) / _GB * rate


def budget_told(usd: Decimal, budget: Decimal) -> list[float]:
    """Return the shares of the budget that are worth telling of and are used up."""
    return [share for share in BUDGET_SHARES if usd >= Decimal(share) * budget]


def move_usd(places: Sequence[tuple[str, str]], gigabytes: float) -> list[list[float]]:
    """Return the price of moving so much from each of the places to each other one."""
    num_bytes = round(gigabytes * 1e9)
    return [[float(egress_usd(num_bytes, one, other)) for other in places] for one in places]
