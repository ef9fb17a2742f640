"""The answers of a decision."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from orchestrator.attempts import StopReason
from orchestrator.offers import Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Leave the running launch alone."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Ask for nodes under this offer."""

    offer: Offer
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Ask for nothing before `until`."""

    until: datetime
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Have the running launch save and leave, to go on elsewhere."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End the run: a running launch saves first."""

    reason: StopReason
    why: str


Decision = Keep | Launch | Wait | Drain | Stop
