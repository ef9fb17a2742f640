"""Nodes end themselves when nobody is left to do it: SkyPilot's own autodown, as we ask for it.

Its code runs here as it does on a node, on what was asked of it, and against moto's EC2. That
enforces the actions of policies, and neither their resources nor their conditions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count

from orchestrator.attempts import AgentExit
from orchestrator.billing.tags import tags_of
from orchestrator.cloud.skypilot import node as skypilot_node
from orchestrator.cloud.skypilot.environment import LAUNCH
from orchestrator.cloud.skypilot.task import read_task
from orchestrator.iam import aws_policy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what SkyPilot and its libraries say when they are imported
    from sky.clouds.aws import DEFAULT_SECURITY_GROUP_NAME
    from sky.provision.aws.instance import terminate_instances
    from sky.provision.constants import TAG_RAY_CLUSTER_NAME

REGION, CLUSTER, GROUP = "us-east-1", "run-7-a", "sky-sg-1"
PROVIDER = {
    "region": REGION,
    "security_group": {"GroupName": GROUP, "ManagedBySkyPilot": True},
}
POLICY = aws_policy([], ends_nodes=True)
ACTIONS = sorted({one for statement in POLICY["Statement"] for one in statement["Action"]})
# A node's job by SkyPilot's own order of things: its autodown, then the set-up, then the run. Then
# what skylet does, which looks once a minute, after so many minutes; no cloud is asked.
PREPARE = """
from sky.skylet import autostop_lib, job_lib
autostop_lib.set_autostop(10, "cloudvmray", autostop_lib.DEFAULT_AUTOSTOP_WAIT_FOR, down=True)
added = job_lib.add_job("run", "user", "2026", "{}", metadata="{}")
print(added[0])
"""
LOOK = """
import sys, time
from unittest.mock import patch
from sky.skylet import autostop_lib, events, job_lib
job, status = int(sys.argv[1]), job_lib.JobStatus(sys.argv[2])
if status is job_lib.JobStatus.RUNNING:
    job_lib.set_job_started(job)
else:
    job_lib.set_status(job, status)
event = events.StopEvent.__new__(events.StopEvent)
autostop_lib.set_last_active_time_to_now()
since = time.time()
for minutes in (1, 3, 9, 11, 600):
    with patch.object(event, "_stop_cluster", lambda config: print("ends", minutes, config.down)):
        with patch("time.time", lambda: since + 60 * minutes):
            event._run()
"""
LEAVE = "from orchestrator.cloud.skypilot.autodown import end_soon; end_soon()"


class Node:
    """A home in which SkyPilot is installed, and a job of it."""

    def __init__(self, home):
        self.home = home
        (home / ".sky").mkdir()
        self.name_python(sys.executable)
        done = self.run([sys.executable, "-c", PREPARE])
        assert done.returncode == 0, done.stderr
        self.job = done.stdout.split()[-1]

    def name_python(self, path):
        (self.home / ".sky" / "python_path").write_text(f"{path}\n")

    def run(self, command):
        path = os.pathsep.join(sys.path)
        return subprocess.run(
            command,
            env={"HOME": str(self.home), "PATH": "/usr/bin:/bin", "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def ends_after(self, status):
        """Return after how many minutes of this status its skylet ends it, None if never."""
        done = self.run([sys.executable, "-c", LOOK, self.job, status])
        assert done.returncode == 0, done.stderr
        ends = [line.split() for line in done.stdout.splitlines() if line.startswith("ends")]
        assert all(is_down == "True" for _, _, is_down in ends)
        return int(ends[0][1]) if ends else None


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_a_node_that_is_set_up_or_trains_is_left_alone_and_one_that_failed_ends(node):
    assert node.ends_after("SETTING_UP") is None
    assert node.ends_after("FAILED_SETUP") == 11
    assert node.ends_after("RUNNING") is None


def test_a_node_that_its_agent_has_left_ends_soon(node):
    done = node.run([sys.executable, "-c", LEAVE])
    assert (done.returncode, done.stderr) == (0, "")
    assert node.ends_after("RUNNING") is None  # the agent is still about to leave
    assert node.ends_after("FAILED") == 3


def test_a_node_whose_skypilot_is_broken_is_left_all_the_same(node):
    node.name_python("/nowhere/python")
    done = node.run([sys.executable, "-c", LEAVE])
    assert done.returncode == 0
    assert "SkyPilot's autodown stays as it is" in done.stderr
    assert node.ends_after("FAILED") == 11


@pytest.mark.parametrize(
    ("launch", "status", "is_asked"),
    [
        ("run-7-a", AgentExit.PREEMPTED, True),
        ("run-7-a", AgentExit.HANG, True),
        ("run-7-a", OSError("the store is away"), True),
        ("run-7-a", AgentExit.DONE, False),  # its controller has to learn that first
        ("", AgentExit.PREEMPTED, False),  # SkyPilot's own recovery may go on with it
    ],
)
def test_what_asks_for_a_soon_end(monkeypatch, launch, status, is_asked):
    def take_part():
        if isinstance(status, Exception):
            raise status
        return status

    asked = []
    monkeypatch.setenv(LAUNCH, launch)
    monkeypatch.setattr(skypilot_node, "_take_part", take_part)
    monkeypatch.setattr(skypilot_node, "end_soon", lambda: asked.append(True))
    with suppress(OSError):
        assert skypilot_node.main() == status
    assert bool(asked) == is_asked


def test_a_set_up_that_hangs_fails_in_time(tmp_path):
    script = read_task("train.yaml")["setup"]
    assert "3600 bash" in script
    uv = tmp_path / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text("#!/bin/bash\nsleep 1000 & wait\n")
    uv.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", script.replace("3600 bash", "1 bash")],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        check=False,
        timeout=60,
    )
    assert done.returncode == 124


@set_initial_no_auth_action_count(0)
def take_down():
    """Have a thread do it: SkyPilot keeps credentials by thread."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(terminate_instances, CLUSTER, PROVIDER).result()


@pytest.fixture
def cluster(monkeypatch):
    """Give a cluster of one node on moto's EC2, and what makes this process its role."""
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "owner")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "owner")
    with mock_aws():
        ec2 = boto3.Session().resource("ec2", region_name=REGION)
        # Where the latter is there, nodes are put into it first, which takes one more right.
        group, _ = (
            ec2.create_security_group(GroupName=name, Description="of nodes")
            for name in (GROUP, DEFAULT_SECURITY_GROUP_NAME)
        )
        tags = {TAG_RAY_CLUSTER_NAME: CLUSTER, **tags_of("run-7")}
        (node,) = ec2.create_instances(
            ImageId=_an_image(ec2),
            MinCount=1,
            MaxCount=1,
            SecurityGroupIds=[group.id],
            TagSpecifications=[
                {
                    "ResourceType": "instance",
                    "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
                }
            ],
        )

        def become(actions):
            statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
            policy = {"Version": "2012-10-17", "Statement": [statement]}
            iam = boto3.Session().client("iam", region_name=REGION)
            iam.create_user(UserName="node")
            iam.put_user_policy(
                UserName="node", PolicyName="own", PolicyDocument=json.dumps(policy)
            )
            key = iam.create_access_key(UserName="node")["AccessKey"]
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])

        yield node, become


def test_the_actions_of_the_printed_policy_are_enough_for_it(cluster):
    node, become = cluster
    become(ACTIONS)
    take_down()
    node.reload()
    assert node.state["Name"] in ("shutting-down", "terminated")


@pytest.mark.parametrize("action", ACTIONS)
def test_without_any_one_of_its_actions_the_node_stays(cluster, action):
    node, become = cluster
    become([one for one in ACTIONS if one != action])
    with pytest.raises(ClientError, match=r"not authorized"):
        take_down()
    node.reload()
    assert node.state["Name"] == "running"


def _an_image(ec2):
    images = ec2.meta.client.describe_images()["Images"]
    return images[0]["ImageId"]
