"""What users are told of buckets that cannot be used: exit codes, one line what, one what to do."""

from __future__ import annotations

import pytest

from tests.loose_s3 import BUCKET
from tests.orchestrator.test_cli import assert_two_lines, write_spec


def last_two_lines(err: str) -> str:
    """Return what went wrong: launch shows its plan first."""
    return "\n".join(err.strip().splitlines()[-2:])


def test_launch_refuses_a_bucket_without_conditional_writes_and_leaves_nothing_in_it(
    orchestrate, loose, tmp_path
):
    spec = write_spec(tmp_path, store=f"s3://{BUCKET}/runs")
    code, out, err = orchestrate("launch", spec, "--yes")
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    what = f"s3://{BUCKET}/runs/demo does not honour conditional writes"
    assert_two_lines(last_two_lines(err), what, "Use Amazon S3")
    assert loose.authorizations
    assert loose.objects == {}
    assert not list((tmp_path / "home" / "runs").glob("*"))


def test_launch_into_a_bucket_that_is_not_there_exits_3_and_names_the_bucket(
    orchestrate, loose, tmp_path
):
    spec = write_spec(tmp_path, store="s3://typo/runs")
    code, _, err = orchestrate("launch", spec, "--yes")
    assert code == 3
    assert "Traceback" not in err
    assert_two_lines(last_two_lines(err), "s3://typo does not exist", "Create it")


@pytest.mark.xdist_group("s3")
@pytest.mark.parametrize(
    "command", [["status", "demo"], ["status"], ["checkpoints", "list", "demo"]]
)
def test_wrong_keys_exit_3_and_the_hint_is_about_keys(orchestrate, s3_url, monkeypatch, command):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    code, out, err = orchestrate(*command, "--store", f"{s3_url}/runs")
    assert (code, out) == (3, "")
    assert_two_lines(err, f"{s3_url}/runs", "refused access", "Check the credentials")
    assert "network" not in err
