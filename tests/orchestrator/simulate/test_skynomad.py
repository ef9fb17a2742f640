"""SkyNomad on small markets: how long room lasts, and what it is then worth."""

import math

import pytest

from orchestrator.policy.sight import Mode, Sighting
from orchestrator.policy.skynomad import Lives, SkyNomad
from orchestrator.simulate.job import Job
from orchestrator.simulate.market import make_market
from orchestrator.simulate.terms import Terms
from tests.orchestrator.simulate.markets import TICK_S, market, zone

TICK = TICK_S / 3600


def run(found, terms):
    return Job(found, 0, terms, SkyNomad(), remembers=True).run()


def lives(*spells, end=False):
    """Return what was seen: room for so many hours each, with an hour between, then up again."""
    found, now = Lives(), 0.0
    for hours in spells:
        found.see(Sighting(now, 0, True))
        found.see(Sighting(now + hours, 0, end))
        now += hours + 1
    found.see(Sighting(now, 0, True))
    return found, now


def test_a_zone_that_was_never_lost_is_likely_to_last():
    found, now = lives()
    assert found.expected(now) == math.inf


def test_the_expected_life_is_the_nelson_aalen_mean_given_the_age():
    found, now = lives(1.0, 3.0)
    # One of two is lost after an hour, one of one after three; then two losses in four hours.
    new = 1 + math.exp(-0.5) * 2 + math.exp(-1.5) * 4 / 2
    assert found.expected(now) == pytest.approx(new)
    # After two hours the first no longer matters, and they were seen to pass without a loss.
    assert found.expected(now + 2) == pytest.approx(1 + math.exp(-1) * 6 / 2)
    assert found.expected(now + 5) == pytest.approx(9 / 2)


def test_what_goes_out_of_sight_was_not_lost():
    lost, now = lives(1.0, 2.0)
    hidden, _ = lives(1.0, 2.0, end=None)
    assert hidden.expected(now) == math.inf
    assert lost.expected(now) < 2


def test_losses_of_late_count_more():
    calm, now = lives(*[0.5] * 3, *[5.0] * 5)
    rough, _ = lives(*[5.0] * 5, *[0.5] * 3)
    assert rough.expected(now) < 0.8 * calm.expected(now)
    # Until it has lasted for as long as a usual life.
    assert rough.expected(now + 6) == pytest.approx(calm.expected(now + 6))


def test_a_dear_zone_that_lasts_is_preferred_to_a_cheap_one_that_is_lost_at_once():
    cheap = zone("cheap", "101001010101" * 4, spot=1.0)
    dear = zone("dear", "111101111111" * 4, spot=1.3)
    ended = run(make_market([cheap, dear], 1), Terms(work=1.5, deadline=3.0, restart=TICK / 2))
    starts = [choice.zone for now, choice in ended.decisions if choice.mode is Mode.SPOT]
    assert starts[0] == 0  # nothing is known yet
    assert set(starts[1:]) == {1}
    assert ended.bill.num_preemptions == 2


@pytest.mark.parametrize(("gigabytes", "moves"), [(10, True), (1000, False)])
def test_a_job_moves_to_cheaper_spot_where_that_pays_for_the_egress(gigabytes, moves):
    dear = zone("dear", "1" * 36, region="r0", spot=2.0)
    cheap = zone("cheap", "000" + "1" * 33, region="r1", spot=1.0)
    terms = Terms(work=3.0, deadline=5.0, restart=TICK / 2, state_gb=gigabytes)
    ended = run(make_market([dear, cheap], 1), terms)
    assert ended.bill.num_launches == 1 + moves
    assert (ended.bill.moves > 0) is moves


def test_on_demand_is_taken_where_spot_is_dearer():
    found = make_market([zone("z", "1" * 24, spot=4.0, on_demand=3.0)], 1)
    ended = run(found, Terms(work=1.0, deadline=1.5, restart=TICK / 2))
    assert ended.bill.spot_hours == 0


def test_it_waits_without_spot_when_it_is_far_ahead():
    ended = run(market("1" * 12 + "0" * 60), Terms(work=3.0, deadline=8.0, restart=TICK / 2))
    lost_at = 12 * TICK
    modes = {choice.mode for now, choice in ended.decisions if lost_at <= now < lost_at + 2}
    assert modes == {Mode.IDLE}


def test_it_goes_on_demand_without_spot_when_it_is_behind():
    ended = run(market("0" * 48), Terms(work=3.0, deadline=8.0, restart=TICK / 2))
    assert ended.bill.waiting_hours < 0.5
    # On the line it stays on demand, and does not end what it may have to start again.
    assert ended.bill.num_launches == 1


def test_on_demand_ends_when_spot_has_room():
    ended = run(market("0" * 6 + "1" * 42), Terms(work=3.0, deadline=6.0, restart=TICK / 2))
    assert [choice.mode for _, choice in ended.decisions][-1] is Mode.SPOT
    assert ended.bill.num_launches == 2
