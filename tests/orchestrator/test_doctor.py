"""`orchestrate doctor` on real stores and files: what it finds, says to do, and exits with."""

import json

import pytest
import yaml

from orchestrator.iam import aws_policy
from tests.end_to_end.conftest import EXAMPLES
from tests.loose_s3 import BUCKET
from tests.orchestrator.test_cli import write_spec

CLOUD = EXAMPLES / "vicuna-13b.yaml"


@pytest.fixture(autouse=True)
def sky_config(tmp_path, monkeypatch):
    file = tmp_path / "sky-config.yaml"
    monkeypatch.setenv("SKYPILOT_GLOBAL_CONFIG", str(file))
    return file


def findings(orchestrate, *arguments, status=0):
    code, out, err = orchestrate("doctor", *arguments, "--offline", "--json")
    assert "Traceback" not in err
    found = json.loads(out)["findings"]
    assert code == status
    assert any(one["verdict"] == "failed" for one in found) == (status != 0)
    return found


def of(found, check):
    return [(one["verdict"], one["what"]) for one in found if one["check"] == check]


def test_without_a_spec_it_names_the_versions(orchestrate):
    code, out, _ = orchestrate("doctor")
    assert code == 0
    assert "orchestrate 0." in out
    assert "torch 2." in out


def test_a_good_store_passes_and_is_left_as_it_was(orchestrate, tmp_path):
    url = (tmp_path / "store").as_uri()
    found = findings(orchestrate, write_spec(tmp_path, store=url))
    what = f"{url} can be read and written, and honours conditional writes"
    assert of(found, "store") == [("ok", what)]
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.suffix]


def test_a_store_without_conditional_writes_fails(orchestrate, tmp_path, loose):
    found = findings(orchestrate, write_spec(tmp_path, store=f"s3://{BUCKET}/runs"), status=2)
    ((verdict, what),) = of(found, "store")
    assert verdict == "failed"
    assert "does not honour conditional writes" in what
    assert loose.objects == {}


def test_every_store_of_the_spec_is_tried(orchestrate, tmp_path, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    stores = {"azure/eastus": "az://gone/runs", "aws/us-east-1": (tmp_path / "east").as_uri()}
    spec = write_spec(tmp_path, checkpoints={"stores": stores})
    verdicts = [verdict for verdict, _ in of(findings(orchestrate, spec, status=3), "store")]
    assert sorted(verdicts) == ["failed", "ok", "ok"]


def test_a_cloud_spec_is_told_of_memory_prices_and_skypilot(orchestrate, loose, sky_config):
    sky_config.write_text(
        yaml.safe_dump(
            {
                "aws": {"remote_identity": "NO_UPLOAD"},
                "jobs": {"controller": {"consolidation_mode": True}},
            }
        )
    )
    found = findings(orchestrate, CLOUD, status=3)  # this server has no s3://my-bucket
    assert of(found, "store")[0] == ("failed", "s3://my-bucket does not exist")
    assert of(found, "memory") == [("ok", "about 48 of 80 GB per GPU")]
    assert of(found, "prices")[0][0] == "warning"  # no catalog here
    assert [what for verdict, what in of(found, "skypilot") if verdict == "warning"] == [
        "nodes on gcp receive this machine's credentials",
        "jobs.controller.consolidation_mode: recovery ends when this machine sleeps",
    ]
    assert "aws/us-east-1" in of(found, "regions")[0][1]
    assert of(found, "plugin")[0][0] == "warning"
    assert [what.split()[1] for verdict, what in of(found, "login") if verdict == "warning"] == [
        *("gcp", "azure", "lambda")
    ]
    found = findings(orchestrate, CLOUD, "--set", "model.base=x/180b", status=3)
    assert of(found, "memory")[0][0] == "failed"


@pytest.mark.parametrize("text", [b"\xff", b"{", b"[]", b"aws: 3"])
def test_a_configuration_of_skypilot_that_makes_no_sense_is_no_crash(
    orchestrate, loose, sky_config, text
):
    sky_config.write_bytes(text)
    assert of(findings(orchestrate, CLOUD, status=3), "skypilot")


def test_the_policy_names_no_more_than_the_run_s_folder(orchestrate):
    code, out, err = orchestrate("doctor", CLOUD, "--iam", "--set", "checkpoints.stores={}")
    assert code == 0
    policy = json.loads(out)
    assert "GetCostAndUsage" not in out  # nodes read no bills
    assert "optional" in err
    assert "ce:GetCostAndUsage" in err
    objects, listing, uploads = policy["Statement"]
    assert objects["Resource"] == "arn:aws:s3:::my-bucket/runs/*"
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["runs/*"]}}
    assert "Condition" not in uploads  # AWS has no condition key for it
    assert not any("*" in action for one in policy["Statement"] for action in one["Action"])
    _, listing, _ = aws_policy(["s3://my-bucket"])["Statement"]
    assert "Condition" not in listing  # a listing of everything names no prefix


def test_the_policy_of_nodes_names_one_run(orchestrate):
    changes = ("--set", "checkpoints.stores={}", "--set", "name=mine")
    code, out, _ = orchestrate("doctor", CLOUD, "--iam", "--this-run", *changes)
    assert code == 0
    objects, listing, _ = json.loads(out)["Statement"]
    assert objects["Resource"] == "arn:aws:s3:::my-bucket/runs/mine/*"
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["runs/mine/*"]}}


def test_the_role_of_nodes_on_aws_also_lets_them_end(orchestrate):
    code, out, err = orchestrate("doctor", CLOUD, "--iam", "--set", "checkpoints.stores={}")
    assert code == 0
    assert "ec2:" not in out
    assert "--iam --role" in err
    changes = ("--set", "store=gs://near/runs", "--set", "checkpoints.stores={}")
    for more in ((), changes):  # wherever the run is kept
        code, out, err = orchestrate("doctor", CLOUD, "--iam", "--role", *more)
        assert code == 0
        assert "--role" not in err
        *_, looking, ending, groups = json.loads(out)["Statement"]
        assert looking["Resource"] == "*"
        assert all(action.startswith("ec2:Describe") for action in looking["Action"])
        assert "ec2:TerminateInstances" in ending["Action"]
        assert ending["Condition"] == {"StringLike": {"aws:ResourceTag/orchestrate-run": "*"}}
        assert groups["Action"] == ["ec2:ModifyInstanceAttribute"]


def test_a_policy_needs_a_bucket(orchestrate, tmp_path):
    for arguments in (["doctor", "--iam"], ["doctor", write_spec(tmp_path), "--iam"]):
        code, out, err = orchestrate(*arguments)
        assert (code, out) == (2, "")
        assert len(err.strip().splitlines()) == 2


@pytest.mark.parametrize("flag", ["--role", "--this-run"])
def test_what_is_about_a_policy_asks_for_one(orchestrate, flag):
    code, out, err = orchestrate("doctor", CLOUD, flag)
    assert (code, out) == (2, "")
    assert "Add --iam." in err


def test_a_store_that_nodes_cannot_reach_is_said_before_it_is_touched(
    orchestrate, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    wrong = ("--set", "store=s3//b/runs", "--set", "checkpoints.stores={}", "--offline")
    for command in ("plan", "doctor"):
        code, out, err = orchestrate(command, CLOUD, *wrong)
        assert code == 2
        assert "which nodes on clouds cannot reach" in out + err
    assert not list(tmp_path.iterdir())


def test_other_clouds_are_told_in_words(orchestrate):
    stores = "checkpoints.stores={gcp/us-central1: 'gs://near/runs'}"
    code, out, err = orchestrate("doctor", CLOUD, "--iam", "--set", stores)
    assert code == 0
    assert json.loads(out)["Statement"]
    assert "roles/storage.objectUser on bucket near" in err
