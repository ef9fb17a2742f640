"""One run from its launch to its end, under one seed's faults, with the invariants looked at."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import secrets
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from unittest.mock import patch

from checkpoints.layout import EVENTS
from checkpoints.store import open_store
from orchestrator.ledger.facts import (
    QuotedOffer,
    RunLaunched,
    StopRequested,
    parse_entries,
)
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.record import create_record
from tests.orchestrator.histories import make_record
from tests.simulation.cloud import AUTODOWN_S, LONGEST_SET_UP_S, Cloud
from tests.simulation.invariants import Invariants
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.plan import Plan
from tests.simulation.skypilot import ManagedJob, standing_in
from tests.simulation.store import SimulatedStore

_names = itertools.count()
_LOOK_S = 30.0
# After the last fault: enough for two nodes, a wait of the policy and all steps.
_PATIENCE_S = 12 * 3600.0
# The attendant's last words, and every lease and autodown.
_AFTERMATH_S = LONGEST_SET_UP_S + AUTODOWN_S + 300.0


@dataclass(slots=True)
class Outcome:
    """What became of one seed."""

    seed: int
    ended: str | None
    """Why the run ended, as the ledger says; None where its controller is gone for good."""
    violations: list[str]
    injected: Counter[str]
    history: list[str]
    num_steps: int = 0
    num_replayed: int = 0
    num_nodes: int = 0
    num_commits: int = 0
    virtual_s: float = 0.0
    steps_lost: int = 0
    """Committed steps that HEAD went back over, unless a damaged checkpoint had to be left."""
    usd_unaccounted: Decimal = Decimal(0)
    """Of nodes that the ledger does not know."""
    num_orphans: int = 0
    """Nodes that were up long after the end."""
    num_unheard: int = 0
    """Healthy nodes that were torn down while neither SkyPilot nor we could hear them."""
    usd: Decimal = Decimal(0)
    """What the cloud bills for all nodes, without what it waives."""
    usd_off: Decimal = Decimal(0)
    """By how much the ledger's times differ, in dollars, node by node."""
    seconds_off: float = 0.0
    """The most for a node whose controller nothing kept from seeing it go."""
    looks: Counter[str] = field(default_factory=Counter)
    strict: Counter[str] = field(default_factory=Counter)
    """Of the looks at each bound those at its tightest."""


def simulate(seed: int) -> Outcome:
    """Run one seed to its end; the same seed gives the same history, to the letter."""
    rng = random.Random(f"{seed} names")
    with (
        patch.object(secrets, "token_hex", lambda n=8: rng.randbytes(n).hex()),
        _silence(),
    ):
        return _World(seed).run()


@contextlib.contextmanager
def _silence():
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


class _World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.loop = VirtualLoop()
        self.loop.set_exception_handler(self._note_error)
        self.plan = Plan(seed)
        self.objects = open_store(f"memory://simulation-{next(_names)}")
        self.cloud = Cloud(loop=self.loop, plan=self.plan, store_of=self.store_of)
        self.laptop = Process(self.loop, "laptop")
        self.jobs: dict[int, ManagedJob] = {}
        self.processes: list[Process] = []
        self.history: list[str] = []
        self.violations: list[str] = []
        self.plan.tell = self.say
        self.invariants = Invariants(self)

    def store_of(self, process: Process) -> SimulatedStore:
        self.processes.append(process)
        return SimulatedStore(
            self.objects,
            process,
            self.plan.weather,
            self._note_change,
            lambda: self.plan.count("conflict, by a race", process.name),
        )

    def run(self) -> Outcome:
        asyncio.set_event_loop(self.loop)
        try:
            with standing_in(self.jobs, self.cloud):
                try:
                    self.loop.run_until_complete(self._live())
                finally:
                    self._bury()
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()
        return self.invariants.outcome()

    async def _live(self) -> None:
        self._launch()
        over_at = None
        while over_at is None or self.loop.seconds < over_at + _AFTERMATH_S:
            await asyncio.sleep(_LOOK_S)
            for job in self.jobs.values():
                job.watch()
            self.invariants.look()
            if self.violations:
                return
            if over_at is None and self._is_over():
                over_at = self.loop.seconds
        self.invariants.conclude()

    def _launch(self) -> None:
        """What the laptop does; its own crashes are tested elsewhere."""
        plan = self.plan
        limits = {"budget_usd": plan.budget_usd, "policy": plan.policy}
        if plan.deadline_h is not None:
            limits["deadline"] = f"{plan.deadline_h}h"
        record = make_record(
            infra=["aws"], local=None, store="s3://bucket/runs", limits=limits
        ).model_copy(
            update={
                "num_steps": plan.num_steps,
                "offers": tuple(QuotedOffer.quote(one) for one in self.cloud.offers()),
                "simulated": False,
            }
        )
        create_record(self.objects, record)
        self.record = record
        launched = Journal(self.objects, "cli", self.laptop).note(RunLaunched(host="laptop"))
        self._submit(launched.at)
        if plan.second_job_after is not None:
            self.loop.call_later(plan.second_job_after, self._submit_again, launched.at)
        if plan.stop_at is not None:
            self.loop.call_later(plan.stop_at, self._stop, launched.at)
        for at in plan.controller_dies_at:
            self.loop.call_later(at, self._kill_controller)
        for at in plan.damage_at:
            self.loop.call_later(at, self.invariants.damage)

    def _submit(self, launched_at) -> None:
        job = ManagedJob(len(self.jobs) + 1, self.cloud, self.store_of, launched_at)
        self.jobs[job.number] = job
        job.start()

    def _submit_again(self, launched_at) -> None:
        self.plan.count("launched twice")
        self._submit(launched_at)

    def _stop(self, launched_at) -> None:
        self.plan.count("stop requested")
        stop = StopRequested(host="laptop", launched_at=launched_at)
        Journal(self.objects, "cli", self.laptop).note(stop)

    def _kill_controller(self) -> None:
        for job in self.jobs.values():
            if not job.status.is_terminal():
                job.controller.kill()

    def _is_over(self) -> bool:
        if self.loop.seconds > self.plan.calm_from + _PATIENCE_S:
            return True
        return all(
            job.status.is_terminal() or self._is_abandoned(job) for job in self.jobs.values()
        )

    def _is_abandoned(self, job: ManagedJob) -> bool:
        """Say whether its controller is gone for so long that no node should be left."""
        since = job.dead_since
        return since is not None and self.loop.seconds > since + _AFTERMATH_S

    def _note_change(self, process: Process, operation: str, key: str) -> None:
        self.say(f"{process.name} {operation} {key}{self._told_in(operation, key)}")
        self.invariants.note_change(process, operation, key)

    def _told_in(self, operation: str, key: str) -> str:
        """Return the facts that an object of events/ holds, one a line."""
        if not key.startswith(EVENTS) or operation == "delete":
            return ""
        entries = parse_entries(self.objects.get(key).data, key)
        bodies = (
            one.body.model_dump(exclude_none=True, exclude={"offer", "asked"}) for one in entries
        )
        return "".join(f"\n          {' '.join(map(str, body.values()))}" for body in bodies)

    def say(self, what: str) -> None:
        self.history.append(f"{self.loop.seconds:9.1f} {what}")

    def violate(self, what: str) -> None:
        self.say(f"VIOLATION {what}")
        self.violations.append(what)

    def _note_error(self, loop, context) -> None:
        error = context.get("exception")
        if error is not None:
            import traceback

            self.violate("".join(traceback.format_exception(error)))

    def _bury(self) -> None:
        """End all that is left, so that the next simulation begins with nothing."""
        for process in self.processes:
            process.bury()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.set_exception_handler(lambda loop, context: None)
        for _ in range(10):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
