"""How long a run will take and what it will cost: its policy, replayed on what may come.

The same question has the same answer, on however many cores. What may come is `simulate.futures`;
what is assumed of nodes is `weather`; what a run's limits mean to the simulator is decided here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

from orchestrator.cost import HOURS_PER_MONTH, STORAGE_USD_PER_GB_MONTH, egress_usd
from orchestrator.offers import Market, MarketPreference, Offer
from orchestrator.policy.history import Limits
from orchestrator.policy.named import POLICIES
from orchestrator.policy.published import OnDemand
from orchestrator.policy.sight import Policy
from orchestrator.simulate.futures import Futures, make_up, redraw
from orchestrator.simulate.job import simulate
from orchestrator.simulate.market import Market as Record
from orchestrator.simulate.prompt import Prompt
from orchestrator.simulate.synthetic import spot_zones
from orchestrator.simulate.terms import Ended, Observe, Terms
from orchestrator.weather import Weather
from orchestrator.workload import Work, work_hours

# Of 40 replays, p10 is the fourth from below. So many hours of zones take some 2 s on one core.
_MOST_PLAYS, _FEWEST_PLAYS = 40, 20
# Of policies that learn nothing: half a second is for laying out the futures.
_MOST_QUICK_PLAYS = 100
_ZONE_HOURS = 9_000
# Of hours of zones in all: with less, other processes would take longer than they save.
_WORTH_SHARING = 4_000
# The cheapest zones, as `orchestrate simulate` makes up.
_MOST_ZONES = 6
# Without a deadline, so many times the work, and some hours, are looked ahead.
_AHEAD, _AHEAD_HOURS = 2.0, 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What one run in ten, one in two and nine in ten stay within; None: it does not finish."""

    p10: float | None
    p50: float | None
    p90: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What came of the replays."""

    hours: Spread
    """To the end of the run."""
    usd: Spread
    egress_usd_p50: float
    """Of `usd.p50` about so much is for moving checkpoints between regions."""
    chance_unfinished: float
    """Of stopping at the budget before the last step, or of looking for spot without end."""
    chance_late: float | None
    """Of not having finished at the deadline; None without one."""
    chance_over_budget: float
    """Of stopping at the budget."""
    num_plays: int


def forecast(
    work: Work,
    offers: Sequence[Offer],
    limits: Limits,
    deadline: timedelta | None,
    weather: Weather,
    *,
    policy: str = "auto",
    record: Record | None = None,
) -> Forecast:
    """Replay the run on futures of `record`, or on made-up ones of the offers' zones and prices.

    Raises InputError for a record that is too short.
    """
    terms = _terms(work, limits, deadline, weather)
    zones = offers_to_try(offers)
    num_zones = len(zones) if record is None else len(record.names)
    make_policy = _policy(limits.market, policy, has_deadline=deadline is not None)
    count = _num_plays(terms.deadline * num_zones, is_slow=make_policy().looks_around)
    if record is None:
        futures = make_up(
            zones, num_nodes=work.num_nodes, hours=terms.deadline, count=count, pace=weather.pace
        )
    else:
        futures = redraw(
            record, record.num_ticks, hours=terms.deadline, count=count, pace=weather.pace
        )
    market = replace(futures.market, save_usd=_save_usd(work, futures.market.places))
    ended = play(replace(futures, market=market), terms, make_policy)
    found = summarize(ended, has_deadline=deadline is not None)
    return _with_storage(found, _storage_usd_per_hour(work))


def play(futures: Futures, terms: Terms, make_policy: Callable[[], Policy]) -> list[Ended]:
    """Return how the run ends in each future, in their order; on all cores if that takes long."""
    one = partial(_play_one, futures.market, terms, make_policy)
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    zone_hours = terms.deadline * len(futures.market.names) * len(futures.starts)
    if num_cores < 2 or zone_hours < _WORTH_SHARING or not make_policy().looks_around:
        return [one(start) for start in futures.starts]
    with ProcessPoolExecutor(
        max_workers=num_cores, initializer=_begin, initargs=(futures.market, terms, make_policy)
    ) as pool:
        chunk = math.ceil(len(futures.starts) / num_cores / 4)
        return list(pool.map(_play_in_worker, futures.starts, chunksize=chunk))


def summarize(ended: Sequence[Ended], *, has_deadline: bool) -> Forecast:
    """Return the spread and the chances of what came of the futures."""
    count = len(ended)
    done_after = [one.hours if one.is_finished else math.inf for one in ended]
    return Forecast(
        hours=spread(done_after),
        usd=spread([round(one.bill.usd, 2) for one in ended]),
        egress_usd_p50=_at(0.5, [round(one.bill.moves + one.bill.saves, 2) for one in ended]),
        chance_unfinished=sum(not one.is_finished for one in ended) / count,
        chance_late=sum(one.is_late or not one.is_finished for one in ended) / count
        if has_deadline
        else None,
        chance_over_budget=sum(one.is_over_budget for one in ended) / count,
        num_plays=count,
    )


def spread(values: Sequence[float]) -> Spread:
    """Return the percentiles of values, of which infinity is none."""
    found = [_at(share, values) for share in (0.1, 0.5, 0.9)]
    p10, p50, p90 = (None if math.isinf(one) else one for one in found)
    return Spread(p10=p10, p50=p50, p90=p90)


def offers_to_try(offers: Sequence[Offer]) -> list[Offer]:
    """Return the cheapest spot zones, and where on demand is cheapest if that is elsewhere."""
    zones = spot_zones(offers)[:_MOST_ZONES]
    on_demand = [one for one in offers if one.market is Market.ON_DEMAND and one.doubt is None]
    if not zones and not on_demand:
        on_demand = [one for one in offers if one.market is Market.ON_DEMAND]
        zones = [] if on_demand else list(offers[:1])
    paid = min(on_demand, key=lambda one: one.usd_per_hour, default=None)
    known = min((one.on_demand_usd_per_hour for one in zones), default=None)
    if paid is not None and (known is None or paid.usd_per_hour < known):
        zones.append(paid)
    return zones


def _terms(work: Work, limits: Limits, deadline: timedelta | None, weather: Weather) -> Terms:
    hours = work_hours(work, weather, limits.restart)
    ahead = hours * _AHEAD + _AHEAD_HOURS
    until = ahead if deadline is None else deadline / timedelta(hours=1)
    # What storing takes besides is not the simulator's: it is kept back.
    kept_back = _storage_usd_per_hour(work) * until
    return Terms(
        work=hours,
        deadline=until,
        restart=limits.restart / timedelta(hours=1),
        state_gb=work.checkpoint_bytes / 1e9,
        lost_work=work.interval / timedelta(hours=1) / 2,
        failed_launch=limits.failed_launch / timedelta(hours=1),
        pace=limits.pace,
        observe=Observe.LAUNCHES,
        budget_usd=max(0.0, float(limits.budget_usd) - kept_back),
    )


def _policy(market: MarketPreference, name: str, *, has_deadline: bool) -> Callable[[], Policy]:
    """Return what decides: the run's policy where there is a deadline and a choice."""
    if market is MarketPreference.ON_DEMAND:
        return OnDemand
    if market is MarketPreference.SPOT or not has_deadline:
        return partial(Prompt, falls_back=market is not MarketPreference.SPOT)
    return POLICIES[name]


def _num_plays(zone_hours: float, *, is_slow: bool) -> int:
    if not is_slow:
        return _MOST_QUICK_PLAYS
    return max(_FEWEST_PLAYS, min(_MOST_PLAYS, int(_ZONE_HOURS / zone_hours)))


def _save_usd(work: Work, places: Sequence[tuple[str, str]]) -> tuple[float, ...]:
    """Return what an hour's saves cost from nodes in each place."""
    per_hour = timedelta(hours=1) / (work.interval + work.stall)

    def usd(place: tuple[str, str]) -> float:
        store = place if place in work.places_with_store else work.home
        return per_hour * float(egress_usd(work.checkpoint_bytes, place, store))

    return tuple(usd(place) for place in places)


def _storage_usd_per_hour(work: Work) -> float:
    gigabytes = work.checkpoint_bytes * work.num_kept / 1e9
    return gigabytes * float(STORAGE_USD_PER_GB_MONTH / HOURS_PER_MONTH)


def _with_storage(found: Forecast, usd_per_hour: float) -> Forecast:
    def add(usd: float | None, hours: float | None) -> float | None:
        return None if usd is None else usd + usd_per_hour * (hours or 0.0)

    return replace(
        found,
        usd=Spread(
            p10=add(found.usd.p10, found.hours.p10),
            p50=add(found.usd.p50, found.hours.p50),
            p90=add(found.usd.p90, found.hours.p90),
        ),
    )


def _at(share: float, values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(share * len(values) - 1e-9) - 1]


def _play_one(market: Record, terms: Terms, make_policy: Callable[[], Policy], start: int) -> Ended:
    return simulate(market, start, terms, make_policy())


# One worker's question: it is sent once, and not with every start.
_question: list[tuple[Record, Terms, Callable[[], Policy]]] = []


def _begin(market: Record, terms: Terms, make_policy: Callable[[], Policy]) -> None:
    _question[:] = [(market, terms, make_policy)]


def _play_in_worker(start: int) -> Ended:
    return _play_one(*_question[0], start)
