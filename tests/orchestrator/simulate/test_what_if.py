"""What-ifs: what a value changes, which starts it gets, and what cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.errors import InputError
from orchestrator.simulate.study import study
from orchestrator.simulate.terms import Terms
from orchestrator.simulate.what_if import (
    SAVE_STALL_HOURS,
    Key,
    Question,
    Value,
    answer,
    cheapest,
    keep_regions,
    keep_zones,
    make_cases,
    set_interval,
)
from tests.orchestrator.simulate.markets import TICK_S, zone

TICK = TICK_S / 3600
DEAR = zone("a1", "1" * 60, region="a", spot=2.0)
CHEAP = zone("b1", "110" * 20, region="b", spot=0.5)
MIDDLE = zone("b2", "1" * 60, region="b", spot=1.0)
BASE = Question(
    record="traces",
    traces=(DEAR, CHEAP, MIDDLE),
    num_nodes=1,
    terms=Terms(work=1.0, deadline=3.0, restart=TICK / 2),
)


def deadlines(*hours):
    def value(deadline):
        def change(question):
            return replace(question, terms=replace(question.terms, deadline=deadline))

        return Value(key=Key.DEADLINE, text=f"{deadline:g}h", number=float(deadline), change=change)

    return [value(deadline) for deadline in hours]


def zones_of(question):
    return [trace.zone for trace in question.traces]


def test_regions_and_zones_come_cheapest_first():
    assert zones_of(keep_regions(BASE, 1)) == ["b1", "b2"]
    assert zones_of(keep_regions(BASE, 2)) == ["a1", "b1", "b2"]
    assert zones_of(keep_regions(BASE, ("a",))) == ["a1"]
    assert zones_of(keep_zones(BASE, 2)) == ["b1", "b2"]
    assert zones_of(keep_zones(BASE, ("a1", "b2"))) == ["a1", "b2"]


def test_regions_of_several_clouds_are_named_with_them():
    other = zone("g1", "1" * 60, region="a", cloud="gcp", spot=0.1)
    mixed = replace(BASE, traces=(*BASE.traces, other))
    assert zones_of(keep_regions(mixed, 1)) == ["g1"]
    assert zones_of(keep_regions(mixed, ("aws/a",))) == ["a1"]


def test_a_region_that_is_not_there_is_named():
    with pytest.raises(InputError, match="has 2 regions, not 3"):
        keep_regions(BASE, 3)
    with pytest.raises(InputError, match="no zone b11; did you mean b1"):
        keep_zones(BASE, ("b11",))


def test_an_interval_sets_what_is_lost_and_slows_training():
    terms = set_interval(BASE, 0.5).terms
    assert terms.lost_work == 0.5
    assert terms.work == pytest.approx(1.0 + 2 * SAVE_STALL_HOURS)


def test_every_value_has_the_starts_that_the_longest_deadline_leaves():
    cases = make_cases(BASE, [deadlines(2, 3, 9)], 8, seed=1)
    assert cases[0].starts == cases[1].starts == cases[2].starts
    assert max(cases[0].starts) <= 60 - 9 / TICK
    alone = make_cases(BASE, [deadlines(9)], 8, seed=1)
    assert alone[0].starts == cases[0].starts


def test_what_cannot_be_is_a_case_that_says_why():
    short, able, long = make_cases(BASE, [deadlines(1.1, 3, 11)], 4, seed=0)
    assert "the deadline is 1.1 h" in short.why_not
    assert "10.0 h long" in long.why_not
    assert short.market is long.market is None
    assert len(able.starts) == 4


def test_changes_are_made_in_one_order_however_they_are_written():
    interval = Value(
        key=Key.INTERVAL, text="1h", number=1.0, change=lambda question: set_interval(question, 1)
    )
    work = Value(
        key=Key.WORK,
        text="2h",
        number=2.0,
        change=lambda question: replace(question, terms=replace(question.terms, work=2.0)),
    )
    for choices in ([[interval], [work]], [[work], [interval]]):
        (case,) = make_cases(BASE, choices, 1, seed=0)
        assert case.question.terms.work == pytest.approx(2.0 + 2 * SAVE_STALL_HOURS)


def test_the_least_mean_cost_is_found_and_is_nobody_where_nothing_can_be():
    answers = []
    for case in make_cases(BASE, [deadlines(1.1, 1.5, 3)], 4, seed=0):
        found = []
        if case.market is not None:
            found = list(study(case.market, case.starts, case.question.terms, ["greedy"]))
        answers += answer(case, found, ["greedy"])
    usd = [one.summary.mean_usd for one in answers[1:]]
    assert cheapest(answers).summary.mean_usd == min(usd)
    assert answers[0].optimal_usd is None
    assert answers[1].optimal_usd <= usd[0] + 1e-9
    assert cheapest(answers[:1]) is None
