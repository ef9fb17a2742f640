"""The forecast: repeatable, equal to arithmetic where chance plays no part, sane where it does."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import numpy as np
import pytest

from orchestrator.errors import InputError
from orchestrator.forecast import forecast, play, spread, summarize
from orchestrator.offers import Market, MarketPreference
from orchestrator.policy.history import Limits
from orchestrator.policy.named import POLICIES
from orchestrator.simulate.futures import Futures, make_up, redraw
from orchestrator.simulate.terms import Terms
from orchestrator.weather import Weather, weather_for
from orchestrator.workload import Work
from tests.orchestrator.histories import make_offer
from tests.orchestrator.simulate.markets import market

HOUR = timedelta(hours=1)
EAST = make_offer("us-east-1", usd="8")
WEST = make_offer("us-west-2", usd="9")
ON_DEMAND = make_offer("us-east-1", Market.ON_DEMAND, usd="30")
OFFERS = (EAST, WEST, ON_DEMAND)
CALM = Weather(losses_per_hour=0.3, failures_per_hour=1e-9)
STORMY = Weather(losses_per_hour=1.0, failures_per_hour=0.001)
LIMITS = Limits(
    budget_usd=Decimal(10_000),
    deadline_at=None,
    market=MarketPreference.SPOT_WITH_FALLBACK,
    stop_margin=timedelta(minutes=3),
    restart=timedelta(minutes=10),
)
SPOT = replace(LIMITS, market=MarketPreference.SPOT)
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
# Two days in ticks of ten minutes.
ALWAYS = market("1" * 288, spot=8.0, on_demand=30.0)
NEVER = market("0" * 288, spot=8.0, on_demand=30.0)


def test_the_same_question_has_the_same_answer():
    assert forecast(WORK, OFFERS, LIMITS, 20 * HOUR, STORMY) == forecast(
        WORK, OFFERS, LIMITS, 20 * HOUR, STORMY
    )


def test_on_demand_leaves_arithmetic():
    on_demand = replace(LIMITS, market=MarketPreference.ON_DEMAND)
    found = forecast(WORK, (ON_DEMAND,), on_demand, 20 * HOUR, CALM)
    hours = 10 * 1.1 + 1 / 6  # every 10 minutes take 11, and the node starts once
    for share in ("p10", "p50", "p90"):
        assert getattr(found.hours, share) == pytest.approx(hours, abs=1e-3)
        assert getattr(found.usd, share) == pytest.approx(30 * hours, abs=0.01)
    assert (found.chance_unfinished, found.chance_late, found.chance_over_budget) == (0, 0, 0)


def test_a_record_without_losses_leaves_arithmetic_to_the_median():
    found = forecast(WORK, OFFERS, LIMITS, 20 * HOUR, CALM, record=ALWAYS)
    hours = 10 * 1.1 + 1 / 6
    assert found.hours.p10 == pytest.approx(hours, abs=1e-3)
    assert found.hours.p50 == pytest.approx(hours, abs=1e-3)
    assert found.usd.p10 == found.usd.p50 == pytest.approx(8 * hours, abs=0.01)
    # A record of two days does not promise that it goes on so.
    assert found.usd.p90 > found.usd.p50
    assert (found.chance_unfinished, found.chance_late) == (0, 0)


def test_each_loss_costs_a_restart_and_half_an_interval():
    """Up for an hour, away for ten minutes: of 60 minutes 10 start the node, and 5 are lost."""
    hourly = market("1111110" * 200, spot=8.0)
    work = replace(WORK, productive=30 * HOUR, stall=timedelta(seconds=1e-3))
    found = forecast(work, (EAST,), SPOT, None, CALM, record=hourly)
    assert found.hours.p50 == pytest.approx(30 * 70 / 45, rel=0.04)


def test_a_stormy_market_takes_longer_and_spreads():
    dice = random.Random(0)
    stormy = market("".join("1" * 3 + "0" * dice.randint(1, 12) for _ in range(40)), spot=8.0)
    calm, found = (forecast(WORK, OFFERS, SPOT, None, CALM, record=one) for one in (ALWAYS, stormy))
    assert found.hours.p50 > calm.hours.p50
    assert found.hours.p90 > found.hours.p50 > found.hours.p10


def test_a_run_that_its_budget_ends_stays_below_it():
    found = forecast(WORK, OFFERS, replace(LIMITS, budget_usd=Decimal(40)), None, STORMY)
    assert found.chance_unfinished == found.chance_over_budget == 1
    assert (found.hours.p10, found.hours.p50, found.hours.p90) == (None, None, None)
    assert 38 < found.usd.p90 <= 40


def test_a_budget_that_only_spot_keeps_to_may_be_missed():
    """$88 of spot, $330 on demand: $120 are enough where zones have room for long."""
    found = forecast(WORK, OFFERS, replace(LIMITS, budget_usd=Decimal(120)), 14 * HOUR, STORMY)
    assert 0 < found.chance_over_budget < 1
    assert found.chance_over_budget == found.chance_unfinished <= found.chance_late


def test_a_deadline_is_kept_on_demand_at_its_price():
    assert forecast(WORK, OFFERS, SPOT, 14 * HOUR, STORMY, record=NEVER).chance_late > 0.7
    kept = forecast(WORK, OFFERS, LIMITS, 14 * HOUR, STORMY, record=NEVER)
    assert kept.chance_late == 0
    # Now and then on demand is left for a zone out of sight, which has no room.
    assert 1 <= kept.usd.p50 / (30 * (11 + 1 / 6)) < 1.1
    assert kept.usd.p50 > forecast(WORK, OFFERS, LIMITS, 14 * HOUR, CALM, record=ALWAYS).usd.p50


def test_without_a_deadline_nothing_waits():
    found = forecast(WORK, OFFERS, LIMITS, None, STORMY, record=NEVER)
    assert found.chance_late is None
    # Every hour it looks for spot, which takes a start on demand.
    assert 11 + 1 / 6 < found.hours.p50 < 14
    assert found.usd.p50 == pytest.approx(30 * found.hours.p50, rel=0.05)


def test_saves_that_cross_regions_are_paid_for():
    work = replace(WORK, checkpoint_bytes=100 * 10**9, num_kept=0)
    none = replace(work, places_with_store=frozenset())
    record = market("1" * 288, spot=8.0)  # in aws/r0
    near = forecast(
        replace(none, home=("aws", "r0")), (EAST,), LIMITS, 20 * HOUR, CALM, record=record
    )
    far = forecast(none, (EAST,), LIMITS, 20 * HOUR, CALM, record=record)
    saves = 10 * 6
    assert near.egress_usd_p50 == 0
    assert far.egress_usd_p50 == pytest.approx(saves * 100 * 0.02, rel=0.01)
    assert far.usd.p50 - near.usd.p50 == pytest.approx(far.egress_usd_p50)


def test_on_demand_elsewhere_is_known_to_the_run():
    """No zone's own on demand is as cheap as that of a place without spot."""
    elsewhere = replace(
        make_offer("eu-west-1", Market.ON_DEMAND, usd="10"), on_demand_usd_per_hour=Decimal(10)
    )
    found = forecast(WORK, (EAST, ON_DEMAND, elsewhere), LIMITS, 12 * HOUR, STORMY)
    assert found.usd.p90 < 10 * 13


def test_zones_of_a_future_are_taken_at_the_same_instants():
    dice = random.Random(1)
    room = "".join("10"[dice.random() < 0.4] * dice.randint(1, 20) for _ in range(60))[:288]
    opposite = room.translate(str.maketrans("01", "10"))
    found = redraw(market(room, opposite), 288, hours=24, count=10, pace=1.0)
    size = found.starts[1]
    contrary = [
        bool(np.all(found.market.up[0, at : at + size] != found.market.up[1, at : at + size]))
        for at in found.starts
    ]
    # The others are of a usual market, whose zones have nothing to do with each other.
    assert sum(contrary) == 8


def test_what_comes_after_the_submission_is_not_known():
    dice = random.Random(2)
    before = "".join(dice.choice("01") for _ in range(144))
    one, other = (market(before + after * 144) for after in "01")
    drawn = [redraw(record, 144, hours=10, count=5, pace=1.0) for record in (one, other)]
    assert np.array_equal(drawn[0].market.up, drawn[1].market.up)


def test_a_record_of_hours_is_no_ground_for_a_forecast():
    with pytest.raises(InputError, match=r"20\.0 h long, too short"):
        forecast(WORK, OFFERS, LIMITS, 20 * HOUR, CALM, record=market("1" * 120))


def test_replays_on_all_cores_are_those_on_one():
    terms = Terms(work=30, deadline=60, restart=0.2)
    futures = make_up(OFFERS[:2], num_nodes=1, hours=60, count=36, pace=1.0)
    few = Futures(market=futures.market, starts=futures.starts[:6])
    assert play(futures, terms, POLICIES["auto"])[:6] == play(few, terms, POLICIES["auto"])


def test_percentiles_are_of_values_that_came_up():
    found = spread([float(one) for one in range(1, 41)])
    assert (found.p10, found.p50, found.p90) == (4, 20, 36)


def test_a_run_over_its_budget_is_late_as_well_and_unfinished():
    terms = Terms(work=5, deadline=10, restart=0.1, budget_usd=10.0)
    futures = make_up(OFFERS[:2], num_nodes=1, hours=10, count=5, pace=1.0)
    found = summarize(play(futures, terms, POLICIES["greedy"]), has_deadline=True)
    assert found.chance_late == found.chance_unfinished == found.chance_over_budget == 1


def test_more_nodes_are_lost_more_often():
    one, four = weather_for(8, 1), weather_for(8, 4)
    assert one.losses_per_hour < four.losses_per_hour < 2 * one.losses_per_hour
    assert four.failures_per_hour == 4 * one.failures_per_hour
    assert weather_for(1, 1).losses_per_hour < one.losses_per_hour
