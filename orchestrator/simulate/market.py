"""A recorded market as the simulator asks it: who has room when, and what a stretch of time costs.

Time is counted in ticks from the beginning of the record; within a tick nothing changes.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import InputError
from orchestrator.simulate.zone_trace import ZoneTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """Z zones over T ticks, for a gang of nodes; money is USD per hour for all of them.

    `next_down` and `next_up` say for each zone and tick when it will have no room, or some: at the
    tick itself if that is so already, T if it will not be so again. Lists, for they are read one
    number at a time.
    """

    names: tuple[str, ...]
    places: tuple[tuple[str, str], ...]
    tick_hours: float
    up: NDArray[np.bool_]  # [Z, T]
    spot: NDArray[np.float64]  # [Z, T]
    on_demand: tuple[float, ...]
    save_usd: tuple[float, ...]
    """What an hour's saves cost from each zone, where the store is in another region; no policy is
    told of it."""
    up_at: list[list[bool]]  # [T][Z]
    spot_at: list[list[float]]  # [T][Z]
    paid_until: list[list[float]]  # [Z][T + 1], USD
    next_down: list[list[int]]
    next_up: list[list[int]]
    next_change: list[int]
    """When any zone is next other than in the tick before; T if none is."""

    @property
    def num_ticks(self) -> int:
        """T."""
        return int(self.up.shape[1])

    def affords_until(self, zone: int, start: float, usd: float) -> float:
        """Return until when so much pays for spot in a zone, in ticks; infinity if to the end."""
        paid = self.paid_until[zone]
        first = int(start)
        total = paid[first] + (start - first) * self.spot_at[first][zone] * self.tick_hours + usd
        if total >= paid[-1]:
            return math.inf
        tick = bisect.bisect_right(paid, total) - 1
        return tick + (total - paid[tick]) / (self.spot_at[tick][zone] * self.tick_hours)

    def spot_usd(self, zone: int, start: float, end: float) -> float:
        """Return what spot costs in a zone between two instants, in ticks."""
        paid = self.paid_until[zone]
        first, last = int(start), min(int(end), self.num_ticks - 1)
        before = paid[first] + (start - first) * self.spot_at[first][zone] * self.tick_hours
        return paid[last] + (end - last) * self.spot_at[last][zone] * self.tick_hours - before


def make_market(traces: Sequence[ZoneTrace], num_nodes: int) -> Market:
    """Return the market for a gang of so many nodes; it is as long as its shortest record.

    Records of different gaps are brought to the shortest one. Raises InputError if they do not
    divide into it.
    """
    gap = min(trace.gap_seconds for trace in traces)
    num_ticks = int(min(trace.hours for trace in traces) * 3600 / gap + 1e-9)
    columns = [_ticks(trace, gap, num_ticks) for trace in traces]
    up = np.array(
        [
            np.array(trace.available_nodes)[column] >= num_nodes
            for trace, column in zip(traces, columns, strict=True)
        ]
    )
    spot = np.array(
        [
            np.broadcast_to(trace.spot_usd_per_hour, len(trace.available_nodes))[column]
            for trace, column in zip(traces, columns, strict=True)
        ]
    ) * float(num_nodes)
    return join_zones(
        names=tuple(trace.zone for trace in traces),
        places=tuple((trace.cloud, trace.region) for trace in traces),
        tick_hours=gap / 3600,
        up=up,
        spot=spot,
        on_demand=tuple(trace.on_demand_usd_per_hour * num_nodes for trace in traces),
    )


def join_zones(
    *,
    names: tuple[str, ...],
    places: tuple[tuple[str, str], ...],
    tick_hours: float,
    up: NDArray[np.bool_],
    spot: NDArray[np.float64],
    on_demand: tuple[float, ...],
    save_usd: tuple[float, ...] | None = None,
) -> Market:
    """Return the market of zones whose room and prices are known: rows of `up` and `spot`."""
    paid = np.concatenate([np.zeros((len(names), 1)), np.cumsum(spot * tick_hours, axis=1)], axis=1)
    changed = np.any(up[:, 1:] != up[:, :-1], axis=0)
    return Market(
        names=names,
        places=places,
        tick_hours=tick_hours,
        up=up,
        spot=spot,
        on_demand=on_demand,
        save_usd=save_usd or (0.0,) * len(names),
        up_at=up.T.tolist(),
        spot_at=spot.T.tolist(),
        paid_until=paid.tolist(),
        next_down=[_next(~row) for row in up],
        next_up=[_next(row) for row in up],
        next_change=[1 + tick for tick in _next(changed)],
    )


def _ticks(trace: ZoneTrace, gap: float, num_ticks: int) -> NDArray[np.int64]:
    if abs(trace.gap_seconds / gap - round(trace.gap_seconds / gap)) > 1e-9:
        raise InputError(
            f"{trace.zone} has a gap of {trace.gap_seconds:g} s, another zone one of {gap:g} s.",
            "Give traces whose gaps are multiples of the shortest one.",
        )
    return (np.arange(num_ticks) * gap / trace.gap_seconds + 1e-9).astype(np.int64)


def _next(row: NDArray[np.bool_]) -> list[int]:
    """Return for each index where the next True is, from it on; the length where there is none."""
    places = np.where(row, np.arange(len(row)), len(row))
    return [*np.minimum.accumulate(places[::-1])[::-1].tolist(), len(row)]
