"""One play of a run: the policy's decisions on one random market, from the launch to the end.

Every zone's spot capacity comes and goes at random. Real nodes are lost most often soon after their
start and then ever less (Wu et al., NSDI'24), which is left out; and no notice saves anything here.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal

from orchestrator.attempts import EndReason, StopReason
from orchestrator.cost import HOURS_PER_MONTH, STORAGE_USD_PER_GB_MONTH, egress_usd, hours
from orchestrator.offers import Market, Offer
from orchestrator.policy.answers import Decision, Drain, Keep, Launch, Stop, Wait
from orchestrator.policy.by_price import MIN_STAY
from orchestrator.policy.decide import MAX_PREEMPTIONS, decide
from orchestrator.policy.history import RETRY_ZONE_AFTER, History, LaunchRecord, Limits

ORIGIN = datetime(2000, 1, 1, tzinfo=timezone.utc)  # only differences matter
# Older launches change no decision.
_REMEMBERED = 2 * MAX_PREEMPTIONS
_NOTHING = timedelta()
_LONGEST_LIFE_H = 1e6  # what dates can hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What is assumed of a market and its nodes."""

    losses_per_hour: float
    """Of a spot node that is up, to the cloud."""
    absence: timedelta
    """Mean time until a zone without spot capacity has some again."""
    failures_per_hour: float
    """Of a node of any kind, by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What there is to do, and what saving it takes."""

    productive: timedelta
    interval: timedelta
    """Between saves; half of it is lost with a node in the mean."""
    stall: timedelta
    """Of training, per save."""
    num_nodes: int
    checkpoint_bytes: int
    num_kept: int
    home: tuple[str, str]
    """Place of the store that is used where a place has none of its own."""
    places_with_store: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a play ended."""

    ended_after: timedelta
    usd: Decimal
    egress_usd: Decimal
    is_finished: bool


@dataclass(slots=True, kw_only=True)
class Play:
    """One run on one random market, from the launch command to its end."""

    work: Work
    offers: tuple[Offer, ...]
    limits: Limits
    weather: Weather
    dice: random.Random
    now: datetime = ORIGIN
    usd: Decimal = Decimal(0)
    egress: Decimal = Decimal(0)
    done: timedelta = _NOTHING
    """Of the productive time; what is lost with a node is taken off again."""
    num_decisions: int = 0
    launches: list[LaunchRecord] = field(default_factory=list)
    ready_at: datetime = ORIGIN
    lost_at: datetime = ORIGIN
    """When the node that is up will be lost."""
    saved_in: tuple[str, str] | None = None
    """Place of the store that holds the last checkpoint."""
    zones: dict[tuple[str, str], tuple[datetime, bool]] = field(default_factory=dict)
    """When each zone was last looked at, and whether it had capacity."""

    def to_the_end(self) -> Outcome:
        """Go on until the policy stops the run."""
        while True:
            self.num_decisions += 1
            decision = self._decide()
            match decision:
                case Launch():
                    self._launch(decision.offer)
                case Wait():
                    self._pass(max(decision.until, self.now + timedelta(minutes=1)))
                case Keep():
                    self._train()
                case Drain():
                    self._drain()
                case Stop():
                    return Outcome(
                        ended_after=self.now - ORIGIN,
                        usd=self.usd + self.egress,
                        egress_usd=self.egress,
                        is_finished=decision.reason is StopReason.DONE,
                    )

    def _decide(self) -> Decision:
        up = self._up
        history = History(
            launches=tuple(self.launches),
            usd=self.usd + self.egress,
            usd_per_hour=Decimal(0) if up is None else self._node_rate(up),
            work_left=self.work.productive - self.done if self.done else None,
            is_complete=self.done >= self.work.productive,
            stop_requested=False,
            num_nodes=self.work.num_nodes,
            began_at=ORIGIN,
        )
        return decide(history, self.offers, self.limits, self.now)

    @property
    def _up(self) -> Offer | None:
        is_up = self.launches and self.launches[-1].ended_at is None
        return self.launches[-1].offer if is_up else None

    def _launch(self, offer: Offer) -> None:
        asked = LaunchRecord(offer=offer, started_at=self.now)
        self._forget()
        if not self._has_capacity(offer):
            refused = replace(asked, ended_at=self.now, reason=EndReason.NO_CAPACITY)
            self.launches.append(refused)
            return
        self.launches.append(asked)
        self.ready_at = self.now + self.limits.restart
        per_hour = self.weather.failures_per_hour
        if offer.market is Market.SPOT:
            per_hour += self.weather.losses_per_hour
        life_h = min(self.dice.expovariate(per_hour), _LONGEST_LIFE_H)
        self.lost_at = self.now + timedelta(hours=life_h)
        if self.saved_in is not None:
            self.egress += egress_usd(self.work.checkpoint_bytes, self.saved_in, offer.place)

    def _forget(self) -> None:
        """Drop refusals that change no decision any more: decisions get slow by a long history.

        Those of the last minutes count, and the first since a node was up: it began the wait.
        """
        kept: list[LaunchRecord] = []
        for record in self.launches[-_REMEMBERED:]:
            is_recent = record.ended_at is None or self.now - record.ended_at < RETRY_ZONE_AFTER
            begins = not kept or kept[-1].reason is not EndReason.NO_CAPACITY
            if record.reason is not EndReason.NO_CAPACITY or is_recent or begins:
                kept.append(record)
        self.launches = kept

    def _has_capacity(self, offer: Offer) -> bool:
        """Look at a zone: a Markov chain of two states, sampled when it is asked.

        On-demand capacity is always there.
        """
        if offer.market is Market.ON_DEMAND:
            return True
        away = 1 / (self.weather.absence / timedelta(hours=1))
        usual = away / (away + self.weather.losses_per_hour)
        key = (offer.cloud, offer.zone)
        chance = usual
        if key in self.zones:
            then, was_there = self.zones[key]
            passed = (self.now - then) / timedelta(hours=1)
            memory = math.exp(-(away + self.weather.losses_per_hour) * passed)
            chance += (float(was_there) - usual) * memory
        is_there = self.dice.random() < chance
        self.zones[key] = (self.now, is_there)
        return is_there

    def _train(self) -> None:
        """Go on until something happens: the node is lost, the work is done or the budget is."""
        offer = self._up
        assert offer is not None
        saves_per_hour = timedelta(hours=1) / (self.work.interval + self.work.stall)
        left = (self.work.productive - self.done) * self._slowness
        done_at = max(self.now, self.ready_at) + left
        until = min(self.lost_at, done_at, self._broke_at(offer, saves_per_hour))
        if offer.market is Market.ON_DEMAND:  # spot may be worth another try
            until = min(until, self.now + MIN_STAY)
        trained = max(_NOTHING, until - max(self.now, self.ready_at))
        self.done += trained / self._slowness
        self.egress += Decimal(saves_per_hour) * hours(trained) * self._save_usd(offer)
        self._pass(until)
        if until >= self.work.interval + self.ready_at:
            self.saved_in = self._store_of(offer)
            self.launches[-1] = replace(self.launches[-1], has_progressed=True)
        if until == self.lost_at:
            self._lose(offer, trained)

    def _drain(self) -> None:
        self._pass(self.now + self.limits.stop_margin)
        self.launches[-1] = replace(
            self.launches[-1], ended_at=self.now, reason=EndReason.DRAINED, has_progressed=True
        )

    def _lose(self, offer: Offer, trained: timedelta) -> None:
        lost = min(trained, self.work.interval * self.dice.random())
        self.done = max(_NOTHING, self.done - lost / self._slowness)
        reason = EndReason.PREEMPTED if offer.market is Market.SPOT else EndReason.NODE_LOST
        self.launches[-1] = replace(self.launches[-1], ended_at=self.now, reason=reason)
        if offer.market is Market.SPOT:
            self.zones[offer.cloud, offer.zone] = (self.now, False)

    @property
    def _slowness(self) -> float:
        return 1 + self.work.stall / self.work.interval

    def _broke_at(self, offer: Offer, saves_per_hour: float) -> datetime:
        """Return when the policy will stop a run for its budget: what a stop takes is left then."""
        rate = self._node_rate(offer)
        left = (
            self.limits.budget_usd - self.usd - self.egress - rate * hours(self.limits.stop_margin)
        )
        per_hour = rate + Decimal(saves_per_hour) * self._save_usd(offer) + self._storage_rate
        return self.now + timedelta(hours=max(0.0, float(left / per_hour)), seconds=1)

    def _pass(self, until: datetime) -> None:
        up = self._up
        rate = self._storage_rate + (Decimal(0) if up is None else self._node_rate(up))
        self.usd += rate * hours(until - self.now)
        self.now = until

    def _node_rate(self, offer: Offer) -> Decimal:
        return offer.usd_per_hour * self.work.num_nodes

    @property
    def _storage_rate(self) -> Decimal:
        gigabytes = Decimal(self.work.checkpoint_bytes * self.work.num_kept) / 10**9
        return gigabytes * STORAGE_USD_PER_GB_MONTH / HOURS_PER_MONTH

    def _store_of(self, offer: Offer) -> tuple[str, str]:
        return offer.place if offer.place in self.work.places_with_store else self.work.home

    def _save_usd(self, offer: Offer) -> Decimal:
        return egress_usd(self.work.checkpoint_bytes, self._store_of(offer), offer.place)
