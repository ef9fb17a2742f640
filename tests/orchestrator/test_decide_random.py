"""`decide()` on random questions: it always has an answer, and one that can be carried out."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.attempts import EndReason
from orchestrator.offers import Market, MarketPreference, Offer
from orchestrator.policy.answers import Drain, Keep, Launch, Stop, Wait
from orchestrator.policy.decide import decide
from orchestrator.policy.history import History, LaunchRecord, Limits
from orchestrator.policy.sight import PolicyName
from tests.orchestrator.histories import START, make_offer

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
REGIONS = {"a": "us-east-1", "b": "us-east-1", "c": "us-west-2", "d": "europe-west4"}


def random_offers(dice: random.Random) -> list[Offer]:
    offers = []
    for zone, region in REGIONS.items():
        for market in Market:
            if dice.random() < 0.75:
                usd = str(round(dice.uniform(0.5, 4), 2))
                offer = make_offer(region, market, usd=usd, zone=zone)
                doubt = "a doubt" if dice.random() < 0.2 else None
                offers.append(replace(offer, doubt=doubt, on_demand_usd_per_hour=Decimal(3)))
    return offers


def random_history(dice: random.Random, offers: list[Offer]) -> tuple[History, float]:
    launches, hour = [], dice.uniform(-0.1, 2)
    for _ in range(dice.randint(0, 8)):
        offer = dice.choice([*offers, make_offer("elsewhere", zone="gone")])
        asked, up, gone = (START + (hour + more) * HOUR for more in (0, 0.1, dice.uniform(0, 3)))
        reason = dice.choice(list(EndReason))
        ready = None if reason is EndReason.NO_CAPACITY else dice.choice([None, up, gone])
        launches.append(
            LaunchRecord(
                offer=offer,
                started_at=asked,
                ready_at=ready,
                ended_at=gone,
                reason=reason,
                has_progressed=dice.random() < 0.8,
            )
        )
        hour += dice.uniform(0, 4)
    if launches and dice.random() < 0.4:
        launches[-1] = replace(launches[-1], ended_at=None, reason=None)
    places = [("aws", "us-east-1"), ("gcp", "nowhere"), None]
    history = History(
        launches=tuple(launches),
        usd=Decimal(dice.randint(0, 120)),
        usd_per_hour=Decimal(dice.randint(0, 4)),
        work_left=dice.choice([None, dice.uniform(0, 40) * HOUR]),
        is_complete=False,
        stop_requested=False,
        began_at=START,
        work_done=dice.uniform(0, 40) * HOUR,
        unsaved=dice.uniform(0, 2) * HOUR,
        checkpoint_bytes=dice.choice([0, 84 * 10**9]),
        checkpoint_place=dice.choice(places),
    )
    return history, hour


def random_limits(dice: random.Random, policy: PolicyName) -> Limits:
    return Limits(
        budget_usd=Decimal(dice.choice([60, 130, 5000])),
        deadline_at=dice.choice([None, START + dice.uniform(1, 90) * HOUR]),
        market=dice.choice([*MarketPreference, MarketPreference.SPOT_WITH_FALLBACK]),
        stop_margin=3 * MINUTE,
        restart=dice.choice([3, 10, 50]) * MINUTE,
        policy=policy,
        lost_work=dice.choice([0, 20, 90]) * MINUTE,
        pace=dice.choice([1.0, 3.3]),
    )


@pytest.mark.parametrize("policy", PolicyName)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_it_always_has_an_answer_that_can_be_carried_out(policy, seed):
    dice = random.Random(seed)
    offers = random_offers(dice)
    history, hour = random_history(dice, offers)
    limits, now = random_limits(dice, policy), START + hour * HOUR
    decision = decide(history, offers, limits, now)
    match decision:
        case Launch():
            assert not history.is_up
            assert decision.offer in offers
            assert limits.market.allows(decision.offer.market)
        case Wait():
            assert not history.is_up
            assert decision.until > now
        case Keep() | Drain():
            assert history.is_up
        case Stop():
            pass
    dice.shuffle(offers)
    assert decide(history, offers, limits, now) == decision


class Run:
    """A run whose controller asks each minute, and whose nodes are lost without a notice."""

    def __init__(self, policy: PolicyName, seed: int) -> None:
        dice = random.Random(seed)
        self.offers = [
            make_offer(region, market, usd="1" if market is Market.SPOT else "3", zone=zone)
            for zone, region in (("a", "us-east-1"), ("c", "us-west-2"))
            for market in Market
        ]
        self.interval = dice.choice([0.1, 0.5])
        self.work, restart = 6.0, 1 / 6
        self.deadline = self.work + 2 * restart + dice.choice([0, 0.05, 0.2, 0.5, 1, 3])
        self.spells = {
            zone: [dice.choice([0.1, 0.3, 0.5, 1, 3]) for _ in range(60)] for zone in ("a", "c")
        }
        self.limits = Limits(
            budget_usd=Decimal(10_000),
            deadline_at=START + self.deadline * HOUR,
            market=MarketPreference.SPOT_WITH_FALLBACK,
            stop_margin=3 * MINUTE,
            restart=10 * MINUTE,
            policy=policy,
            lost_work=math.ceil(self.interval * 60) * MINUTE,
        )
        self.now = self.saved = self.trained = 0.0
        self.launches: list[LaunchRecord] = []

    def has_room(self, zone: str, hour: float) -> bool:
        is_up, left = zone == "a", hour
        for spell in self.spells[zone]:
            if left < spell:
                break
            is_up, left = not is_up, left - spell
        return is_up

    def hours(self) -> float:
        """Return when the last step is saved."""
        while self.saved < self.work - 1e-9:
            assert self.now < 3 * self.deadline
            self._act()
            self.now += 1 / 60
            self._train()
        return self.now

    def _act(self) -> None:
        history = History(
            launches=tuple(self.launches),
            usd=Decimal(0),
            usd_per_hour=Decimal(1),
            work_left=(self.work - self.saved) * HOUR,
            is_complete=False,
            stop_requested=False,
            began_at=START,
            work_done=self.saved * HOUR,
        )
        at = START + self.now * HOUR
        decision = decide(history, self.offers, self.limits, at)
        if isinstance(decision, Launch):
            record = LaunchRecord(offer=decision.offer, started_at=at, ready_at=at)
            is_spot = decision.offer.market is Market.SPOT
            if is_spot and not self.has_room(decision.offer.zone, self.now):
                gone, reason = at + 3 * MINUTE, EndReason.NO_CAPACITY
                record = replace(record, ready_at=None, ended_at=gone, reason=reason)
                self.now += 2 / 60
            self.launches.append(record)
            self.trained = 0.0
        elif isinstance(decision, Drain):
            self.saved += self.trained
            self._end(EndReason.DRAINED)
        else:
            assert isinstance(decision, (Keep, Wait))

    def _train(self) -> None:
        if not self.launches or self.launches[-1].ended_at is not None:
            return
        launch = self.launches[-1]
        if (START + self.now * HOUR) - launch.started_at > self.limits.restart:
            self.trained += 1 / 60
        if self.trained >= min(self.interval, self.work - self.saved) - 1e-9:
            self.saved, self.trained = self.saved + self.trained, 0.0
            self.launches[-1] = replace(launch, has_progressed=True)
        is_spot = launch.offer.market is Market.SPOT
        if is_spot and not self.has_room(launch.offer.zone, self.now):
            self._end(EndReason.NODE_LOST)

    def _end(self, reason: EndReason) -> None:
        ended = START + self.now * HOUR
        self.launches[-1] = replace(self.launches[-1], ended_at=ended, reason=reason)
        self.trained = 0.0


@pytest.mark.parametrize("policy", PolicyName)
def test_a_feasible_deadline_is_kept_although_nodes_are_lost_between_saves(policy):
    for seed in range(8):
        run = Run(policy, seed)
        # A look a minute: what a decision takes to come, and what a step is late.
        assert run.hours() <= run.deadline + 2 / 60, seed
