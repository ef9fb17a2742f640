"""Forecasts against what came: `python -m benchmarks.forecast --traces FOLDER [--half first]`.

The questions are those of `benchmarks.policy`. Each job is forecast at its submission, from what
lies before it in its market's record, and then run. How futures are drawn was chosen on the first
half of each record; the figures are of jobs in the second (`--half first` shows the others).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.policy import DEADLINES, RESTARTS_MIN, cases, terms_of
from orchestrator.forecast import Spread, play, spread
from orchestrator.offers import Market as OfferMarket
from orchestrator.offers import Offer
from orchestrator.policy.named import POLICIES
from orchestrator.simulate.futures import LEAST_HOURS, make_up, redraw
from orchestrator.simulate.job import simulate
from orchestrator.simulate.market import Market, make_market
from orchestrator.simulate.terms import Observe, Terms

# Before a job of the first half: three days, or a third of the half where that is shorter.
_MOST_BEFORE_HOURS = 72.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One job: what was forecast, and what came."""

    market: str
    kind: str
    zones: int
    nodes: int
    restart_min: int
    deadline: float
    start: int
    usd: Spread
    hours: Spread
    actual_usd: float
    actual_hours: float

    @property
    def error(self) -> float:
        """Of the median, relative to what it cost."""
        assert self.usd.p50 is not None
        return abs(self.usd.p50 - self.actual_usd) / self.actual_usd

    @property
    def hours_error(self) -> float:
        """Of the median, relative to what it took."""
        assert self.hours.p50 is not None
        return abs(self.hours.p50 - self.actual_hours) / self.actual_hours


def side_of(found: Spread, actual: float) -> int:
    """Return -1 for less than p10, 1 for more than p90, 0 between; to a millionth."""
    low, high = found.p10 or 0.0, found.p90 or math.inf
    return (actual > high * (1 + 1e-6)) - (actual < low * (1 - 1e-6))


def starts_of(market: Market, terms: Terms, count: int, *, first: bool) -> list[int]:
    """Return when jobs are submitted: with something before them, and their deadline after.

    Other instants for each question: jobs of one market and hour share their luck.
    """
    middle = market.num_ticks // 2
    size = math.ceil(terms.deadline / market.tick_hours - 1e-9)
    before = min(_MOST_BEFORE_HOURS / market.tick_hours, middle / 3)
    before = math.ceil(max(LEAST_HOURS / market.tick_hours, before))
    low, high = (before, middle - size) if first else (middle, market.num_ticks - size)
    dice = random.Random(f"{market.names}/{terms.restart:.3f}/{terms.deadline:.3f}")
    return sorted(dice.randint(low, high) for _ in range(count)) if low <= high else []


def ask(
    market: Market, start: int, terms: Terms, policy: str, plays: int, *, is_made_up: bool
) -> dict[str, Any]:
    """Return what is forecast of a job, and what came of it, as a row has it."""
    if is_made_up:
        futures = make_up(
            _offers(market, start), num_nodes=1, hours=terms.deadline, count=plays, pace=terms.pace
        )
    else:
        futures = redraw(market, start, hours=terms.deadline, count=plays, pace=terms.pace)
    ended = play(futures, terms, POLICIES[policy])
    came = simulate(market, start, terms, POLICIES[policy]())
    return {
        "start": start,
        "usd": spread([one.bill.usd for one in ended]),
        "hours": spread([one.hours for one in ended]),
        "actual_usd": came.bill.usd,
        "actual_hours": came.hours,
    }


def _offers(market: Market, tick: int) -> list[Offer]:
    """Return what a plan knows of a market without its record: zones, and prices for the gang."""
    return [
        Offer(
            cloud=cloud,
            region=region,
            zone=zone,
            instance_type="",
            accelerators="",
            market=OfferMarket.SPOT,
            usd_per_hour=Decimal(spot),
            on_demand_usd_per_hour=Decimal(on_demand),
        )
        for zone, (cloud, region), spot, on_demand in zip(
            market.names, market.places, market.spot_at[tick], market.on_demand, strict=True
        )
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the error and the coverage by kind of market, and of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast", description=__doc__)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=5, help="for each question")
    parser.add_argument("--plays", type=int, default=40, help="futures of a forecast")
    parser.add_argument("--half", choices=["first", "second"], default="second")
    parser.add_argument("--only", default="", help="markets whose name has this in it")
    parser.add_argument("--policy", choices=list(POLICIES), default="auto")
    parser.add_argument("--observe", type=Observe, default=Observe.FREE)
    parser.add_argument(
        "--made-up", action="store_true", help="forecast without the record, as plan by itself"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    for case, traces in cases(options.traces):
        if options.only not in case.market:
            continue
        market, found = make_market(traces, case.num_nodes), len(rows)
        for restart in RESTARTS_MIN:
            for deadline in DEADLINES:
                terms = terms_of(case, traces, restart, deadline)
                terms = replace(terms, observe=options.observe)
                starts = starts_of(market, terms, options.jobs, first=options.half == "first")
                rows += [
                    Row(
                        market=case.market,
                        kind=case.kind,
                        zones=len(case.zones),
                        nodes=case.num_nodes,
                        restart_min=restart,
                        deadline=deadline,
                        **ask(
                            market,
                            start,
                            terms,
                            options.policy,
                            options.plays,
                            is_made_up=options.made_up,
                        ),
                    )
                    for start in starts
                ]
        if not options.json:
            _print(f"{case.market} {'+'.join(case.zones)} x{case.num_nodes}", rows[found:])
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
    else:
        _conclude(rows)
    return 0


def _print(name: str, rows: Sequence[Row]) -> None:
    if not rows:
        print(f"{name[:48]:48s} no room for a job")
        return
    usd = _verdict([row.error for row in rows], [side_of(row.usd, row.actual_usd) for row in rows])
    hours = _verdict(
        [row.hours_error for row in rows], [side_of(row.hours, row.actual_hours) for row in rows]
    )
    print(f"{name[:48]:48s} {len(rows):4d} jobs  USD: {usd}  hours: {hours}", flush=True)


def _verdict(errors: Sequence[float], sides: Sequence[int]) -> str:
    """Return the median error, the share within p10 and p90, and what is below and above."""
    within, below, above = (sides.count(side) / len(sides) for side in (0, -1, 1))
    return f"{np.median(errors):.3f}, within {within:.2f} (-{below:.2f} +{above:.2f})"


def _conclude(rows: Sequence[Row]) -> None:
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        for name in (row.market, row.kind, f"deadline {row.deadline:g}", f"{row.restart_min} min"):
            kinds.setdefault(name, []).append(row)
    for name, kept in sorted(kinds.items()):
        _print(name, kept)
    _print("all", rows)


if __name__ == "__main__":
    sys.exit(main())
