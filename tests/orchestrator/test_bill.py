"""Cost and goodput: every dollar and every second once."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.attempts import EndReason, StopReason
from orchestrator.charges import charge
from orchestrator.cost import bill, on_demand_usd
from orchestrator.goodput import Bucket, account
from orchestrator.ledger.facts import (
    AttemptStarted,
    CheckpointDeleted,
    CheckpointRestored,
    FinalState,
    LaunchEnded,
    LaunchReady,
    LaunchStarted,
    QuotedOffer,
    TerminatedBy,
)
from orchestrator.ledger.fold import fold
from orchestrator.ledger.measurements import Measured
from orchestrator.lineage import lineage
from orchestrator.outlook import hours_so_far
from orchestrator.report import cost_document
from orchestrator.standing import eta_at, spare
from orchestrator.view import RunView
from tests.orchestrator.histories import (
    Ledger,
    at,
    make_controller,
    make_offer,
    make_record,
    measured_phase,
    measured_step,
)
from train.spool import Commit, PhaseName, Resumed, RolledBack

RECORD = make_record()  # 1 wall second is 1 market minute


def make_resumed(step, second):
    return Resumed(at=at(second), step=step, manifest="m", num_bytes=1, seconds=0)


def test_compute_is_price_times_market_time_from_ready_to_gone():
    ledger = Ledger()
    ledger.launch("one", 0, until=61, attempt=1)
    state = fold(RECORD, ledger.entries)
    assert bill(state, at(100)).compute == Decimal(10)  # 60 s = 1 h at $10


def test_running_node_is_billed_until_now():
    ledger = Ledger()
    ledger.launch("one", 0, attempt=1)
    assert bill(fold(RECORD, ledger.entries), at(31)).compute == Decimal(5)


def test_launch_without_capacity_costs_nothing():
    ledger = Ledger()
    ledger.launch("one", 0, until=50, reason=EndReason.NO_CAPACITY)
    parts = bill(fold(RECORD, ledger.entries), at(60))
    assert parts.total == parts.requests == Decimal("0.000010")  # its facts' PUTs


def test_nodes_that_never_got_to_training_are_billed_as_failed_launches():
    ledger = Ledger()
    ledger.launch("one", 0, until=31, reason=EndReason.SETUP_FAILED)
    ledger.launch("two", 40, until=101, attempt=1)
    parts = bill(fold(RECORD, ledger.entries), at(200))
    assert (parts.failed_launches, parts.compute) == (Decimal(5), Decimal(10))


def test_deleted_checkpoint_stops_costing():
    kept, deleted = Ledger(), Ledger()
    kept.commit(0, attempt=1, step=5, num_bytes=10**12)
    deleted.entries += kept.entries
    deleted.add(30, CheckpointDeleted(checkpoint="checkpoints/step-00000005.a001"))
    full = bill(fold(RECORD, kept.entries), at(60)).storage
    half = bill(fold(RECORD, deleted.entries), at(60)).storage
    assert full == pytest.approx(2 * half, abs=Decimal("0.00001"))
    assert full > 0


@pytest.mark.parametrize(
    ("offer", "usd"),
    [
        (make_offer("us-east-1"), "0"),
        (make_offer("us-west-2"), "0.2"),
        (make_offer("us-central1", cloud="gcp"), "0.9"),
    ],
)
def test_restoring_elsewhere_pays_egress_by_distance(offer, usd):
    ledger = Ledger()
    ledger.launch("one", 0, attempt=1, offer=offer)
    restored = CheckpointRestored(attempt=1, step=5, num_bytes=10 * 10**9)
    ledger.add(3, restored, writer="agent-1")
    assert bill(fold(RECORD, ledger.entries), at(9)).egress == Decimal(usd)


def test_a_move_pays_egress_once_and_saves_near_the_nodes_pay_none():
    near = {"aws/us-west-2": "s3://west"}
    record = make_record(checkpoints={"stores": near})
    ledger = Ledger()
    ledger.launch("one", 0, until=5, attempt=1)
    ledger.commit(3, attempt=1, step=5, num_bytes=10 * 10**9)
    ledger.launch("two", 5, attempt=2, offer=make_offer("us-west-2"), step=5)
    restored = CheckpointRestored(attempt=2, step=5, num_bytes=10 * 10**9)
    ledger.add(8, restored, writer="agent-2")
    for second, step in enumerate((5, 6, 7), start=9):
        ledger.commit(second, attempt=2, step=step, num_bytes=10 * 10**9, place="aws/us-west-2")
    assert bill(fold(record, ledger.entries), at(20)).egress == Decimal("0.2")


def test_the_bill_stands_when_the_stores_change_later():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, attempt=1, offer=make_offer("us-west-2"))
    ledger.commit(3, attempt=1, step=5, num_bytes=10 * 10**9, place="aws/us-west-2")
    record = make_record(checkpoints={"stores": {"aws/us-west-2": "file:///west"}})
    before = bill(fold(record, ledger.entries), at(9)).egress
    ledger.amended(8, checkpoints={"stores": {}})
    assert bill(fold(record, ledger.entries), at(9)).egress == before == 0


def test_on_demand_equivalent_counts_productive_time_and_one_startup():
    ledger = Ledger()
    ledger.launch("one", 0, until=61, attempt=1)
    ledger.launch("two", 61, until=122, attempt=2)
    state = fold(RECORD, ledger.entries)
    half_hour = timedelta(seconds=30)
    useful = {"one": half_hour + timedelta(seconds=6), "two": half_hour}
    assert on_demand_usd(state, useful) == Decimal(33)


def test_steps_trained_again_count_once_as_lost_work():
    ledger = Ledger()
    ledger.launch("one", 0, until=20, attempt=1)
    ledger.commit(10, attempt=1, step=2)
    ledger.launch("two", 20, until=40, attempt=2, step=2, reason=EndReason.SUCCEEDED)
    ledger.commit(36, attempt=2, step=5)
    ledger.ended(40)
    measured = [
        *(measured_step(1, step, 5 + 2 * step, seconds=2.0) for step in range(1, 6)),
        measured_phase(2, PhaseName.RESTORE, 24, 1.0),
        *(measured_step(2, step, 23 + 2 * (step - 2), seconds=2.0) for step in range(3, 6)),
    ]
    goodput = account(fold(RECORD, ledger.entries), measured, at(100))
    seconds = {bucket: time.total_seconds() for bucket, time in goodput.seconds().items()}
    assert seconds[Bucket.PRODUCTIVE] == 2 * 2 + 3 * 2
    # steps 3 to 5 of the first attempt, and the 3 s it went on after its last record
    assert seconds[Bucket.LOST_WORK] == 3 * 2 + 3
    assert goodput.wall == timedelta(seconds=40)


def test_steps_that_were_rolled_back_are_lost_work():
    ledger = Ledger()
    ledger.launch("one", 0, until=20, attempt=1, reason=EndReason.SUCCEEDED)
    ledger.commit(19, attempt=1, step=4)
    ledger.ended(20)
    rolled_back = RolledBack(at=at(10), step=4, to_step=2)
    measured = [
        *(measured_step(1, step, 5 + step) for step in range(1, 5)),
        Measured(attempt=1, record=rolled_back),
        *(measured_step(1, step, 10 + step) for step in (3, 4)),
    ]
    seconds = account(fold(RECORD, ledger.entries), measured, at(20)).seconds()
    assert seconds[Bucket.PRODUCTIVE] == timedelta(seconds=4)
    assert seconds[Bucket.LOST_WORK] == timedelta(seconds=2)


def test_a_roll_back_takes_back_what_earlier_attempts_did():
    ledger = Ledger()
    ledger.launch("one", 0, until=20, attempt=1, reason=EndReason.PREEMPTED)
    ledger.launch("two", 20, until=60, attempt=2, step=4, reason=EndReason.SUCCEEDED)
    ledger.commit(59, attempt=2, step=6)
    ledger.ended(60)
    measured = [
        *(measured_step(1, step, step) for step in range(1, 5)),
        Measured(attempt=2, record=make_resumed(4, 25)),
        Measured(attempt=2, record=RolledBack(at=at(30), step=4, to_step=2)),
        *(measured_step(2, step, 30 + step) for step in range(3, 7)),
    ]
    seconds = account(fold(RECORD, ledger.entries), measured, at(60)).seconds()
    assert seconds[Bucket.PRODUCTIVE] == timedelta(seconds=6)
    # Steps 3 and 4 of the first attempt, and what it did after its last record.
    assert seconds[Bucket.LOST_WORK] == timedelta(seconds=2 + 15)


def test_what_was_given_up_counts_again_when_it_is_resumed():
    ledger = Ledger()
    ledger.launch("one", 0, until=20, attempt=1, reason=EndReason.PREEMPTED)
    ledger.launch("two", 20, until=60, attempt=2, step=4, reason=EndReason.SUCCEEDED)
    ledger.ended(60)
    commit = Commit(at=at(6), step=4, manifest="m", num_bytes=1, num_objects=1, seconds=0.5)
    measured = [
        *(measured_step(1, step, step) for step in range(1, 5)),
        Measured(attempt=1, record=commit),
        Measured(attempt=1, record=RolledBack(at=at(8), step=4, to_step=2)),
        measured_step(1, 3, 9),
        Measured(attempt=2, record=make_resumed(4, 25)),
        measured_step(2, 5, 30),
    ]
    assert sorted(lineage(measured)) == [0, 1, 2, 3, 8]


def test_a_run_that_ends_after_a_roll_back_has_what_its_last_checkpoint_has():
    ledger = Ledger()
    ledger.launch("one", 0, until=30, attempt=1, reason=EndReason.STOPPED)
    ledger.commit(8, attempt=1, step=6)
    ledger.ended(30)
    commit = Commit(at=at(8), step=6, manifest="m", num_bytes=1, num_objects=1, seconds=0.5)
    measured = [
        *(measured_step(1, step, step) for step in range(1, 7)),
        Measured(attempt=1, record=commit),
        Measured(attempt=1, record=RolledBack(at=at(9), step=6, to_step=2)),
        *(measured_step(1, step, 10 + step) for step in (3, 4, 5)),
    ]
    seconds = account(fold(RECORD, ledger.entries), measured, at(30)).seconds()
    assert seconds[Bucket.PRODUCTIVE] == timedelta(seconds=6)
    assert seconds[Bucket.LOST_WORK] == timedelta(seconds=3)


def test_uncommitted_steps_of_a_stopped_run_are_lost():
    ledger = Ledger()
    ledger.launch("one", 0, until=20, attempt=1, reason=EndReason.STOPPED)
    ledger.commit(8, attempt=1, step=1)
    measured = [measured_step(1, 1, 5), measured_step(1, 2, 6)]
    seconds = account(fold(RECORD, ledger.entries), measured, at(20)).seconds()
    assert seconds[Bucket.PRODUCTIVE] == timedelta(seconds=1)
    assert seconds[Bucket.LOST_WORK] == timedelta(seconds=1)


def test_time_without_nodes_is_waiting():
    ledger = Ledger()
    ledger.launch("one", 30, until=40)
    seconds = account(fold(RECORD, ledger.entries), [], at(60)).seconds()
    assert seconds[Bucket.WAITING] == timedelta(seconds=50)
    assert seconds[Bucket.STARTUP] == timedelta(seconds=10)


moments = st.floats(-30, 300, allow_nan=False)
lengths = st.floats(0, 50, allow_nan=False)


@given(
    st.lists(st.tuples(moments, lengths, st.booleans()), max_size=5),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9), moments, lengths), max_size=20),
    st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from(PhaseName), moments, lengths), max_size=8
    ),
    moments,
)
def test_seconds_add_up_to_the_wall_time_and_parts_to_the_total(launches, steps, phases, now):
    ledger = Ledger()
    for number, (start, length, is_open) in enumerate(launches, start=1):
        until = None if is_open else start + length
        ledger.launch(f"launch-{number}", start, until=until, attempt=number, step=number)
        ledger.commit(start + length, attempt=number, step=number)
    measured = [measured_step(a, s, start, seconds=length) for a, s, start, length in steps]
    measured += [measured_phase(a, name, start, length) for a, name, start, length in phases]
    state = fold(RECORD, ledger.entries)
    goodput = account(state, measured, at(now))
    seconds = goodput.seconds()
    assert sum(seconds.values(), timedelta()) == goodput.wall
    assert all(time >= timedelta() for time in seconds.values())
    parts = bill(state, at(now))
    assert sum((getattr(parts, part.name) for part in fields(parts)), Decimal(0)) == parts.total
    assert all(getattr(parts, part.name) >= 0 for part in fields(parts))
    by_attempt = [charge(state, launch, at(now)).usd for launch in state.launches]
    assert sum(by_attempt, Decimal(0)) == parts.compute


def cost_of(ledger: Ledger, measured=(), seconds: float = 9_999, record=RECORD):
    state = fold(record, ledger.entries)
    view = RunView(state=state, measured=tuple(measured), heartbeats=(), as_of=at(seconds))
    return cost_document(view), view


REAL = make_record(infra=["aws"], local=None).model_copy(update={"simulated": False})
HOUR = 3600


def test_waiting_for_capacity_is_no_start_up_and_saves_nothing():
    """Before, an hour of asking in vain was start-up time, and priced on demand as if saved."""
    ledger = Ledger()
    ledger.launch("vain", 0, until=HOUR, reason=EndReason.NO_CAPACITY)
    ledger.launch("one", HOUR, until=2 * HOUR + 61, attempt=1, reason=EndReason.SUCCEEDED)
    ledger.commit(2 * HOUR + 60, attempt=1, step=1)
    steps = [measured_step(1, 1, HOUR + 61, seconds=HOUR)]
    cost, _ = cost_of(ledger, steps, record=REAL)
    assert cost["seconds"]["waiting"] >= HOUR
    assert cost["seconds"]["startup"] == 61
    # One hour and 60 s of start-up on nodes that are up, at $30.
    assert cost["on_demand_usd"] == pytest.approx(30 * (HOUR + 60) / HOUR, abs=1e-3)


def test_time_until_nodes_come_up_costs_nothing_on_demand_either():
    ledger = Ledger()
    quoted = QuotedOffer.quote(make_offer())
    ledger.add(0, LaunchStarted(launch="one", offer=quoted, num_nodes=1))
    ledger.add(2 * HOUR, LaunchReady(launch="one"))
    started = AttemptStarted(
        attempt=1, launch="one", world_size=2, step=0, manifest=None, host="node"
    )
    ledger.add(2 * HOUR + 1, started, writer="agent-1")
    cost, _ = cost_of(
        ledger, [measured_step(1, 1, 2 * HOUR + 60, seconds=HOUR)], 3 * HOUR + 60, REAL
    )
    assert cost["on_demand_usd"] == pytest.approx(30 * (HOUR + 60) / HOUR, abs=1e-3)


def test_steps_whose_records_were_lost_with_their_node_count_as_trained():
    ledger = Ledger()
    ledger.launch("one", 0, until=100, attempt=1, reason=EndReason.SUCCEEDED)
    ledger.commit(99, attempt=1, step=10)
    ledger.ended(101)
    cost, view = cost_of(ledger, [measured_step(1, step, 5 + step) for step in range(1, 7)])
    total = float(view.parts.total)
    assert cost["usd_per_thousand_steps"] == pytest.approx(total / 10 * 1_000)
    assert cost["usd_per_million_tokens"] == pytest.approx(total / (10 * 100) * 1e6)


def test_a_controller_is_not_billed_beside_the_one_that_follows_it():
    ledger = Ledger()
    ledger.launched()
    seen = make_controller(0, "0.6")
    ledger.add(10, seen)
    ledger.launched(HOUR)  # the first one crashed, and never wrote its end
    ledger.add(HOUR + 10, seen.model_copy(update={"launched_at": at(HOUR)}))
    ledger.ended(2 * HOUR)
    controller = bill(fold(REAL, ledger.entries), at(9 * HOUR)).controller
    assert controller == Decimal("0.6") * 2 + Decimal("0.1")  # two hours and ten minutes


def test_a_stop_of_days_does_not_put_the_deadline_at_risk():
    record = make_record(
        infra=["aws"], local=None, limits={"budget_usd": 100, "deadline": "200h"}
    ).model_copy(update={"simulated": False})
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, until=HOUR, attempt=1, reason=EndReason.STOPPED)
    ledger.commit(HOUR - 1, attempt=1, step=5)
    ledger.ended(HOUR, FinalState.STOPPED, StopReason.REQUESTED, "asked")
    ledger.launched(150 * HOUR)
    ledger.launch("two", 150 * HOUR, attempt=2, step=5)
    _, view = cost_of(ledger, (), 150 * HOUR + 60, record)
    eta = eta_at(view)
    assert eta is not None
    assert eta < at(152 * HOUR)
    spare_time = spare(view)
    assert spare_time is not None
    assert spare_time > timedelta(hours=47)
    assert hours_so_far(view) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("minutes", [-10, 10])
def test_an_agents_wrong_clock_makes_no_work_lost(minutes):
    skew = minutes * 60
    ledger = Ledger()
    quoted = QuotedOffer.quote(make_offer())
    ledger.add(0, LaunchStarted(launch="one", offer=quoted, num_nodes=1))
    ledger.add(60, LaunchReady(launch="one"))
    started = AttemptStarted(
        attempt=1, launch="one", world_size=2, step=0, manifest=None, host="node"
    )
    ledger.add(60 + skew, started, writer="agent-1")
    ledger.commit(1_660 + skew, attempt=1, step=16)
    by = TerminatedBy.CLOUD
    ledger.add(1_661, LaunchEnded(launch="one", reason=EndReason.PREEMPTED, terminated_by=by))
    steps = [
        measured_step(1, step, 60 + skew + 100 * (step - 1), seconds=100) for step in range(1, 17)
    ]
    cost, view = cost_of(ledger, steps, 1_700, REAL)
    assert cost["seconds"]["productive"] == 1_600
    assert cost["seconds"]["lost_work"] <= 1
    assert minutes > 0 or view.state.clock_skew == timedelta(minutes=10)


def test_of_two_launches_at_once_the_one_that_recorded_its_steps_is_believed():
    """A node that nobody can reach and its successor: what the dead one did is not known."""
    ledger = Ledger()
    ledger.launch("dead", 0, until=6_000, attempt=1, reason=EndReason.NODE_LOST)
    ledger.commit(2_990, attempt=1, step=5)
    ledger.launch("alive", 3_000, attempt=2, step=5)
    steps = [measured_step(1, step, 600 * (step - 1), seconds=600) for step in range(1, 6)]
    steps += [measured_step(2, step, 600 * (step - 1), seconds=600) for step in range(6, 11)]
    cost, _ = cost_of(ledger, steps, 6_000)
    assert cost["seconds"]["productive"] == 6_000
    assert cost["seconds"]["lost_work"] == 0


def test_of_several_words_on_one_launch_the_first_instants_count():
    ledger = Ledger()
    ledger.launch("one", 0, until=7 * HOUR, attempt=1, reason=EndReason.STOPPED)
    ledger.add(6 * HOUR, LaunchReady(launch="one"), writer="controller-2")
    by = TerminatedBy.US
    late = LaunchEnded(launch="one", reason=EndReason.NODE_LOST, terminated_by=by)
    ledger.add(9 * HOUR, late, writer="controller-2")
    state = fold(REAL, ledger.entries)
    assert bill(state, at(10 * HOUR)).compute == pytest.approx(Decimal(70), abs=Decimal("0.01"))
    assert state.launches[0].reason is EndReason.STOPPED
