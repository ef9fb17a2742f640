"""Whatever is killed, by whom and when: one run, no duplicate attempt, no stray process."""

from __future__ import annotations

import getpass
import os
import re
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest

from checkpoints.store import open_store
from orchestrator.ledger.journal import LedgerReader
from orchestrator.program import program_version
from tests.end_to_end.conftest import EXAMPLES, Workplace
from tests.end_to_end.losses import NOTHING, losses
from tests.fault_record import record_fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROUGH = {"ranks": 2, "time_scale": 60, "preemptions": [{"after_step": 6}]}


@pytest.mark.parametrize(
    "delays", [(0.05, 0.3, 0.6, 1.0), (2.0,), (6.0,), (12.0,)], ids=lambda one: f"{one[-1]}s"
)
def test_command_line_killed_at_any_moment_is_picked_up_by_the_same_command(workplace, delays):
    spec = workplace.write_spec(local=ROUGH)
    for delay in delays:
        killed = workplace.start("launch", spec, "--yes")
        time.sleep(delay)
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
    done = workplace.run("launch", spec, "--yes")
    assert done.returncode == 0, done.stderr
    status = workplace.document("status", "small")
    assert status["state"] == "SUCCEEDED"
    numbers = [attempt["attempt"] for attempt in status["attempts"]]
    assert numbers == [1, 2]
    assert status["replay"]["max_abs_diff"] == 0
    assert [run["run"] for run in workplace.document("status")["runs"]] == ["small"]
    workplace.wait_until_quiet()


def test_two_launches_of_one_name_at_once_are_one_run(workplace):
    spec = workplace.write_spec()
    both = [workplace.start("launch", spec, "--yes") for _ in range(2)]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    attempts = workplace.document("status", "small")["attempts"]
    assert [attempt["attempt"] for attempt in attempts] == [1]
    found = losses(workplace, str(workplace.folder / "store"))
    assert found == NOTHING
    record_fault("F21", "two launches of one name at once", injected=len(both) - 1, **found.row())


def test_killed_supervisor_is_replaced_and_its_node_goes_with_it(workplace):
    spec = workplace.write_spec(train={"num_steps": 12, "global_batch": 4, "precision": "fp32"})
    first = workplace.start("launch", spec, "--yes")
    store = workplace.folder / "store" / "small"
    workplace.wait_for(lambda: (store / "HEAD.json").exists() and _step(workplace) >= 3)
    (supervisor,) = workplace.supervisors()
    supervisor.kill()
    _, err = first.communicate(timeout=60)
    assert first.returncode == 4
    assert "Run the same command again" in err
    done = workplace.run("launch", spec, "--yes")
    assert done.returncode == 0, done.stderr
    status = workplace.document("status", "small")
    assert status["state"] == "SUCCEEDED"
    assert status["attempts"][0]["end_reason"] == "node_lost"
    assert status["num_preemptions"] == 0
    assert not status["replay"]["differing"]
    found = losses(workplace, str(workplace.folder / "store"))
    assert found == NOTHING
    record_fault("F19", "SIGKILL of a local run's supervisor", injected=1, **found.row())


def test_node_whose_owner_is_gone_saves_and_stops_itself(workplace):
    spec = workplace.write_spec(train={"num_steps": 2000, "global_batch": 4, "precision": "fp32"})
    assert workplace.run("launch", spec, "--yes", "--detach").returncode == 0
    workplace.wait_for(lambda: _step(workplace) >= 3)
    (supervisor,) = workplace.supervisors()
    supervisor.kill()
    workplace.wait_until_quiet(seconds=90)
    status = workplace.document("status", "small")
    assert status["last_commit_step"] == status["step"]


def test_stopped_run_keeps_its_last_step_and_resumes_from_there(workplace):
    spec = workplace.write_spec(train={"num_steps": 30, "global_batch": 4, "precision": "fp32"})
    watcher = workplace.start("launch", spec, "--yes")
    workplace.wait_for(lambda: _step(workplace) >= 3)
    stopped = workplace.run("stop", "small", "--yes")
    assert stopped.returncode == 0, stopped.stderr
    _, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 4
    assert "orchestrate resume small" in err
    status = workplace.document("status", "small")
    assert status["state"] == "STOPPED"
    assert status["last_commit_step"] == status["step"] >= 3
    workplace.wait_until_quiet()
    resumed = workplace.run("resume", "small", "--yes")
    assert resumed.returncode == 0, resumed.stderr
    attempts = workplace.document("status", "small")["attempts"]
    assert attempts[1]["resumed_step"] == status["last_commit_step"]
    workplace.wait_until_quiet()
    read = LedgerReader(open_store((workplace.folder / "store" / "small").as_uri())).read()
    given = [one.body.command for one in read if getattr(one.body, "command", None) is not None]
    assert [command.argv[:2] for command in given] == [
        ("orchestrate", word) for word in ("launch", "stop", "resume")
    ]
    assert {(command.user, command.version) for command in given} == {
        (getpass.getuser(), program_version())
    }


def test_budget_stops_the_run_with_a_checkpoint_and_more_budget_goes_on(workplace):
    # About 45 s of the cheapest offer: enough for steps on a busy machine, not for all of them.
    spec = workplace.write_spec(
        train={"num_steps": 2000, "global_batch": 4, "precision": "fp32"},
        limits={"budget_usd": 6},
    )
    done = workplace.run("launch", spec, "--yes")
    assert done.returncode == 4, done.stderr
    assert "budget_usd" in done.stderr
    status = workplace.document("status", "small")
    assert status["state"] == "STOPPED"
    assert status["usd"] <= 6
    assert status["last_commit_step"] == status["step"] > 0
    again = workplace.run("launch", spec, "--yes")
    assert again.returncode == 4
    num_stopped = sum("budget_usd" in one.stderr for one in (done, again))
    assert num_stopped == 2
    found = losses(workplace, str(workplace.folder / "store"))
    assert found == NOTHING
    record_fault("F23", "a budget is used up by training", injected=num_stopped, **found.row())
    more = ("--set", "limits.budget_usd=100", "--detach")
    assert workplace.run("resume", "small", "--yes", *more).returncode == 0
    workplace.wait_for(lambda: _step(workplace) > status["step"])
    assert workplace.document("status", "small")["budget_usd"] == 100
    assert workplace.run("stop", "small", "--yes").returncode == 0
    workplace.wait_until_quiet()


def test_interrupted_watching_exits_130_and_the_run_goes_on(workplace):
    spec = workplace.write_spec()
    watcher = workplace.start("launch", spec, "--yes")
    workplace.wait_for(lambda: workplace.supervisors())
    time.sleep(1)
    os.kill(watcher.pid, signal.SIGINT)
    _, err = watcher.communicate(timeout=20)
    assert watcher.returncode == 130
    assert "goes on" in err
    assert "orchestrate stop small" in err
    workplace.wait_for(lambda: workplace.look()["state"] == "SUCCEEDED", seconds=120)
    workplace.wait_until_quiet()


def test_seeded_market_is_survived(workplace):
    spec = workplace.write_spec(
        train={"num_steps": 40, "global_batch": 4, "precision": "fp32"},
        local={"ranks": 2, "time_scale": 600, "seed": 7},
        limits={"budget_usd": 5000},
    )
    done = workplace.run("launch", spec, "--yes", timeout=380)
    assert done.returncode == 0, done.stderr
    status = workplace.document("status", "small")
    assert status["state"] == "SUCCEEDED"
    assert status["num_preemptions"] > 0
    assert not status["replay"]["differing"]
    found = losses(workplace, str(workplace.folder / "store"))
    assert found == NOTHING
    what = "nodes taken by the seeded market"
    record_fault("F16", what, injected=status["num_preemptions"], **found.row())


def test_a_trainer_that_hangs_is_killed_and_its_stacks_are_kept(workplace):
    spec = workplace.write_spec(train={"num_steps": 2000, "global_batch": 4, "precision": "fp32"})
    assert workplace.run("launch", spec, "--yes", "--detach").returncode == 0
    workplace.wait_for(lambda: _step(workplace) >= 8)
    commands = {process: process.cmdline() for process in workplace.processes()}
    ranks = [p for p, c in commands.items() if "train" in c and "torch.distributed.run" not in c]
    assert len(ranks) == 2, commands
    ranks[1].suspend()
    workplace.wait_for(lambda: len(workplace.look()["attempts"]) == 2, seconds=200)
    first, _ = workplace.document("status", "small")["attempts"]
    assert first["end_reason"] == "hang"
    log = workplace.run("logs", "small", "--attempt", "1")
    assert "most recent call first" in log.stdout
    workplace.run("stop", "small", "--yes")
    found = losses(workplace, str(workplace.folder / "store"))
    assert found == NOTHING
    record_fault("F12", "SIGSTOP of one of two ranks", injected=1, **found.row())


def test_more_budget_for_a_running_run_changes_nothing_else(workplace):
    spec = workplace.write_spec(train={"num_steps": 40, "global_batch": 4, "precision": "fp32"})
    watcher = workplace.start("launch", spec, "--yes")
    workplace.wait_for(lambda: _step(workplace) >= 2)
    more = ("--set", "limits.budget_usd=600", "--detach")
    assert workplace.run("resume", "small", "--yes", *more).returncode == 0
    # The same launch again attaches, and does not put the file's budget back.
    assert workplace.run("launch", spec, "--yes").returncode == 0
    watcher.communicate(timeout=120)
    assert watcher.returncode == 0
    status = workplace.document("status", "small")
    assert [attempt["attempt"] for attempt in status["attempts"]] == [1]
    assert status["budget_usd"] == 600
    workplace.wait_until_quiet()


@pytest.fixture
def quickstart(workplace):
    """The quickstart, finished: as .ci/run has just run it by the README's command, or run here."""
    if "QUICKSTART_HOME" in os.environ:
        workplace.environment["ORCHESTRATE_HOME"] = os.environ["QUICKSTART_HOME"]
        workplace.home = Path(os.environ["QUICKSTART_HOME"])
        return workplace
    done = workplace.run("launch", EXAMPLES / "quickstart.yaml", "--yes", timeout=380)
    assert done.returncode == 0, done.stderr
    return workplace


def test_quickstart_does_what_the_readme_says(quickstart):
    workplace, spec = quickstart, EXAMPLES / "quickstart.yaml"
    status = workplace.document("status", "quickstart")
    assert status["state"] == "SUCCEEDED"
    took = datetime.fromisoformat(status["ended_at"]) - datetime.fromisoformat(status["started_at"])
    # The promise of the README, with the store, the market and the kills included.
    assert took.total_seconds() < 240
    assert status["num_preemptions"] >= 3
    assert any("during a checkpoint" in (one["detail"] or "") for one in status["attempts"])
    notices = [attempt["had_notice"] for attempt in status["attempts"][:-1]]
    assert True in notices
    assert False in notices
    assert status["replay"]["max_abs_diff"] == 0
    assert status["replay"]["steps"] > 0
    calm = ("--set", "name=calm", "--set", "local.preemptions=[]")
    assert workplace.run("launch", spec, "--yes", *calm, timeout=380).returncode == 0
    verdict = workplace.document("checkpoints", "verify", "quickstart", "--against", "calm")
    assert verdict["against"]["differing"] == []
    page = workplace.folder / "page.html"
    assert workplace.run("dashboard", "quickstart", "--export", page).returncode == 0
    assert re.search("simulated", page.read_text())
    workplace.wait_until_quiet()


def test_run_in_an_s3_store(s3_url, tmp_path):
    place = Workplace(tmp_path)
    spec = place.write_spec(store=f"{s3_url}/end-to-end", local=ROUGH)
    done = place.run("launch", spec, "--yes")
    assert done.returncode == 0, done.stderr
    status = place.document("status", "small")
    assert status["state"] == "SUCCEEDED"
    assert status["num_preemptions"] == 1
    assert status["replay"]["max_abs_diff"] == 0
    assert place.document("checkpoints", "verify", "small")["problems"] == []
    assert place.run("delete", "small", "--confirm", "small").returncode == 0
    place.wait_until_quiet()


def _step(workplace) -> int:
    return int(workplace.look()["step"])
