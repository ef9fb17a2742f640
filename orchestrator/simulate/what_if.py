"""One job with several values of a setting or two: the same starts, other terms or markets.

What a value means is decided here; how it is written, and printed, is the command line's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from statistics import fmean

from orchestrator.errors import InputError
from orchestrator.simulate.market import Market, make_market
from orchestrator.simulate.study import Outcome, Summary, draw_until, last_start, summarize
from orchestrator.simulate.terms import Terms
from orchestrator.simulate.zone_trace import ZoneTrace
from orchestrator.spec import suggest

# What a save holds up training for: staged in memory, the upload goes on beside it.
SAVE_STALL_HOURS = 15 / 3600


class Key(str, Enum):
    """What may be varied; changes are made in this order, for later ones depend on earlier ones."""

    GPU = "gpu"
    NODES = "nodes"
    WORK = "work"
    DEADLINE = "deadline"
    RESTART = "restart"
    STATE = "state"
    REGIONS = "regions"
    ZONES = "zones"
    INTERVAL = "interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A job, and the market that it is to run on; `record` names where the traces are from."""

    record: str
    traces: tuple[ZoneTrace, ...]
    num_nodes: int
    terms: Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A value of a key as it was written, and what it makes of a question."""

    key: Key
    text: str
    number: float | None
    """Where it lies on an axis, if it is an amount."""
    change: Callable[[Question], Question]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A combination of values: the question they make, and its starts or why it has no answer."""

    values: tuple[Value, ...]
    question: Question
    market: Market | None
    starts: tuple[int, ...] = ()
    why_not: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a case came to under a policy; without a summary where it has no answer."""

    case: Case
    policy: str
    outcomes: tuple[Outcome, ...]
    summary: Summary | None

    @property
    def optimal_usd(self) -> float | None:
        """The mean of the least that was possible."""
        return fmean(one.optimal_usd for one in self.outcomes) if self.outcomes else None


def make_cases(
    base: Question, choices: Sequence[Sequence[Value]], count: int, seed: int
) -> list[Case]:
    """Return a case for each combination of values, in their order.

    Cases on the same record have the same starts: those that the longest deadline has room for.
    Raises InputError for a value that no market has.
    """
    cases = [_case(base, values) for values in itertools.product(*choices)]
    lasts: dict[tuple[str, float], int] = {}
    for case in cases:
        if case.market is not None:
            record = (case.question.record, case.market.tick_hours)
            last = last_start(case.market, case.question.terms)
            lasts[record] = min(last, lasts.get(record, last))
    return [
        case
        if case.market is None
        else replace(
            case,
            starts=tuple(
                draw_until(lasts[case.question.record, case.market.tick_hours], count, seed)
            ),
        )
        for case in cases
    ]


def answer(case: Case, outcomes: Sequence[Outcome], policies: Sequence[str]) -> list[Answer]:
    """Return what the outcomes of a case come to, by policy."""
    return [
        Answer(
            case=case,
            policy=policy,
            outcomes=tuple(outcomes),
            summary=None
            if case.market is None
            else summarize(policy, outcomes, case.market, case.question.terms),
        )
        for policy in policies
    ]


def cheapest(answers: Sequence[Answer]) -> Answer | None:
    """Return the answer of the least mean cost, if there is any."""
    able = [(one.summary.mean_usd, n) for n, one in enumerate(answers) if one.summary is not None]
    return answers[min(able)[1]] if able else None


def set_interval(question: Question, hours: float) -> Question:
    """Save every so often: a preemption takes so much back, and each save holds up training."""
    terms = question.terms
    work = terms.work * (1 + SAVE_STALL_HOURS / hours)
    return replace(question, terms=replace(terms, work=work, lost_work=hours))


def keep_regions(question: Question, wanted: int | tuple[str, ...]) -> Question:
    """Allow so many regions, those of the cheapest zones first, or the named ones.

    Raises InputError if there are not so many, or none of a name.
    """
    return _keep(question, wanted, "region", [trace.region for trace in question.traces])


def keep_zones(question: Question, wanted: int | tuple[str, ...]) -> Question:
    """Allow so many zones, the cheapest first, or the named ones; raises InputError likewise."""
    return _keep(question, wanted, "zone", [trace.zone for trace in question.traces])


def _case(base: Question, values: tuple[Value, ...]) -> Case:
    question = base
    try:
        for value in sorted(values, key=lambda one: list(Key).index(one.key)):
            question = value.change(question)
    except InputError as error:
        # Markets differ in their regions: what one of several lacks is no mistake.
        if not any(value.key is Key.GPU for value in values):
            raise
        return Case(values=values, question=question, market=None, why_not=error.what)
    market = make_market(question.traces, question.num_nodes)
    try:
        last_start(market, question.terms)
    except InputError as error:
        return Case(values=values, question=question, market=None, why_not=error.what)
    return Case(values=values, question=question, market=market)


def _keep(
    question: Question, wanted: int | tuple[str, ...], kind: str, names: list[str]
) -> Question:
    if len({trace.cloud for trace in question.traces}) > 1:
        names = [
            f"{trace.cloud}/{name}" for trace, name in zip(question.traces, names, strict=True)
        ]
    usd: dict[str, float] = {}
    for trace, name in zip(question.traces, names, strict=True):
        usd[name] = min(_mean_spot(trace), usd.get(name, float("inf")))
    known = sorted(usd, key=lambda name: (usd[name], name))
    has = f"It has {', '.join(known)}."
    if isinstance(wanted, int):
        if wanted > len(known):
            raise InputError(f"{question.record} has {len(known)} {kind}s, not {wanted}.", has)
        wanted = tuple(known[:wanted])
    for name in wanted:
        if name not in usd:
            hint = suggest(name, known)
            raise InputError(f"{question.record} has no {kind} {name}{hint or '.'}", has)
    kept = [trace for trace, name in zip(question.traces, names, strict=True) if name in wanted]
    return replace(question, traces=tuple(kept))


def _mean_spot(trace: ZoneTrace) -> float:
    prices = trace.spot_usd_per_hour
    return fmean(prices) if isinstance(prices, list) else prices
