"""Which machine carries a run out and is paid for: a controller's own, never the API server's."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal

import pytest

from tests.metadata_service import metadata_service

_PRICES = """InstanceType,AcceleratorName,AcceleratorCount,vCPUs,Price,SpotPrice,Region
m6i.xlarge,,,4.0,0.192,0.05,us-east-1
m6i.xlarge,,,4.0,0.25,0.05,eu-west-1
"""
# As in a controller's process, where SkyPilot calls itself consolidated whatever it is.
_FIND = """
from orchestrator.cloud.skypilot.controller import find_machine
from sky.jobs import utils
assert utils.is_consolidation_mode()
found = find_machine()
print(None if found is None else (found.cloud, found.region, found.instance_type,
                                  str(found.usd_per_hour)))
"""


@pytest.fixture
def find(tmp_path):
    """Find the machine as a process with a home of its own does."""
    catalog = tmp_path / ".sky" / "catalogs" / "v8" / "aws"
    catalog.mkdir(parents=True)
    (catalog / "vms.csv").write_text(_PRICES)

    def run(**variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", _FIND],
            env={
                "HOME": str(tmp_path),
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": ":".join(sys.path),
                "IS_SKYPILOT_JOB_CONTROLLER": "true",
                "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
                # Nothing answers there.
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9",
                "GCE_METADATA_HOST": "127.0.0.1:9",
                "AZURE_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9",
                **variables,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("region", "usd"),
    [("eu-west-1", Decimal("0.25")), ("us-west-2", None)],
)
def test_a_controllers_machine_is_what_its_cloud_says_at_the_catalogs_price(find, region, usd):
    with metadata_service() as service:
        service.region, service.zone, service.is_spot = region, f"{region}a", False
        service.instance_type = "m6i.xlarge"
        found = find(AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://{service.host}")
    assert found == str(("aws", region, "m6i.xlarge", str(usd)))


def test_an_api_server_that_is_the_controller_is_not_the_runs(find, tmp_path):
    (tmp_path / ".sky" / ".jobs_controller_consolidation_reloaded_signal").touch()
    with metadata_service() as service:
        assert find(AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://{service.host}") == "None"


def test_a_machine_without_metadata_is_not_billed(find):
    assert find() == "None"
