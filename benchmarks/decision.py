"""How long one decision takes in a controller: `python -m benchmarks.decision`.

Forty zones on offer and a hundred launches behind it; with tables of expected cost that have to be
made, as once in some hours or when prices change, and with those of the decision before.
"""

from __future__ import annotations

import statistics
import sys
import time
from datetime import datetime, timedelta, timezone
from decimal import Decimal

from orchestrator.attempts import EndReason
from orchestrator.offers import Market, MarketPreference, Offer
from orchestrator.policy.decide import decide
from orchestrator.policy.history import History, LaunchRecord, Limits
from orchestrator.policy.sight import PolicyName
from orchestrator.policy.values import solve
from orchestrator.weather import usual_pace

_HOUR = timedelta(hours=1)
_BEGAN_AT = datetime(2026, 1, 1, tzinfo=timezone.utc)
_NUM_ZONES, _NUM_LAUNCHES, _NUM_DECISIONS = 40, 100, 20
_WORK_LEFT, _DEADLINES = 30 * _HOUR, (36, 60, 100, 200)


def main() -> int:
    """Print medians in milliseconds, by hours to the deadline."""
    for policy in PolicyName:
        for left in _DEADLINES:
            fresh, known = (_median_ms(policy, left, is_fresh=one) for one in (True, False))
            print(
                f"{policy.value:16s} {left:3d} h to the deadline for {_WORK_LEFT / _HOUR:.0f} h of "
                f"work: {fresh:5.1f} ms with new tables, {known:5.1f} ms otherwise"
            )
    return 0


def _median_ms(policy: PolicyName, left: int, *, is_fresh: bool) -> float:
    now = _BEGAN_AT + 26 * _HOUR
    history, offers, limits = _history(), _offers(), _limits(policy, now + left * _HOUR)
    seconds = []
    for number in range(_NUM_DECISIONS):
        if is_fresh:
            solve.cache_clear()
        began = time.perf_counter()
        decide(history, offers, limits, now + number * timedelta(seconds=15))
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def _offers() -> list[Offer]:
    return [
        Offer(
            cloud="aws",
            region=f"region-{zone}",
            zone=f"region-{zone}a",
            instance_type="p4de.24xlarge",
            accelerators="A100-80GB:8",
            market=market,
            usd_per_hour=Decimal(8 if market is Market.SPOT else 32) + Decimal(zone) / 4,
            on_demand_usd_per_hour=Decimal(32),
        )
        for zone in range(_NUM_ZONES)
        for market in Market
    ]


def _history() -> History:
    spot = [offer for offer in _offers() if offer.market is Market.SPOT]
    starts = [_BEGAN_AT + number * _HOUR / 4 for number in range(_NUM_LAUNCHES)]
    return History(
        launches=tuple(
            LaunchRecord(
                offer=spot[number % 3],
                started_at=start,
                ready_at=start,
                ended_at=start + _HOUR / 5,
                reason=EndReason.PREEMPTED,
                has_progressed=True,
            )
            for number, start in enumerate(starts)
        ),
        usd=Decimal(100),
        usd_per_hour=Decimal(0),
        work_left=_WORK_LEFT,
        is_complete=False,
        stop_requested=False,
        began_at=_BEGAN_AT,
        work_done=10 * _HOUR,
        checkpoint_bytes=156 * 10**9,
        checkpoint_place=spot[0].place,
    )


def _limits(policy: PolicyName, deadline_at: datetime) -> Limits:
    return Limits(
        budget_usd=Decimal(10_000),
        deadline_at=deadline_at,
        market=MarketPreference.SPOT_WITH_FALLBACK,
        stop_margin=timedelta(minutes=3),
        restart=timedelta(minutes=10),
        policy=policy,
        pace=usual_pace(8),
    )


if __name__ == "__main__":
    sys.exit(main())
