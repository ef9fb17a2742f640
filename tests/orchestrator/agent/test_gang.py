"""The connection between the agents of a launch: who is let in, and what is learned from it."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from orchestrator.agent.config import AgentConfig
from orchestrator.agent.gang import Head, News
from orchestrator.agent.member import HeadMissing, Member
from orchestrator.agent.outcomes import NodeReport
from orchestrator.agent.peer import Welcome
from orchestrator.attempts import EndReason
from orchestrator.ledger.facts import QuotedOffer
from tests.orchestrator.histories import make_offer
from tests.orchestrator.skypilot.gang import free_ports
from train.config import ModelOptions, TrainConfig, TrainOptions
from train.spool import Outcome, OutcomeKind


@pytest.fixture
def config(tmp_path):
    port = free_ports()

    def make(node: int = 0, num_nodes: int = 2, **changes: object) -> AgentConfig:
        known = {
            "store": "memory://x",
            "launch": "one",
            "offer": QuotedOffer.quote(make_offer()),
            "ranks": 1,
            "scratch": tmp_path,
            "node": node,
            "num_nodes": num_nodes,
            "port": port,
            "join_seconds": 20,
        }
        return AgentConfig.model_validate({**known, **changes})

    return make


def welcome(launch: str = "one") -> Welcome:
    train = TrainConfig(
        run="demo",
        attempt=3,
        store="memory://x",
        inputs_dir=Path("/inputs"),
        num_steps=4,
        model=ModelOptions(base="/model"),
        train=TrainOptions(),
        spool_dir=Path("/spool"),
        notice_file=Path("/notice"),
    )
    return Welcome(launch=launch, attempt=3, train=train)


def done(node: int) -> NodeReport:
    return NodeReport(node=node, outcomes=(Outcome(outcome=OutcomeKind.DONE, step=4),))


def wait_for(condition) -> None:
    give_up_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_nodes_learn_the_attempt_from_the_head_and_end_alike(config):
    head = Head(config(num_nodes=3), "run-1", welcome())
    members = [Member(config(node=node, num_nodes=3, launch=""), "run-1") for node in (1, 2)]
    assert [member.welcome for member in members] == [welcome()] * 2
    assert head.news() is News.NONE
    with ThreadPoolExecutor(3) as pool:
        verdicts = [pool.submit(one.settle, done(n)) for n, one in enumerate(members, start=1)]
        wait_for(lambda: head.news() is News.ENDED)
        assert head.settle(done(0)) == (EndReason.SUCCEEDED, None)
        assert not any(verdict.done() for verdict in verdicts)  # the end is yet to be written down
        pool.submit(head.dismiss, EndReason.SUCCEEDED)
        assert [verdict.result(10)[0] for verdict in verdicts] == [EndReason.SUCCEEDED] * 2
        for member in members:
            member.dismiss(EndReason.SUCCEEDED)


def test_node_that_closes_its_connection_is_lost_at_once(config):
    head = Head(config(), "run-1", welcome())
    member = Member(config(node=1), "run-1")
    member.dismiss(EndReason.PREEMPTED)
    wait_for(lambda: head.news() is News.LOST)
    reason, why = head.settle(NodeReport(node=0, outcomes=(None,)))
    assert (reason, why) == (EndReason.PREEMPTED, "node 1 of 2 is gone")
    head.dismiss(reason)


def test_head_that_closes_its_connection_is_lost_at_once(config):
    head = Head(config(), "run-1", welcome())
    member = Member(config(node=1), "run-1")
    head.dismiss(EndReason.PREEMPTED)
    wait_for(lambda: member.news() is News.LOST)
    assert member.settle(NodeReport(node=1, outcomes=(None,)))[0] is EndReason.PREEMPTED


def test_node_that_never_comes_is_lost_after_a_while(config):
    head = Head(config(join_seconds=0.2), "run-1", welcome())
    wait_for(lambda: head.news() is News.LOST)
    assert head.settle(NodeReport(node=0, outcomes=(None,)))[1] == "no word from node 1 of 2"
    head.dismiss(EndReason.PREEMPTED)


def test_head_that_never_answers_is_missing_after_a_while(config):
    with pytest.raises(HeadMissing, match=r"did not answer node 1 within 0\.3 s"):
        Member(config(node=1, join_seconds=0.3), "run-1")


@pytest.mark.parametrize(
    ("run_id", "changes"),
    [("run-2", {}), ("run-1", {"launch": "two"}), ("run-1", {"node": 7}), ("run-1", {"node": 0})],
)
def test_strangers_are_turned_away(config, run_id, changes):
    head = Head(config(), "run-1", welcome())
    stranger = config(**{"node": 1, "join_seconds": 0.5, **changes})
    with pytest.raises(HeadMissing):
        Member(stranger, run_id)
    assert head.news() is News.NONE
    head.dismiss(EndReason.PREEMPTED)


@pytest.mark.parametrize(
    "words", [b"GET / HTTP/1.1\r\n\r\n", b'{"kind": "report"}\n', b"\x80\x04."]
)
def test_nonsense_on_the_port_harms_nobody(config, words):
    head = Head(config(), "run-1", welcome())
    with closing(socket.create_connection(("127.0.0.1", config().port + 1), 5)) as line:
        line.sendall(words + b"\n")
        line.settimeout(5)
        with suppress(OSError):
            while line.recv(1 << 16):
                pass
    member = Member(config(node=1), "run-1")
    assert head.news() is News.NONE
    dismissing = threading.Thread(target=head.dismiss, args=(EndReason.STOPPED,))
    dismissing.start()
    member.dismiss(EndReason.STOPPED)
    dismissing.join(10)
