"""What a policy sees when it is asked, and what it answers: plain numbers, for it is asked often.

Hours count from the launch of the run, money is USD per hour for all nodes together. The simulator
asks a policy some hundred times per run, hundreds of thousands of times in all, where dates and
decimals would take most of the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

NOWHERE = -1
NEVER = math.inf


class PolicyName(str, Enum):
    """How to decide where and when to run."""

    ON_DEMAND = "on_demand"
    GREEDY = "greedy"
    UNIFORM_PROGRESS = "uniform_progress"
    SKYNOMAD = "skynomad"
    AUTO = "auto"


class Mode(Enum):
    """What is up, or is to be."""

    IDLE = "idle"
    SPOT = "spot"
    ON_DEMAND = "on_demand"


class Sighting(NamedTuple):
    """Whether a zone had room for all nodes at some hour; it stays so until it is seen anew.

    None: nobody looks at it from then on.
    """

    hour: float
    zone: int
    is_up: bool | None


@dataclass(frozen=True, slots=True)
class Zone:
    """What of a zone does not change while a run goes on."""

    name: str
    place: int
    """Zones of one place exchange checkpoints for nothing."""
    on_demand: float


@dataclass(slots=True)
class Sight:
    """One question to a policy.

    `work_left` are the hours of training that are not saved or on a node that is up, `restart` what
    a launch takes until the first new step. `checkpoint_place` is NOWHERE before there is anything
    to move. In `is_up` None stands for a zone of which nothing is known.
    """

    zones: Sequence[Zone]
    move_usd: Sequence[Sequence[float]]
    """From place to place."""
    deadline: float
    work: float
    restart: float
    failed_launch: float
    """What a launch takes that finds no room."""
    patience: float
    """How soon the policy can act again after a decision."""
    lost_work: float = 0.0
    """Most that a preemption takes back."""
    pace: float = 1.0
    """How often nodes like these are lost, in the usual losses of single-GPU nodes."""
    now: float = 0.0
    work_left: float = 0.0
    unsaved: float = 0.0
    """Hours of training on the node that is up which `work_left` still counts."""
    usd_left: float = math.inf
    """Of the budget, less what a stop takes."""
    mode: Mode = Mode.IDLE
    zone: int = NOWHERE
    ready_at: float = 0.0
    """When the node that is up trains, or began to."""
    checkpoint_place: int = NOWHERE
    spot: Sequence[float] = ()
    is_up: Sequence[bool | None] = ()
    sightings: list[Sighting] = field(default_factory=list)
    """In order; what `is_up` follows from."""

    @property
    def left(self) -> float:
        """Hours until the deadline."""
        return self.deadline - self.now

    @property
    def slack(self) -> float:
        """Hours that may be lost."""
        return self.deadline - self.now - self.work_left

    @property
    def reserve(self) -> float:
        """Slack without which on demand is the only safe choice.

        A launch that finds no room, a start that is lost at once, a start on demand, the time until
        the policy is asked again, and what is lost with a node.
        """
        return 2 * self.restart + self.failed_launch + self.patience + self.lost_work

    def move(self, zone: int) -> float:
        """Return the price of taking the checkpoint to a zone."""
        if self.checkpoint_place == NOWHERE:
            return 0.0
        return self.move_usd[self.checkpoint_place][self.zones[zone].place]


class Choice(NamedTuple):
    """What is to be up, until when that holds if nothing is seen, and why in one sentence."""

    mode: Mode
    zone: int
    until: float
    why: str


class Policy(Protocol):
    """Chooses for one run, by what it is shown alone.

    What it remembers of earlier calls only saves time.
    """

    looks_around: bool
    """It wants to be asked when any zone changes, and not only when it has to act."""

    def choose(self, sight: Sight) -> Choice:
        """Return what is to be up from now on."""
        ...


def cheapest_on_demand(sight: Sight) -> int:
    """Return the zone in which the rest of the work costs least on demand."""
    hours = sight.work_left + sight.restart
    return min(
        range(len(sight.zones)),
        key=lambda zone: sight.zones[zone].on_demand * hours + sight.move(zone),
    )


def cheapest_spot(sight: Sight, zones: Sequence[int]) -> int:
    """Return the cheapest of the zones."""
    return min(zones, key=lambda zone: (sight.spot[zone], zone))


def on_demand_to_the_end(sight: Sight) -> Choice | None:
    """Return the safety net's choice when anything else could miss the deadline, else None.

    A node that trains on spot may stay: as long as it is up it loses no slack.
    """
    if sight.mode is Mode.SPOT or sight.slack > sight.reserve:
        return None
    zone = sight.zone if sight.mode is Mode.ON_DEMAND else cheapest_on_demand(sight)
    why = f"{sight.left:.1f} h to the deadline for {sight.work_left:.1f} h of work: on demand"
    return Choice(Mode.ON_DEMAND, zone, NEVER, why)


def rooms(sight: Sight) -> list[int]:
    """Return the zones that have room, or may have it."""
    return [zone for zone, is_up in enumerate(sight.is_up) if is_up is not False]
