"""What must hold whatever happens; looked at after every change of the run's store and in between.

I1 no committed step is lost; I2 the weights are those of an undisturbed run; I3 what HEAD names is
whole; I4 only the owner commits; I5 no node without an owner; I6 the ledger has every node's time,
whoever reads it; I7 the budget is kept; I9 each batch once (the chain of digests); I10 it gets on.

Bounds in time are tight where nothing hindered whoever had to act, and wider by as long as
something did: by what happened to that node and that controller, not by what happened in the seed.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from decimal import Decimal

from checkpoints.errors import CheckpointError
from checkpoints.fence import read_head
from checkpoints.inspect import read_manifest
from checkpoints.layout import HEAD_KEY
from checkpoints.store import ObjectStore
from orchestrator.agent.config import AgentConfig
from orchestrator.attempts import RetryBudget, StopReason, charged_to
from orchestrator.charges import charge
from orchestrator.cost import bill
from orchestrator.deciding import replay_decisions
from orchestrator.ledger.facts import RunEnded
from orchestrator.ledger.fold import RunState, fold
from orchestrator.ledger.heartbeat import (
    MUTE_AGENT_S,
    SILENT_AGENT_S,
    SILENT_NODE_STOPS_AFTER,
    silent_detail,
)
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.measurements import MeasurementReader
from orchestrator.policy.decide import MAX_FAILURES, MAX_PREEMPTIONS
from orchestrator.replay import compare_replayed
from tests.simulation.cloud import AUTODOWN_S, LONGEST_SET_UP_S, instant
from tests.simulation.trainer import undisturbed, weights_of

# Each rank's part of the weights, which ends its object.
_TAIL_BYTES = 16
# What the budget may be exceeded by: a look of the guards, a save, and the nodes' going.
_LEAVES_WITHIN_S = 480.0
# How long the strategy listens for the agent of a node that SkyPilot cannot see: four ticks, after
# two minutes without a status.
_LISTENING_S = 360.0
# What happened so long before or after something counts as having been there at that time.
_AROUND_S = 60.0
# When a node without an owner is gone: after eight minutes of its silence and a look, two to save,
# and three until SkyPilot has ended an idle node.
_OWNERLESS_S = 900.0
_LEASE_S = AgentConfig.model_fields["lease_seconds"].default
_SILENT_S = AgentConfig.model_fields["silent_seconds"].default
# Seeds whose decisions are made again from the ledger: each is a fold and a policy's answer.
_REPLAYED = 5
_SLACK = timedelta(minutes=3)


class Invariants:
    """Looks at one world; `world` is told what does not hold."""

    def __init__(self, world) -> None:
        self._world = world
        self._store: ObjectStore = world.objects
        self._rng = random.Random(f"{world.seed} damage")
        self._head = None
        self._damaged: set[str] = set()
        self.num_commits = self._steps_lost = 0
        self._unheard: set[str] = set()
        self.looks: Counter[str] = Counter()
        self.strict: Counter[str] = Counter()
        """How often a bound was judged at its tightest, of all looks."""
        self.seconds_off = 0.0
        self.usd_off = Decimal(0)
        self._state: RunState | None = None

    def note_change(self, process, operation: str, key: str) -> None:
        """Look at what a write has changed."""
        if key == HEAD_KEY:
            self._look_at_head(process)
        elif operation == "delete" and self._head is not None:
            for wanted in (self._head.manifest, self._head.parent):
                self._demand(wanted not in key.split(), f"I3: {wanted} was deleted")

    def damage(self) -> None:
        """Spoil HEAD's checkpoint, if the one before it is whole, and have it be needed."""
        head = self._head
        if head is None or head.manifest is None or head.parent is None:
            return
        if {head.manifest, head.parent} & self._damaged or not self._is_there(head.parent):
            return
        shards = [entry.key for entry in read_manifest(self._store, head.manifest).objects]
        key = self._rng.choice([head.manifest, *shards])
        data = bytearray(self._store.get(key).data)
        what = self._rng.choice(("flipped", "cut", "deleted"))
        if what == "flipped":
            # Of the weights: what is wrong with a header or a manifest shows by itself.
            data[-1 - self._rng.randrange(_TAIL_BYTES)] ^= 1 << self._rng.randrange(8)
        if what == "deleted":
            self._store.delete([key])
        else:
            self._store.put(key, bytes(data[: len(data) // 2] if what == "cut" else data))
        self._damaged.add(head.manifest)
        self._world.plan.count(f"object {what}")
        self._world.say(f"cosmic ray: {key} {what}")
        for node in self._world.cloud.nodes:
            self._world.cloud.take(node)

    def look(self) -> None:
        """Look at the nodes and the money."""
        world, now = self._world, self._world.loop.seconds
        up = [node for node in world.cloud.nodes if node.is_up]
        self._demand(len(up) <= 1, f"I5: {len(up)} nodes are up: {[n.launch for n in up]}")
        for node in up:
            self._look_at_owner(node, now)
            self._look_at_agent(node, now)
        for job in world.jobs.values():
            for node, since, until in job.torn_down_unseen:
                self._look_at_tear_down(node, since, until)
        spent, limit = world.cloud.usd(now), world.plan.budget_usd
        over = spent - limit - self._allowance(now)
        self._demand(over <= 0, f"I7: ${spent:.2f} spent of ${limit}")

    def _look_at_owner(self, node, now: float) -> None:
        """Demand that a node whose controller is dead leaves."""
        job = self._job_of(node)
        if job.dead_since is None or node.agent_stopped_at is not None:
            return  # the latter is not promised: docs/reliability.md
        if node.began_at is None:
            longest_s = LONGEST_SET_UP_S + AUTODOWN_S + _SLACK.total_seconds()
            self._demand(now - node.up_at <= longest_s, f"I5: {node.launch} is set up for ever")
            return
        since = max(job.dead_since, node.began_at)
        hindered_s = self._world.plan.hindered_s(node.process.name, since, now) + node.frozen_s
        longest_s = _OWNERLESS_S
        if hindered_s:  # then the lease counts, and not the silence
            longest_s += hindered_s + _LEASE_S - _SILENT_S
        if node.exited_at is not None:  # it may not have asked for less than SkyPilot did
            longest_s = max(longest_s, node.exited_at - since + AUTODOWN_S)
        self._judge(
            "I5 owner gone",
            now - since <= longest_s,
            f"I5: {node.launch} is up, and its controller dead for {now - since:.0f} s",
            is_strict=not hindered_s,
        )

    def _look_at_agent(self, node, now: float) -> None:
        """Demand that a node whose agent stands still is ended."""
        since, job = node.agent_stopped_at, self._job_of(node)
        if since is None or job.dead_since is not None:
            return
        hindered_s = self._world.plan.hindered_s(job.controller.name, since, now)
        hindered_s += job.away_s(since, now) + self._world.plan.unreadable_s(since, now)
        longest_s = MUTE_AGENT_S if node.attempt is None else SILENT_AGENT_S
        longest_s *= 1 + job.num_absences(since, now)  # each begins to listen anew
        self._judge(
            "I5 agent stopped",
            now - since <= longest_s + 2 * _SLACK.total_seconds() + hindered_s,
            f"I5: the agent of {node.launch} has been stopped for {now - since:.0f} s",
            is_strict=not hindered_s,
        )

    def _look_at_tear_down(self, node, since: float, until: float) -> None:
        """Demand that a node which nobody saw is left alone as long as its agent can be heard."""
        plan, job = self._world.plan, self._job_of(node)
        until += _AROUND_S
        could_speak = not plan.hindered_s(node.process.name, since, until)
        could_hear = not plan.hindered_s(job.controller.name, since, until)
        is_heard = could_speak and could_hear
        self._demand(not is_heard, f"F19: {node.launch} was torn down, and could be heard")
        self._unheard.add(node.launch)

    def _job_of(self, node):
        return next(one for one in self._world.jobs.values() if node in [n for _, n in one.ups])

    def _allowance(self, now: float) -> Decimal:
        """Return what nodes may take beyond the budget while nobody can tell them to leave."""
        plan, nodes = self._world.plan, self._world.cloud.nodes
        seconds = _LEAVES_WITHIN_S + plan.most_skew.total_seconds()
        for node in nodes:
            until = now if node.billed_until is None else node.billed_until
            seconds += plan.hindered_s(node.process.name, node.up_at, until) + node.frozen_s
            if node.agent_stopped_at is not None:
                seconds += until - node.agent_stopped_at
            if node.began_at is None and self._is_abandoned:
                seconds += until - node.up_at  # nobody is there to end it but its autodown
        self.strict["I7 budget"] += seconds == _LEAVES_WITHIN_S
        self.looks["I7 budget"] += 1
        price = max((node.offer.usd_per_hour for node in nodes), default=Decimal(0))
        return price * Decimal(seconds) / 3600

    def conclude(self) -> None:
        """Look at the whole run, long after its end."""
        world = self._world
        state = self._read()
        for node in world.cloud.nodes:
            self._demand(not node.is_up, f"I5: {node.launch} is up long after the end")
        if not self._is_abandoned:
            if state.ended is None:
                self._demand(False, "I10: the run has not ended")
            else:
                self._demand_reason(state.ended)
        self._look_at_result(state)
        self._look_at_times(state)
        replay = compare_replayed(MeasurementReader(self._store).read())
        self._demand(not replay.max_abs_diff, f"I2: steps {replay.differing} differ")

    @property
    def _is_abandoned(self) -> bool:
        return any(
            job.dead_since is not None and not job.status.is_terminal()
            for job in self._world.jobs.values()
        )

    def _read(self) -> RunState:
        entries = LedgerReader(self._store).read()
        state = fold(self._world.record, entries)
        shuffled = [*entries, *self._rng.sample(entries, len(entries) // 2)]
        self._rng.shuffle(shuffled)
        self._world.plan.count("facts read twice and in another order")
        self._demand(fold(self._world.record, shuffled) == state, "I6: the order of reading shows")
        if self._world.seed % _REPLAYED == 0:
            made_again = replay_decisions(self._world.record, entries)
            self._demand(all(one.is_equal for one in made_again), "I6: a decision does not follow")
        at = instant(self._world.loop.seconds)
        self._demand(bill(state, at).total >= 0, "I6: a bill below nothing")
        self._state = state
        return state

    def _demand_reason(self, ended: RunEnded) -> None:
        plan, reason = self._world.plan, ended.reason
        if reason is StopReason.BUDGET:
            plan.count("budget used up")
        may = {
            StopReason.DONE: True,
            StopReason.REQUESTED: plan.stop_at is not None,
            StopReason.BUDGET: plan.budget_usd < 1000,
            StopReason.TOO_MANY_FAILURES: self._have_reasons(RetryBudget.FAILURES, MAX_FAILURES),
            StopReason.TOO_MANY_PREEMPTIONS: self._have_reasons(
                RetryBudget.PREEMPTIONS, MAX_PREEMPTIONS
            ),
        }
        self._demand(may.get(reason, False), f"I10: it ended with {ended.why!r}")

    def _have_reasons(self, retries: RetryBudget, most: int) -> bool:
        """Say whether something was done to each of the nodes that used these retries up."""
        assert self._state is not None
        ended = [
            one.launch
            for one in self._state.launches
            if one.reason is not None and charged_to(one.reason) is retries
        ]
        nodes = {node.launch: node for node in self._world.cloud.nodes}
        last = [nodes[launch] for launch in ended[-most:] if launch in nodes]
        return len(last) == most and all(map(self._was_hit, last))

    def _was_hit(self, node) -> bool:
        """Say whether anything was done to a node, or to who watched it."""
        until = self._world.loop.seconds if node.is_up else node.billed_until
        hindered_s = self._world.plan.hindered_s(node.process.name, node.up_at, until)
        away_s = self._job_of(node).away_s(node.up_at - _AROUND_S, until + _AROUND_S)
        return node.was_disturbed or bool(hindered_s + away_s)

    def _look_at_result(self, state: RunState) -> None:
        head, num_steps = self._head, self._world.plan.num_steps
        is_done = state.ended is not None and state.ended.reason is StopReason.DONE
        if head is None or not is_done:
            return
        self._demand(head.step == num_steps, f"I1: done at step {head.step} of {num_steps}")
        if head.manifest not in self._damaged:
            self._demand(
                state.last_commit_step == head.step,
                f"I6: the ledger knows step {state.last_commit_step}, HEAD is at {head.step}",
            )

    def _look_at_times(self, state: RunState) -> None:
        """Compare each node's time in the cloud's bill with that in the ledger."""
        views = {launch.launch: launch for launch in state.launches}
        now = self._world.loop.seconds
        for node in self._world.cloud.nodes:
            view = views.get(node.launch)
            self._demand(view is not None, f"I6: {node.launch} is not in the ledger")
            if view is None or (self._is_abandoned and view.ended_at is None):
                continue
            until = now if node.is_up else node.billed_until
            took = timedelta(seconds=until - node.up_at)
            ended_at = view.ended_at or instant(now)
            told = timedelta() if view.ready_at is None else ended_at - view.ready_at
            off = abs(told - took)
            hindered_s = self._hindered_s(node, until, off.total_seconds())
            self._judge(
                "I6 node's time",
                off <= _SLACK + timedelta(seconds=hindered_s),
                f"I6: {node.launch} took {took}, and the ledger has {told}",
                is_strict=not hindered_s,
            )
            charged = charge(state, view, instant(now))
            self._demand(
                not charged.waived_usd or node.was_taken,
                f"I6: {node.launch} is called free, and it was not the cloud that ended it",
            )
            self.seconds_off = max(self.seconds_off, 0.0 if hindered_s else off.total_seconds())
            self.usd_off += node.offer.usd_per_hour * Decimal(off.total_seconds()) / 3600
            self._demand(
                view.detail != silent_detail(SILENT_AGENT_S)
                or node.agent_stopped_at is not None
                or bool(hindered_s + node.frozen_s)
                or bool(self._world.plan.hindered_s(node.process.name, node.up_at, until)),
                f"F12: {node.launch} was given up, and its agent was not silent",
            )

    def _hindered_s(self, node, until: float, off_s: float) -> float:
        """Return for how long its controller may have been kept from seeing that it had gone."""
        plan, job = self._world.plan, self._job_of(node)
        start, end = until - _AROUND_S, until + off_s + _AROUND_S
        seconds = plan.hindered_s(job.controller.name, start, end) + plan.unreadable_s(start, end)
        if plan.unreadable_s(start - _LISTENING_S, end):
            seconds += _LISTENING_S  # when it goes while it is listened for
        away_s = job.away_s(start, end)
        if away_s:  # then it is taken to have gone when it was last heard, or its lease ran out
            stopped_at = node.agent_stopped_at
            seconds += 0.0 if stopped_at is None else until - stopped_at
            seconds += away_s + SILENT_NODE_STOPS_AFTER.total_seconds()
            seconds += plan.most_skew.total_seconds()
        return seconds

    def _look_at_head(self, process) -> None:
        found = read_head(self._store)
        assert found is not None
        head, before, self._head = found[0], self._head, found[0]
        if before is not None and head.attempt == before.attempt:
            self._demand_owner(process, head)
            self._look_at_move(before, head)
        elif before is not None:
            same = (head.step, head.manifest, head.parent) == (
                before.step,
                before.manifest,
                before.parent,
            )
            self._demand(head.attempt > before.attempt, "I4: HEAD went back to an earlier attempt")
            self._demand(same, "I4: a claim has changed what is committed")
        if head.manifest is not None and head.manifest not in self._damaged:
            self._look_at_checkpoint(head)
        self.num_commits += before is not None and head.step > before.step

    def _look_at_move(self, before, head) -> None:
        """Demand that the owner's move is one step on, or back over what is damaged and no more."""
        if head == before:
            return
        if head.step >= before.step and head.manifest != before.manifest:
            follows = head.parent == before.manifest
            self._demand(follows, f"I3: {head.manifest} follows {head.parent}, not HEAD")
            return
        has_reason = before.manifest in self._damaged
        is_next = head.manifest == before.parent or before.parent in self._damaged
        if not (has_reason and is_next):
            self._steps_lost += before.step - head.step
        self._demand(
            has_reason and is_next, f"I1: HEAD went back from step {before.step} to {head.step}"
        )

    def _demand_owner(self, process, head) -> None:
        owners = [
            node
            for node in self._world.cloud.nodes
            if process is node.process or process is node.ranks
        ]
        is_owner = bool(owners) and owners[0].attempt in (None, head.attempt)
        self._demand(is_owner, f"I4: {process.name} moved the HEAD of attempt {head.attempt}")

    def _look_at_checkpoint(self, head) -> None:
        try:
            manifest = read_manifest(self._store, head.manifest)
            weights = weights_of(self._store, manifest)
        except CheckpointError as error:
            self._demand(False, f"I3: HEAD names {head.manifest}: {error}")
            return
        is_right = weights == undisturbed(head.step)
        self._demand(is_right, f"I2, I9: the weights of {head.manifest} are wrong")

    def _is_there(self, key: str) -> bool:
        return any(entry.key == key for entry in self._store.list(key))

    def _judge(self, what: str, holds: bool, violation: str, *, is_strict: bool) -> None:
        """Demand, and count how often the bound was at its tightest."""
        self.strict[what] += is_strict
        self.looks[what] += 1
        self._demand(holds, violation)

    def _demand(self, holds: bool, what: str) -> None:
        if not holds:
            self._world.violate(what)

    def outcome(self):
        """Return what became of the seed."""
        from tests.simulation.world import Outcome

        world, state = self._world, self._state
        replay = compare_replayed(MeasurementReader(self._store).read())
        return Outcome(
            seed=world.seed,
            ended=None if state is None or state.ended is None else state.ended.why,
            violations=world.violations,
            injected=world.plan.injected,
            history=world.history,
            num_steps=world.plan.num_steps,
            num_replayed=replay.num_steps,
            num_nodes=len(world.cloud.nodes),
            num_commits=self.num_commits,
            virtual_s=world.loop.seconds,
            steps_lost=self._steps_lost,
            usd_unaccounted=self._usd_unaccounted(),
            num_unheard=len(self._unheard),
            usd=world.cloud.usd(world.loop.seconds),
            usd_off=self.usd_off,
            seconds_off=self.seconds_off,
            looks=self.looks,
            strict=self.strict,
            num_orphans=sum(node.is_up for node in world.cloud.nodes),
        )

    def _usd_unaccounted(self) -> Decimal:
        """Return what the cloud bills for nodes that the ledger does not know."""
        world = self._world
        known = {} if self._state is None else {one.launch for one in self._state.launches}
        unknown = [node for node in world.cloud.nodes if node.launch not in known]
        return sum((world.cloud.usd_of(n, world.loop.seconds) for n in unknown), Decimal(0))
