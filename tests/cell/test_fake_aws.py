"""The cell's EC2, as SkyPilot's autodown asks it from a node."""

from __future__ import annotations

import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from tests.cell.fake_aws import FakeAws
from tests.cell.fleet import EventLog, Fleet
from tests.cell.records import Launch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what SkyPilot and its libraries say when they are imported
    from sky.provision.aws.instance import terminate_instances

PROVIDER = {"region": "us-east-1", "security_group": {"GroupName": "sky-sg-1"}}


class Machine:
    """An instance without processes."""

    def __init__(self, *_):
        self._ended = Event()

    def kill(self):
        self._ended.set()

    def wait(self):
        self._ended.wait()


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    log = EventLog(tmp_path / "events.jsonl")
    fleet = Fleet(Machine, log, itertools.count(1).__next__)
    server = FakeAws(("127.0.0.1", 0), log, fleet)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "node")
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", f"http://127.0.0.1:{server.server_port}")
    yield fleet
    server.shutdown()
    server.server_close()


def test_a_cluster_of_two_ends_itself_and_no_other(fleet, tmp_path):
    _launch(fleet, "gang", 2)
    _launch(fleet, "other", 1)
    with ThreadPoolExecutor(1) as pool:  # SkyPilot keeps credentials by thread
        pool.submit(terminate_instances, "gang", PROVIDER, worker_only=True).result()
        assert [one.head for one in _living(fleet, "gang")] == [True]
        pool.submit(terminate_instances, "gang", PROVIDER).result()
    assert not _living(fleet, "gang")
    assert len(_living(fleet, "other")) == 1
    assert "TerminateInstances" in (tmp_path / "events.jsonl").read_text()


def _launch(fleet, cluster, count):
    fleet.launch(
        Launch(
            cluster=cluster,
            cloud="aws",
            region="us-east-1",
            zones=["us-east-1a"],
            instance_type="p4d.24xlarge",
            spot=True,
            user="ubuntu",
            count=count,
            public_key="",
        )
    )


def _living(fleet, cluster):
    return [one for one in fleet.instances() if one.cluster == cluster and one.is_alive]
