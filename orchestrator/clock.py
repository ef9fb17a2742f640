"""Time: the clock that is passed in everywhere, and the scale between wall and market time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Protocol


class Clock(Protocol):
    """Tells the time and lets it pass; tests pass one whose time they set."""

    def now(self) -> datetime:
        """Return the aware UTC instant."""
        ...

    def sleep(self, duration: timedelta) -> None:
        """Return after `duration`."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the aware UTC instant."""
        return datetime.now(timezone.utc)

    def sleep(self, duration: timedelta) -> None:
        """Return after `duration`."""
        time.sleep(max(0.0, duration.total_seconds()))


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketTime:
    """Wall time stretched by `scale` from `origin` on; scale 1 is the real world."""

    origin: datetime
    scale: float

    def at(self, wall: datetime) -> datetime:
        """Return the market instant at a wall instant."""
        return self.origin + (wall - self.origin) * self.scale

    def wall_at(self, market: datetime) -> datetime:
        """Return the wall instant at a market instant."""
        return self.origin + (market - self.origin) / self.scale


def show_duration(duration: timedelta) -> str:
    """Write a duration as people read it: 45s, 3m10s, 2h05m."""
    seconds = max(0, round(duration.total_seconds()))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
