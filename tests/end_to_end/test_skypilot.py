"""Whole runs through real SkyPilot: its server, its controller, its clouds, on loopback nodes."""

from __future__ import annotations

import secrets

import pytest

from tests.cell.fixture import cell, market  # noqa: F401  # fixtures
from tests.end_to_end.clouds import PLUGIN, Laptop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("cell")]


@pytest.fixture(scope="module")
def with_plugin(cell):  # noqa: F811
    cell.restart_server(plugins=[PLUGIN])
    return cell


@pytest.fixture
def laptop(with_plugin, market, tmp_path):  # noqa: F811
    return Laptop(with_plugin, tmp_path, f"run-{secrets.token_hex(2)}")


def test_a_lost_node_is_replaced_elsewhere_and_the_steps_are_the_same(laptop):
    laptop.launch()
    laptop.wait_for_step(attempt=1, step=12)
    (node,) = laptop.living()
    laptop.cell.preempt(node.id, 0)
    laptop.wait_for(lambda status: status["state"] == "RECOVERING")
    laptop.wait_for_step(attempt=2, step=20)
    status = laptop.wait_for_end()
    assert (status["step"], status["num_preemptions"]) == (60, 1)
    assert status["replay"]["steps"] > 0
    assert status["replay"]["max_abs_diff"] == 0
    first, second = status["attempts"]
    assert (first["end_reason"], second["end_reason"]) == ("node_lost", "succeeded")
    assert first["region"] != second["region"]
    assert second["resumed_step"] >= 10
    seen = laptop.cell.instances(laptop.name)
    assert [one.zone for one in seen] == [first["zone"], second["zone"]]
    assert not laptop.living()

    cost = laptop.cost()
    assert sum(cost["parts"].values()) == pytest.approx(cost["total_usd"], abs=1e-6)
    for attempt, one in zip(status["attempts"], seen, strict=True):
        assert one.ended is not None
        lived = (one.ended - one.launched).total_seconds()
        usd = lived / 3600 * attempt["usd_per_hour"]
        # The bill ends when SkyPilot notices, a poll after the node is gone.
        assert attempt["usd"] == pytest.approx(usd, abs=attempt["usd_per_hour"] * 20 / 3600)


def test_without_spot_anywhere_it_waits_until_the_deadline_demands_more(laptop):
    laptop.launch(infra=["aws", "gcp"])
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


def test_two_launches_at_once_are_one_job_and_one_node(laptop):
    spec = laptop.write_spec()
    both = [laptop.start("launch", spec, "--yes", "--detach") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    laptop.wait_for_step(attempt=1, step=3)
    assert len(laptop.cell.instances(laptop.name)) == 1
    again = laptop.run("launch", spec, "--yes", "--detach")
    assert again.returncode == 0, again.stderr
    laptop.wait_for_step(attempt=1, step=6)
    assert len(laptop.cell.instances(laptop.name)) == 1
    assert laptop.run("stop", laptop.name, "--yes").returncode == 0
    assert not laptop.living()
