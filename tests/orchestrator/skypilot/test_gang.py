"""Launches of two nodes, with real processes and without our plugin."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from orchestrator.attempts import AgentExit, EndReason
from orchestrator.ledger.facts import AttemptEnded, FinalState
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
    run.wait_for_step(6)
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
    assert second.resumed_step >= 4
    assert second.world_size == 2
    # A gang is billed for all of its nodes, at the price of where its nodes say that they are.
    assert first.num_nodes == 2
    assert first.offer.zone == "us-east-1-a"
    assert view.parts().compute > 0
