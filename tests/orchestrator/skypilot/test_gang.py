"""Launches of two nodes, with real processes and without our plugin."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from checkpoints.fence import claim_attempt
from orchestrator.attempts import AgentExit, EndReason
from orchestrator.clock import SystemClock
from orchestrator.ledger.facts import AttemptEnded, FinalState, NoticeReceived
from orchestrator.ledger.requests import Request, RequestKind, ask
from tests.orchestrator.skypilot.gang import GangRun, prepare

pytestmark = [pytest.mark.xdist_group("gang"), pytest.mark.timeout(500)]


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


@pytest.mark.slow
def test_lost_node_ends_the_launch_and_the_next_one_takes_the_same_steps(start):
    run = start()
    head, other = run.launch()
    run.wait_for_step(26)
    run.wait_for_commit(20)
    other.kill()
    began = time.monotonic()
    assert head.wait() == AgentExit.PREEMPTED
    assert time.monotonic() - began < 60
    assert end_of(run) == (EndReason.PREEMPTED, "node 1 of 2 is gone")
    assert not head.processes()

    nodes = run.launch()
    assert [node.wait() for node in nodes] == [AgentExit.DONE] * 2
    view = run.view()
    assert view.state.ended.state is FinalState.SUCCEEDED
    assert view.replay.num_steps >= 1
    assert view.replay.differing == ()
    first, second = view.state.launches
    assert (first.reason, second.reason) == (EndReason.PREEMPTED, EndReason.SUCCEEDED)
    assert second.resumed_step >= 20
    assert second.world_size == 2
    # A gang is billed for all of its nodes, at the price of where its nodes say that they are.
    assert first.num_nodes == 2
    assert first.offer.zone == "us-east-1-a"
    assert view.parts.compute > 0


@pytest.mark.slow
def test_lost_head_ends_the_launch_on_the_other_node(start):
    run = start()
    head, other = run.launch()
    run.wait_for_step(26)
    run.wait_for_commit(20)
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
    assert not view.replay.differing
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_error_of_training_on_one_node_is_told_in_its_own_words(start):
    run = start(train={"num_steps": 2000, "global_batch": 4, "precision": "fp32"})
    nodes = run.launch()
    run.wait_for_step(3)
    nodes[1].fail_a_rank()
    assert [node.wait() for node in nodes] == [AgentExit.FAILED] * 2
    assert end_of(run) == (EndReason.TRAINING_FAILED, "RuntimeError: rank 1 is on fire")
    assert run.view().state.ended is None  # SkyPilot may start it again


@pytest.mark.slow
def test_node_that_is_unfit_ends_the_launch_before_it_trains(start):
    run = start()
    head, other = run.launch(ORCHESTRATE_RANKS="")  # eight GPUs, which this machine has not
    assert [head.wait(), other.wait()] == [AgentExit.PREEMPTED] * 2
    reason, error = end_of(run)
    assert reason is EndReason.PREEMPTED
    assert "is unfit: nvidia-smi is missing or does not answer" in error
    assert run.view().step == 0
    assert "agent: node 0 is unfit" in run.log()


@pytest.mark.slow
def test_rank_that_hangs_on_one_node_is_found_by_the_head_and_all_stacks_are_kept(start):
    run = start(train={"num_steps": 20000, "global_batch": 4, "precision": "fp32"})
    nodes = run.launch(ORCHESTRATE_AGENT='{"step_hang_seconds": 15, "upload_seconds": 1}')
    run.wait_for_step(10)
    (rank,) = nodes[1].ranks()
    rank.suspend()
    assert [node.wait() for node in nodes] == [AgentExit.HANG] * 2
    assert end_of(run) == (EndReason.HANG, "no progress")
    assert "most recent call first" in run.log()


LONE = {
    "nodes": {"count": 1, "accelerators": "A100-80GB:8"},
    "train": {"num_steps": 20000, "global_batch": 2, "micro_batch": 2, "precision": "fp32"},
}


@pytest.fixture
def controlled(start):
    """A run on one node whose launch our plugin has named, and whose agent looks often."""
    run = start(**LONE)
    (node,) = run.launch(
        ORCHESTRATE_LAUNCH="one",
        ORCHESTRATE_OFFER=run.record.offers[0].model_dump_json(),
        ORCHESTRATE_OWNER="controller-1",
        ORCHESTRATE_AGENT='{"guard_seconds": 0.5, "upload_seconds": 0.5}',
    )
    run.wait_for_step(3)
    return run, node


@pytest.mark.slow
def test_node_that_is_fenced_ends_without_waiting_for_a_commit_to_fail(controlled):
    run, node = controlled
    claim_attempt(
        run.store, claimed_by="two", claimed_at=SystemClock().now(), world_size=1, offer={}
    )
    assert node.wait() == AgentExit.FENCED
    assert end_of(run)[0] is EndReason.FENCED
    assert not node.processes()


@pytest.mark.slow
def test_node_that_is_drained_saves_and_says_so(controlled):
    run, node = controlled
    ask(run.store, Request(kind=RequestKind.DRAIN, at=SystemClock().now(), by="controller-1"))
    assert node.wait() == AgentExit.PREEMPTED
    assert end_of(run) == (EndReason.DRAINED, None)
    view = run.view()
    assert view.state.last_commit_step >= 3
    assert "drain was requested by controller-1" in run.log()
    # The launch's own facts are the controller's to write.
    assert view.state.launches == ()


@pytest.mark.slow
def test_budget_is_kept_by_the_node_where_nobody_else_does(start):
    # A dollar a second, of which 180 s are kept back for a save and a stop.
    run = start(**LONE, usd=("3600", "1"), limits={"budget_usd": 200})
    (node,) = run.launch(ORCHESTRATE_AGENT='{"guard_seconds": 0.5}')
    assert node.wait() == AgentExit.DONE  # or SkyPilot's own strategy would start it again
    assert end_of(run)[0] is EndReason.STOPPED
    view = run.view()
    assert view.state.ended.state is FinalState.STOPPED
    assert 20 < view.parts.total < 200
    (again,) = run.launch()
    assert again.wait() == AgentExit.DONE
    assert len(run.view().state.launches) == 1
