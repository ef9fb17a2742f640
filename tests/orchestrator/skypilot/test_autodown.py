"""Nodes end themselves when nobody is left to do it: SkyPilot's own autodown, as we ask for it.

Its code runs here as it does on a node: on what our set-up wrote down, and against moto's EC2. That
enforces the actions of policies, and neither their resources nor their conditions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count

from orchestrator.billing.tags import tags_of
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
# What skylet does once a minute, where its node was idle for so many minutes; no cloud is asked.
LOOK = """
import time
from unittest.mock import patch
from sky.skylet import autostop_lib, events
config = autostop_lib.get_autostop_config()
print(config.autostop_idle_minutes, config.down, config.wait_for.value, config.backend)
event = events.StopEvent.__new__(events.StopEvent)
since = time.time()
for minutes in (1, 3, 59, 61):
    with patch.object(event, "_stop_cluster", lambda config: print("ends after", minutes)):
        with patch("time.time", lambda: since + 60 * minutes):
            event._run()
"""
LEAVE = "from orchestrator.cloud.skypilot.autodown import end_soon; end_soon()"


@pytest.fixture
def home(tmp_path):
    """Give a node's home in which SkyPilot is installed, and set it up as far as to uv."""
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky" / "python_path").write_text(f"{sys.executable}\n")
    done = _set_up(tmp_path)
    assert "no autodown" not in done.stdout
    return tmp_path


def test_a_node_that_is_being_set_up_ends_by_itself_after_an_hour(home):
    assert _looks(home) == ["60 True jobs cloudvmray", "ends after 61"]


def test_a_node_that_its_agent_has_left_ends_soon(home):
    done = _run([sys.executable, "-c", LEAVE], home)
    assert (done.returncode, done.stderr) == (0, "")
    assert _looks(home) == [
        "2 True jobs cloudvmray",
        "ends after 3",
        "ends after 59",
        "ends after 61",
    ]


def test_a_node_whose_skypilot_is_broken_is_left_all_the_same(home):
    (home / ".sky" / "python_path").write_text("/nowhere/python\n")
    done = _run([sys.executable, "-c", LEAVE], home)
    assert done.returncode == 0
    assert "SkyPilot's autodown stays as it is" in done.stderr


def test_a_set_up_without_skypilot_goes_on(tmp_path):
    assert "no autodown until the job begins" in _set_up(tmp_path).stdout
    done = _run([sys.executable, "-c", LEAVE], tmp_path)
    assert done.returncode == 0


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


def _set_up(home):
    done = _run(["bash", "-c", read_task("train.yaml")["setup"]], home)
    assert "uv: command not found" in done.stderr
    return done


def _looks(home):
    """Return what skylet says and does, but for its own words about it."""
    done = _run([sys.executable, "-c", LOOK], home)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if "since last active" not in line]


def _run(command, home):
    return subprocess.run(
        command,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
