"""Many jobs on one market, each under every policy from the same starts, and what came of them."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from orchestrator.errors import InputError
from orchestrator.policy.named import make_policy
from orchestrator.simulate.job import Job, simulate
from orchestrator.simulate.market import Market
from orchestrator.simulate.optimum import least_usd
from orchestrator.simulate.terms import Ended, Terms

_NUM_RESAMPLES = 2_000
# Of starts: enough to keep a process busy, few enough to show progress.
_CHUNK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one start came to: by policy, and the least that was possible."""

    start: int
    optimal_usd: float
    ended: dict[str, Ended]


class Spread(NamedTuple):
    """What one job in ten, one in two and nine in ten stay within."""

    p10: float
    p50: float
    p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A policy over all starts; ratios are means of the jobs' own."""

    name: str
    num_jobs: int
    num_missed: int
    mean_usd: float
    usd: Spread
    hours: Spread
    """To the end."""
    cost_vs_optimal: float
    cost_vs_on_demand: float
    interval: tuple[float, float]
    """95 % of `cost_vs_optimal`, by bootstrap over the starts."""
    mean_preemptions: float
    mean_launches: float
    mean_on_demand_hours: float
    mean_waiting_hours: float
    mean_moves_usd: float


def draw_starts(market: Market, terms: Terms, count: int, seed: int) -> list[int]:
    """Return so many ticks to start at, as `last_start` has it."""
    return draw_until(last_start(market, terms), count, seed)


def draw_until(last: int, count: int, seed: int) -> list[int]:
    """Return so many ticks up to the last one, in order."""
    dice = random.Random(seed)
    return sorted(dice.randint(0, last) for _ in range(count))


def last_start(market: Market, terms: Terms) -> int:
    """Return the last tick from which the deadline is within the record.

    Raises InputError if the record is too short, or the deadline cannot be met for sure.
    """
    needed = terms.work + 2 * terms.restart
    if terms.deadline < needed - 1e-9:
        raise InputError(
            f"{terms.work:g} h of work with two starts take {needed:g} h, the deadline is "
            f"{terms.deadline:g} h.",
            "Give a later --deadline.",
        )
    if terms.work < market.tick_hours:
        raise InputError(
            f"{terms.work * 3600:.0f} s of work are less than a tick of the traces.",
            f"Give at least {market.tick_hours * 3600:.0f} s as --work.",
        )
    last = market.num_ticks - math.ceil(terms.deadline / market.tick_hours - 1e-9)
    if last < 0:
        hours = market.num_ticks * market.tick_hours
        raise InputError(
            f"The traces are {hours:.1f} h long, the deadline is {terms.deadline:g} h.",
            "Give longer traces, or a shorter --work and --deadline.",
        )
    return last


def study(
    market: Market, starts: Sequence[int], terms: Terms, policies: Sequence[str]
) -> Iterator[Outcome]:
    """Yield each start's outcome, in order; on all cores where there are several starts."""
    if len(starts) <= _CHUNK:
        yield from (_outcome(market, start, terms, policies) for start in starts)
        return
    with ProcessPoolExecutor(
        max_workers=len(os.sched_getaffinity(0)), initializer=_begin, initargs=(market,)
    ) as pool:
        yield from pool.map(
            _outcome_in_worker,
            starts,
            [terms] * len(starts),
            [tuple(policies)] * len(starts),
            chunksize=_CHUNK,
        )


def run_jobs(market: Market, starts: Sequence[int], terms: Terms, policy: str) -> Iterator[Ended]:
    """Yield how a job under one policy ends from each start, without the optimum; on all cores."""
    with ProcessPoolExecutor(
        max_workers=len(os.sched_getaffinity(0)), initializer=_begin, initargs=(market,)
    ) as pool:
        chunk = max(1, len(starts) // 50)
        yield from pool.map(
            _job_in_worker, starts, [terms] * len(starts), [policy] * len(starts), chunksize=chunk
        )


def summarize(name: str, outcomes: Sequence[Outcome], market: Market, terms: Terms) -> Summary:
    """Return what a policy came to over all starts."""
    ended = [outcome.ended[name] for outcome in outcomes]
    usd = np.array([one.bill.usd for one in ended])
    ratios = usd / np.array([outcome.optimal_usd for outcome in outcomes])
    on_demand = min(market.on_demand) * (terms.work + terms.restart)

    def mean(values: Sequence[float] | np.ndarray) -> float:
        return float(np.mean(values))

    return Summary(
        name=name,
        num_jobs=len(ended),
        num_missed=sum(one.is_late for one in ended),
        mean_usd=mean(usd),
        usd=spread(usd),
        hours=spread([one.hours for one in ended]),
        cost_vs_optimal=mean(ratios),
        cost_vs_on_demand=mean(usd / on_demand),
        interval=bootstrap(ratios),
        mean_preemptions=mean([one.bill.num_preemptions for one in ended]),
        mean_launches=mean([one.bill.num_launches for one in ended]),
        mean_on_demand_hours=mean([one.bill.on_demand_hours for one in ended]),
        mean_waiting_hours=mean([one.bill.waiting_hours for one in ended]),
        mean_moves_usd=mean([one.bill.moves for one in ended]),
    )


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Return the percentiles of values, between two of them in proportion."""
    return Spread(*(float(one) for one in np.percentile(values, [10, 50, 90])))


def replay_median(
    market: Market, outcomes: Sequence[Outcome], terms: Terms, name: str
) -> tuple[int, Ended]:
    """Return the start and the job that half of the others cost less than, with its memory."""
    ranked = sorted(outcomes, key=lambda one: one.ended[name].bill.usd)
    start = ranked[(len(ranked) - 1) // 2].start
    return start, Job(market, start, terms, make_policy(name), remembers=True).run()


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean (Efron 1979, percentiles)."""
    dice = np.random.default_rng(seed)
    means = values[dice.integers(0, len(values), (_NUM_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _outcome(market: Market, start: int, terms: Terms, policies: Sequence[str]) -> Outcome:
    return Outcome(
        start=start,
        optimal_usd=least_usd(market, start, terms),
        ended={name: simulate(market, start, terms, make_policy(name)) for name in policies},
    )


# One worker's market: it is sent once, and not with every start.
_market: list[Market] = []


def _begin(market: Market) -> None:
    _market[:] = [market]


def _job_in_worker(start: int, terms: Terms, policy: str) -> Ended:
    return simulate(_market[0], start, terms, make_policy(policy))


def _outcome_in_worker(start: int, terms: Terms, policies: Sequence[str]) -> Outcome:
    return _outcome(_market[0], start, terms, policies)
