"""Whole runs of real processes on a store, a disk and a machine that fail them."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest

from checkpoints.fence import read_head
from checkpoints.store import open_store
from tests.end_to_end.conftest import Workplace
from tests.end_to_end.losses import NOTHING, commits_of, losses
from tests.fault_record import record_fault
from tests.faulty_proxy import Act, Fault, faulty_proxy, writes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
# Not what the launch itself writes: where that breaks off, it says so and is given again.
OF_A_RUN = r"/(HEAD\.json|(events|attempts|steps|checkpoints|heartbeats|logs)/)"
STORM = 100
# How far a node has got when it is lost, by its youngest process.
STAGES = ("agent", "torchrun", "rank")
TRAIN = {"num_steps": 40, "global_batch": 4, "precision": "fp32"}


@pytest.mark.xdist_group("s3")
def test_a_run_on_a_store_that_stutters_ends_as_on_a_calm_one(s3_url, tmp_path, monkeypatch):
    url = f"{s3_url}/{tmp_path.name}"
    faults = [
        Fault(act=Act.REFUSE, rate=0.1),
        Fault(act=Act.LOSE_REPLY, when=writes(OF_A_RUN), rate=0.05, status=500),
        Fault(act=Act.DROP_REPLY, when=writes(OF_A_RUN), rate=0.05),
        Fault(act=Act.RESET, when=writes(OF_A_RUN), rate=0.05),
    ]
    straight = os.environ["AWS_ENDPOINT_URL"]
    with faulty_proxy(straight, *faults, seed=5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        place = Workplace(tmp_path)
        spec = place.write_spec(
            store=url,
            local={"ranks": 2, "time_scale": 60, "preemptions": [{"after_step": 6}]},
        )
        done = launch_as_told(place, spec)
        assert done.returncode == 0, done.stderr
        monkeypatch.setenv("AWS_ENDPOINT_URL", straight)
        place.environment["AWS_ENDPOINT_URL"] = straight
    status = place.document("status", "small")
    # A node that cannot reach the store when it starts is given back, as one that is taken.
    assert status["num_preemptions"] >= 1
    assert not status["replay"]["differing"]
    assert place.document("checkpoints", "verify", "small")["problems"] == []
    found = losses(place, url)
    assert found == NOTHING
    injected = sum(fault.num_fired for fault in faults)
    record_fault("F6", "a whole run: 503, lost replies, resets", injected=injected, **found.row())


def launch_as_told(place, spec):
    """Launch, and again where the command line says that the store did not answer."""
    for _ in range(5):
        done = place.run("launch", spec, "--yes")
        if done.returncode != 3:
            return done
        assert "run it again" in done.stderr
    return done


def test_a_closed_terminal_ends_no_run_and_a_shutdown_s_sigterms_are_one_save(workplace):
    store = (workplace.folder / "store").as_uri()
    spec = workplace.write_spec(store=store, train=TRAIN, checkpoints={"interval": "1000 steps"})
    terminal = workplace.start("launch", spec, "--yes")
    workplace.wait_for(lambda: logged_step(workplace) >= 3)
    terminal.send_signal(signal.SIGHUP)
    terminal.communicate(timeout=20)
    node = node_processes(workplace)
    roles = {role(process) for process in node}
    assert roles == {"agent", "torchrun", "rank", "uploader"}
    num_sent = 0
    for _ in range(STORM):
        for process in node:
            num_sent += send(process, signal.SIGTERM)
        time.sleep(1 / STORM)
    done = workplace.run("launch", spec, "--yes")
    assert done.returncode == 0, done.stderr
    status = workplace.document("status", "small")
    first, second = status["attempts"]
    assert (first["end_reason"], second["end_reason"]) == ("preempted", "succeeded")
    assert 3 <= second["resumed_step"] < status["num_steps"]
    assert status["replay"]["steps"] == 0  # saved where it stopped
    steps = [one.step for one in commits_of(store) if one.attempt == 1]
    assert steps == [second["resumed_step"]]
    found = losses(workplace, store)
    assert found == NOTHING
    what = "SIGTERM to every process of a node, and SIGHUP to the terminal"
    record_fault("F18", what, injected=num_sent + 1, **found.row())


def test_any_process_of_a_node_may_be_killed(workplace):
    store = (workplace.folder / "store").as_uri()
    spec = workplace.write_spec(store=store, train=TRAIN, tracking={"wandb": {"project": "tests"}})
    launch = workplace.start("launch", spec, "--yes")
    killed = []

    def kill(wanted: str, attempt: int, after: int) -> None:
        """Kill one of that attempt's processes once HEAD is so many steps on."""
        since = head_step(store)
        workplace.wait_for(
            lambda: head_attempt(store) == attempt and head_step(store) >= since + after
        )
        processes = [one for one in node_processes(workplace) if role(one) == wanted]
        processes[-1].kill()
        killed.append(wanted)

    kill("uploader", attempt=1, after=4)
    kill("W&B", attempt=1, after=4)
    kill("agent", attempt=1, after=4)
    kill("rank", attempt=2, after=4)
    kill("torchrun", attempt=3, after=4)
    _, err = launch.communicate(timeout=120)
    assert launch.returncode == 0, err
    status = workplace.document("status", "small")
    reasons = [one["end_reason"] for one in status["attempts"]]
    # An uploader is replaced, and W&B is nobody's business.
    assert reasons == ["node_lost", "training_failed", "training_failed", "succeeded"]
    assert not status["replay"]["differing"]
    found = losses(workplace, store)
    assert found == NOTHING
    record_fault("F11", f"SIGKILL: {', '.join(killed)}", injected=len(killed), **found.row())


def test_any_process_may_stand_still(workplace):
    """SIGSTOP: to the cloud, and to whoever waits for an exit status, all is well."""
    store = (workplace.folder / "store").as_uri()
    spec = workplace.write_spec(
        store=store,
        train={**TRAIN, "num_steps": 100_000},
        tracking={"wandb": {"project": "tests"}},
    )
    launch = workplace.start("launch", spec, "--yes")
    stopped = []

    def stop(wanted: str, attempt: int) -> psutil.Process:
        """Stop one of that attempt's processes once it has committed."""
        workplace.wait_for(lambda: head_attempt(store) == attempt, seconds=120)
        since = head_step(store)
        workplace.wait_for(lambda: head_step(store) >= since + 2)
        process = next(one for one in workplace.processes() if role(one) == wanted)
        process.suspend()
        stopped.append(wanted)
        return process

    supervisor = stop("supervisor", attempt=1)
    # The node saves, and leaves when its owner's heartbeat has stood still for the lease.
    workplace.wait_for(lambda: not node_processes(workplace), seconds=120)
    supervisor.resume()
    stop("W&B", attempt=2)
    stop("agent", attempt=2)
    stop("torchrun", attempt=3)
    asked = workplace.run("stop", "small", "--yes")
    assert asked.returncode == 0, asked.stderr
    _, err = launch.communicate(timeout=60)
    assert launch.returncode == 4, err
    status = workplace.document("status", "small")
    attempts = status["attempts"]
    assert [one["end_reason"] for one in attempts] == ["preempted", "node_lost", "stopped"]
    assert attempts[1]["detail"] == "its agent was silent for 45 s"
    assert status["last_commit_step"] == status["step"] > attempts[2]["resumed_step"]
    assert attempts[2]["resumed_step"] > attempts[1]["resumed_step"] > 0
    assert not status["replay"]["differing"]
    found = losses(workplace, store)
    assert found == NOTHING
    record_fault("F12", f"SIGSTOP: {', '.join(stopped)}", injected=len(stopped), **found.row())


def test_a_node_that_is_lost_ten_times_running_while_it_recovers_costs_no_commit(workplace):
    store = (workplace.folder / "store").as_uri()
    spec = workplace.write_spec(store=store, train=TRAIN)
    launch = workplace.start("launch", spec, "--yes")
    workplace.wait_for(lambda: head_step(store) >= 4)
    known, num_killed = lose_node(workplace), 1
    step = head_step(store)
    for number in range(10):
        stage = STAGES[number % len(STAGES)]
        wait_for_next_node(workplace, known, stage)
        known.update(lose_node(workplace))
        num_killed += 1
        assert head_step(store) == step  # none of them got as far as a commit
    _, err = launch.communicate(timeout=150)
    assert launch.returncode == 0, err
    status = workplace.document("status", "small")
    assert status["num_preemptions"] == num_killed
    assert status["attempts"][-1]["resumed_step"] == step
    assert not status["replay"]["differing"]
    assert status["usd"] < status["budget_usd"]
    found = losses(workplace, store)
    assert found == NOTHING
    what = "a node is lost while it starts, ten times running"
    record_fault("F17", what, injected=num_killed - 1, **found.row())


def lose_node(place: Workplace) -> set[str]:
    """SIGKILL all of the node's processes; return its name."""
    family = node_processes(place)
    names = {node_of(process) for process in family}
    for process in family:
        send(process, signal.SIGKILL)
    return names


def wait_for_next_node(place: Workplace, known: set[str], stage: str) -> None:
    """Return when a node that is not known has a process of that role."""
    place.wait_for(
        lambda: any(role(p) == stage and node_of(p) not in known for p in node_processes(place))
    )


def node_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("ORCHESTRATE_NODE", "")
    except psutil.Error:
        return ""


def node_processes(place: Workplace) -> list[psutil.Process]:
    return [one for one in place.processes() if role(one) not in ("supervisor", "other")]


def role(process: psutil.Process) -> str:
    try:
        words = process.cmdline()
    except psutil.Error:
        return "other"
    modules = {
        "orchestrator.cloud.local": "supervisor",
        "orchestrator.agent": "agent",
        "orchestrator.agent.tracking_process": "W&B",
        "torch.distributed.run": "torchrun",
        "checkpoints.uploader": "uploader",
        "train": "rank",
    }
    return next((modules[word] for word in words if word in modules), "other")


def send(process: psutil.Process, number: int) -> int:
    """Send a signal; return how many were sent."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return 0
    return 1


def head_step(store: str) -> int:
    head = read_head(open_store(f"{store}/small"))
    return head[0].step if head else 0


def head_attempt(store: str) -> int:
    head = read_head(open_store(f"{store}/small"))
    return head[0].attempt if head else 0


def logged_step(place: Workplace) -> int:
    """Return the last step that the run has reported, 0 if none."""
    done = place.run("status", "small", "--json")
    return json.loads(done.stdout)["step"] if done.returncode == 0 else 0
