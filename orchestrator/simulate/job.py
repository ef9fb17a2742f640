"""One job on one market under one policy, from launch to the last step, in virtual time."""

from __future__ import annotations

import math
from datetime import timedelta

from orchestrator.cost import move_usd
from orchestrator.policy.budget import choose_within_budget
from orchestrator.policy.history import RETRY_ZONE_AFTER, STOP_MARGIN
from orchestrator.policy.sight import NOWHERE, Choice, Mode, Policy, Sight, Sighting, Zone
from orchestrator.simulate.market import Market
from orchestrator.simulate.spans import Span
from orchestrator.simulate.terms import Bill, Billing, Ended, Observe, Terms, TooShort

_MINUTES_PER_HOUR = 60
# What a launch has shown of a zone is taken for true so long, as in `decide`.
BELIEVED_HOURS = RETRY_ZONE_AFTER / timedelta(hours=1)
# What a stop takes of a node that is up, to save and be gone: billed, and kept back of a budget.
STOP_HOURS = STOP_MARGIN / timedelta(hours=1)
# Ticks; sums of floats that are meant to be equal.
_EPSILON = 1e-6


class Job:
    """A job under way."""

    def __init__(
        self, market: Market, start: int, terms: Terms, policy: Policy, *, remembers: bool = False
    ) -> None:
        """Begin at a tick of the market; `remembers` keeps decisions and spans."""
        self._market, self._terms, self._policy = market, terms, policy
        self._start = start
        self._tick = float(start)
        self._bill = Bill()
        self._decisions: list[tuple[float, Choice]] | None = [] if remembers else None
        self._spans: list[Span] | None = [] if remembers else None
        self._launched_at = self._ready_at = self._tick
        self._restart = terms.restart / market.tick_hours
        self._budget = math.inf if terms.budget_usd is None else terms.budget_usd
        self._saved = 0.0
        """Hours of work that a preemption cannot take back."""
        places = sorted(set(market.places))
        self._sight = Sight(
            zones=[
                Zone(name, places.index(place), on_demand)
                for name, place, on_demand in zip(
                    market.names, market.places, market.on_demand, strict=True
                )
            ],
            move_usd=move_usd(places, terms.state_gb),
            deadline=terms.deadline,
            work=terms.work,
            work_left=terms.work,
            restart=terms.restart,
            failed_launch=terms.failed_launch if terms.observe is Observe.LAUNCHES else 0.0,
            patience=market.tick_hours,  # decisions fall on ticks
            lost_work=terms.lost_work,
            pace=terms.pace,
        )
        self._sight.is_up = [None] * len(market.names)
        self._seen_at = [-math.inf] * len(market.names)

    def run(self) -> Ended:
        """Go on to the end; raises TooShort."""
        sight = self._sight
        is_over_budget = False
        while sight.work_left > _EPSILON:
            if self._tick >= self._market.num_ticks - _EPSILON:
                if self._hours(self._tick) < self._terms.deadline - _EPSILON:
                    raise TooShort
                break  # it is late, whatever comes now
            self._look()
            choice = self._choose()
            if self._decisions is not None:
                self._decisions.append((sight.now, choice))
            if self._budget < math.inf and self._is_too_dear(choice):
                self._stop()
                is_over_budget = True
                break
            if self._follow(choice):
                self._pass(self._next_look(choice))
        hours = self._hours(self._tick)
        is_late = sight.work_left > _EPSILON or hours > self._terms.deadline + _EPSILON
        return Ended(
            hours=hours,
            is_late=is_late and not is_over_budget,
            bill=self._bill,
            is_over_budget=is_over_budget,
            is_finished=sight.work_left <= _EPSILON,
            decisions=tuple(self._decisions or ()),
            spans=tuple(self._spans or ()),
        )

    def _hours(self, tick: float) -> float:
        return (tick - self._start) * self._market.tick_hours

    def _look(self) -> None:
        """Bring the sight up to the present, and notice that a node is gone."""
        market, sight = self._market, self._sight
        tick = int(self._tick + _EPSILON)
        sight.now = self._hours(self._tick)
        sight.spot = market.spot_at[tick]
        up = market.up_at[tick]
        if self._terms.observe is Observe.LAUNCHES:
            self._forget()
        is_lost = sight.mode is Mode.SPOT and not up[sight.zone]
        if self._terms.observe is Observe.FREE:
            for zone, is_up in enumerate(up):
                if is_up is not sight.is_up[zone]:
                    sight.sightings.append(Sighting(sight.now, zone, is_up))
            sight.is_up = up
        elif is_lost:
            self._see(sight.zone, is_up=False)
        if is_lost:
            self._lose()

    def _see(self, zone: int, *, is_up: bool) -> None:
        """Note what a launch, or its end, has shown of a zone."""
        sight = self._sight
        known = list(sight.is_up)
        known[zone] = is_up
        sight.is_up = known
        self._seen_at[zone] = sight.now
        sight.sightings.append(Sighting(sight.now, zone, is_up))

    def _forget(self) -> None:
        """Take what was seen a while ago for unknown, but for the zone that a node is in."""
        sight = self._sight
        on_spot = sight.zone if sight.mode is Mode.SPOT else NOWHERE
        old = sorted(
            (seen_at + BELIEVED_HOURS, zone)
            for zone, (is_up, seen_at) in enumerate(zip(sight.is_up, self._seen_at, strict=True))
            if is_up is not None and zone != on_spot
            if sight.now >= seen_at + BELIEVED_HOURS - _EPSILON
        )
        known = list(sight.is_up)
        for hour, zone in old:
            known[zone] = None
            sight.sightings.append(Sighting(hour, zone, None))
        sight.is_up = known

    def _lose(self) -> None:
        sight, bill = self._sight, self._bill
        lost = min(self._terms.lost_work, sight.work - sight.work_left - self._saved)
        sight.work_left += lost
        bill.lost_hours += lost
        bill.num_preemptions += 1
        if self._terms.billing is Billing.PROVIDER:
            self._forgive(sight.zone)
        self._saved = sight.work - sight.work_left
        sight.mode, sight.zone = Mode.IDLE, NOWHERE

    def _forgive(self, zone: int) -> None:
        """Take back what a provider does not charge for a node that it has taken back.

        AWS: the first hour. GCP: the first minute.
        """
        cloud = self._market.places[zone][0]
        free = {"aws": 1.0, "gcp": 1 / _MINUTES_PER_HOUR}.get(cloud, 0.0)
        if (self._tick - self._launched_at) * self._market.tick_hours < free:
            self._bill.spot -= self._market.spot_usd(zone, self._launched_at, self._tick)

    def _follow(self, choice: Choice) -> bool:
        """Do what was chosen; return False if a launch found no room, and took its time."""
        sight = self._sight
        if (choice.mode, choice.zone) == (sight.mode, sight.zone):
            return True
        self._leave()
        if choice.mode is Mode.IDLE:
            return True
        if choice.mode is Mode.SPOT and self._terms.observe is Observe.LAUNCHES:
            has_room = self._market.up_at[int(self._tick + _EPSILON)][choice.zone]
            self._see(choice.zone, is_up=has_room)
            if not has_room:
                self._bill.num_failed_launches += 1
                self._pass(self._tick + self._terms.failed_launch / self._market.tick_hours)
                return False
        self._bill.num_launches += 1
        self._bill.moves += sight.move(choice.zone)
        sight.mode, sight.zone = choice.mode, choice.zone
        sight.checkpoint_place = sight.zones[choice.zone].place
        self._launched_at = self._tick
        self._ready_at = self._tick + self._restart
        sight.ready_at = self._hours(self._ready_at)
        return True

    def _choose(self) -> Choice:
        sight = self._sight
        if self._budget == math.inf:
            return self._policy.choose(sight)
        stop = STOP_HOURS * min(self._market.on_demand)
        sight.usd_left = self._budget - self._bill.usd - stop
        return choose_within_budget(self._policy, sight)

    def _is_too_dear(self, choice: Choice) -> bool:
        """Say whether the budget pays for no more than a stop, or not for a start and a stop."""
        sight = self._sight
        if choice.mode is Mode.IDLE:
            return False
        rate = self._rate(choice.mode, choice.zone)
        usd = self._bill.usd + rate * STOP_HOURS
        if (choice.mode, choice.zone) != (sight.mode, sight.zone):
            usd += rate * self._terms.restart + sight.move(choice.zone)
        return usd >= self._budget - _EPSILON

    def _rate(self, mode: Mode, zone: int) -> float:
        """Return what an hour of a node costs now, with its saves."""
        market, sight = self._market, self._sight
        price = sight.spot[zone] if mode is Mode.SPOT else market.on_demand[zone]
        return price + market.save_usd[zone]

    def _stop(self) -> None:
        """Save and end what is up; nothing is trained meanwhile."""
        if self._sight.mode is not Mode.IDLE:
            until = min(self._tick + STOP_HOURS / self._market.tick_hours, self._market.num_ticks)
            self._ready_at = until
            self._pass(until)
            self._leave()

    def _leave(self) -> None:
        """End what is up: it has saved before."""
        sight = self._sight
        self._saved = sight.work - sight.work_left
        if sight.mode is Mode.SPOT and self._terms.observe is Observe.LAUNCHES:
            self._see(sight.zone, is_up=True)  # it has room until now
        sight.mode, sight.zone = Mode.IDLE, NOWHERE

    def _next_look(self, choice: Choice) -> float:
        """Return when the policy is asked again, in ticks; availability changes on whole ones."""
        market, sight = self._market, self._sight
        tick = int(self._tick + _EPSILON)
        until = math.inf
        if choice.until < math.inf:
            wish = self._start + max(choice.until, sight.now) / market.tick_hours
            until = max(math.ceil(wish - _EPSILON), tick + 1)
        if sight.mode is Mode.SPOT:
            until = min(until, market.next_down[sight.zone][tick])
        elif self._terms.observe is Observe.FREE:
            until = min(until, self._next_up(tick))
        else:
            until = min(until, self._next_doubt())
        if self._policy.looks_around and self._terms.observe is Observe.FREE:
            until = min(until, market.next_change[tick])
        if sight.mode is not Mode.IDLE:
            done_at = max(self._tick, self._ready_at) + sight.work_left / market.tick_hours
            until = min(until, done_at)
            if self._budget < math.inf:
                until = min(until, self._broke_at())
        return min(until, market.num_ticks)

    def _broke_at(self) -> float:
        """Return when a stop takes the rest of the budget, in ticks."""
        market, sight = self._market, self._sight
        rate = self._rate(sight.mode, sight.zone)
        left = max(0.0, self._budget - self._bill.usd - rate * STOP_HOURS)
        saves = market.save_usd[sight.zone]
        if sight.mode is Mode.SPOT and saves == 0:
            return market.affords_until(sight.zone, self._tick, left)
        return self._tick + left / rate / market.tick_hours

    def _next_doubt(self) -> float:
        """Return when a zone that had no room is worth another try, in ticks."""
        sight = self._sight
        hours = (
            seen_at + BELIEVED_HOURS
            for is_up, seen_at in zip(sight.is_up, self._seen_at, strict=True)
            if is_up is False
        )
        return self._start + min(hours, default=math.inf) / self._market.tick_hours

    def _next_up(self, tick: int) -> int:
        """Return when a zone that has no room now has some."""
        return min(
            (rows[tick] for rows in self._market.next_up if rows[tick] > tick),
            default=self._market.num_ticks,
        )

    def _pass(self, until: float) -> None:
        """Let time pass: what is up trains and costs."""
        market, sight, bill = self._market, self._sight, self._bill
        hours = (until - self._tick) * market.tick_hours
        match sight.mode:
            case Mode.SPOT:
                bill.spot += market.spot_usd(sight.zone, self._tick, until)
                bill.spot_hours += hours
            case Mode.ON_DEMAND:
                bill.on_demand += hours * market.on_demand[sight.zone]
                bill.on_demand_hours += hours
            case Mode.IDLE:
                bill.waiting_hours += hours
        done = sight.work - sight.work_left
        if sight.mode is not Mode.IDLE:
            trained = max(0.0, until - max(self._tick, self._ready_at)) * market.tick_hours
            sight.work_left = max(0.0, sight.work_left - trained)
            bill.saves += trained * market.save_usd[sight.zone]
        self._tick = until
        began, sight.now = sight.now, self._hours(until)
        if self._spans is not None:
            what, now_done = (sight.mode, sight.zone), sight.work - sight.work_left
            self._spans.append(Span(began, sight.now, *what, sight.ready_at, done, now_done))


def simulate(market: Market, start: int, terms: Terms, policy: Policy) -> Ended:
    """Return how a job ends that begins at a tick; raises TooShort if the record ends before."""
    return Job(market, start, terms, policy).run()
