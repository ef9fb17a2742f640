"""What must hold whatever happens; looked at after every change of the run's store and in between.

I1 no committed step is lost; I2 the weights are those of an undisturbed run; I3 what HEAD names is
whole; I4 only the owner commits; I5 no node without an owner; I6 the bill is the ledger's, whoever
reads it; I7 the budget is kept; I9 each batch once (the chain of digests); I10 it gets on.
"""

from __future__ import annotations

import random
from datetime import timedelta
from decimal import Decimal

from checkpoints.errors import CheckpointError
from checkpoints.fence import read_head
from checkpoints.inspect import read_manifest
from checkpoints.layout import HEAD_KEY
from checkpoints.store import ObjectStore
from orchestrator.attempts import EndReason, StopReason
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
from orchestrator.replay import compare_replayed
from tests.simulation.cloud import instant
from tests.simulation.trainer import undisturbed, weights_of

# Each rank's part of the weights, which ends its object.
_TAIL_BYTES = 16
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
        # Requests that are given up after a minute delay an agent that is about to leave.
        longest = (SILENT_NODE_STOPS_AFTER + (1 if self._is_fair else 4) * _SLACK).total_seconds()
        slack_s = 2 * _SLACK.total_seconds()
        for node in up:
            job = next(one for one in world.jobs.values() if node in [n for _, n in one.ups])
            began_at = node.began_at if node.began_at is not None else now
            alone_s = 0.0 if job.dead_since is None else now - max(job.dead_since, began_at)
            self._demand(
                alone_s <= longest + node.frozen_s,
                f"I5: {node.launch} is up, and its controller dead for {alone_s:.0f} s",
            )
            heard_of_s = (MUTE_AGENT_S if node.attempt is None else SILENT_AGENT_S) + slack_s
            stopped_s = 0.0 if node.agent_stopped_at is None else now - node.agent_stopped_at
            self._demand(
                not self._is_fair or stopped_s <= heard_of_s,
                f"I5: the agent of {node.launch} has been stopped for {stopped_s:.0f} s",
            )
        num_torn_down = sum(job.recoveries_of_healthy for job in world.jobs.values())
        is_fair = not self._foul - {"status unreadable", "clock skew"}
        self._demand(
            num_torn_down == 0 or not is_fair, "F19: a healthy node was torn down for being unseen"
        )
        spent, limit = world.cloud.usd(now), world.plan.budget_usd
        over = spent - limit - self._allowance(up)
        self._demand(over <= 0, f"I7: ${spent:.2f} spent of ${limit}")

    def _allowance(self, up) -> Decimal:
        """Return what a node may take beyond the budget: a lease in the worst of weathers."""
        minutes = 8 if self._is_fair else 45
        price = max((n.offer.usd_per_hour for n in self._world.cloud.nodes), default=Decimal(0))
        frozen_s = max((node.frozen_s for node in self._world.cloud.nodes), default=0.0)
        return price * (Decimal(minutes) / 60 + Decimal(frozen_s) / 3600)

    @property
    def _is_fair(self) -> bool:
        """Say whether nobody was kept from seeing and saying what happens."""
        return not self._foul

    @property
    def _foul(self) -> set[str]:
        foul = {"lost request", "lost reply", "refused", "slow store", "clock skew"}
        foul |= {"controller killed", "controller gone for good", "killed before", "killed after"}
        foul |= {"lost before it moves HEAD, lives on"}
        foul |= {"tried again by the client", "frozen", "status unreadable"}
        return foul & self._world.plan.injected.keys()

    def conclude(self) -> None:
        """Look at the whole run, an hour after its end."""
        world = self._world
        state = self._read()
        for node in world.cloud.nodes:
            # SkyPilot asks for its autodown after the set-up: docs/reliability.md, not promised.
            is_left = self._is_abandoned and node.began_at is None
            self._demand(
                not node.is_up or is_left, f"I5: {node.launch} is up an hour after the end"
            )
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
            StopReason.TOO_MANY_FAILURES: not self._is_fair
            or bool({"set-up failed", "ranks killed", "agent killed"} & plan.injected.keys()),
        }
        self._demand(may.get(reason, False), f"I10: it ended with {ended.why!r}")

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
        plan = self._world.plan
        bound = _SLACK if self._is_fair else SILENT_NODE_STOPS_AFTER + 3 * _SLACK
        bound += 2 * plan.most_skew
        for node in self._world.cloud.nodes:
            view = views.get(node.launch)
            self._demand(view is not None, f"I6: {node.launch} is not in the ledger")
            if view is None or view.reason is EndReason.NO_CAPACITY:
                continue
            until = self._world.loop.seconds if node.is_up else node.billed_until
            took = timedelta(seconds=until - node.up_at)
            is_given_up = view.detail == silent_detail(SILENT_AGENT_S)
            self._demand(
                not (is_given_up and self._is_fair and node.agent_stopped_at is None),
                f"F12: {node.launch} was given up, and its agent was not silent",
            )
            ended_at = view.ended_at or instant(self._world.loop.seconds)
            told = timedelta() if view.ready_at is None else ended_at - view.ready_at
            if self._is_abandoned and view.ended_at is None:
                continue
            self._demand(
                abs(told - took) <= bound + timedelta(seconds=node.frozen_s),
                f"I6: {node.launch} took {took}, and the ledger has {told}",
            )

    def _look_at_head(self, process) -> None:
        found = read_head(self._store)
        assert found is not None
        head, before, self._head = found[0], self._head, found[0]
        if before is not None and head.attempt == before.attempt:
            self._demand_owner(process, head)
            if head.step < before.step:
                has_reason = before.manifest in self._damaged
                self._steps_lost += 0 if has_reason else before.step - head.step
                self._demand(
                    has_reason, f"I1: HEAD went back from step {before.step} to {head.step}"
                )
        elif before is not None:
            same = (head.step, head.manifest) == (before.step, before.manifest)
            self._demand(head.attempt > before.attempt, "I4: HEAD went back to an earlier attempt")
            self._demand(same, "I4: a claim has changed what is committed")
        if head.manifest is not None and head.manifest not in self._damaged:
            self._look_at_checkpoint(head)
        self.num_commits += before is not None and head.step > before.step

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
            num_orphans=sum(n.is_up and n.began_at is not None for n in world.cloud.nodes),
        )

    def _usd_unaccounted(self) -> Decimal:
        """Return what the cloud bills for nodes that the ledger does not know."""
        world = self._world
        known = {} if self._state is None else {one.launch for one in self._state.launches}
        unknown = [node for node in world.cloud.nodes if node.launch not in known]
        return sum((world.cloud.usd_of(n, world.loop.seconds) for n in unknown), Decimal(0))
