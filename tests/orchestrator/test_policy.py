"""decide(): where, when, and when not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.attempts import EndReason, RetryBudget, StopReason, charged_to
from orchestrator.offers import Market, MarketPreference, Offer
from orchestrator.policy.answers import Drain, Keep, Launch, Stop, Wait
from orchestrator.policy.by_price import MAX_WAIT, MIN_STAY
from orchestrator.policy.decide import MAX_FAILURES, MAX_PREEMPTIONS, decide
from orchestrator.policy.history import (
    MAX_REFUSALS,
    RETRY_CLOUD_AFTER,
    RETRY_ZONE_AFTER,
    History,
    LaunchRecord,
    Limits,
)
from orchestrator.policy.sight import PolicyName
from tests.orchestrator.histories import START, make_offer

EAST = make_offer("us-east-1", usd="8")
WEST = make_offer("us-west-2", usd="9")
EAST_B = make_offer("us-east-1", usd="8.5", zone="us-east-1-b")
ON_DEMAND = make_offer("us-east-1", Market.ON_DEMAND, usd="30")
GOOGLE = make_offer("us-central1", usd="12", cloud="gcp")
GOOGLE_ON_DEMAND = make_offer("us-central1", Market.ON_DEMAND, usd="29", cloud="gcp")
HOUR = timedelta(hours=1)
NOTHING_YET = History(
    launches=(),
    usd=Decimal(0),
    usd_per_hour=Decimal(0),
    work_left=None,
    is_complete=False,
    stop_requested=False,
    began_at=START,
)
LIMITS = Limits(
    budget_usd=Decimal(100),
    deadline_at=None,
    market=MarketPreference.SPOT_WITH_FALLBACK,
    stop_margin=timedelta(minutes=3),
    restart=timedelta(minutes=10),
)
DUE = replace(LIMITS, budget_usd=Decimal(2000), deadline_at=START + 100 * HOUR)


def ended(offer: Offer, reason: EndReason, at: datetime = START) -> LaunchRecord:
    return LaunchRecord(offer=offer, started_at=at - HOUR, ended_at=at, reason=reason)


def after(*launches: LaunchRecord) -> History:
    return replace(NOTHING_YET, launches=launches)


def test_first_launch_takes_the_cheapest_spot_offer():
    decision = decide(NOTHING_YET, [WEST, ON_DEMAND, EAST], LIMITS, START)
    assert isinstance(decision, Launch)
    assert decision.offer == EAST
    assert "$8/h" in decision.why


def test_a_price_that_may_be_wrong_is_not_chased():
    doubted = replace(EAST, usd_per_hour=Decimal("0.5"), doubt="2% of on demand")
    decision = decide(NOTHING_YET, [doubted, WEST, ON_DEMAND], LIMITS, START)
    assert isinstance(decision, Launch)
    assert decision.offer == WEST


def test_running_launch_is_kept():
    running = LaunchRecord(offer=EAST, started_at=START)
    assert isinstance(decide(after(running), [EAST, WEST], LIMITS, START), Keep)


@pytest.mark.parametrize("reason", [EndReason.PREEMPTED, EndReason.NODE_LOST])
def test_region_just_lost_is_avoided_in_all_its_zones(reason):
    decision = decide(after(ended(EAST, reason)), [EAST, EAST_B, WEST], LIMITS, START)
    assert isinstance(decision, Launch)
    assert decision.offer == WEST


def test_region_just_lost_is_taken_again_when_no_other_has_capacity():
    history = after(ended(EAST, EndReason.PREEMPTED), ended(WEST, EndReason.NO_CAPACITY))
    decision = decide(history, [EAST, WEST], LIMITS, START)
    assert isinstance(decision, Launch)
    assert decision.offer == EAST
    assert "no other region" in decision.why


def test_failed_training_does_not_move_the_run_elsewhere():
    decision = decide(after(ended(EAST, EndReason.TRAINING_FAILED)), [EAST, WEST], LIMITS, START)
    assert isinstance(decision, Launch)
    assert decision.offer == EAST


@pytest.mark.parametrize("limits", [LIMITS, DUE], ids=["by price", "auto"])
def test_a_cloud_that_refuses_the_account_is_left_alone_while_another_may_have_room(limits):
    refused = ended(EAST, EndReason.NO_ACCESS)
    offers = [EAST, WEST, ON_DEMAND, GOOGLE, GOOGLE_ON_DEMAND]

    def taken(history, offers=offers, now=START):
        decision = decide(replace(history, work_left=20 * HOUR), offers, limits, now)
        assert isinstance(decision, Launch), decision
        return decision.offer

    assert taken(after(refused)) == GOOGLE
    assert taken(after(refused), now=START + RETRY_CLOUD_AFTER) == EAST
    full = [ended(one, EndReason.NO_CAPACITY) for one in (GOOGLE, GOOGLE_ON_DEMAND)]
    assert taken(after(refused, *full)) == EAST
    assert taken(after(refused), [EAST, WEST, ON_DEMAND]).cloud == "aws"


def test_a_cloud_that_goes_on_refusing_is_given_up_and_counts_for_no_other():
    refused = [ended(EAST, EndReason.NO_ACCESS)] * MAX_REFUSALS
    full = ended(GOOGLE, EndReason.NO_CAPACITY)
    waits = decide(after(*refused, full), [EAST, WEST, GOOGLE], LIMITS, START)
    assert isinstance(waits, Wait)
    others = [ended(make_offer(cloud=one), EndReason.NO_ACCESS) for one in ("gcp", "azure")]
    fourth = make_offer(cloud="lambda")
    goes_on = decide(after(refused[0], *others), [EAST, fourth], LIMITS, START)
    assert isinstance(goes_on, Launch)
    assert goes_on.offer == fourth
    had_nodes = LaunchRecord(
        offer=EAST, started_at=START, ready_at=START, ended_at=START, reason=EndReason.PREEMPTED
    )
    again = decide(after(*refused[:2], had_nodes, refused[2]), [EAST], LIMITS, START)
    assert isinstance(again, Launch)


def test_an_account_that_every_cloud_refuses_ends_the_run():
    refused = [ended(EAST, EndReason.NO_ACCESS), ended(GOOGLE, EndReason.NO_ACCESS)]
    decision = decide(after(*refused * MAX_REFUSALS), [EAST, WEST, GOOGLE], LIMITS, START)
    assert isinstance(decision, Stop)
    assert decision.reason is StopReason.TOO_MANY_FAILURES
    assert decision.why == "the account was refused 3 times in a row: aws, gcp"


def test_a_node_is_not_left_for_a_cloud_that_refuses_the_account():
    up = LaunchRecord(offer=GOOGLE_ON_DEMAND, started_at=START, ready_at=START)
    refused = ended(EAST, EndReason.NO_ACCESS)
    known = replace(after(refused, up), work_left=20 * HOUR, usd_per_hour=Decimal(30))
    now = START + 2 * HOUR
    assert isinstance(decide(known, [EAST, GOOGLE_ON_DEMAND], LIMITS, now), Keep)
    without = replace(known, launches=(up,))
    assert isinstance(decide(without, [EAST, GOOGLE_ON_DEMAND], LIMITS, now), Drain)


def test_a_launch_that_failed_otherwise_says_nothing_of_its_cloud():
    decision = decide(after(ended(EAST, EndReason.SETUP_FAILED)), [EAST, GOOGLE], LIMITS, START)
    assert isinstance(decision, Launch)
    assert decision.offer == EAST


def test_spot_nowhere_falls_back_to_on_demand_without_a_deadline():
    history = after(ended(EAST, EndReason.NO_CAPACITY), ended(WEST, EndReason.NO_CAPACITY))
    decision = decide(history, [EAST, WEST, ON_DEMAND], LIMITS, START)
    assert isinstance(decision, Launch)
    assert decision.offer == ON_DEMAND


def test_spot_nowhere_waits_while_the_deadline_has_slack():
    limits = replace(LIMITS, deadline_at=START + 20 * HOUR)
    history = replace(after(ended(EAST, EndReason.NO_CAPACITY)), work_left=2 * HOUR)
    decision = decide(history, [EAST, ON_DEMAND], limits, START)
    assert decision == Wait(until=START + RETRY_ZONE_AFTER, why=decision.why)


def test_zone_without_capacity_is_asked_again_later():
    history = after(ended(EAST, EndReason.NO_CAPACITY))
    decision = decide(history, [EAST], LIMITS, START + RETRY_ZONE_AFTER)
    assert isinstance(decision, Launch)


def test_deadline_without_any_measured_step_does_not_wait_for_spot():
    limits = replace(LIMITS, deadline_at=START + 20 * HOUR)
    decision = decide(after(ended(EAST, EndReason.NO_CAPACITY)), [EAST, ON_DEMAND], limits, START)
    assert isinstance(decision, Launch)
    assert decision.offer == ON_DEMAND


@pytest.mark.parametrize("market", [Market.SPOT, Market.ON_DEMAND])
def test_only_the_market_that_the_limits_allow_is_used(market):
    limits = replace(LIMITS, market=MarketPreference(market.value))
    decision = decide(NOTHING_YET, [EAST, ON_DEMAND], limits, START)
    assert isinstance(decision, Launch)
    assert decision.offer.market is market


def test_spot_alone_gives_up_after_a_day_without_capacity():
    limits = replace(LIMITS, market=MarketPreference.SPOT)
    refusals = [
        ended(EAST, EndReason.NO_CAPACITY, START + hour * HOUR) for hour in range(MAX_WAIT // HOUR)
    ]
    still = decide(after(*refusals), [EAST], limits, refusals[-1].ended_at)
    assert isinstance(still, Wait)
    late = ended(EAST, EndReason.NO_CAPACITY, START + MAX_WAIT + HOUR)
    decision = decide(after(*refusals, late), [EAST], limits, late.ended_at)
    assert isinstance(decision, Stop)
    assert decision.reason is StopReason.NO_CAPACITY


def test_close_deadline_goes_on_demand_although_spot_is_cheaper():
    limits = replace(LIMITS, deadline_at=START + 2 * HOUR)
    history = replace(NOTHING_YET, work_left=2 * HOUR)
    decision = decide(history, [EAST, ON_DEMAND], limits, START)
    assert isinstance(decision, Launch)
    assert decision.offer == ON_DEMAND
    assert "deadline" in decision.why


def on_demand_since(start: datetime, **changes: object) -> History:
    up = LaunchRecord(offer=ON_DEMAND, started_at=start)
    return replace(NOTHING_YET, launches=(up,), work_left=20 * HOUR, **changes)


def test_on_demand_is_left_for_spot_when_that_pays():
    decision = decide(on_demand_since(START), [EAST, ON_DEMAND], LIMITS, START + MIN_STAY)
    assert isinstance(decision, Drain)


@pytest.mark.parametrize(
    ("now", "changes", "limits"),
    [
        (START + MIN_STAY / 2, {}, {}),
        (START + MIN_STAY, {"work_left": HOUR / 4}, {}),
        (START + MIN_STAY, {"work_left": None}, {}),
        (START + MIN_STAY, {}, {"deadline_at": START + 21 * HOUR, "budget_usd": Decimal(900)}),
        (START + MIN_STAY, {}, {"market": MarketPreference.ON_DEMAND}),
    ],
    ids=["a moment ago", "little is left", "nothing measured", "the deadline is near", "forbidden"],
)
def test_on_demand_is_kept_otherwise(now, changes, limits):
    history = replace(on_demand_since(START), **changes)
    decision = decide(history, [EAST, ON_DEMAND], replace(LIMITS, **limits), now)
    assert isinstance(decision, Keep)


def test_on_demand_is_kept_where_spot_was_refused_a_moment_ago():
    refused = ended(EAST, EndReason.NO_CAPACITY, START + MIN_STAY)
    up = LaunchRecord(offer=ON_DEMAND, started_at=START)
    history = replace(NOTHING_YET, launches=(refused, up), work_left=20 * HOUR)
    decision = decide(history, [EAST, ON_DEMAND], LIMITS, START + MIN_STAY)
    assert isinstance(decision, Keep)


def test_close_deadline_avoids_the_region_that_had_no_room_on_demand():
    elsewhere = make_offer("us-west-2", Market.ON_DEMAND, usd="31")
    history = replace(after(ended(ON_DEMAND, EndReason.NO_CAPACITY)), work_left=HOUR)
    limits = replace(LIMITS, deadline_at=START + HOUR)
    decision = decide(history, [EAST, ON_DEMAND, elsewhere], limits, START)
    assert isinstance(decision, Launch)
    assert decision.offer == elsewhere


def test_on_demand_that_the_budget_cannot_pay_to_the_end_is_not_taken():
    limits = replace(
        LIMITS,
        deadline_at=START + 11 * HOUR,
        budget_usd=Decimal(200),
        policy=PolicyName.ON_DEMAND,
    )
    history = replace(NOTHING_YET, work_left=10 * HOUR)
    rich = decide(history, [EAST, ON_DEMAND], replace(limits, budget_usd=Decimal(400)), START)
    assert isinstance(rich, Launch)
    assert rich.offer == ON_DEMAND
    decision = decide(history, [EAST, ON_DEMAND], limits, START)
    assert isinstance(decision, Launch)
    assert decision.offer == EAST
    assert "of the budget" in decision.why
    history = replace(history, launches=(ended(EAST, EndReason.NO_CAPACITY),))
    assert isinstance(decide(history, [EAST, ON_DEMAND], limits, START), Wait)


def test_on_demand_is_left_once_the_budget_cannot_pay_for_it_to_the_end():
    limits = replace(
        LIMITS,
        deadline_at=START + 6 * HOUR,
        budget_usd=Decimal(120),
        policy=PolicyName.ON_DEMAND,
    )
    up = LaunchRecord(offer=ON_DEMAND, started_at=START, ready_at=START)
    history = replace(NOTHING_YET, launches=(up,), work_left=5 * HOUR, usd=Decimal(20))
    assert isinstance(decide(history, [EAST, ON_DEMAND], limits, START), Drain)
    enough = replace(limits, budget_usd=Decimal(400))
    assert isinstance(decide(history, [EAST, ON_DEMAND], enough, START), Keep)


def test_run_stops_before_its_budget_is_exceeded():
    up = LaunchRecord(offer=EAST, started_at=START)
    history = replace(after(up), usd=Decimal("99.5"), usd_per_hour=Decimal(8))
    assert isinstance(decide(history, [EAST], LIMITS, START), Keep)  # 3 min are $0.40
    decision = decide(replace(history, usd=Decimal("99.7")), [EAST], LIMITS, START)
    assert isinstance(decision, Stop)
    assert decision.reason is StopReason.BUDGET


def test_what_is_left_after_a_stop_is_not_spent_on_another_start():
    stopped = ended(EAST, EndReason.STOPPED)
    history = replace(after(stopped), usd=Decimal("99.5"))
    decision = decide(history, [EAST], LIMITS, START)  # 13 min at $8 are $1.73
    assert isinstance(decision, Stop)
    assert decision.reason is StopReason.BUDGET
    assert isinstance(decide(replace(history, usd=Decimal(98)), [EAST], LIMITS, START), Launch)


def test_preemption_does_not_use_up_the_failure_budget():
    launches = [ended(EAST, EndReason.PREEMPTED)] * (MAX_PREEMPTIONS - 1)
    failures = [ended(EAST, EndReason.TRAINING_FAILED)] * (MAX_FAILURES - 1)
    assert isinstance(decide(after(*launches, *failures), [WEST], LIMITS, START), Launch)


def test_repeated_training_failures_stop_the_run():
    history = after(*[ended(EAST, EndReason.TRAINING_FAILED)] * MAX_FAILURES)
    decision = decide(history, [EAST], LIMITS, START)
    assert isinstance(decision, Stop)
    assert decision.reason is StopReason.TOO_MANY_FAILURES


def test_failures_with_progress_in_between_do_not_add_up():
    failed = ended(EAST, EndReason.TRAINING_FAILED)
    history = after(*[failed] * (MAX_FAILURES - 1), replace(failed, has_progressed=True), failed)
    assert isinstance(decide(history, [EAST], LIMITS, START), Launch)


def test_nodes_that_stop_though_the_run_goes_on_end_it():
    stopped = LaunchRecord(
        offer=EAST, started_at=START, ready_at=START, ended_at=START, reason=EndReason.STOPPED
    )
    decision = decide(after(*[stopped] * MAX_FAILURES), [EAST], LIMITS, START)
    assert isinstance(decision, Stop)
    assert decision.reason is StopReason.TOO_MANY_FAILURES
    called_off = replace(stopped, ready_at=None)
    assert isinstance(decide(after(*[called_off] * MAX_FAILURES), [EAST], LIMITS, START), Launch)


def test_on_demand_that_the_rest_of_the_budget_cannot_start_is_not_taken():
    full = ended(EAST, EndReason.NO_CAPACITY)
    left = replace(after(full), usd=LIMITS.budget_usd - 4)  # on demand, 13 minutes cost $6.50
    assert isinstance(decide(left, [EAST, ON_DEMAND], LIMITS, START), Wait)
    enough = replace(left, usd=LIMITS.budget_usd - 7)
    decision = decide(enough, [EAST, ON_DEMAND], LIMITS, START)
    assert isinstance(decision, Launch)
    assert decision.offer == ON_DEMAND


def test_endless_preemptions_stop_the_run():
    decision = decide(
        after(*[ended(EAST, EndReason.NODE_LOST)] * MAX_PREEMPTIONS), [EAST], LIMITS, START
    )
    assert isinstance(decision, Stop)
    assert decision.reason is StopReason.TOO_MANY_PREEMPTIONS


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"is_complete": True}, StopReason.DONE), ({"stop_requested": True}, StopReason.REQUESTED)],
)
def test_finished_and_stopped_runs_launch_nothing(change, reason):
    decision = decide(replace(NOTHING_YET, **change), [EAST], LIMITS, START)
    assert isinstance(decision, Stop)
    assert decision.reason is reason


def test_every_end_reason_is_charged_to_one_budget():
    assert {charged_to(reason) for reason in EndReason} == set(RetryBudget)


OFFERS = [EAST, EAST_B, WEST, make_offer("eu-west-1", usd="9.5"), ON_DEMAND]
past_launches = st.lists(
    st.builds(
        ended,
        st.sampled_from(OFFERS),
        st.sampled_from([EndReason.PREEMPTED, EndReason.NODE_LOST, EndReason.NO_CAPACITY]),
        st.integers(0, 600).map(lambda minutes: START - timedelta(minutes=minutes)),
    ),
    max_size=12,
).map(lambda launches: sorted(launches, key=lambda launch: launch.started_at))


@given(past_launches)
def test_launches_only_what_is_offered_and_never_where_it_was_just_lost(
    launches: Sequence[LaunchRecord],
):
    decision = decide(after(*launches), OFFERS, LIMITS, START)
    if isinstance(decision, Wait):
        assert decision.until > START
        return
    assert isinstance(decision, Launch)
    assert decision.offer in OFFERS
    came_up = [one for one in launches if one.reason is not EndReason.NO_CAPACITY]
    refused = {
        (one.offer.zone, one.offer.market)
        for one in launches
        if one.reason is EndReason.NO_CAPACITY and START - one.ended_at < RETRY_ZONE_AFTER
    }
    open_elsewhere = [
        offer
        for offer in OFFERS
        if (offer.zone, offer.market) not in refused
        and came_up
        and offer.place != came_up[-1].offer.place
    ]
    if open_elsewhere:
        assert decision.offer.place != came_up[-1].offer.place
