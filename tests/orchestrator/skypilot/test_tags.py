"""Tags by which a bill can be asked for one run: on every node, whatever cloud it is in.

SkyPilot's own resources are built in a process whose catalog is a few rows: it must fetch none.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from orchestrator.billing.tags import LAUNCH_TAG, RUN_TAG, tags_of
from orchestrator.spec import RUN_NAME

_ROWS = {
    "aws": "p4de.24xlarge,A100-80GB,8.0,96.0,1152.0,,40.0,10.0,us-east-1,us-east-1a,x86_64",
    "gcp": "a2-ultragpu-8g,A100-80GB,8.0,96.0,1360.0,,40.0,10.0,us-central1,us-central1-a,",
    "azure": "Standard_ND96amsr_A100_v4,A100-80GB,8.0,96.0,1900.0,,32.0,13.0,eastus,,",
}
_HEAD = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,"
    "AvailabilityZone,Arch"
)
_BUILD = """
import json, warnings
warnings.simplefilter("ignore")
import sky
from dataclasses import replace
from orchestrator.billing.tags import tags_of
from orchestrator.cloud.skypilot.offers import resources_for
from orchestrator.cloud.skypilot.task import build_task
from orchestrator.inputs import InputFile
from tests.orchestrator.histories import START, make_offer, make_record

record = make_record(infra=["aws", "gcp", "azure"], local=None, store="s3://bucket/runs")
wheel = InputFile(name="w.whl", sha256="0" * 64, size=1)
offers = [
    make_offer("us-east-1", zone="us-east-1a"),
    replace(
        make_offer("us-central1", cloud="gcp", zone="us-central1-a"), instance_type="a2-ultragpu-8g"
    ),
    replace(
        make_offer("eastus", cloud="azure", zone="eastus"),
        instance_type="Standard_ND96amsr_A100_v4",
    ),
]
task = build_task(record, wheel, offers, launched_at=START, has_strategy=False)
submitted = sky.Task.from_yaml_config(task.to_yaml_config())
launched = resources_for(offers[0], submitted.resources[0], tags_of(record.run_id, "demo-1-aa-bb"))
mine = sky.Resources(labels={"team": "nlp"})
print(json.dumps({
    "submitted": {str(one.cloud).lower(): one.labels for one in submitted.resources},
    "launched": launched.labels,
    "copied": launched.copy(use_spot=False).labels,
    "mine": resources_for(offers[0], mine, tags_of("demo-1")).labels,
}))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for cloud, row in _ROWS.items():
        folder = home / ".sky" / "catalogs" / "v8" / cloud
        folder.mkdir(parents=True)
        (folder / "vms.csv").write_text(f"{_HEAD}\n{row}\n")
        (folder / "images.csv").write_text("Tag,Region,OS,OSVersion,ImageId,CreationDate\n")
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "PYTHONPATH": ":".join(path for path in sys.path if path),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _BUILD], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_cloud_s_nodes_carry_the_run(built):
    assert built["submitted"] == {cloud: {RUN_TAG: "demo-1"} for cloud in ("aws", "gcp", "azure")}


def test_each_launch_adds_its_name_and_copies_keep_both(built):
    assert built["launched"] == {RUN_TAG: "demo-1", LAUNCH_TAG: "demo-1-aa-bb"}
    assert built["copied"] == built["launched"]


def test_tags_of_the_user_s_own_stay(built):
    assert built["mine"] == {"team": "nlp", RUN_TAG: "demo-1"}


def test_tags_of_the_longest_name_fit_the_strictest_cloud():
    longest = "n" * int(RUN_NAME.partition(",")[2].rstrip("}")) + "n"
    run_id = f"{longest}-12345678"
    launch = f"{run_id}-abcdef-123456"
    tags = tags_of(run_id, launch)
    assert tags[RUN_TAG] == run_id
    assert tags[LAUNCH_TAG].endswith("n-12345678-abcdef-123456")
    assert max(map(len, tags.values())) <= 63
