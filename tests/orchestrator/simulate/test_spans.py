"""What a job remembers of its time: all of it, once, and what became of its work."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.named import POLICIES
from orchestrator.simulate.job import Job
from orchestrator.simulate.spans import Doing, progress, stretches
from orchestrator.simulate.study import replay_median, study
from orchestrator.simulate.terms import Observe, Terms
from tests.orchestrator.simulate.markets import TICK_S, market

TICK = TICK_S / 3600


def job_of(room, policy="greedy", **terms):
    given = {"work": 1.0, "deadline": 4.0, "restart": TICK / 2, **terms}
    return Job(market(*room), 0, Terms(**given), POLICIES[policy](), remembers=True).run()


def test_a_preempted_job_starts_trains_waits_starts_and_trains():
    found = stretches(job_of(["111000" + "1" * 18]).spans)
    assert [one.doing for one in found] == [
        *(Doing.STARTUP, Doing.SPOT, Doing.WAITING, Doing.STARTUP, Doing.SPOT)
    ]
    assert found[2].start == pytest.approx(3 * TICK)
    assert found[2].end == pytest.approx(6 * TICK)


def test_progress_falls_where_work_is_lost():
    corners = progress(job_of(["111000" + "1" * 18], lost_work=TICK).spans)
    before = max(done for at, done in corners if at <= 3 * TICK + 1e-9)
    after = next(done for at, done in corners if at > 3 * TICK + 1e-9)
    assert before - after == pytest.approx(TICK)
    assert corners[-1][1] == pytest.approx(1.0)


@settings(max_examples=40, deadline=None)
@given(
    room=st.lists(st.text("01", min_size=24, max_size=24), min_size=1, max_size=2),
    policy=st.sampled_from(["greedy", "uniform_progress", "skynomad", "on_demand"]),
    observe=st.sampled_from(list(Observe)),
)
def test_every_hour_of_a_job_is_in_one_stretch(room, policy, observe):
    ended = job_of(room, policy, observe=observe, failed_launch=TICK / 5)
    found = stretches(ended.spans)
    assert found[0].start == 0
    assert found[-1].end == pytest.approx(ended.hours)
    for one, after in itertools.pairwise(found):
        assert one.end == pytest.approx(after.start)
    waited = sum(one.end - one.start for one in found if one.doing is Doing.WAITING)
    assert waited == pytest.approx(ended.bill.waiting_hours)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_median_job_is_replayed_as_it_was(policy):
    found = market("110" * 10, "011" * 10, "1" * 30)
    terms = Terms(work=1.0, deadline=2.0, restart=TICK / 2)
    outcomes = list(study(found, [0, 4, 9], terms, [policy]))
    start, ended = replay_median(found, outcomes, terms, policy)
    usd = sorted(one.ended[policy].bill.usd for one in outcomes)
    assert ended.bill.usd == usd[1]
    assert start in (0, 4, 9)
    assert ended.spans
