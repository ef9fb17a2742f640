"""What it cost to serve a run's model: a bill beside that of the training, from facts alone."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.layout import REPLICAS
from checkpoints.store import open_store
from orchestrator.cli.wording import render_cost
from orchestrator.dashboard.content import build_page, build_table
from orchestrator.ledger.facts import (
    Fact,
    QuotedOffer,
    ReplicaEnded,
    ReplicaEndReason,
    ReplicaNoticed,
    ReplicaStarted,
)
from orchestrator.ledger.fold import fold
from orchestrator.ledger.heartbeat import Heartbeat
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.record import create_record
from orchestrator.offers import Market, Offer
from orchestrator.replicas import (
    SILENT_REPLICA_STOPS_AFTER,
    beat_as_replica,
    read_replica_beats,
)
from orchestrator.report import cost_document
from orchestrator.view import RunView, RunViewer
from tests.orchestrator.histories import START, Ledger, at, make_offer, make_record

SIMULATED = make_record()
REAL = make_record(infra=["aws", "gcp"], local=None).model_copy(update={"simulated": False})
HOUR = 3600
SILENCE = SILENT_REPLICA_STOPS_AFTER.total_seconds()

moments = st.floats(-600, 20_000, allow_nan=False)


def started(name: str, up: float, offer: Offer | None = None, num_models: int = 1) -> Fact:
    return ReplicaStarted(
        service="chat",
        replica=name,
        offer=QuotedOffer.quote(offer or make_offer()),
        num_models=num_models,
        up_at=at(up),
    )


def served(
    up: float = 0,
    *,
    until: float | None = None,
    notice: float | None = None,
    num_models: int = 1,
    **offer: str,
) -> Ledger:
    ledger = Ledger()
    add_replica(ledger, "chat-1", up, until, notice, num_models, make_offer(**offer))
    return ledger


def add_replica(ledger, name, up, until=None, notice=None, num_models=1, offer=None) -> None:
    ledger.add(up + 1, started(name, up, offer, num_models), writer=name)
    if notice is not None:
        ledger.add(notice - 120, ReplicaNoticed(replica=name, deadline_at=at(notice)), writer=name)
    if until is not None:
        ended = ReplicaEnded(replica=name, reason=ReplicaEndReason.STOPPED)
        ledger.add(until, ended, writer=name)


def look(ledger: Ledger, now: float, seen: float | None = None, record=REAL) -> RunView:
    return RunView(
        state=fold(record, ledger.entries),
        measured=(),
        heartbeats=(),
        as_of=at(now),
        replicas_seen_at={} if seen is None else {"chat-1": at(seen)},
    )


def test_a_replica_is_charged_from_its_machine_coming_up_to_its_end():
    (one,) = look(served(100, until=100 + 2 * HOUR), 9 * HOUR).serving.replicas
    assert (one.usd, one.hours, one.on_demand_usd) == (20, 2, 60)


def test_models_that_share_a_node_share_its_price():
    whole = look(served(until=2 * HOUR), 9 * HOUR).serving
    third = look(served(until=2 * HOUR, num_models=3), 9 * HOUR).serving
    assert whole.usd == 20
    assert third.usd == Decimal("6.666667")
    assert third.hours_where() == whole.hours_where()


def test_two_models_of_a_run_are_two_shares():
    ledger = Ledger()
    begun = started("chat-1", 0, num_models=3).model_copy(update={"num_own": 2})
    ledger.add(1, begun, writer="chat-1")
    assert look(ledger, 2 * HOUR, seen=2 * HOUR).serving.usd == Decimal("13.333333")


def test_one_that_serves_still_is_charged_until_now():
    view = look(served(), 3 * HOUR, seen=3 * HOUR - 5)
    assert view.serving.usd == 30
    assert view.serving.is_going_on


def test_one_that_fell_silent_is_charged_until_skyserve_has_given_it_up():
    view = look(served(), 9 * HOUR, seen=2 * HOUR)
    (one,) = view.serving.replicas
    assert one.replica.reason is ReplicaEndReason.LOST
    assert one.replica.ended_at == at(2 * HOUR + SILENCE)
    assert one.usd == Decimal("20.666667")
    assert not view.serving.is_going_on


def test_one_that_was_told_to_leave_and_fell_silent_was_taken_then():
    view = look(served(notice=2 * HOUR), 9 * HOUR, seen=2 * HOUR - 7)
    (one,) = view.serving.replicas
    assert one.replica.reason is ReplicaEndReason.PREEMPTED
    assert one.replica.ended_at == at(2 * HOUR)
    assert one.usd == 20


def test_spot_that_the_cloud_took_in_its_first_hour_is_waived_as_in_training():
    (one,) = look(served(notice=HOUR - 60), 9 * HOUR).serving.replicas
    assert (one.usd, one.waived_usd) == (0, Decimal("9.833333"))
    (one,) = look(served(notice=HOUR - 60, market=Market.ON_DEMAND), 9 * HOUR).serving.replicas
    assert one.usd > 0


@pytest.mark.parametrize(
    ("after_deadline", "is_taken"),
    [(-60, False), (-4, False), (-2, True), (0, True), (45, True), (60, False)],
)
def test_one_that_its_shutdown_stopped_at_the_announced_time_was_taken(after_deadline, is_taken):
    notice = HOUR / 2
    view = look(served(notice=notice, until=notice + after_deadline), 9 * HOUR)
    (one,) = view.serving.replicas
    expected = ReplicaEndReason.PREEMPTED if is_taken else ReplicaEndReason.STOPPED
    assert one.replica.reason is expected
    assert (one.usd == 0) is (one.waived_usd > 0) is is_taken
    assert one.replica.ended_at is not None
    assert one.replica.ended_at >= at(notice + min(after_deadline, 0))


def test_serving_is_no_part_of_the_training_and_both_are_the_lifetime():
    trained, both = Ledger(), Ledger()
    for ledger in (trained, both):
        ledger.launched()
        ledger.launch("one", 0, attempt=1, until=2 * HOUR)
        ledger.ended(2 * HOUR)
    add_replica(both, "chat-1", 3 * HOUR, until=5 * HOUR)
    alone, found = (cost_document(look(one, 9 * HOUR)) for one in (trained, both))
    assert (found["total_usd"], found["parts"]) == (alone["total_usd"], alone["parts"])
    assert alone["lifetime_usd"] == alone["total_usd"]
    assert alone["serving"]["usd"] == 0
    assert found["serving"]["usd"] == 20
    assert found["lifetime_usd"] == pytest.approx(found["total_usd"] + 20)
    assert found["serving"]["usd_by_market"] == {"spot": 20, "on_demand": 0}
    assert found["serving"]["services"] == [{"service": "chat", "usd": 20, "hours": 2}]


def test_dollars_of_a_simulated_training_are_not_added_to_real_ones():
    document = cost_document(look(served(until=HOUR), 9 * HOUR, record=SIMULATED))
    assert document["serving"]["usd"] == 10  # whatever the time scale of the training was
    assert document["lifetime_usd"] is None


def test_people_and_the_page_see_what_serving_cost():
    view = look(served(until=2 * HOUR), 9 * HOUR)
    assert "Serving it: $20.00" in render_cost(view)
    (row,) = build_page(view).serving.rows
    assert row[0] == "chat-1"
    assert build_table(view, "serving").note.startswith("In all $20.00")
    assert not build_page(look(Ledger(), HOUR)).serving.rows


@st.composite
def lives(draw: st.DrawFn) -> Ledger:
    """Return facts of replicas; nothing in them need make sense."""
    ledger = Ledger()
    for number in range(draw(st.integers(0, 4))):
        name = f"chat-{number}"
        offer = make_offer(
            market=draw(st.sampled_from(Market)),
            usd=str(draw(st.decimals("0", "40", places=4))),
            cloud=draw(st.sampled_from(["aws", "gcp", "lambda"])),
        )
        if draw(st.integers(0, 9)):
            begun = started(name, draw(moments), offer, draw(st.integers(1, 3)))
            ledger.add(draw(moments), begun, writer=name)
        for _ in range(draw(st.integers(0, 2))):
            told = ReplicaNoticed(replica=name, deadline_at=at(draw(moments)))
            ledger.add(draw(moments), told, writer=name)
        for _ in range(draw(st.integers(0, 2))):
            ended = ReplicaEnded(replica=name, reason=draw(st.sampled_from(ReplicaEndReason)))
            ledger.add(draw(moments), ended, writer=draw(st.sampled_from([name, "cli-1"])))
    return ledger


@settings(deadline=None)
@given(lives(), moments, st.randoms(use_true_random=False), st.integers(1, 3))
def test_any_order_and_any_repetition_gives_the_same_bill(ledger, now, dice, num_repeats):
    shuffled = Ledger()
    shuffled.entries = ledger.entries * num_repeats
    dice.shuffle(shuffled.entries)
    there, again = (cost_document(look(one, now)) for one in (ledger, shuffled))
    assert json.dumps(there) == json.dumps(again)


@settings(deadline=None)
@given(lives(), moments)
def test_what_serving_cost_is_the_sum_over_replicas_and_never_negative(ledger, now):
    serving = cost_document(look(ledger, now))["serving"]
    usd = Decimal(str(serving["usd"]))
    for rows in (serving["replicas"], serving["services"]):
        assert sum((Decimal(str(row["usd"])) for row in rows), Decimal(0)) == usd
    by_market = serving["usd_by_market"].values()
    assert sum((Decimal(str(amount)) for amount in by_market), Decimal(0)) == usd
    assert all(row["usd"] >= 0 and row["hours"] >= 0 for row in serving["replicas"])
    ended = [row for row in serving["replicas"] if row["ended_at"] is not None]
    assert all(row["started_at"] <= row["ended_at"] for row in ended)


def test_signs_of_life_are_read_from_the_run_folder_and_are_none_of_the_training():
    store = open_store("memory://replicas")
    create_record(store, REAL)

    class Clock:
        def now(self):
            return START

        def sleep(self, duration):
            raise NotImplementedError

    Journal(store, "replica", Clock()).note(started("chat-1", 0))
    beat_as_replica(store, Heartbeat(writer="chat-1", at=at(HOUR), host="node", pid=1))
    store.put(f"{REPLICAS}chat-2.json", b"torn")
    assert read_replica_beats(store) == {"chat-1": at(HOUR)}
    view = RunViewer(store).look(at(HOUR) + timedelta(seconds=30))
    assert not view.heartbeats
    assert view.serving.is_going_on
    assert view.serving.usd == Decimal("10.083333")
