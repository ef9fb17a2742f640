"""A job with a budget saves and stops before it is exceeded, and its bill still adds up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.named import POLICIES
from orchestrator.simulate.job import STOP_HOURS, simulate
from orchestrator.simulate.market import make_market
from orchestrator.simulate.terms import Terms
from tests.orchestrator.simulate.markets import TICK_S, market, zone

TICK = TICK_S / 3600
TERMS = Terms(work=1.0, deadline=3.0, restart=TICK / 2)
rooms = st.lists(st.sampled_from("01"), min_size=24, max_size=24).map("".join)


def test_a_job_stops_when_a_stop_takes_the_rest_of_its_budget():
    ended = simulate(market("1" * 24), 0, replace(TERMS, budget_usd=0.5), POLICIES["greedy"]())
    assert ended.is_over_budget
    assert not ended.is_late
    assert ended.hours == pytest.approx(0.5)
    assert ended.bill.usd == pytest.approx(0.5)
    assert ended.bill.usd == ended.bill.spot


def test_on_demand_that_the_budget_cannot_pay_is_not_begun():
    """Spot for two ticks, then nothing but on demand: $0.6 do not pay for it, and it waits."""
    terms = replace(TERMS, budget_usd=0.6)
    ended = simulate(market("11" + "0" * 22), 0, terms, POLICIES["greedy"]())
    assert not ended.is_finished
    assert ended.bill.on_demand == 0
    assert ended.bill.usd == pytest.approx(2 * TICK)


def test_a_price_that_rises_ends_a_job_sooner():
    prices = [1.0] * 2 + [2.0] * 22
    rising = make_market([zone("z", "1" * 24, spot=prices)], 1)
    terms = replace(TERMS, budget_usd=0.9)
    ended = simulate(rising, 0, terms, POLICIES["greedy"]())
    # Two ticks at $1, then at $2, the stop among it.
    assert ended.is_over_budget
    assert ended.hours == pytest.approx(2 * TICK + (0.9 - 2 * TICK) / 2, abs=STOP_HOURS)
    assert ended.bill.usd <= 0.9 + STOP_HOURS * (2.0 - 1.0)


@pytest.mark.parametrize("policy", POLICIES)
@given(found=st.lists(rooms, min_size=1, max_size=3), budget=st.floats(0.05, 4.0))
@settings(max_examples=30, deadline=None)
def test_no_budget_is_exceeded_and_the_parts_add_up(policy, found, budget):
    terms = replace(TERMS, budget_usd=budget, state_gb=1.0, lost_work=TICK / 4)
    ended = simulate(market(*found), 0, terms, POLICIES[policy]())
    bill = ended.bill
    assert bill.usd <= budget + 1e-6
    assert bill.usd == bill.spot + bill.on_demand + bill.moves + bill.saves
    if ended.is_late:  # the budget beats the deadline: on demand to the end was too dear
        assert budget < 3.0 * (terms.work + 3 * terms.restart + STOP_HOURS)


@pytest.mark.parametrize("policy", POLICIES)
@given(found=st.lists(rooms, min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_a_budget_that_is_never_reached_changes_nothing(policy, found):
    with_one = simulate(market(*found), 0, replace(TERMS, budget_usd=1e6), POLICIES[policy]())
    assert with_one == simulate(market(*found), 0, TERMS, POLICIES[policy]())
