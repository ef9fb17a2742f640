"""What nodes that are up cost now, asked once an hour: a bill should not rest on one quote."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from orchestrator.ledger.facts import PriceSampled
from orchestrator.ledger.fold import RunState
from orchestrator.offers import PriceTable
from orchestrator.spec import RunSpec

# AWS' spot prices move a few times a day, and SkyPilot's catalog is made every seven hours.
_EVERY = timedelta(hours=1)


class PriceSampler:
    """Remembers only when it asked last; the rest is in the ledger."""

    def __init__(self, ask: Callable[[RunSpec], PriceTable]) -> None:
        self._ask = ask
        self._asked_at: datetime | None = None

    def sample(self, state: RunState, now: datetime) -> PriceSampled | None:
        """Return the present price of the launch that is up, None where it need not be asked."""
        launch = state.current_launch
        if launch is None or launch.ready_at is None:
            return None
        known_at = launch.prices[-1].at if launch.prices else launch.ready_at
        if now - max(known_at, self._asked_at or known_at) < _EVERY:
            return None
        self._asked_at = now
        table = self._ask(state.spec)
        usd = table.price_of(launch.offer, launch.asked_zone)
        if usd is None:
            return None
        return PriceSampled(launch=launch.launch, usd_per_hour=usd, source=str(table))
