"""Launches of two nodes, with real processes and without our plugin."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from orchestrator.attempts import AgentExit, EndReason
from orchestrator.ledger.facts import AttemptEnded, FinalState, NoticeReceived
from tests.orchestrator.skypilot.gang import GangRun, prepare

pytestmark = pytest.mark.xdist_group("gang")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATE_HOME", str(tmp_path_factory.mktemp("home")))
        return prepare()


@pytest.fixture
def start(tmp_path, inputs):
    with ExitStack() as stack:
        yield lambda **changes: GangRun(tmp_path, inputs, stack, **changes)


def end_of(run, attempt: int = 1) -> tuple[EndReason, str | None]:
    (end,) = [end for end in run.facts(AttemptEnded) if end.attempt == attempt]
    return end.reason, end.error


def test_lost_node_ends_the_launch_and_the_next_one_takes_the_same_steps(start):
    run = start()
    head, other = run.launch()
    run.wait_for_step(26)
    other.kill()
    began = time.monotonic()
    assert head.wait() == AgentExit.PREEMPTED
    assert time.monotonic() - began < 30
    assert end_of(run) == (EndReason.PREEMPTED, "node 1 of 2 is gone")
    assert not head.processes()

    nodes = run.launch()
    assert [node.wait() for node in nodes] == [AgentExit.DONE] * 2
    view = run.view()
    assert view.state.ended.state is FinalState.SUCCEEDED
    assert view.replay().num_steps >= 1
    assert view.replay().differing == ()
    first, second = view.state.launches
    assert (first.reason, second.reason) == (EndReason.PREEMPTED, EndReason.SUCCEEDED)
    assert second.resumed_step >= 20
    assert second.world_size == 2
    # A gang is billed for all of its nodes, at the price of where its nodes say that they are.
    assert first.num_nodes == 2
    assert first.offer.zone == "us-east-1-a"
    assert view.parts().compute > 0


@pytest.mark.slow
def test_lost_head_ends_the_launch_on_the_other_node(start):
    run = start()
    head, other = run.launch()
    run.wait_for_step(26)
    head.kill()
    assert other.wait() == AgentExit.PREEMPTED
    assert not other.processes()
    # Nobody was there to write the end; the next launch does.
    assert run.view().state.current_launch is not None
    nodes = run.launch()
    assert [node.wait() for node in nodes] == [AgentExit.DONE] * 2
    view = run.view()
    assert [launch.reason for launch in view.state.launches] == [
        EndReason.NODE_LOST,
        EndReason.SUCCEEDED,
    ]
    assert not view.replay().differing
    first = view.state.launches[0]
    assert first.ended_at <= view.state.launches[1].ready_at


@pytest.mark.slow
def test_machine_that_vanishes_is_missed_although_no_connection_breaks(start):
    run = start(train={"num_steps": 2000, "global_batch": 4, "precision": "fp32"})
    head, other = run.launch()
    run.wait_for_step(3)
    other.freeze()
    assert head.wait() == AgentExit.PREEMPTED
    assert end_of(run) == (EndReason.PREEMPTED, "node 1 of 2 is gone")


def test_notice_on_one_node_has_all_of_them_save_and_leave(start):
    run = start(train={"num_steps": 2000, "global_batch": 4, "precision": "fp32"})
    nodes = run.launch()
    run.wait_for_step(5)
    run.announce(1, seconds=100)
    assert [node.wait() for node in nodes] == [AgentExit.PREEMPTED] * 2
    assert end_of(run) == (EndReason.PREEMPTED, None)
    assert len(run.facts(NoticeReceived)) == 1
    view = run.view()
    assert view.state.last_commit_step == view.step


def test_error_of_training_on_one_node_is_told_in_its_own_words(start):
    run = start(train={"num_steps": 2000, "global_batch": 4, "precision": "fp32"})
    nodes = run.launch()
    run.wait_for_step(3)
    nodes[1].fail_a_rank()
    assert [node.wait() for node in nodes] == [AgentExit.FAILED] * 2
    assert end_of(run) == (EndReason.TRAINING_FAILED, "RuntimeError: rank 1 is on fire")
    assert run.view().state.ended is None  # SkyPilot may start it again


def test_node_that_is_unfit_ends_the_launch_before_it_trains(start):
    run = start()
    head, other = run.launch(ORCHESTRATE_RANKS="")  # eight GPUs, which this machine has not
    assert [head.wait(), other.wait()] == [AgentExit.PREEMPTED] * 2
    reason, error = end_of(run)
    assert reason is EndReason.PREEMPTED
    assert "is unfit: nvidia-smi is missing or does not answer" in error
    assert run.view().step == 0
