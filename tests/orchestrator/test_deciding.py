"""Decisions are recorded with their questions: the ledger alone gives the same answers again."""

from __future__ import annotations

import random
import secrets
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.layout import STEPS
from checkpoints.store import open_store
from orchestrator.attempts import AgentExit, EndReason
from orchestrator.cloud.skypilot.conductor import Conductor, Loss
from orchestrator.deciding import replay_decisions
from orchestrator.ledger.facts import (
    AttemptStarted,
    CheckpointCommitted,
    DecisionMade,
    QuotedOffer,
    RunLaunched,
    StopRequested,
)
from orchestrator.ledger.journal import Journal, LedgerReader
from orchestrator.ledger.record import create_record
from orchestrator.offers import Market
from orchestrator.policy.answers import Drain, Launch, Stop, Wait
from orchestrator.policy.sight import PolicyName
from tests.orchestrator.histories import START, make_offer, make_record, make_step

OFFERS = [
    make_offer(region, market, usd=usd)
    for region, spot, on_demand in (("us-east-1", "8", "30"), ("us-west-2", "9", "31"))
    for market, usd in ((Market.SPOT, spot), (Market.ON_DEMAND, on_demand))
]


class HandClock:
    def __init__(self) -> None:
        self.at = START

    def now(self):
        self.at += timedelta(milliseconds=1)
        return self.at

    def sleep(self, duration: timedelta) -> None:
        self.at += duration


class Story:
    """A controller's life: nodes come, train, commit and go, as the dice have it."""

    def __init__(self, policy: str, seed: int) -> None:
        self.dice = random.Random(seed)
        self.clock = HandClock()
        self.store = open_store(f"memory://{secrets.token_hex(8)}")
        limits = {"budget_usd": 2000, "deadline": "30h", "policy": policy}
        self.record = make_record(
            infra=["aws"], local=None, store="s3://bucket/runs", limits=limits
        )
        create_record(self.store, self.record)
        Journal(self.store, "cli", self.clock).note(RunLaunched(host="laptop"))
        self.offers = OFFERS
        self.step = self.attempt = 0
        self.conductor = self._controller()

    def _controller(self) -> Conductor:
        return Conductor(self.store, "job", self.clock, lambda _: self.offers)

    def go_on(self) -> bool:
        """Ask once, and let something happen; say whether the run goes on."""
        decision = self.conductor.decide()
        match decision:
            case Launch():
                launch, _ = self.conductor.launching(decision)
                self._launch(launch)
            case Wait():
                self.conductor.waiting(decision)
                self.clock.sleep(timedelta(minutes=self.dice.randint(1, 40)))
            case Drain() | Stop() if self.conductor.state().current_launch is not None:
                self.conductor.ask_to_leave(decision)
                self._leave(AgentExit.PREEMPTED)
            case Stop():
                self.conductor.finish(decision)
                return False
            case _:
                self._train()
        if self.dice.random() < 0.1:
            self.conductor = self._controller()  # it was restarted
        if self.dice.random() < 0.2:
            cents = Decimal(self.dice.randint(-50, 50)) / 100
            self.offers = [replace(one, usd_per_hour=one.usd_per_hour + cents) for one in OFFERS]
        return True

    def _launch(self, launch: str) -> None:
        self.clock.sleep(timedelta(minutes=2))
        if self.dice.random() < 0.4:
            self.conductor.refused(launch, EndReason.NO_CAPACITY, None)
            return
        self.conductor.came_up(launch, self.clock.now(), zone=None)
        self.attempt += 1
        self.agent = Journal(self.store, f"agent-{self.attempt}", self.clock)
        self.agent.note(
            AttemptStarted(
                attempt=self.attempt,
                launch=launch,
                world_size=8,
                step=self.step,
                manifest=None,
                host="node",
            )
        )

    def _train(self) -> None:
        self.clock.sleep(timedelta(minutes=self.dice.randint(20, 90)))
        if self.dice.random() < 0.4:
            self._leave(AgentExit.PREEMPTED)
            return
        self.step += 1
        since_s = (self.clock.now() - START).total_seconds() - 3600
        measured = make_step(self.step, since_s, seconds=3600).model_dump_json()
        key = f"{STEPS}{self.attempt:06d}/{self.step:08d}.jsonl"
        self.store.create(key, measured.encode())
        # An agent's facts may reach the bucket after the controller has decided.
        self.agent.record(
            CheckpointCommitted(
                attempt=self.attempt,
                step=self.step,
                manifest=f"checkpoints/step-{self.step}.a{self.attempt}/manifest.json",
                num_bytes=10**9,
                num_objects=8,
            )
        )
        if self.dice.random() < 0.7:
            self.agent.flush()
        if self.step == self.record.num_steps:
            self._leave(AgentExit.DONE)

    def _leave(self, code: int) -> None:
        self.agent.flush()
        self.conductor.gone(Loss(exit_codes=(code,)))

    def entries(self):
        return LedgerReader(self.store).read()


def play(policy: str, seed: int, most: int = 40) -> Story:
    story = Story(policy, seed)
    for _ in range(most):
        if not story.go_on():
            return story
    Journal(story.store, "cli", story.clock).note(
        StopRequested(host="laptop", launched_at=story.conductor.state().launched_at)
    )
    while story.go_on():
        pass
    return story


@pytest.mark.parametrize("policy", [name.value for name in PolicyName])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_recorded_decision_is_made_again_from_the_ledger(policy, seed):
    story = play(policy, seed)
    found = list(replay_decisions(story.record, story.entries()))
    assert all(one.is_equal for one in found), [one for one in found if not one.is_equal]
    made = [entry.body for entry in story.entries() if isinstance(entry.body, DecisionMade)]
    assert len(found) == len(made) >= 2
    assert made[-1].action == "stop"


def test_a_decision_that_the_facts_do_not_bear_out_is_found():
    story = play("auto", seed=1)
    entries = story.entries()
    number = next(n for n, e in enumerate(entries) if getattr(e.body, "action", "") == "launch")
    other = QuotedOffer.quote(OFFERS[3])
    forged = entries[number].body.model_copy(update={"offer": other})
    entries[number] = entries[number].model_copy(update={"body": forged})
    assert sum(not one.is_equal for one in replay_decisions(story.record, entries)) == 1
