"""`decide()` on facts is the policy on sights: what was simulated is what a run would have done."""

from __future__ import annotations

import random
import re
from datetime import timedelta
from decimal import Decimal

import pytest

from orchestrator.attempts import EndReason
from orchestrator.offers import Market, MarketPreference, Offer
from orchestrator.policy.answers import Drain, Keep, Launch, Wait
from orchestrator.policy.decide import decide
from orchestrator.policy.history import History, LaunchRecord, Limits
from orchestrator.policy.named import POLICIES
from orchestrator.policy.sight import NOWHERE, Choice, Mode, PolicyName, Sight
from orchestrator.simulate.job import simulate
from orchestrator.simulate.market import make_market
from orchestrator.simulate.terms import Observe, Terms
from tests.orchestrator.histories import START, make_offer
from tests.orchestrator.simulate.markets import zone

HOUR = timedelta(hours=1)
# Neither falls on an hour at which rates or tables change: dates are rounded to microseconds.
TICK = timedelta(minutes=11)
FAILED = timedelta(minutes=2, seconds=17)
ON_DEMAND = Decimal(3)
_NUMBER = re.compile(r"(?<![a-z])\d+(?:\.\d+)?")
REGIONS = {"z0": "us-east-1", "z1": "us-east-1", "z2": "us-west-2"}
SPOT = {"z0": Decimal("0.9"), "z1": Decimal("1.0"), "z2": Decimal("1.1")}


# Greedy leaves nothing that is up, and nothing asks on demand alone a second time.
ACTIONS = {
    "on_demand": {Launch},
    "greedy": {Launch, Keep, Wait},
    "uniform_progress": {Launch, Keep, Wait, Drain},
    "skynomad": {Launch, Keep, Wait, Drain},
    "auto": {Launch, Keep, Wait, Drain},
}


class Twin:
    """A policy that is asked through `decide()` as well, from launches that it keeps itself."""

    looks_around = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.policy = POLICIES[name]()
        self.launches: list[LaunchRecord] = []
        self.actions: list[type] = []
        self.num_ties = 0
        self.wish: tuple[Offer, float] | None = None

    def choose(self, sight: Sight) -> Choice:
        self._notice(sight)
        choice = self.policy.choose(sight)
        decision = decide(self._history(sight), _offers(), self._limits(sight), _at(sight.now))
        self.actions.append(type(decision))
        assert _numbers(decision.why) == pytest.approx(_numbers(choice.why), abs=0.11)
        if _is_tie(choice.why):
            self.num_ties += 1
            self._act(sight, choice)
            return choice
        assert _words(decision.why) == _words(choice.why)
        is_same = (choice.mode, choice.zone) == (sight.mode, sight.zone)
        if sight.mode is Mode.IDLE:
            assert isinstance(decision, Wait if choice.mode is Mode.IDLE else Launch)
        else:
            assert isinstance(decision, Keep if is_same else Drain)
        if isinstance(decision, Launch):
            market = Market.SPOT if choice.mode is Mode.SPOT else Market.ON_DEMAND
            place = sight.zones[choice.zone]
            assert (decision.offer.market, decision.offer.region) == (market, REGIONS[place.name])
            assert market is Market.ON_DEMAND or decision.offer.zone == place.name
        self._act(sight, choice)
        return choice

    def _act(self, sight: Sight, choice: Choice) -> None:
        if (choice.mode, choice.zone) == (sight.mode, sight.zone):
            return
        if sight.mode is not Mode.IDLE:
            self._end(sight.now, EndReason.DRAINED)
        if choice.mode is not Mode.IDLE:
            name = sight.zones[choice.zone].name
            market = Market.SPOT if choice.mode is Mode.SPOT else Market.ON_DEMAND
            self.wish = (_offer(name, market), sight.now)

    def _notice(self, sight: Sight) -> None:
        """Turn what has become of the last choice into a launch record."""
        if self.wish is not None:
            offer, hour = self.wish
            self.wish = None
            names = [one.name for one in sight.zones]
            seen = [
                s.is_up for s in sight.sightings if (s.hour, names[s.zone]) == (hour, offer.zone)
            ]
            at = _at(hour)
            if offer.market is Market.SPOT and seen[-1:] == [False]:
                refused = {"ended_at": at, "reason": EndReason.NO_CAPACITY}
                self.launches.append(LaunchRecord(offer=offer, started_at=at, **refused))
            else:
                self.launches.append(LaunchRecord(offer=offer, started_at=at, ready_at=at))
        if self.launches and self.launches[-1].ended_at is None and sight.mode is Mode.IDLE:
            self._end(sight.now, EndReason.PREEMPTED)

    def _end(self, hour: float, reason: EndReason) -> None:
        last = self.launches[-1]
        ready = {"started_at": last.started_at, "ready_at": last.ready_at}
        self.launches[-1] = LaunchRecord(
            offer=last.offer, ended_at=_at(hour), reason=reason, has_progressed=True, **ready
        )

    def _history(self, sight: Sight) -> History:
        places = sorted({("aws", region) for region in REGIONS.values()})
        here = sight.checkpoint_place
        return History(
            launches=tuple(self.launches),
            usd=Decimal(0),
            usd_per_hour=Decimal(0),
            work_left=sight.work_left * HOUR,
            work_done=(sight.work - sight.work_left) * HOUR,
            is_complete=False,
            stop_requested=False,
            began_at=START,
            checkpoint_bytes=10**9,
            checkpoint_place=None if here == NOWHERE else places[here],
        )

    def _limits(self, sight: Sight) -> Limits:
        return Limits(
            budget_usd=Decimal(10**6),
            deadline_at=_at(sight.deadline),
            market=MarketPreference.SPOT_WITH_FALLBACK,
            stop_margin=timedelta(minutes=3),
            restart=sight.restart * HOUR,
            policy=PolicyName(self.name),
            failed_launch=FAILED,
            patience=TICK,
            lost_work=sight.lost_work * HOUR,
        )


def _words(why: str) -> str:
    """Return what is said of the choice; two second best ones may be equal but for rounding."""
    said = why.partition(" expected to the end, ")[0].replace("0.0 h ahead", "0.0 h behind")
    return _NUMBER.sub("#", said)


def _is_tie(why: str) -> bool:
    """Say whether the two best choices cost the same to the cent: rounding decides then."""
    costs = re.findall(r"\$([\d.]+)", why)
    return len(costs) == 2 and costs[0] == costs[1]


def _numbers(why: str) -> list[float]:
    """Return what is rounded for people, of hours that dates have rounded before."""
    return [float(found) for found in _NUMBER.findall(why)]


def _at(hour: float):
    return START + hour * HOUR


def _offer(name: str, market: Market) -> Offer:
    usd = SPOT[name] if market is Market.SPOT else ON_DEMAND
    return make_offer(REGIONS[name], market, usd=str(usd), zone=name)


def _offers() -> list[Offer]:
    return [_offer(name, market) for name in REGIONS for market in Market]


def _random_market(seed: int):
    dice = random.Random(seed)
    zones = []
    for name, region in REGIONS.items():
        room = "".join(dice.choice("01") * dice.randint(1, 12) for _ in range(40))[:72]
        price = float(SPOT[name])
        gap = TICK.total_seconds()
        more = {"spot": price, "on_demand": float(ON_DEMAND), "gap": gap}
        zones.append(zone(name, room, region=region, **more))
    return make_market(zones, 1)


@pytest.mark.parametrize("policy", [name.value for name in PolicyName])
def test_decide_answers_what_the_policy_answers_to_the_simulator(policy):
    actions: set[type] = set()
    num_ties = 0
    for seed in range(8):
        terms = Terms(
            work=6.0,
            deadline=9.0,
            restart=1 / 8,
            state_gb=1.0,
            observe=Observe.LAUNCHES,
            failed_launch=FAILED / HOUR,
        )
        twin = Twin(policy)
        assert not simulate(_random_market(seed), 0, terms, twin).is_late
        actions |= set(twin.actions)
        num_ties += twin.num_ties
    assert actions == ACTIONS[policy]
    assert num_ties <= 10
