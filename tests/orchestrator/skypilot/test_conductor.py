"""The controller's hand on a run: what it decides and writes down, whoever restarts it."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from checkpoints.errors import StoreUnreachable
from checkpoints.store import ObjectStore, open_store
from orchestrator.attempts import AgentExit, EndReason, StopReason
from orchestrator.charges import charge
from orchestrator.cloud.skypilot.conductor import Conductor, Loss, Machine, Superseded, owner_of
from orchestrator.cost import bill
from orchestrator.errors import UnknownRun
from orchestrator.ledger.facts import (
    AmendedBy,
    AttemptEnded,
    AttemptStarted,
    FinalState,
    LaunchEnded,
    RunAmended,
    RunLaunched,
    StopRequested,
    TerminatedBy,
)
from orchestrator.ledger.heartbeat import (
    MUTE_AGENT_S,
    SILENT_AGENT_S,
    Heartbeat,
    beat,
    read_heartbeats,
    silent_detail,
)
from orchestrator.ledger.journal import Journal, LedgerReader
from orchestrator.ledger.record import RunRecord, create_record
from orchestrator.ledger.requests import RequestKind, read_requests
from orchestrator.offers import PriceTable
from orchestrator.policy.answers import Drain, Keep, Launch, Stop, Wait
from tests.orchestrator.histories import START, make_offer, make_record

EAST, WEST = make_offer("us-east-1", usd="8"), make_offer("us-west-2", usd="9")
CLOUDS = {"infra": ["aws"], "local": None, "store": "s3://bucket/runs"}


class HandClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.at = START

    def now(self):
        self.at += timedelta(milliseconds=1)  # no two facts at one instant, as in life
        return self.at

    def sleep(self, duration: timedelta) -> None:
        self.at += duration


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def record() -> RunRecord:
    return make_record(**CLOUDS)


@pytest.fixture
def store(record, clock) -> ObjectStore:
    store = open_store(f"memory://{secrets.token_hex(8)}")
    create_record(store, record)
    Journal(store, "cli", clock).note(RunLaunched(host="laptop"))
    return store


def make_conductor(store, clock, job="job-1", offers=(EAST, WEST)) -> Conductor:
    return Conductor(store, job, clock, lambda spec: offers)


def launch(conductor: Conductor, clock: HandClock) -> str:
    decision = conductor.decide()
    assert isinstance(decision, Launch)
    name, _ = conductor.launching(decision)
    conductor.came_up(name, clock.now(), zone=None)
    return name


def start_attempt(store, clock, launch: str, attempt: int = 1) -> Journal:
    journal = Journal(store, f"agent-{attempt}", clock)
    journal.note(
        AttemptStarted(
            attempt=attempt, launch=launch, world_size=2, step=0, manifest=None, host="node"
        )
    )
    return journal


def last_launch(conductor: Conductor):
    return conductor.state().launches[-1]


def test_a_store_without_a_run_is_refused(clock):
    with pytest.raises(UnknownRun):
        make_conductor(open_store("memory://nothing-here"), clock)


def test_the_region_just_lost_is_avoided_also_by_a_restarted_controller(store, clock):
    first = make_conductor(store, clock)
    launch(first, clock)
    first.gone(Loss())
    decision = make_conductor(store, clock).decide()
    assert isinstance(decision, Launch)
    assert decision.offer == WEST


@pytest.mark.parametrize(
    ("codes", "reason"),
    [
        ((), EndReason.NODE_LOST),
        ((AgentExit.PREEMPTED,), EndReason.PREEMPTED),
        ((0, AgentExit.HANG), EndReason.HANG),
        ((AgentExit.FAILED,), EndReason.TRAINING_FAILED),
        ((137,), EndReason.NODE_LOST),
        ((0,), EndReason.SUCCEEDED),
    ],
)
def test_without_the_agents_word_the_exit_codes_tell_how_a_launch_ended(
    store, clock, codes, reason
):
    conductor = make_conductor(store, clock)
    start_attempt(store, clock, launch(conductor, clock))
    conductor.gone(Loss(exit_codes=codes))
    assert last_launch(conductor).reason is reason


def test_the_agents_word_counts_more_than_exit_codes(store, clock):
    conductor = make_conductor(store, clock)
    agent = start_attempt(store, clock, launch(conductor, clock))
    agent.note(AttemptEnded(attempt=1, reason=EndReason.DRAINED, step=3))
    conductor.gone(Loss(exit_codes=(AgentExit.PREEMPTED,)))
    assert last_launch(conductor).reason is EndReason.DRAINED


def test_a_failure_before_any_agent_spoke_is_one_of_the_setup(store, clock):
    conductor = make_conductor(store, clock)
    launch(conductor, clock)
    conductor.gone(Loss(has_failed=True, exit_codes=(1,)))
    assert last_launch(conductor).reason is EndReason.SETUP_FAILED


def test_a_node_that_lost_the_store_before_it_claimed_is_no_failed_setup(store, clock):
    conductor = make_conductor(store, clock)
    launch(conductor, clock)
    conductor.gone(Loss(has_failed=True, exit_codes=(AgentExit.PREEMPTED,)))
    assert last_launch(conductor).reason is EndReason.NODE_LOST


class OneAnswerLost:
    """A store that does the next write of facts and loses the reply."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.loses_next = False

    def __getattr__(self, name):
        return getattr(self._store, name)

    def create(self, key: str, data: bytes) -> str:
        version = self._store.create(key, data)
        if self.loses_next:
            self.loses_next = False
            raise StoreUnreachable(f"{key}: no answer", "Try again.")
        return version


def test_a_launch_asked_for_again_after_a_lost_reply_is_one_launch(store, clock):
    losing = OneAnswerLost(store)
    conductor = make_conductor(losing, clock)
    decision = conductor.decide()
    losing.loses_next = True
    with pytest.raises(StoreUnreachable):
        conductor.launching(decision)
    name, _ = conductor.launching(decision)
    assert [one.launch for one in conductor.state().launches] == [name]
    losing.loses_next = True
    with pytest.raises(StoreUnreachable):
        conductor.refused(name, EndReason.NO_CAPACITY, None)
    conductor.refused(name, EndReason.NO_CAPACITY, None)
    ends = [one.body for one in LedgerReader(store).read() if isinstance(one.body, LaunchEnded)]
    assert len(ends) == 1


def test_a_failure_whose_status_cannot_be_read_is_a_lost_node(store, clock):
    conductor = make_conductor(store, clock)
    start_attempt(store, clock, launch(conductor, clock))
    conductor.gone(Loss(has_failed=True))
    assert last_launch(conductor).reason is EndReason.NODE_LOST


def test_what_is_killed_on_a_node_that_answers_has_failed(store, clock):
    conductor = make_conductor(store, clock)
    start_attempt(store, clock, launch(conductor, clock))
    conductor.gone(Loss(has_failed=True, exit_codes=(0, 137)))
    assert last_launch(conductor).reason is EndReason.TRAINING_FAILED
    again = launch(conductor, clock)
    start_attempt(store, clock, again, attempt=2)
    conductor.gone(Loss(exit_codes=(0, 137)))
    assert last_launch(conductor).reason is EndReason.NODE_LOST


def test_nodes_that_were_still_up_are_billed_until_we_ended_them(store, clock):
    conductor = make_conductor(store, clock)
    start_attempt(store, clock, launch(conductor, clock))
    clock.sleep(timedelta(minutes=80))  # nobody watched, and nothing was heard
    restarted = make_conductor(store, clock)
    restarted.gone(Loss(has_failed=True, exit_codes=(AgentExit.PREEMPTED,)))
    ended = last_launch(restarted)
    assert not ended.was_watched
    assert ended.ended_at - ended.ready_at > timedelta(minutes=79)


def test_a_setup_that_fails_again_and_again_ends_the_run_and_never_buys_on_demand(store, clock):
    on_demand = make_offer("us-east-1", usd="30", market=EAST.market.ON_DEMAND)
    conductor = make_conductor(store, clock, offers=(EAST, WEST, on_demand))
    decision = conductor.decide()
    while isinstance(decision, Launch):
        assert decision.offer.market is EAST.market
        name = launch(conductor, clock)
        conductor.refused(name, EndReason.SETUP_FAILED, "pip: no such wheel")
        decision = conductor.decide()
    assert isinstance(decision, Stop)
    assert decision.reason is StopReason.TOO_MANY_FAILURES


def test_refusals_everywhere_make_it_wait_and_say_so_once(store, clock, record):
    conductor = make_conductor(store, clock)
    for _ in range(2):
        decision = conductor.decide()
        assert isinstance(decision, Launch)
        name, _ = conductor.launching(decision)
        conductor.refused(name, EndReason.NO_CAPACITY, "InsufficientInstanceCapacity")
    decision = conductor.decide()
    assert isinstance(decision, Wait)
    for _ in range(3):
        conductor.waiting(decision)
    assert [made.action for _, made in conductor.state().decisions].count("wait") == 1


def test_two_jobs_for_one_launch_are_one(store, clock):
    first, second = make_conductor(store, clock), make_conductor(store, clock, job="job-2")
    assert isinstance(first.decide(), Launch)
    with pytest.raises(Superseded):
        second.decide()
    second.finish(Stop(reason=StopReason.REQUESTED, why="it is over"))
    assert second.state().ended is None  # it is the first job's to tell
    assert isinstance(make_conductor(store, clock).decide(), Launch)  # also after a restart


def test_a_job_whose_run_was_launched_again_elsewhere_leaves_it_alone(store, clock):
    old = make_conductor(store, clock)
    launch(old, clock)
    clock.sleep(timedelta(hours=1))
    Journal(store, "cli", clock).note(RunLaunched(host="laptop"))
    new = make_conductor(store, clock, job="job-2")
    assert isinstance(new.decide(), Keep)
    with pytest.raises(Superseded):
        old.decide()


def test_a_job_that_is_over_does_not_take_up_the_next_launch_of_the_run(store, clock):
    old = make_conductor(store, clock)
    launch(old, clock)
    old.gone(Loss(exit_codes=(AgentExit.STOPPED,)))
    old.finish(Stop(reason=StopReason.REQUESTED, why="a stop was requested"))
    clock.sleep(timedelta(seconds=5))
    Journal(store, "cli", clock).note(RunLaunched(host="laptop"))  # resumed, and not yet submitted
    old.gone(Loss())
    with pytest.raises(Superseded):
        old.decide()
    old.finish(Stop(reason=StopReason.REQUESTED, why="the managed job is over"))
    assert isinstance(make_conductor(store, clock, job="job-2").decide(), Launch)


def test_a_job_carries_out_the_launch_that_it_was_submitted_for(store, clock):
    launched_at = make_conductor(store, clock).state().launched_at
    clock.sleep(timedelta(hours=1))
    Journal(store, "cli", clock).note(RunLaunched(host="laptop"))
    late = Conductor(store, "job-1", clock, lambda spec: (EAST,), launched_at)
    with pytest.raises(Superseded):
        late.decide()


def test_a_controller_that_was_away_for_days_bills_no_days(store, clock):
    conductor = make_conductor(store, clock)
    start_attempt(store, clock, launch(conductor, clock))
    beat(store, Heartbeat(writer="agent-1", at=clock.now(), host="node", pid=1, attempt=1))
    heard_at = clock.at
    clock.sleep(timedelta(days=3))
    restarted = make_conductor(store, clock)
    restarted.gone(Loss(detail="its controller is gone"))
    ended_at = last_launch(restarted).ended_at
    assert ended_at is not None
    assert timedelta() < ended_at - heard_at < timedelta(minutes=30)
    assert isinstance(restarted.decide(), Launch)  # and not a stop for want of budget


@pytest.fixture
def going_on(clock, monkeypatch):
    """Have monotonic time go by with the clock."""
    monkeypatch.setattr("time.monotonic", lambda: (clock.at - START).total_seconds())


@pytest.mark.usefixtures("going_on")
def test_nodes_that_were_watched_are_billed_as_long_as_they_were_seen(store, clock):
    """Their agent was silent throughout: what it could have been up by itself says nothing."""
    conductor = make_conductor(store, clock)
    start_attempt(store, clock, launch(conductor, clock))
    for _ in range(60):
        conductor.decide()
        clock.sleep(timedelta(minutes=1))
    conductor.gone(Loss())
    launched = last_launch(conductor)
    assert timedelta(minutes=58) < launched.ended_at - launched.ready_at < timedelta(minutes=61)


def test_a_catalog_without_what_may_be_taken_leaves_the_offers_of_the_launch(store, clock, record):
    on_demand = make_offer("us-east-1", usd="30", market=EAST.market.ON_DEMAND)
    amended = {"limits": {"budget_usd": "100", "market": "spot"}}
    by = AmendedBy.RESUME
    Journal(store, "cli", clock).note(RunAmended(host="laptop", by=by, sections=amended))
    decision = make_conductor(store, clock, offers=(on_demand,)).decide()
    assert isinstance(decision, Launch)
    assert decision.offer == record.offers[0].to_offer()


def test_a_fenced_job_does_not_end_the_run_of_the_attempt_that_fenced_it(store, clock):
    conductor = make_conductor(store, clock)
    start_attempt(store, clock, launch(conductor, clock))
    conductor.gone(Loss(has_failed=True, exit_codes=(AgentExit.FENCED,)))
    conductor.finish(Stop(reason=StopReason.REQUESTED, why="the managed job is FAILED"))
    assert conductor.state().ended is None


def test_a_laptop_whose_clock_is_ahead_hides_no_refusal(store, clock):
    clock.at -= timedelta(minutes=30)
    conductor = make_conductor(store, clock, offers=(EAST,))
    decision = conductor.decide()
    assert isinstance(decision, Launch)
    name, _ = conductor.launching(decision)
    conductor.refused(name, EndReason.NO_CAPACITY, None)
    assert isinstance(conductor.decide(), Wait)
    conductor.came_up(launch_anew(conductor, clock), clock.now(), zone=None)
    conductor.ask_to_leave(Drain(why="spot is back"))
    (request,) = read_requests(store)
    assert request.is_meant_for(conductor.state().launched_at)


def launch_anew(conductor: Conductor, clock: HandClock) -> str:
    clock.sleep(timedelta(minutes=20))
    decision = conductor.decide()
    assert isinstance(decision, Launch)
    return conductor.launching(decision)[0]


def test_a_superseded_job_closes_only_its_own_launches(store, clock):
    old = make_conductor(store, clock)
    launch(old, clock)
    clock.sleep(timedelta(hours=1))
    Journal(store, "cli", clock).note(RunLaunched(host="laptop"))
    new = make_conductor(store, clock, job="job-2")
    new.decide()
    new.gone(Loss())  # what was left of the old job's
    theirs = launch(new, clock)
    old.gone(Loss())
    assert [one.launch for one in new.state().open_launches] == [theirs]


def test_a_requested_stop_is_asked_of_the_nodes_once_and_ends_the_run(store, clock):
    conductor = make_conductor(store, clock)
    start_attempt(store, clock, launch(conductor, clock))
    launched_at = conductor.state().launched_at
    Journal(store, "cli", clock).note(StopRequested(host="laptop", launched_at=launched_at))
    decision = conductor.decide()
    assert isinstance(decision, Stop)
    for _ in range(2):
        conductor.ask_to_leave(decision)
    assert [request.kind for request in read_requests(store)] == [RequestKind.STOP]
    conductor.gone(Loss(exit_codes=(AgentExit.STOPPED,)))
    again = conductor.decide()
    assert isinstance(again, Stop)
    conductor.finish(again)
    ended = conductor.state().ended
    assert ended is not None
    assert ended.state is FinalState.STOPPED


def test_a_met_drain_request_does_not_reach_the_next_node(store, clock):
    conductor = make_conductor(store, clock)
    launch(conductor, clock)
    conductor.ask_to_leave(Drain(why="spot is back"))
    assert read_requests(store)
    conductor.gone(Loss(exit_codes=(AgentExit.PREEMPTED,)))
    launch(make_conductor(store, clock), clock)
    assert not read_requests(store)


def test_the_heartbeat_keeps_its_name_over_restarts(store, clock):
    for _ in range(2):
        make_conductor(store, clock).beat()
    assert [beat.writer for beat in read_heartbeats(store)] == [owner_of("job-1")]


def test_the_bill_starts_when_the_nodes_came_up_and_names_the_zone_that_was_given(store, clock):
    conductor = make_conductor(store, clock)
    decision = conductor.decide()
    assert isinstance(decision, Launch)
    name, _ = conductor.launching(decision)
    up_at = clock.now()
    clock.sleep(timedelta(minutes=2))
    conductor.came_up(name, up_at, zone="us-east-1f")
    seen = last_launch(conductor)
    assert (seen.ready_at, seen.offer.zone) == (up_at, "us-east-1f")


def test_prices_of_today_are_asked_and_frozen_in_the_launch(store, clock):
    cheaper = make_offer("us-west-2", usd="3")
    conductor = make_conductor(store, clock, offers=(EAST, cheaper))
    decision = conductor.decide()
    assert isinstance(decision, Launch)
    _, quoted = conductor.launching(decision)
    assert quoted.usd_per_hour == cheaper.usd_per_hour


def test_the_price_of_nodes_that_are_up_is_asked_again_each_hour(store, clock):
    asked = []

    def today(spec):
        asked.append(clock.at)
        now = replace(EAST, usd_per_hour=Decimal(8 + len(asked)))
        return PriceTable(offers=(WEST, now), source="a test", as_of=None)

    conductor = Conductor(store, "job-1", clock, lambda spec: (EAST, WEST), ask_prices=today)
    launch(conductor, clock)
    for _ in range(13):
        conductor.decide()
        conductor.sample_price()
        clock.sleep(timedelta(minutes=10))
    # Another controller's process goes on where this one was.
    again = Conductor(store, "job-1", clock, lambda spec: (EAST, WEST), ask_prices=today)
    again.decide()
    again.sample_price()
    seen = last_launch(again)
    assert [price.usd_per_hour for price in seen.prices] == [Decimal(9), Decimal(10)]
    assert len(asked) == 2
    assert seen.offer.usd_per_hour == EAST.usd_per_hour  # the quote stands
    charged = charge(again.state(), seen, seen.ready_at + timedelta(hours=3))
    assert abs(charged.usd - (8 + 9 + 10)) < Decimal("0.01")
    assert abs(charged.sampled_usd - (9 + 10)) < Decimal("0.01")


def test_prices_that_do_not_name_the_nodes_change_nothing(store, clock):
    table = PriceTable(offers=(WEST,), source="a test", as_of=None)
    conductor = Conductor(store, "job-1", clock, lambda spec: (EAST,), ask_prices=lambda _: table)
    launch(conductor, clock)
    clock.sleep(timedelta(hours=2))
    conductor.decide()
    conductor.sample_price()
    assert last_launch(conductor).prices == ()


def test_the_controllers_machine_is_billed_from_the_launch_once(store, clock):
    machine = Machine(
        cloud="aws", region="us-east-1", instance_type="m6i.xlarge", usd_per_hour=Decimal("0.192")
    )
    for _ in range(2):
        make_conductor(store, clock).note_controller(machine)
    state = make_conductor(store, clock).state()
    assert [one.instance_type for one in state.controllers] == ["m6i.xlarge"]
    hour_later = state.launched_at + timedelta(hours=1)
    assert bill(state, hour_later).controller == Decimal("0.192")
    # A SkyPilot API server that serves as the controller is there without any run.
    make_conductor(store, clock).note_controller(None)
    assert len(make_conductor(store, clock).state().controllers) == 1


@pytest.mark.usefixtures("going_on")
def test_nodes_whose_agent_is_silent_are_given_up_and_ended_by_us(store, clock):
    conductor = make_conductor(store, clock)
    name = launch(conductor, clock)
    assert conductor.silence() is None
    start_attempt(store, clock, name)
    beat(store, Heartbeat(writer="agent-1", at=clock.now(), host="node", pid=1, attempt=1))
    silence, num_looks = None, 0
    while silence is None:
        conductor.decide()
        silence = conductor.silence()
        clock.sleep(timedelta(seconds=60))
        num_looks += 1
    assert SILENT_AGENT_S < 60 * num_looks < SILENT_AGENT_S + 300
    conductor.gone(replace(silence, is_ours=True))
    ended = last_launch(conductor)
    assert (ended.reason, ended.terminated_by) == (EndReason.NODE_LOST, TerminatedBy.US)
    assert ended.detail == silent_detail(SILENT_AGENT_S)
    conductor.decide()
    assert conductor.silence() is None


@pytest.mark.usefixtures("going_on")
def test_nodes_whose_agent_never_speaks_count_as_not_set_up(store, clock):
    conductor = make_conductor(store, clock)
    launch(conductor, clock)
    conductor.decide()
    clock.sleep(timedelta(seconds=MUTE_AGENT_S - 60))
    conductor.decide()
    assert conductor.silence() is None
    clock.sleep(timedelta(seconds=120))
    conductor.decide()
    silence = conductor.silence()
    assert silence is not None
    conductor.gone(replace(silence, is_ours=True))
    ended = last_launch(conductor)
    assert (ended.reason, ended.terminated_by) == (EndReason.SETUP_FAILED, TerminatedBy.US)
    assert ended.ended_at - ended.ready_at > timedelta(seconds=MUTE_AGENT_S)
