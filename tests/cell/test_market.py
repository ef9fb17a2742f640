"""The market and the fleet, with instances that are nothing but their records."""

from __future__ import annotations

import itertools
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cell.fleet import EventLog, Fleet, address_of
from tests.cell.market import Market
from tests.cell.records import Launch, Nothing, Preempt, Reason, State, Terminate, Warn
from tests.cell.wire import ControlServer, Refused, ask


class Machine:
    """Runs until it is killed."""

    def __init__(self):
        self.has_ended = Event()

    def kill(self):
        self.has_ended.set()

    def wait(self):
        self.has_ended.wait()


@pytest.fixture
def machines():
    return {}


@pytest.fixture
def events(tmp_path_factory):
    """The log, where it outlives the test: threads that watch machines write of their ends."""
    return tmp_path_factory.mktemp("events") / "events.jsonl"


@pytest.fixture
def fleet(events, machines):
    def start(instance, public_key, boot_seconds):
        machines[instance.id] = Machine()
        return machines[instance.id]

    yield Fleet(start, EventLog(events), itertools.count(1).__next__)
    for machine in machines.values():
        machine.kill()


def launch(**changes):
    usual = {
        "cluster": "train-1-user",
        "cloud": "aws",
        "region": "us-east-1",
        "zones": ("us-east-1a", "us-east-1b"),
        "instance_type": "p4d.24xlarge",
        "spot": True,
        "count": 1,
        "user": "ubuntu",
        "public_key": "ssh-rsa AAAA",
    }
    return Launch.model_validate({**usual, **changes})


def only(fleet):
    (instance,) = fleet.instances()
    return instance


def test_the_closest_key_of_the_market_counts():
    market = Market(
        capacity={"aws/*/spot": 0, "aws/us-east-1/spot": 1, "aws/us-east-1a/spot": 2},
    )
    room = lambda *where: market.room([], *where)  # noqa: E731
    assert room("aws", "us-east-1", "us-east-1a", True) == 2
    assert room("aws", "us-east-1", "us-east-1b", True) == 1
    assert room("aws", "us-west-2", "us-west-2a", True) == 0
    assert room("aws", "us-west-2", "us-west-2a", False) > 1000
    assert room("gcp", "us-west1", "us-west1-b", True) > 1000


def test_a_zone_without_room_is_passed_over(fleet):
    fleet.set_market(Market(capacity={"aws/us-east-1a/spot": 0}))
    assert fleet.launch(launch())[0].zone == "us-east-1b"


def test_a_gang_gets_all_of_its_nodes_in_one_zone_or_none(fleet):
    fleet.set_market(Market(capacity={"aws/us-east-1a/spot": 1, "aws/us-east-1b/spot": 1}))
    with pytest.raises(Refused, match="no spot capacity"):
        fleet.launch(launch(count=2))
    assert fleet.instances() == []
    fleet.set_market(Market(capacity={"aws/us-east-1a/spot": 1}))
    gang = fleet.launch(launch(count=2))
    assert {one.zone for one in gang} == {"us-east-1b"}
    assert [one.head for one in gang] == [True, False]
    assert len({one.ip for one in gang}) == 2


def test_what_lives_takes_room_until_it_ends(fleet):
    fleet.set_market(Market(capacity={"aws/us-east-1/spot": 1}))
    fleet.launch(launch())
    with pytest.raises(Refused):
        fleet.launch(launch(cluster="other"))
    fleet.terminate(Terminate(cluster="train-1-user", cloud="aws"))
    assert only(fleet).reason is Reason.REQUESTED
    fleet.launch(launch(cluster="other"))


@pytest.mark.parametrize(
    ("cloud", "word"),
    [("aws", "InsufficientInstanceCapacity"), ("gcp", "ZONE_RESOURCE_POOL_EXHAUSTED")],
)
def test_a_refusal_has_the_clouds_own_word(fleet, cloud, word):
    fleet.set_market(Market(capacity={f"{cloud}/*/spot": 0}))
    with pytest.raises(Refused) as refused:
        fleet.launch(launch(cloud=cloud))
    assert refused.value.refusal.code == word


def test_an_instance_is_announced_its_preemption_and_lives_on_until_then(fleet, machines):
    fleet.launch(launch())
    (noticed,) = fleet.preempt(Preempt(target="train-1", capacity={"aws/us-east-1/spot": 0}))
    assert 119 < (noticed.deadline - noticed.launched).total_seconds() < 130
    assert only(fleet).is_alive
    assert fleet.market.capacity == {"aws/us-east-1/spot": 0}
    fleet.preempt(Preempt(target=noticed.id, notice_seconds=0))
    assert machines[noticed.id].has_ended.is_set()
    assert only(fleet).reason is Reason.PREEMPTED


def test_a_cluster_is_not_taken_for_one_whose_name_begins_alike(fleet):
    fleet.launch(launch(cluster="train-10-user"))
    assert fleet.preempt(Preempt(target="train-1", notice_seconds=0)) == []


def test_an_instance_boots_when_its_time_has_come_unless_it_was_taken_before(fleet):
    fleet.set_market(Market(boot_seconds=60))
    fleet.launch(launch())
    assert only(fleet).state is State.PENDING
    fleet.preempt(Preempt(target="train-1", notice_seconds=0))
    assert only(fleet).state is State.TERMINATED


def test_a_machine_that_ends_by_itself_is_a_crash(fleet, machines):
    fleet.launch(launch())
    machines[only(fleet).id].kill()
    while only(fleet).is_alive:
        pass
    assert only(fleet).reason is Reason.CRASHED


def test_a_warning_changes_nothing_but_what_the_node_is_told(fleet):
    before = fleet.launch(launch())[0]
    (after,) = fleet.warn(Warn(target=before.id))
    assert after.warned is not None
    assert after == before.model_copy(update={"warned": after.warned})


@given(st.lists(st.integers(1, 60_000), min_size=2, max_size=5, unique=True))
def test_no_two_instances_share_an_address(numbers):
    assert len({address_of(one) for one in numbers}) == len(numbers)


def test_requests_pass_the_socket_however_long_its_path_is(fleet, tmp_path):
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    routes = {"/instances": (Nothing, fleet.instances), "/launch": (Launch, fleet.launch)}
    server = ControlServer(folder / "control.sock", routes)
    assert ask(folder / "control.sock", "/instances", Nothing()) == b"[]"
    fleet.set_market(Market(capacity={"aws/*/spot": 0}))
    with pytest.raises(Refused, match="us-east-1a, us-east-1b"):
        ask(folder / "control.sock", "/launch", launch())
    server.shutdown()
    server.server_close()
