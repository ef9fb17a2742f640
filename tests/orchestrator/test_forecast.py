"""The forecast: repeatable, equal to arithmetic where chance plays no part, sane where it does."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from orchestrator.forecast import forecast, weather_for
from orchestrator.offers import Market, MarketPreference
from orchestrator.play import Weather, Work
from orchestrator.policy.history import Limits
from tests.orchestrator.histories import make_offer

HOUR = timedelta(hours=1)
EAST = make_offer("us-east-1", usd="8")
WEST = make_offer("us-west-2", usd="9")
ON_DEMAND = make_offer("us-east-1", Market.ON_DEMAND, usd="30")
OFFERS = (EAST, WEST, ON_DEMAND)
CALM = Weather(losses_per_hour=1e-9, absence=timedelta(seconds=1e-3), failures_per_hour=1e-9)
STORMY = Weather(losses_per_hour=1.0, absence=HOUR, failures_per_hour=0.001)
LIMITS = Limits(
    budget_usd=Decimal(10_000),
    deadline_at=None,
    market=MarketPreference.SPOT_WITH_FALLBACK,
    stop_margin=timedelta(minutes=3),
    restart=timedelta(minutes=10),
)
WORK = Work(
    productive=10 * HOUR,
    interval=timedelta(minutes=10),
    stall=timedelta(minutes=1),
    num_nodes=1,
    checkpoint_bytes=0,
    num_kept=3,
    home=EAST.place,
    places_with_store=frozenset({EAST.place, WEST.place}),
)


def test_the_same_question_has_the_same_answer():
    assert forecast(WORK, OFFERS, LIMITS, None, STORMY) == forecast(
        WORK, OFFERS, LIMITS, None, STORMY
    )


def test_a_calm_market_leaves_arithmetic():
    found = forecast(WORK, OFFERS, LIMITS, 20 * HOUR, CALM)
    hours = 10 * 1.1 + 1 / 6  # every 10 minutes take 11, and the node starts once
    assert found.hours_p50 == found.hours_p90 == pytest.approx(hours, abs=1e-3)
    assert float(found.usd_p50) == pytest.approx(8 * hours, abs=0.01)
    assert (found.chance_unfinished, found.chance_late) == (0, 0)


def test_each_loss_costs_a_restart_half_an_interval_and_a_wait():
    """One zone that is there again when it is next asked: renewal theory says how long it takes."""
    weather = replace(STORMY, absence=timedelta(seconds=1e-3), failures_per_hour=1e-9)
    work = replace(WORK, productive=200 * HOUR, stall=timedelta(seconds=1e-3))
    found = forecast(work, (EAST,), replace(LIMITS, market=MarketPreference.SPOT), None, weather)
    restart = interval = wait = 1 / 6
    trained = math.exp(-restart)  # hours of a life that is an hour in the mean, after its start
    lost = trained * (interval - (1 - math.exp(-interval))) / interval
    assert found.hours_p50 == pytest.approx(200 / (trained - lost) * (1 + wait), rel=0.01)


def test_worse_weather_takes_longer_and_spreads():
    calm, stormy = (forecast(WORK, OFFERS, LIMITS, None, one) for one in (CALM, STORMY))
    assert stormy.hours_p50 > calm.hours_p50
    assert stormy.hours_p90 > stormy.hours_p50


def test_a_run_that_its_budget_ends_stays_below_it():
    found = forecast(WORK, OFFERS, replace(LIMITS, budget_usd=Decimal(40)), None, STORMY)
    assert found.chance_unfinished == 1
    assert (found.hours_p50, found.hours_p90) == (None, None)
    assert 38 < found.usd_p90 <= 40


def test_a_deadline_is_kept_on_demand_at_its_price():
    scarce = replace(STORMY, absence=20 * HOUR)
    work = replace(WORK, stall=timedelta(seconds=1))  # the policy counts steps, not stalls
    spot = replace(LIMITS, market=MarketPreference.SPOT)
    assert forecast(work, OFFERS, spot, 14 * HOUR, scarce).chance_late > 0.9
    kept = forecast(work, OFFERS, LIMITS, 14 * HOUR, scarce)
    assert kept.chance_late < 0.1
    assert kept.usd_p50 > forecast(work, OFFERS, LIMITS, 14 * HOUR, CALM).usd_p50


def test_saves_that_cross_regions_are_paid_for():
    work = replace(WORK, checkpoint_bytes=100 * 10**9, places_with_store=frozenset())
    near = forecast(work, (EAST,), LIMITS, None, CALM)
    far = forecast(replace(work, home=WEST.place), (EAST,), LIMITS, None, CALM)
    saves = 10 * 6
    assert near.egress_usd_p50 == 0
    assert float(far.egress_usd_p50) == pytest.approx(saves * 100 * 0.02, rel=0.01)
    assert far.usd_p50 - near.usd_p50 == far.egress_usd_p50


def test_more_nodes_are_lost_more_often():
    one, four = weather_for(8, 1), weather_for(8, 4)
    assert one.losses_per_hour < four.losses_per_hour < 2 * one.losses_per_hour
    assert four.failures_per_hour == 4 * one.failures_per_hour
    assert weather_for(1, 1).losses_per_hour < one.losses_per_hour
