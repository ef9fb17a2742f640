"""Jobs on small markets: what they cost; no deadline is missed, and nothing beats the optimum."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.policy.named import POLICIES
from orchestrator.policy.sight import Mode
from orchestrator.simulate.job import Job, simulate
from orchestrator.simulate.market import make_market
from orchestrator.simulate.optimum import least_usd
from orchestrator.simulate.study import draw_starts, study, summarize
from orchestrator.simulate.terms import Billing, Observe, Terms
from orchestrator.simulate.traces import read_traces
from tests.orchestrator.simulate.markets import TICK_S, market, zone

TICK = TICK_S / 3600
# An hour of work is six ticks, a start half a tick.
TERMS = Terms(work=1.0, deadline=3.0, restart=TICK / 2)

rooms = st.lists(st.sampled_from("01"), min_size=24, max_size=24).map("".join)
markets = st.lists(rooms, min_size=1, max_size=3).map(lambda found: market(*found))


def run(room, policy, terms=TERMS):
    return simulate(market(*room), 0, terms, POLICIES[policy]())


def test_spot_that_stays_costs_its_price_and_the_start():
    ended = run(["1" * 24], "greedy")
    assert ended.bill.usd == pytest.approx(1.0 + TICK / 2)
    assert ended.hours == pytest.approx(1.0 + TICK / 2)
    assert (ended.bill.num_launches, ended.bill.num_preemptions) == (1, 0)


def test_a_preemption_costs_another_start_and_the_wait_nothing():
    ended = run(["111000" + "1" * 18], "greedy")
    assert ended.bill.usd == pytest.approx(1.0 + 2 * TICK / 2)
    assert ended.bill.waiting_hours == pytest.approx(3 * TICK)
    assert ended.bill.num_preemptions == 1


def test_without_spot_the_safety_net_goes_on_demand_in_time():
    ended = run(["0" * 24], "greedy")
    assert not ended.is_late
    assert ended.bill.usd == pytest.approx(3.0 * (1.0 + TICK / 2))
    assert ended.bill.waiting_hours > 1


def test_uniform_progress_goes_on_demand_when_it_is_behind():
    ended = run(["0" * 24], "uniform_progress")
    assert ended.bill.waiting_hours < 0.5
    first = Job(market("0" * 24), 0, TERMS, POLICIES["uniform_progress"](), remembers=True).run()
    assert [choice.mode for _, choice in first.decisions][:2] == [Mode.IDLE, Mode.ON_DEMAND]


def test_a_move_costs_egress_and_lost_work_is_done_again():
    terms = Terms(work=1.0, deadline=3.0, restart=TICK / 2, state_gb=10, lost_work=TICK)
    ended = run(["111" + "0" * 21, "000" + "1" * 21], "greedy", terms)
    assert ended.bill.moves == pytest.approx(0.2)
    assert ended.bill.lost_hours == pytest.approx(TICK)
    assert ended.bill.spot_hours == pytest.approx(1.0 + 2 * TICK / 2 + TICK)


def test_aws_does_not_charge_for_a_first_hour_that_it_ends_itself():
    terms = Terms(work=1.0, deadline=3.0, restart=TICK / 2, billing=Billing.PROVIDER)
    ended = run(["111000" + "1" * 18], "greedy", terms)
    assert ended.bill.usd == pytest.approx(1.0 - 2.5 * TICK + TICK / 2)
    gcp = market("111000" + "1" * 18, cloud="gcp")
    assert simulate(gcp, 0, terms, POLICIES["greedy"]()).bill.usd > ended.bill.usd


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_launch_finds_out_takes_time(policy):
    terms = Terms(
        work=1.0,
        deadline=3.0,
        restart=TICK / 2,
        observe=Observe.LAUNCHES,
        failed_launch=TICK / 5,
    )
    ended = run(["0" * 6 + "1" * 18, "0" * 24], policy, terms)
    assert not ended.is_late
    if policy in ("greedy", "uniform_progress", "skynomad"):
        assert ended.bill.num_failed_launches >= 2


@pytest.mark.parametrize("policy", ["greedy", "uniform_progress", "skynomad", "auto"])
def test_a_zone_that_had_no_room_is_tried_again(policy):
    terms = Terms(
        work=1.0, deadline=4.0, restart=TICK / 2, observe=Observe.LAUNCHES, failed_launch=TICK / 5
    )
    ended = run(["000" + "1" * 21], policy, terms)
    # auto tries less often than it could: after a failure it takes time until room is likely.
    assert ended.bill.num_failed_launches >= (1 if policy == "auto" else 2)
    assert ended.bill.spot_hours > 0.5


@settings(max_examples=60, deadline=None)
@given(
    market=markets,
    policy=st.sampled_from(list(POLICIES)),
    slack=st.floats(0, 2),
    restart=st.sampled_from([TICK / 2, TICK, 2.5 * TICK]),
    lost_work=st.sampled_from([0.0, TICK]),
    observe=st.sampled_from(list(Observe)),
)
def test_no_feasible_deadline_is_missed_and_every_hour_is_in_the_bill(
    market, policy, slack, restart, lost_work, observe
):
    work = 1.0
    terms = Terms(
        work=work,
        deadline=min(work + 2 * restart + slack, 24 * TICK),
        restart=restart,
        lost_work=lost_work,
        observe=observe,
        failed_launch=TICK / 5,
    )
    ended = simulate(market, 0, terms, POLICIES[policy]())
    bill = ended.bill
    assert not ended.is_late
    assert bill.spot_hours + bill.on_demand_hours + bill.waiting_hours == pytest.approx(ended.hours)
    trained = bill.spot_hours + bill.on_demand_hours - bill.lost_hours
    assert trained <= work + bill.num_launches * restart + 1e-6
    assert bill.usd == pytest.approx(
        bill.spot_hours * 1.0 + bill.on_demand_hours * 3.0 + bill.moves
    )
    if not lost_work and observe is Observe.FREE:
        assert bill.usd >= least_usd(market, 0, terms) - 1e-9


class Remembering:
    """A policy that keeps what it was asked, and what it said."""

    def __init__(self, policy):
        self.policy = policy
        self.looks_around = policy.looks_around
        self.asked = []

    def choose(self, sight):
        seen = replace(sight, is_up=tuple(sight.is_up), sightings=[*sight.sightings])
        self.asked.append((seen, self.policy.choose(sight)))
        return self.asked[-1][1]


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 999), observe=st.sampled_from(list(Observe)))
def test_a_policy_answers_what_it_is_shown_whatever_it_was_asked_before(policy, seed, observe):
    dice = random.Random(seed)
    # Long enough to learn several times, and a price that changes meanwhile.
    traces = [
        zone(f"z{n}", "".join(dice.choices("01", k=120)), region=f"r{n}").model_copy(
            update={"spot_usd_per_hour": [1.0] * 30 + [2.5] * 90}
        )
        for n in range(2)
    ]
    terms = Terms(
        work=12.0, deadline=19.0, restart=TICK / 2, observe=observe, failed_launch=TICK / 5
    )
    remembering = Remembering(POLICIES[policy]())
    simulate(make_market(traces, 1), 0, terms, remembering)
    for sight, choice in remembering.asked[::7]:
        assert POLICIES[policy]().choose(sight) == choice


def every_plan(num_zones, num_ticks):
    """Yield each way to be idle, on demand or in a zone, tick by tick."""
    return itertools.product(range(-2, num_zones), repeat=num_ticks)


def cost_of(plan, found, terms):
    """Return what a plan costs, None if it is impossible or does not finish in time."""
    usd, left, before, cold = 0.0, terms.work, -1, 0.0
    for tick, where in enumerate(plan):
        if left <= 1e-9:
            return usd
        if where != before:
            cold = terms.restart
        before = where
        if where == -1:
            continue
        if where >= 0 and not found.up[where, tick]:
            return None
        hours = min(TICK, cold + left)
        usd += (3.0 if where == -2 else 1.0) * hours
        left -= max(0.0, hours - cold)
        cold = max(0.0, cold - TICK)
    return usd if left <= 1e-9 else None


@settings(max_examples=30, deadline=None)
@given(
    policy=st.sampled_from(list(POLICIES)),
    seconds_left=st.sampled_from([2, 60, 400]),
    work_minutes=st.sampled_from([27, 200, 588]),
    restart=st.sampled_from([3 / 60, 6 / 60, 12 / 60]),
    slack=st.sampled_from([1.0, 7.0, 40.0]),
)
def test_losing_a_node_just_before_the_end_misses_no_deadline(
    policy, seconds_left, work_minutes, restart, slack
):
    work = work_minutes / 60
    deadline = work + 2 * restart + slack
    tick = 60 / 3600
    num_up = int((work + restart - seconds_left / 3600) / tick)
    room = "1" * num_up + "0" * (math.ceil(deadline / tick) + 1 - num_up)
    terms = Terms(work=work, deadline=deadline, restart=restart)
    found = make_market([zone("z", room, gap=60)], 1)
    assert not simulate(found, 0, terms, POLICIES[policy]()).is_late


def test_a_deadline_within_a_tick_has_an_optimum():
    terms = Terms(work=1.0, deadline=1.0 + TICK, restart=TICK / 3)
    found = market("1" * 24)
    assert least_usd(found, 0, terms) <= simulate(found, 0, terms, POLICIES["greedy"]()).bill.usd
    # 15 s do not divide this tick: what is left over is in the optimum's favour.
    odd = make_market([zone("z", "1" * 60, gap=200)], 1)
    terms = Terms(work=1.0, deadline=3.0, restart=195 / 3600)
    assert least_usd(odd, 0, terms) <= simulate(odd, 0, terms, POLICIES["greedy"]()).bill.usd + 1e-9


@settings(max_examples=15, deadline=None)
@given(
    found=st.lists(st.text("01", min_size=7, max_size=7), min_size=1, max_size=2).map(
        lambda rooms: market(*rooms)
    ),
    restart=st.sampled_from([TICK / 2, TICK, 1.5 * TICK]),
)
def test_the_optimum_is_the_cheapest_of_all_plans(found, restart):
    terms = Terms(work=2.5 * TICK, deadline=6 * TICK, restart=restart)
    usd = [cost_of(plan, found, terms) for plan in every_plan(len(found.names), 6)]
    best = min((one for one in usd if one is not None), default=math.inf)
    assert least_usd(found, 0, terms) == pytest.approx(best)


def test_zones_of_different_gaps_are_brought_to_the_shortest():
    found = make_market([zone("a", "1010"), zone("b", "01", gap=2 * TICK_S)], 1)
    assert found.up.tolist() == [[True, False, True, False], [False, False, True, True]]
    assert found.next_up == [[0, 2, 2, 4, 4], [2, 2, 2, 3, 4]]
    assert found.next_down == [[1, 1, 3, 3, 4], [0, 1, 4, 4, 4]]
    assert found.next_change == [1, 2, 3, 4]
    with pytest.raises(InputError, match="gap"):
        make_market([zone("a", "1010"), zone("b", "01", gap=1.5 * TICK_S)], 1)


def test_a_gang_needs_room_for_all_of_it():
    found = make_market([zone("a", "4312")], 3)
    assert found.up.tolist() == [[True, True, False, False]]
    assert found.on_demand == (9.0,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found.pop("gap_seconds"), "gap_seconds"),
        (lambda found: found.update(spot_usd_per_hour=[1.0]), "1 spot prices for 4 ticks"),
        (lambda found: found.update(available_nodes=[]), "available_nodes"),
        (lambda found: found.update(on_demand_usd_per_hour=-1.0), "on_demand"),
        (lambda found: found.update(schema_version=99), "schema_version"),
    ],
)
def test_a_trace_that_cannot_be_read_is_named(tmp_path, change, words):
    found = zone("a", "1010").model_dump()
    change(found)
    (tmp_path / "a.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match=words):
        read_traces(tmp_path)


def test_what_cannot_be_simulated_is_said_before(tmp_path):
    with pytest.raises(InputError, match="holds no traces"):
        read_traces(tmp_path)
    with pytest.raises(InputError, match=r"4\.0 h long"):
        draw_starts(market("1" * 24), Terms(work=4, deadline=5, restart=TICK), 3, 0)
    with pytest.raises(InputError, match="deadline"):
        draw_starts(market("1" * 24), Terms(work=2, deadline=2.1, restart=TICK), 3, 0)


def test_the_same_seed_gives_the_same_summary():
    found = market("1101" * 12, "0111" * 12)
    summaries = []
    for _ in range(2):
        starts = draw_starts(found, TERMS, 6, seed=3)
        outcomes = list(study(found, starts, TERMS, list(POLICIES)))
        summaries.append([summarize(name, outcomes, found, TERMS) for name in POLICIES])
    assert summaries[0] == summaries[1]
    for summary in summaries[0]:
        assert summary.num_missed == 0
        assert summary.interval[0] <= summary.cost_vs_optimal <= summary.interval[1]
        assert summary.cost_vs_optimal >= 1 - 1e-9
    usd = {summary.name: summary.mean_usd for summary in summaries[0]}
    assert usd["auto"] < usd["on_demand"]
