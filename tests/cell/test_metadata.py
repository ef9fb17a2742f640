"""The cell's metadata service, as the project's own agent asks it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import httpx
import pytest

from orchestrator.agent.metadata import AwsNotices, AzureNotices, GoogleNotices
from tests.cell.metadata import MetadataServer
from tests.cell.records import Instance, State
from train.spool import Notice, Risk

NOW = datetime.now(timezone.utc).replace(microsecond=0)
SOON = NOW + timedelta(seconds=120)


class Service:
    """One node, whose address is this machine's."""

    def __init__(self):
        self.instance = Instance(
            id="i-1",
            cluster="train-1",
            cloud="aws",
            region="us-east-1",
            zone="us-east-1a",
            instance_type="p4d.24xlarge",
            spot=True,
            user="ubuntu",
            ip="127.0.0.1",
            head=True,
            state=State.RUNNING,
            launched=NOW,
        )
        self.server = MetadataServer(("127.0.0.1", 0), lambda ip: self.instance)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def become(self, **changes):
        self.instance = self.instance.model_copy(update=changes)

    def aws(self, path):
        wanted = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        token = httpx.put(f"{self.url}/latest/api/token", headers=wanted).text
        return httpx.get(f"{self.url}{path}", headers={"X-aws-ec2-metadata-token": token})


@pytest.fixture
def service():
    one = Service()
    yield one
    one.server.shutdown()
    one.server.server_close()


def test_aws_announces_a_preemption_and_before_it_the_risk(service):
    look = AwsNotices(service.url)
    assert look() is None
    service.become(warned=NOW)
    assert look() == Risk(noted_at=NOW)
    service.become(deadline=SOON)
    assert look() == Notice(deadline_at=SOON)


def test_aws_announces_nothing_to_an_on_demand_node(service):
    service.become(deadline=SOON, spot=False)
    assert AwsNotices(service.url)() is None
    assert service.aws("/latest/meta-data/instance-life-cycle").text == "on-demand"


def test_aws_says_where_the_node_is(service):
    assert service.aws("/latest/meta-data/placement/availability-zone").text == "us-east-1a"
    assert service.aws("/latest/meta-data/placement/region").text == "us-east-1"
    identity = service.aws("/latest/dynamic/instance-identity/document").json()
    assert identity["instanceType"] == "p4d.24xlarge"


def test_aws_answers_nobody_without_a_token(service):
    assert httpx.get(f"{service.url}/latest/meta-data/instance-id").status_code == 401
    given = {"X-aws-ec2-metadata-token": "made up"}
    reply = httpx.get(f"{service.url}/latest/meta-data/instance-id", headers=given)
    assert reply.status_code == 401
    assert httpx.put(f"{service.url}/latest/api/token").status_code == 400


def test_google_announces_a_preemption(service):
    service.become(cloud="gcp", zone="us-central1-a")
    look = GoogleNotices(service.url)
    assert look() is None
    service.become(deadline=SOON)
    assert isinstance(look(), Notice)
    path = f"{service.url}/computeMetadata/v1/instance/zone"
    assert httpx.get(path).status_code == 403
    reply = httpx.get(path, headers={"Metadata-Flavor": "Google"})
    assert reply.text.endswith("zones/us-central1-a")


def test_azure_announces_an_eviction(service):
    service.become(cloud="azure")
    look = AzureNotices(service.url)
    assert look() is None
    service.become(deadline=SOON)
    assert look() == Notice(deadline_at=SOON)


def test_a_node_hears_its_own_clouds_service_only(service):
    service.become(cloud="gcp")
    wanted = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    assert httpx.put(f"{service.url}/latest/api/token", headers=wanted).status_code == 404
    service.instance = None
    assert httpx.get(f"{service.url}/computeMetadata/v1/instance/zone").status_code == 404
