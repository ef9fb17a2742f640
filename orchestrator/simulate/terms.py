"""What a simulated job is, what it may take, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.policy.sight import Choice
from orchestrator.simulate.spans import Span


class Observe(str, Enum):
    """What a policy sees: every zone at every tick (the papers), or its own launches alone."""

    FREE = "free"
    LAUNCHES = "launches"


class Billing(str, Enum):
    """Price times time, or by the provider's rules as well."""

    PLAIN = "plain"
    PROVIDER = "provider"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a job is and what it may take; hours."""

    work: float
    deadline: float
    restart: float
    """From a launch to the first new step; billed."""
    state_gb: float = 0.0
    """What moves with a job from region to region."""
    lost_work: float = 0.0
    """Most that a preemption loses: the interval between checkpoints."""
    failed_launch: float = 0.0
    """What a launch takes that finds no room; not billed."""
    pace: float = 1.0
    """How often nodes like these are known to be lost, in losses of single-GPU nodes."""
    observe: Observe = Observe.FREE
    billing: Billing = Billing.PLAIN
    budget_usd: float | None = None
    """What the job may cost: it saves and stops before it is exceeded, at the present price."""


@dataclass(slots=True, kw_only=True)
class Bill:
    """Where a job's money and hours went."""

    spot: float = 0.0
    on_demand: float = 0.0
    moves: float = 0.0
    saves: float = 0.0
    """Of checkpoints to a store in another region."""
    spot_hours: float = 0.0
    on_demand_hours: float = 0.0
    waiting_hours: float = 0.0
    lost_hours: float = 0.0
    """Of work that a preemption took back."""
    num_launches: int = 0
    num_failed_launches: int = 0
    num_preemptions: int = 0

    @property
    def usd(self) -> float:
        """The sum of all."""
        return self.spot + self.on_demand + self.moves + self.saves


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a job ended; `hours` from its launch, `is_late` after its deadline.

    One that stopped for its budget has not finished, and is not called late.
    """

    hours: float
    is_late: bool
    bill: Bill
    is_over_budget: bool = False
    is_finished: bool = True
    """It did all of its work, late or not."""
    decisions: tuple[tuple[float, Choice], ...] = field(default=(), repr=False)
    spans: tuple[Span, ...] = field(default=(), repr=False)


class TooShort(Exception):
    """The record ends before the job, and before its deadline."""
