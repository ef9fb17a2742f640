"""The controller's hand on one run: asks the policy what is next, and writes down what happened.

Knows nothing of SkyPilot. All that it knows comes from the run folder, so a controller that was
restarted, or another one, decides the same.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.errors import ObjectExists
from checkpoints.layout import job_key
from checkpoints.store import ObjectStore
from orchestrator.attempts import AgentExit, EndReason, reason_for_exit
from orchestrator.clock import Clock
from orchestrator.cloud.skypilot.sampling import PriceSampler
from orchestrator.deciding import Decider
from orchestrator.errors import UnknownRun, unreadable
from orchestrator.ledger.facts import (
    ControllerSeen,
    LaunchEnded,
    LaunchReady,
    LaunchStarted,
    QuotedOffer,
    RunEnded,
    TerminatedBy,
    terminated_by,
)
from orchestrator.ledger.fold import LaunchView, RunState
from orchestrator.ledger.heartbeat import (
    MUTE_AGENT_S,
    SILENT_AGENT_S,
    SILENT_NODE_STOPS_AFTER,
    Heartbeat,
    Listener,
    beat,
    last_beat_at,
    mute_detail,
    silent_detail,
)
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.measurements import Measured, MeasurementReader
from orchestrator.ledger.record import read_record
from orchestrator.ledger.requests import Request, RequestKind, ask, withdraw
from orchestrator.ledger.state import StateReader
from orchestrator.notify.notifier import Notifier, start_notifier
from orchestrator.offers import Offer, PriceTable
from orchestrator.policy.answers import Decision, Drain, Launch, Stop, Wait
from orchestrator.prices import price_table
from orchestrator.spec import RunSpec

_BEAT_EVERY_S = 60.0
# In which SkyPilot's controller sees that a node is gone: it looks twice a minute, and bears a
# minute without an answer.
_NOTICED_WITHIN_S = 300.0

PriceSource = Callable[[RunSpec], Sequence[Offer] | None]
"""Returns today's offers for a spec, None where only those quoted at launch are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the controller runs on; `usd_per_hour` is None where no price is known."""

    cloud: str
    region: str
    instance_type: str
    usd_per_hour: Decimal | None


class JobClaim(BaseModel):
    """Which managed job carries out one launch of the run."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    job: str
    host: str


class Superseded(Exception):
    """The run is carried out by another managed job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """How a launch's nodes came to be gone, as far as the controller saw."""

    is_cancelled: bool = False
    """The managed job was cancelled, and its nodes with it."""
    has_failed: bool = False
    """SkyPilot saw the job on the nodes fail, while they were still there."""
    is_ours: bool = False
    """They were there, and we ended them."""
    exit_codes: tuple[int, ...] = ()
    """Those of the job on the nodes, where they could be read."""
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    """A launch that was up at each of our looks in a time; `_s` are monotonic seconds."""

    launch: str
    since_s: float
    until_s: float
    until: datetime

    @property
    def is_long(self) -> bool:
        """Say whether SkyPilot would have noticed a loss, had it been restarted with us."""
        return self.until_s - self.since_s >= _NOTICED_WITHIN_S


def owner_of(job: str) -> str:
    """Return the name of a job's heartbeat: the same for a restarted controller of the job."""
    return f"controller-{hashlib.sha256(job.encode()).hexdigest()[:12]}"


class Conductor:
    """One managed job's view of its run; every method may raise StoreError and be called again."""

    def __init__(
        self,
        store: ObjectStore,
        job: str,
        clock: Clock,
        prices: PriceSource,
        launched_at: datetime | None = None,
        ask_prices: Callable[[RunSpec], PriceTable] = price_table,
    ) -> None:
        """Open the run in `store` for the managed job `job`.

        `launched_at` is the launch of the run that the job was submitted for; None takes the one
        that is the latest when it first looks. It never takes up another.

        Raises:
            UnknownRun: there is no run.
        """
        record = read_record(store)
        if record is None:
            raise UnknownRun(f"{store.url} holds no run.", "Start it with orchestrate launch.")
        self._store = store
        self._record = record
        self._job = job
        self._clock = clock
        self._prices = prices
        self._sampler = PriceSampler(ask_prices)
        self._seen: RunState | None = None
        self.owner = owner_of(job)
        self.run_id = record.run_id
        self._prefix = f"{record.run_id}-{self.owner[-6:]}-"
        self._journal = Journal(store, "controller", clock)
        self._decider = Decider(record)
        self._states = StateReader(store, record)
        self._listener = Listener(store, SILENT_AGENT_S)
        self._measurements: tuple[int, MeasurementReader] | None = None
        self._measured: Sequence[Measured] = ()
        # Monotonic: this machine's clock may be set meanwhile.
        self._beat_s: float | None = None
        self._launching: tuple[Launch, LaunchStarted] | None = None
        self._last_noted: str | None = None
        self._last_told: str | None = None
        self._launched_at = launched_at
        self._has_claimed: bool | None = None
        self._watched: _Watched | None = None

    def notify(self, addresses: str | None, log: logging.Logger) -> Notifier | None:
        """Begin to tell the news of the run, beside whatever else is asked of this."""
        return start_notifier(self._store, self._record, addresses, self._clock, log)

    def state(self) -> RunState:
        """Return what the facts say now, after ours are stored."""
        self._journal.flush()
        self._seen = self._states.read()
        return self._seen

    def decide(self) -> Decision:
        """Return what the policy says.

        Raises:
            Superseded: the run is another job's; ours are only the nodes that we still have.
        """
        state = self.state()
        if state.ended is not None:
            return Stop(reason=state.ended.reason, why=state.ended.why)
        if not self._is_ours(state):
            raise Superseded("another managed job carries the run out")
        measured, now = self._measure(state), self._clock.now()
        self._note_seen(state, now)
        return self._decider.ask(state, measured, now, self._offers(state.spec))

    def beat(self) -> None:
        """Show the agents that their controller lives."""
        now = time.monotonic()
        if self._beat_s is not None and now - self._beat_s < _BEAT_EVERY_S:
            return
        at = self._clock.now()
        beat(
            self._store,
            Heartbeat(writer=self.owner, at=at, host=socket.gethostname(), pid=os.getpid()),
        )
        self._beat_s = now

    def sample_price(self) -> None:
        """Write down once an hour what the nodes cost that were up at the last decision."""
        if self._seen is None:
            return
        sampled = self._sampler.sample(self._seen, self._clock.now())
        if sampled is not None:
            self._journal.note(sampled)

    def note_controller(self, machine: Machine | None) -> None:
        """Write down which machine carries this launch of the run out, if it is paid for."""
        state = self.state()
        known = {one.launched_at for one in state.controllers}
        if machine is None or not self._is_ours(state) or state.launched_at in known:
            return
        self._journal.note(
            ControllerSeen(
                launched_at=state.launched_at,
                cloud=machine.cloud,
                region=machine.region,
                instance_type=machine.instance_type,
                usd_per_hour=machine.usd_per_hour,
            )
        )

    def launching(self, decision: Launch) -> tuple[str, QuotedOffer]:
        """Write down that nodes are asked for; return the launch's name and its frozen price.

        Called again because the store failed, it is the same launch: one more would count as one
        whose set-up failed.
        """
        # What we asked of the nodes before; the new ones would obey it, too.
        withdraw(self._store, RequestKind.DRAIN)
        withdraw(self._store, RequestKind.STOP)
        if self._launching is None or self._launching[0] is not decision:
            started = LaunchStarted(
                launch=f"{self._prefix}{secrets.token_hex(3)}",
                offer=QuotedOffer.quote(decision.offer),
                num_nodes=self._record.spec.nodes.count,
                launched_at=self._launched_at,
            )
            self._journal.record(self._decider.made(decision))
            self._journal.record(started)
            self._launching = (decision, started)
        self._journal.flush()
        self._last_told = None
        started = self._launching[1]
        return started.launch, started.offer

    def last_heard(self) -> datetime | None:
        """Return when the agent of the launch that is up last spoke, by its own clock."""
        launch = self.state().current_launch
        return None if launch is None else last_beat_at(self._store, launch.attempt)

    def silence(self) -> Loss | None:
        """Return why the nodes of the last decision are to be given up: their agent is silent.

        The cloud and SkyPilot see a node whose agent stands still as well as ever.
        """
        launch = None if self._seen is None else self._seen.current_launch
        if launch is None or self._watched is None:
            return None
        now = time.monotonic()
        if launch.attempt is not None:
            is_silent = self._listener.is_silent(launch.attempt, now)
            return Loss(detail=silent_detail(SILENT_AGENT_S)) if is_silent else None
        # What is being set up says nothing.
        is_late = now - self._watched.since_s > MUTE_AGENT_S
        return Loss(has_failed=True, detail=mute_detail(MUTE_AGENT_S)) if is_late else None

    def unready(self) -> LaunchView | None:
        """Return our launch that is open in the ledger and never came up there, if there is one."""
        launch = self.state().current_launch
        if launch is None or launch.ready_at is not None:
            return None
        return launch if launch.launch.startswith(self._prefix) else None

    def came_up(self, launch: str, up_at: datetime, zone: str | None) -> None:
        """Write down when a launch's nodes came up, and in which zone; once."""
        for found in self.state().launches:
            if found.launch == launch and found.ready_at is None:
                given = None if zone == found.offer.zone else zone
                self._journal.note(LaunchReady(launch=launch, up_at=up_at, zone=given))

    def gone(self, loss: Loss) -> None:
        """Write down that the nodes of our launches are gone, and why.

        While the run is ours, so are launches that jobs before us left open.
        """
        state = self.state()
        is_ours = self._is_ours(state)
        for launch in state.open_launches:
            if not (is_ours or launch.launch.startswith(self._prefix)):
                continue
            reason = _reason(state, launch, loss)
            were_up = loss.is_ours or loss.has_failed
            self._journal.record(
                LaunchEnded(
                    launch=launch.launch,
                    reason=reason,
                    terminated_by=TerminatedBy.US if loss.is_ours else terminated_by(reason),
                    detail=loss.detail,
                    gone_at=None if were_up else self._gone_at(launch),
                    was_watched=not were_up and self._watched_until(launch) is not None,
                )
            )
        self._journal.flush()

    def refused(self, launch: str, reason: EndReason, detail: str | None) -> None:
        """Write down that a launch came to nothing; once."""
        if any(one.launch == launch for one in self.state().open_launches):
            by = terminated_by(reason)
            self._journal.note(
                LaunchEnded(launch=launch, reason=reason, terminated_by=by, detail=detail)
            )

    def waiting(self, decision: Wait) -> None:
        """Write down that nothing is asked for at present; once for the time that it holds."""
        if self._decider.waits_anew(self._clock.now()):
            self._journal.note(self._decider.made(decision))

    def ask_to_leave(self, decision: Drain | Stop) -> str | None:
        """Ask the agents to save and leave, once per launch; return which, None without one."""
        launch = self.state().current_launch
        if launch is None:
            return None
        kind = RequestKind.DRAIN if isinstance(decision, Drain) else RequestKind.STOP
        told = f"{kind.value} {launch.launch}"
        if self._last_noted != told:
            self._journal.record(self._decider.made(decision))
            self._last_noted = told
        if self._last_told != told:
            self._journal.flush()
            now, launched_at = self._clock.now(), self._launched_at
            ask(self._store, Request(kind=kind, at=now, by=self.owner, launched_at=launched_at))
            self._last_told = told
        return launch.launch

    def finish(self, stop: Stop) -> None:
        """Write down the end of the run, unless it is known or somebody else's to tell."""
        state = self.state()
        is_fenced = bool(state.launches) and state.launches[-1].reason is EndReason.FENCED
        if state.ended is not None or is_fenced or not self._is_ours(state):
            return
        self._journal.record(self._decider.made(stop))
        self._journal.note(RunEnded.after(stop.reason, stop.why, state.launched_at))

    def _offers(self, spec: RunSpec) -> Sequence[Offer] | None:
        """Return today's offers, unless none of them may be taken: then those of the launch."""
        offers = self._prices(spec) or ()
        return offers if any(spec.limits.market.allows(one.market) for one in offers) else None

    def _note_seen(self, state: RunState, now: datetime) -> None:
        """Remember since when SkyPilot has not told us that the nodes which are up have gone."""
        launch, now_s = state.current_launch, time.monotonic()
        if launch is None or launch.ready_at is None:
            self._watched = None
            return
        is_known = self._watched is not None and self._watched.launch == launch.launch
        since_s = self._watched.since_s if is_known and self._watched is not None else now_s
        self._watched = _Watched(launch=launch.launch, since_s=since_s, until_s=now_s, until=now)

    def _gone_at(self, launch: LaunchView) -> datetime | None:
        """Return when nodes that nobody saw go must have left; None where that is yet to come.

        A controller that was away for days would otherwise bill the days, and stop on its budget.
        """
        began_at = launch.attempt_started_at or launch.ready_at or launch.started_at
        left_at = (last_beat_at(self._store, launch.attempt) or began_at) + SILENT_NODE_STOPS_AFTER
        left_at = max(left_at, self._watched_until(launch) or left_at)
        return left_at if left_at < self._clock.now() else None

    def _watched_until(self, launch: LaunchView) -> datetime | None:
        """Return when its nodes were last seen up, None unless we watched for long enough."""
        seen = self._watched
        if seen is None or seen.launch != launch.launch or not seen.is_long:
            return None
        return seen.until

    def _is_ours(self, state: RunState) -> bool:
        """Say whether this job carries the latest launch of the run out; the first to claim does.

        Two jobs for one launch come of a launch command that was sent again after a lost reply.
        """
        if self._launched_at is None:
            self._launched_at = state.launched_at
        if self._launched_at != state.launched_at:
            return False
        if self._has_claimed is None:
            self._has_claimed = self._claim(self._launched_at)
        return self._has_claimed

    def _claim(self, launched_at: datetime) -> bool:
        key = job_key(launched_at.strftime("%Y%m%dT%H%M%S.%fZ"))
        claim = JobClaim(job=self._job, host=socket.gethostname())
        try:
            self._store.create(key, claim.model_dump_json().encode())
        except ObjectExists:
            data = self._store.get(key).data
            try:
                return JobClaim.model_validate_json(data).job == self._job
            except ValidationError as error:
                raise unreadable(key, data, error, schema_version=1) from error
        return True

    def _measure(self, state: RunState) -> Sequence[Measured]:
        """Return the records of the latest attempt that has any."""
        attempts = [launch.attempt for launch in state.launches if launch.attempt is not None]
        if not attempts:
            return ()
        latest = max(attempts)
        if self._measurements is None or self._measurements[0] != latest:
            self._measurements = (latest, MeasurementReader(self._store, latest))
        self._measured = self._measurements[1].read() or self._measured
        return self._measured


def _reason(state: RunState, launch: LaunchView, loss: Loss) -> EndReason:
    """Believe the agent's own word first, then an exit status; nodes gone without either are lost.

    A failure on a node on which no agent ever spoke is one of setting the node up, unless the
    agent left because it could not reach the store, which the set-up had.
    """
    said = [end.reason for end in state.attempt_ends if end.attempt == launch.attempt]
    if launch.attempt is not None and said:
        return said[0]
    if loss.is_cancelled:
        return EndReason.STOPPED
    if launch.attempt is None:
        is_setup = loss.has_failed and AgentExit.PREEMPTED not in loss.exit_codes
        return EndReason.SETUP_FAILED if is_setup else EndReason.NODE_LOST
    if not loss.exit_codes:
        return EndReason.NODE_LOST
    ends = [reason_for_exit(code) for code in loss.exit_codes if code != 0]
    reason = ends[0] if ends else EndReason.SUCCEEDED
    # Killed, and whoever asked for the status could read it there: memory has run out, perhaps.
    is_killed = loss.has_failed and reason is EndReason.NODE_LOST
    return EndReason.TRAINING_FAILED if is_killed else reason
