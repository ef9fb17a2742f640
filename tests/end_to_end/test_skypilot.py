"""Whole runs through real SkyPilot: its server, its controller, its clouds, on loopback nodes."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from tests.cell.fixture import cell, market  # noqa: F401  # fixtures
from tests.cell.records import Instance
from tests.end_to_end.clouds import NUM_STEPS, PLUGIN, SPEC, Laptop
from tests.message_service import SECRET

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("cell")]
_TOLD = {**SPEC["tracking"], "notify": {"on": ["preemption", "recovery", "finish"]}}


@pytest.fixture(scope="module")
def with_plugin(cell):  # noqa: F811
    cell.restart_server(plugins=[PLUGIN])
    return cell


@pytest.fixture
def laptop(with_plugin, market, tmp_path):  # noqa: F811
    laptop = Laptop(with_plugin, tmp_path, f"run-{secrets.token_hex(2)}")
    yield laptop
    laptop.close()


@pytest.fixture
def dear_west(market):  # noqa: F811
    """us-west-2b, which is the dearest zone of AWS and is made the cheapest while a run is up."""
    zone = {"cloud": "aws", "instance_type": "p4d.24xlarge", "zone": "us-west-2b"}
    yield lambda usd: market.set_prices(**zone, spot=usd)
    market.set_prices(**zone, spot=8.5158)


def test_a_lost_node_is_replaced_elsewhere_and_the_steps_are_the_same(laptop, dear_west):
    with laptop.listening() as told:
        laptop.launch(tracking=_TOLD)
        laptop.wait_for_nodes(1)
        dear_west(5.25)
        committed = laptop.wait_for_rework(step=12)
        (node,) = laptop.living()
        laptop.cell.preempt(node.id, 0)
        laptop.wait_for(lambda status: status["state"] == "RECOVERING")
        laptop.wait_for_step(attempt=2, step=15)
        status = laptop.wait_for_end()
        titles = laptop.wait_for_news(told, "finished")
    # By the controller, whoever looks.
    assert titles == ["attempt 1 was preempted", "attempt 2 goes on", "finished"]
    assert SECRET not in laptop.log()
    assert (status["step"], status["num_preemptions"]) == (NUM_STEPS, 1)
    assert status["replay"]["steps"] > 0
    assert status["replay"]["max_abs_diff"] == 0
    first, second = status["attempts"]
    assert (first["end_reason"], second["end_reason"]) == ("node_lost", "succeeded")
    assert (first["region"], second["region"]) == ("us-east-1", "us-west-2")
    assert second["usd_per_hour"] == 5.25  # cheaper since the run was launched
    assert second["resumed_step"] >= 10
    assert [action for action, _, _ in laptop.replay_decisions()] == ["launch", "launch", "stop"]
    seen = laptop.cell.instances(laptop.name)
    assert [one.zone for one in seen] == [first["zone"], second["zone"]]
    assert not laptop.living()

    recorded = laptop.cell.run(
        ["python", Path(__file__).with_name("wandb_runs.py"), f"s3://runs/{laptop.name}"],
        check=True,
    )
    run_id, steps = json.loads(recorded.stdout)[-1]
    assert run_id.startswith(laptop.name)
    assert steps == list(range(1, NUM_STEPS + 1))  # one curve, without a gap and no step twice

    cost = laptop.cost()
    assert sum(cost["parts"].values()) == pytest.approx(cost["total_usd"], abs=1e-6)
    for attempt, one in zip(status["attempts"], seen, strict=True):
        assert one.ended is not None
        lived = (one.ended - one.launched).total_seconds()
        usd = lived / 3600 * attempt["usd_per_hour"]
        # The bill ends when SkyPilot notices, a poll after the node is gone.
        assert attempt["usd"] == pytest.approx(usd, abs=attempt["usd_per_hour"] * 20 / 3600)
    laptop.record("F16", "a node is taken", committed=committed)


def test_without_spot_anywhere_it_waits_until_the_deadline_demands_more(laptop):
    laptop.launch(infra=["aws", "gcp"], limits={"budget_usd": 200, "deadline": "20h"})
    laptop.wait_for_step(attempt=1, step=6)
    (node,) = laptop.living()
    laptop.cell.preempt(node.id, 0, capacity={"aws/*/spot": 0, "gcp/*/spot": 0})
    laptop.wait_for(lambda status: status["state"] == "WAITING")
    assert not laptop.living()
    sooner = laptop.run(
        "resume", laptop.name, "--set", "limits.deadline=22min", "--yes", "--detach"
    )
    assert sooner.returncode == 0, sooner.stderr
    laptop.wait_for_step(attempt=2, step=8)
    (node,) = laptop.living()
    assert not node.spot
    attempt = laptop.status()["attempts"][-1]
    assert attempt["market"] == "on_demand"

    stopped = laptop.run("stop", laptop.name, "--yes")
    assert stopped.returncode == 0, stopped.stderr
    status = laptop.wait_for_end("STOPPED")
    assert status["last_commit_step"] >= 8  # it saved before it left
    assert status["attempts"][-1]["end_reason"] == "stopped"
    assert not laptop.living()
    laptop.record("F24", "no spot capacity anywhere")


def test_a_stop_during_recovery_leaves_no_node(laptop):
    laptop.launch()
    (node,) = laptop.wait_for_nodes(1)
    laptop.cell.preempt(node.id, 0)  # while it is set up
    laptop.wait_for_nodes(0)
    laptop.wait_for_nodes(1)
    stopped = laptop.run("stop", laptop.name, "--yes")
    assert stopped.returncode == 0, stopped.stderr
    laptop.wait_for_end("STOPPED")
    assert not laptop.living()
    assert "No in-progress managed jobs" in laptop.cell.run(["sky", "jobs", "queue"]).stdout
    laptop.record("F20", "stopped while nodes are brought up again")


def test_two_launches_at_once_are_one_job_whose_restarted_controller_goes_on(laptop):
    """One run for both: bringing a node up is most of what such a test costs."""
    spec = laptop.write_spec()
    both = [laptop.start("launch", spec, "--yes", "--detach") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    laptop.wait_for_step(attempt=1, step=3)
    assert len(laptop.cell.instances(laptop.name)) == 1
    again = laptop.run("launch", spec, "--yes", "--detach")
    assert again.returncode == 0, again.stderr
    laptop.cell.kill_controller()
    committed = laptop.wait_for_rework(step=12)
    (node,) = laptop.living()
    laptop.cell.preempt(node.id, 0)
    status = laptop.wait_for_end()
    first, second = status["attempts"]
    assert (first["end_reason"], second["end_reason"]) == ("node_lost", "succeeded")
    assert first["region"] != second["region"]
    assert status["replay"]["max_abs_diff"] == 0
    assert len(laptop.cell.instances(laptop.name)) == 2
    assert not laptop.living()
    laptop.record("F19", "its controller is killed, then the node is taken", committed=committed)
    laptop.record("F21", "two launches at once, and one more")


def test_a_set_up_that_cannot_work_ends_the_run_and_never_buys_on_demand(laptop):
    laptop.launch()
    damage = (
        "import boto3, sys; s3 = boto3.client('s3')\n"
        "found = s3.list_objects_v2(Bucket='runs', Prefix=sys.argv[1])['Contents']\n"
        "(key,) = [one['Key'] for one in found if one['Key'].endswith('.whl')]\n"
        "s3.put_object(Bucket='runs', Key=key, Body=b'damaged')"
    )
    laptop.cell.run(["python", "-c", damage, f"{laptop.name}/inputs/"], check=True)
    status = laptop.wait_for_end("FAILED")
    assert "3 launches in a row failed" in status["why"]
    seen = laptop.cell.instances(laptop.name)
    assert len(seen) == 3
    assert all(one.spot for one in seen)
    cost = laptop.cost()
    assert cost["parts"]["failed_launches"] > 0
    assert cost["parts"]["compute"] == 0
    laptop.record("F24", "a set-up that cannot work")


def test_a_gang_that_loses_one_node_restarts_whole_and_pays_for_both(laptop):
    laptop.environment["ORCHESTRATE_RANKS"] = "1"  # of two nodes, on the two cores of this machine
    laptop.launch(nodes={"count": 2, "accelerators": "A100:8"})
    committed = laptop.wait_for_rework(step=8)
    nodes = laptop.living()
    assert len(nodes) == 2
    (worker,) = [node for node in nodes if not node.head]
    laptop.cell.preempt(worker.id, 0)
    status = laptop.wait_for_end()
    first, second = status["attempts"]
    assert first["end_reason"] in ("preempted", "node_lost")
    assert second["end_reason"] == "succeeded"
    assert (first["nodes"], second["nodes"]) == (2, 2)
    assert first["region"] != second["region"]
    assert status["replay"]["steps"] > 0
    assert status["replay"]["max_abs_diff"] == 0
    for attempt, cluster in zip(status["attempts"], _launches_of(laptop), strict=True):
        lived = sum((one.ended - one.launched).total_seconds() for one in cluster)
        usd = lived / 3600 * attempt["usd_per_hour"]
        assert attempt["usd"] == pytest.approx(usd, abs=2 * attempt["usd_per_hour"] * 25 / 3600)
    laptop.record("F11", "one of two nodes is taken", committed=committed)


def test_without_the_plugin_skypilot_recovers_and_the_bill_is_the_same(laptop):
    laptop.cell.restart_server(plugins=[])
    try:
        with laptop.listening() as told:
            spec = laptop.write_spec(tracking=_TOLD)
            done = laptop.run("launch", spec, "--yes", "--detach")
            assert done.returncode == 0, done.stderr
            assert "lacks our plugin" in done.stderr
            laptop.wait_for_step(attempt=1, step=6)
            (node,) = laptop.living()
            laptop.cell.preempt(node.id, 0)
            status = laptop.wait_for_end()
            titles = laptop.wait_for_news(told, "finished")
    finally:
        laptop.cell.restart_server(plugins=[PLUGIN])
    # By node 0.
    assert titles == ["attempt 1 was preempted", "attempt 2 goes on", "finished"]
    assert SECRET not in laptop.log()
    assert status["replay"]["max_abs_diff"] == 0
    assert [one["end_reason"] for one in status["attempts"]] == ["node_lost", "succeeded"]
    assert laptop.cost()["total_usd"] > 0


def test_a_service_passes_validation_and_a_dry_run_of_a_replica(laptop):
    script = Path(__file__).with_name("service_dry_run.py")
    done = laptop.cell.run(["python", script], env=laptop.environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "clouds": ["aws", "gcp"],
        "chosen": "AWS us-east-1 p4d.24xlarge",  # the cheapest
        "is_spot": True,
        "services": 0,
    }
    assert not laptop.cell.instances("chat-1")


def _launches_of(laptop: Laptop) -> list[list[Instance]]:
    """Return the instances of each launch; a gang's are asked for at once."""
    launches: dict[str, list[Instance]] = {}
    for one in laptop.cell.instances(laptop.name):
        launches.setdefault(one.region, []).append(one)
    return list(launches.values())
