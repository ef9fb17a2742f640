"""What a cloud charges for the nodes of one launch: prices over time, and the clouds' own rules.

Rules as AWS and Google Cloud state them for spot capacity (EC2 user guide, "Billing for interrupted
Spot Instances"; Compute Engine, "Spot VMs" pricing). Simulated nodes are charged for every second:
plans and policies replay markets without these rules, and would be compared with another market.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from itertools import pairwise

from orchestrator.attempts import EndReason
from orchestrator.ledger.facts import TerminatedBy
from orchestrator.ledger.fold import LaunchView, RunState
from orchestrator.offers import Market

MICRO_USD = Decimal("0.000001")
_NOTHING = Decimal("0.000000")
# Nodes are charged for this long at least.
_MINIMUM = {"aws": timedelta(minutes=1), "gcp": timedelta(minutes=1)}
# Spot nodes that the cloud takes back before they were up for so long are not charged.
_FREE_IF_TAKEN_WITHIN = {"aws": timedelta(hours=1), "gcp": timedelta(minutes=1)}
# From the notice's instant until a controller has seen that they are gone. A node that is left to
# SkyPilot's autodown goes later: a minute of waiting, two without a job, and skylet's look.
_SEEN_WITHIN = timedelta(minutes=3)


class Basis(str, Enum):
    """How much an amount is worth: by whom its price was said, and when."""

    ESTIMATED = "estimated"  # a list price, or the one quoted at the launch
    SAMPLED = "sampled"  # a price that was asked again while the nodes were up
    BILLED = "billed"  # the cloud's own bill


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What the nodes of a launch cost; USD are rounded to a millionth."""

    hours: Decimal
    """Market hours for which they were up."""
    usd: Decimal
    sampled_usd: Decimal
    """How much of `usd` is at prices that were sampled."""
    waived_usd: Decimal
    """What it would be without the cloud's rule for nodes that it takes back early."""


def charge(state: RunState, launch: LaunchView, until: datetime) -> Charge:
    """Return what a launch costs until its end, or until `until` if it is still up."""
    scale, simulated = scale_of(state), state.record.simulated
    return charge_nodes(launch, until, scale=scale, simulated=simulated)


def charge_nodes(
    launch: LaunchView, until: datetime, *, scale: Decimal = Decimal(1), simulated: bool = False
) -> Charge:
    """Return what nodes cost, with `scale` market seconds per wall second."""
    if launch.ready_at is None:
        return Charge(hours=Decimal(0), usd=_NOTHING, sampled_usd=_NOTHING, waived_usd=_NOTHING)
    ended_at = launch.ended_at if launch.ended_at is not None else max(until, launch.ready_at)
    quoted, sampled = _at_each_price(launch, launch.ready_at, ended_at)
    if not simulated:
        quoted += _up_to_minimum(launch, ended_at - launch.ready_at)
    whole, of_samples = (quoted + sampled) * scale, sampled * scale
    # Of a gang the cloud took one node for all that is known; the others were terminated with it.
    is_free = not simulated and _is_free(launch)
    charged = Decimal(launch.num_nodes - is_free) / launch.num_nodes
    usd = round_usd(whole * charged)
    return Charge(
        hours=hours(ended_at - launch.ready_at) * scale,
        usd=usd,
        sampled_usd=min(usd, round_usd(of_samples * charged)),
        waived_usd=round_usd(whole) - usd,
    )


def scale_of(state: RunState) -> Decimal:
    """Return market seconds per wall second."""
    return Decimal(str(state.record.spec.time_scale))


def node_rate(launch: LaunchView) -> Decimal:
    """Return what the launch costs per hour now, all nodes, in USD."""
    price = launch.prices[-1].usd_per_hour if launch.prices else launch.offer.usd_per_hour
    return price * launch.num_nodes


def hours(duration: timedelta) -> Decimal:
    """Return a duration in hours, without going through binary fractions."""
    return Decimal(duration // timedelta(microseconds=1)) / Decimal(3_600_000_000)


def _at_each_price(
    launch: LaunchView, ready_at: datetime, ended_at: datetime
) -> tuple[Decimal, Decimal]:
    """Return the dollars at the quoted price and at sampled ones; each holds until the next."""
    edges = [min(max(price.at, ready_at), ended_at) for price in launch.prices] + [ended_at]
    quoted = hours(edges[0] - ready_at) * launch.offer.usd_per_hour
    sampled = sum(
        (
            hours(end - start) * price.usd_per_hour
            for price, (start, end) in zip(launch.prices, pairwise(edges), strict=True)
        ),
        Decimal(0),
    )
    return quoted * launch.num_nodes, sampled * launch.num_nodes


def _up_to_minimum(launch: LaunchView, was_up: timedelta) -> Decimal:
    """Return the dollars that a cloud adds to what was up for less than it charges at least."""
    lacking = _MINIMUM.get(launch.offer.cloud, timedelta()) - was_up
    if launch.ended_at is None or lacking <= timedelta():
        return Decimal(0)
    return hours(lacking) * launch.offer.usd_per_hour * launch.num_nodes


def free_if_taken_at(launch: LaunchView) -> datetime | None:
    """Return when a cloud takes a node that it charges nothing for if nobody else ends it before.

    None where it charges all the same, as the other nodes of a gang, or where nothing was said.
    """
    if launch.leaves_at is None or launch.ready_at is None or launch.num_nodes > 1:
        return None
    is_early = launch.leaves_at - launch.ready_at < _free_within(launch)
    return launch.leaves_at if is_early else None


def _is_free(launch: LaunchView) -> bool:
    """Say whether the cloud took spot nodes back so early that it charges nothing.

    Only where it had said so and they stayed until then: nodes that left before were terminated
    by SkyPilot, and ones that vanished need not have been the cloud's doing. Nor need those that
    nobody watched go, or that are found gone much later: an agent leaves a node that was not taken
    after all, to autodown.
    """
    if launch.reason is not EndReason.PREEMPTED or launch.terminated_by is not TerminatedBy.CLOUD:
        return False
    if not launch.was_watched:
        return False
    if launch.ended_at is None or launch.ready_at is None or launch.leaves_at is None:
        return False
    was_up = launch.ended_at - launch.ready_at
    is_punctual = launch.leaves_at <= launch.ended_at < launch.leaves_at + _SEEN_WITHIN
    return is_punctual and was_up < _free_within(launch)


def _free_within(launch: LaunchView) -> timedelta:
    if launch.offer.market is not Market.SPOT:
        return timedelta()
    return _FREE_IF_TAKEN_WITHIN.get(launch.offer.cloud, timedelta())


def round_usd(amount: Decimal) -> Decimal:
    """Return an amount to the millionth, as every line of the bill is."""
    return amount.quantize(MICRO_USD)
