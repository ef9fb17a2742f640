"""The cloud: zones that have room or not, and nodes that come up, cost money and are taken back."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

from orchestrator.attempts import AgentExit
from orchestrator.ledger.facts import QuotedOffer
from orchestrator.offers import Market, Offer
from tests.orchestrator.histories import START, make_offer
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.node import run_agent
from tests.simulation.plan import Plan
from tests.simulation.trainer import Pace

_REGIONS = (("us-east-1", "8"), ("us-west-2", "9"), ("eu-west-1", "10"))
_ON_DEMAND = "30"
# SkyPilot's autodown of a node without a job, as its controller asks for it and as an agent that
# leaves does, with a look of skylet's; and how long our set-up may take, which is part of the job.
AUTODOWN_S, _LEFT_AUTODOWN_S = 600.0, 180.0
LONGEST_SET_UP_S = 3600.0
_SET_UP_FAILED, _SET_UP_HUNG = 1, 124
# The agent of a machine that stood still looks around a moment after its ranks go on.
_AWAKE_AFTER_S = 5.0


class NoRoom(Exception):
    """The zone has no spot capacity now."""


# The exit status of what SIGKILL ends.
_KILLED = 137


class LostWhileSetUp(Exception):
    """The node was taken back before its job began."""


@dataclass(slots=True)
class Node:
    """One node, from the moment that the cloud bills it."""

    launch: str
    offer: QuotedOffer
    owner: str
    pace: Pace
    process: Process
    store_of: object
    up_at: float
    attempt: int | None = None
    notice_at: float | None = None
    """When the cloud says that it will take it."""
    billed_until: float | None = None
    """When the cloud ended its bill; None: it runs."""
    began_at: float | None = None
    """When its agent did."""
    exit_code: int | None = None
    exited_at: float | None = None
    was_taken: bool = False
    """The cloud ended it."""
    ranks: Process | None = None
    frozen_s: float = 0.0
    agent_stopped_at: float | None = None
    was_disturbed: bool = False
    """Something has happened to it, be it a false notice."""

    def start_ranks(self) -> Process:
        self.ranks = Process(
            self.process.loop, f"{self.process.name}/ranks", skew=self.process.skew
        )
        return self.ranks

    @property
    def is_up(self) -> bool:
        return self.billed_until is None

    def freeze(self, until: float) -> None:
        for process in (self.process, self.ranks):
            if process is not None:
                process.frozen_until = until
        self.frozen_s += until - self.process.loop.seconds

    def stop_agent(self) -> None:
        """As SIGSTOP: its ranks go on."""
        if self.agent_stopped_at is None:
            self.agent_stopped_at = self.process.loop.seconds
        self.process.frozen_until = math.inf

    def kill_ranks(self) -> None:
        if self.ranks is not None:
            self.ranks.kill()

    def kill(self) -> None:
        for process in (self.process, self.ranks):
            if process is not None:
                process.kill()


@dataclass
class Cloud:
    """All nodes there ever were, and the market."""

    loop: VirtualLoop
    plan: Plan
    store_of: object
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.plan.seed} cloud")
        self._flaps = {
            region: _flaps(self.rng, self.plan.spot_share, self.plan.calm_from)
            for region, _ in _REGIONS
        }
        self.service = Process(self.loop, "cloud")
        self.plan.when_stalled = self._lose_sight_of

    def offers(self, spec=None) -> tuple[Offer, ...]:
        """Return today's offers; prices move in plans that say so."""
        factor = self.plan.price_factor(self.loop.seconds)
        spot = [
            make_offer(region, usd=str((Decimal(usd) * factor).quantize(Decimal("0.000001"))))
            for region, usd in _REGIONS
        ]
        fixed = [make_offer(region, Market.ON_DEMAND, usd=_ON_DEMAND) for region, _ in _REGIONS]
        return (*spot, *fixed)

    def has_room(self, offer: QuotedOffer, at: float) -> bool:
        if offer.market is Market.ON_DEMAND:
            return True
        return sum(instant <= at for instant in self._flaps[offer.region]) % 2 == 0

    async def provision(self, job, launch: str, offer: QuotedOffer, owner: str) -> float:
        """Bring a node up and start its job; return when that was submitted."""
        rng, plan, loop = self.rng, self.plan, self.loop
        await asyncio.sleep(rng.uniform(20, 90))
        if not self.has_room(offer, loop.seconds):
            plan.count("no room", launch)
            raise NoRoom
        node = Node(
            launch=launch,
            offer=offer,
            owner=owner,
            pace=plan.pace,
            process=Process(loop, f"node {launch}", skew=plan.skew(rng)),
            store_of=self.store_of,
            up_at=loop.seconds,
        )
        node.process.when_killed = lambda: self._end(node, _KILLED)
        self.nodes.append(node)
        job.came_up(node)
        await asyncio.sleep(rng.uniform(20, 90))
        if plan.happens("lost while set up", launch):
            self.take(node)
            raise LostWhileSetUp
        if not node.is_up:
            raise LostWhileSetUp
        if plan.happens("set-up failed", launch):
            node.was_disturbed = True
            self._end(node, _SET_UP_FAILED)
        elif plan.happens("set-up hangs", launch):
            node.was_disturbed = True
            loop.call_later(LONGEST_SET_UP_S, self._end, node, _SET_UP_HUNG)
        else:
            node.began_at = loop.seconds
            node.process.start(lambda: self._run(node))
            self.service.spawn(self._take_back_some_day(node))
        return loop.seconds

    def _run(self, node: Node) -> None:
        self._end(node, run_agent(node, self.store_of(node.process)))

    def _end(self, node: Node, exit_code: int) -> None:
        """End a node's job: ranks end with their agent, and what is idle is taken down."""
        node.exit_code, node.exited_at = exit_code, self.loop.seconds
        node.kill_ranks()
        has_asked = node.began_at is not None and exit_code not in (AgentExit.DONE, _KILLED)
        idle_s = _LEFT_AUTODOWN_S if has_asked else AUTODOWN_S
        self.loop.call_later(idle_s, self.terminate, node)

    async def _take_back_some_day(self, node: Node) -> None:
        """Give notices, some of them false; freeze it; take it back."""
        plan, rng, loop = self.plan, self.rng, self.loop
        while node.is_up and not plan.is_calm(loop.seconds):
            await asyncio.sleep(rng.expovariate(1 / plan.mean_life_s))
            if not node.is_up or plan.is_calm(loop.seconds):
                return
            node.was_disturbed = True
            match plan.choose_fate(rng, node.launch):
                case "taken with notice":
                    node.notice_at = loop.seconds + rng.choice((5.0, 30.0, 120.0))
                    await asyncio.sleep(node.notice_at - loop.seconds)
                    self.take(node)
                case "false notice":
                    node.notice_at = loop.seconds + 30.0
                case "frozen":
                    node.freeze(loop.seconds + rng.uniform(30, 1500))
                case "agent stopped":
                    node.stop_agent()
                case "agent killed":
                    node.process.kill()
                case "ranks killed":
                    node.kill_ranks()
                case "taken, but lives on":
                    self.take(node, lives_on_s=rng.uniform(60, 3600))
                case _:
                    self.take(node)

    def take(self, node: Node, lives_on_s: float = 0.0) -> None:
        """End a node's bill; a zombie's processes go on for a while, cut off from nothing."""
        if not node.is_up:
            return
        node.billed_until = self.loop.seconds
        node.was_disturbed = node.was_taken = True
        if lives_on_s:
            self.loop.call_later(lives_on_s, node.kill)
        else:
            node.kill()

    def _lose_sight_of(self, process: Process, seconds: float) -> None:
        """Take the node whose process stands still, and stop what would look after it."""
        for node in self.nodes:
            if process in (node.process, node.ranks):
                self.take(node, lives_on_s=2 * 3600.0)
                node.process.frozen_until = self.loop.seconds + seconds + _AWAKE_AFTER_S

    def terminate(self, node: Node) -> None:
        """End a node on our behalf; one that the cloud thinks gone cannot be ended."""
        if node.is_up:
            node.billed_until = self.loop.seconds
            node.kill()

    def usd(self, until: float) -> Decimal:
        """Return what the cloud bills for all nodes."""
        return sum((self.usd_of(node, until) for node in self.nodes), Decimal(0))

    def usd_of(self, node: Node, until: float) -> Decimal:
        end = until if node.billed_until is None else min(node.billed_until, until)
        seconds = Decimal(str(max(0.0, end - node.up_at)))
        return node.offer.usd_per_hour * seconds / 3600


def instant(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def _flaps(rng: random.Random, share: float, until: float) -> list[float]:
    """Return when a zone's room goes and comes, beginning with its going; there at the end."""
    instants, at = [], 0.0 if rng.random() > share else rng.expovariate(1 / 3600)
    while at < until:
        gone = rng.expovariate(1 / (3600 * (1 - share) + 60))
        instants += [at, at + gone]
        at += gone + rng.expovariate(1 / (3600 * share + 60))
    return [min(one, until) for one in instants]
