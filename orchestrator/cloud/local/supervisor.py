"""Run one run on this machine until it is over: decide, start nodes, take them back, write facts.

Detached from the command line, which only watches. All that it knows comes from the ledger, so a
supervisor that replaces a dead one decides the same.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from checkpoints.errors import StoreRefused, StoreUnreachable
from checkpoints.store import ObjectStore
from orchestrator.agent.config import AgentConfig
from orchestrator.attempts import AgentExit, EndReason, reason_for_exit
from orchestrator.clock import Clock
from orchestrator.cloud.local.market import SyntheticMarket
from orchestrator.cloud.local.node import LocalNode, destroy_leftovers, scratch_folder, start_node
from orchestrator.cloud.local.preemptions import (
    MarketPreemptions,
    Preemption,
    PreemptionSource,
    ScriptedPreemptions,
    find_unfinished_checkpoint,
)
from orchestrator.deciding import Decider
from orchestrator.ledger.facts import (
    FinalState,
    LaunchEnded,
    LaunchReady,
    LaunchStarted,
    QuotedOffer,
    RunEnded,
    TerminatedBy,
)
from orchestrator.ledger.fold import LaunchView, RunState
from orchestrator.ledger.heartbeat import (
    Heartbeat,
    Listener,
    beat,
    mute_detail,
    read_heartbeats,
    silent_detail,
)
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.measurements import Measured, MeasurementReader, steps_of
from orchestrator.ledger.record import RunRecord
from orchestrator.ledger.requests import Request, RequestKind, ask, withdraw
from orchestrator.ledger.state import StateReader
from orchestrator.places import open_places
from orchestrator.policy.answers import Decision, Drain, Keep, Launch, Stop, Wait
from orchestrator.policy.situation import market_time
from train.spool import Notice

_log = logging.getLogger(__name__)

# How often to look; each look at a remote store is a few requests that somebody pays for.
_FOLDER_TICK = timedelta(seconds=0.2)
_REMOTE_TICK = timedelta(seconds=2)
# The last steps of an attempt, for the script and for the median; not all of a week.
_RECENT_RECORDS = 50
# A store that refuses for this long (a full disk, credentials that ended) is not coming back.
_STORE_PATIENCE_S = 600.0
# Well below the agents' lease, and few enough PUTs to be cheap on S3.
_BEAT_EVERY_S = 2.0
# A save of a small model lasts a tenth of a second: the script must look this often to be in time.
_CHECKPOINT_LOOK = timedelta(seconds=0.005)
_LOOKS_PER_TICK = 100
LEASE_S = 20.0
# Agents speak every two seconds. One that is merely cut off from the store has left by then.
_SILENT_AGENT_S = 45.0
_CLAIMS_WITHIN_S = 300.0
# The script waits for steps to be reported; otherwise a few objects per minute are enough.
_SCRIPT_UPLOAD_S = 0.5
_UPLOAD_S = 2.0
_POLL_S = 0.1
# How long a node may take to save when the run is to stop; then it is destroyed.
_STOP_GRACE_S = 60.0
SUPERVISOR_DIED = "its supervisor died"


class Supervisor:
    """One run's supervisor; `run` returns when the run is over."""

    def __init__(self, store: ObjectStore, record: RunRecord, nodes: Path, clock: Clock) -> None:
        self._store = store
        self._record = record
        self._nodes = nodes
        self._clock = clock
        self._journal = Journal(store, "supervisor", clock)
        self._decider = Decider(record)
        self._states = StateReader(store, record)
        self._listener = Listener(store, _SILENT_AGENT_S)
        self._measurements = MeasurementReader(store)
        self._measured: Sequence[Measured] = ()
        self._measured_attempt: int | None = None
        is_folder = store.url.startswith("file:")
        self._pause = _FOLDER_TICK if is_folder else _REMOTE_TICK
        self._market = market_time(record)
        self._source = _preemption_source(record)
        self._node: LocalNode | None = None
        # Monotonic: the machine's clock may be set while we wait.
        self._taking_back: tuple[Preemption, float] | None = None
        self._launched_s = 0.0
        self._stopping_since_s: float | None = None
        self._beat_s: float | None = None
        self._is_draining = False
        self._is_usurped = False

    def run(self) -> FinalState | None:
        """Supervise until the run is over; None when another owner has taken the run over."""
        destroy_leftovers(self._nodes)
        failing_since_s: float | None = None
        while not self._is_usurped:
            try:
                ended = self._tick()
                failing_since_s = None
            except (StoreUnreachable, StoreRefused) as error:
                # The node trains on; facts that could not be written wait in the journal.
                now_s = time.monotonic()
                failing_since_s = now_s if failing_since_s is None else failing_since_s
                if now_s - failing_since_s > _STORE_PATIENCE_S:
                    raise
                _log.warning("the store fails, trying again: %s", error)
                ended = None
            if ended is not None:
                return ended
            self._clock.sleep(self._pause)
        _log.warning("a later attempt of another owner runs this; leaving it alone")
        return None

    def _tick(self) -> FinalState | None:
        """Look, act once, and return the final state when the run is over."""
        self._journal.flush()
        self._beat()
        state = self._state()
        if state.ended is not None:
            return state.ended.state
        self._end_strays(state)
        self._watch_node(state)
        return None if self._is_usurped else self._act(self._decide(self._state()))

    def _state(self) -> RunState:
        return self._states.read()

    def _beat(self) -> None:
        now_s = time.monotonic()
        if self._beat_s is not None and now_s - self._beat_s < _BEAT_EVERY_S:
            return
        self._beat_s = now_s
        beat(
            self._store,
            Heartbeat(
                writer=self._journal.writer,
                at=self._clock.now(),
                host=socket.gethostname(),
                pid=os.getpid(),
            ),
        )

    def _decide(self, state: RunState) -> Decision:
        return self._decider.ask(state, self._measured, self._clock.now())

    def _end_strays(self, state: RunState) -> None:
        """End launches that are open in the ledger but not ours, as of their last sign of life.

        A supervisor that died left them, or a store that failed while we launched.
        """
        ours = None if self._node is None else self._node.launch
        strays = [launch for launch in state.open_launches if launch.launch != ours]
        if not strays:
            return
        heard_at = max(
            (
                heartbeat.at
                for heartbeat in read_heartbeats(self._store)
                if heartbeat.writer != self._journal.writer
            ),
            default=self._clock.now(),
        )
        for launch in strays:
            self._journal.record(
                LaunchEnded(
                    launch=launch.launch,
                    reason=EndReason.NODE_LOST,
                    terminated_by=TerminatedBy.US,
                    detail=SUPERVISOR_DIED,
                    gone_at=min(self._clock.now(), heard_at + timedelta(seconds=LEASE_S)),
                )
            )
        self._journal.flush()

    def _act(self, decision: Decision) -> FinalState | None:
        if not isinstance(decision, Stop):
            self._stopping_since_s = None
        match decision:
            case Keep():
                return None
            case Launch():
                self._launch(decision)
                return None
            case Wait():
                self._note_wait(decision)
                return None
            case Drain():
                self._drain(decision)
                return None
            case Stop():
                return self._stop(decision)

    def _launch(self, decision: Launch) -> None:
        offer, now = decision.offer, self._clock.now()
        launch = f"{self._record.run_id}-{secrets.token_hex(4)}"
        quoted = QuotedOffer.quote(offer)
        has_capacity = self._source.has_capacity(offer, self._market.at(now), self._state())
        self._journal.record(self._decider.made(decision))
        self._journal.note(
            LaunchStarted(launch=launch, offer=quoted, num_nodes=self._record.spec.nodes.count)
        )
        # What was asked of the node before: this one would obey it, too.
        withdraw(self._store, RequestKind.DRAIN)
        withdraw(self._store, RequestKind.STOP)
        self._is_draining = False
        if not has_capacity:
            self._end_launch(launch, EndReason.NO_CAPACITY, TerminatedBy.CLOUD, None)
            return
        self._node = start_node(self._nodes, self._agent_config(launch, quoted))
        self._launched_s = time.monotonic()
        self._taking_back = None
        self._journal.note(LaunchReady(launch=launch))
        _log.info("launched %s: %s", launch, decision.why)

    def _agent_config(self, launch: str, offer: QuotedOffer) -> AgentConfig:
        folder, local = self._nodes / launch, self._record.spec.local_options
        return AgentConfig(
            store=self._store.url,
            launch=launch,
            offer=offer,
            ranks=local.ranks,
            scratch=scratch_folder(folder),
            metadata=folder / "metadata",
            owner=self._journal.writer,
            lease_seconds=LEASE_S,
            silent_seconds=LEASE_S,
            upload_seconds=_SCRIPT_UPLOAD_S if local.preemptions else _UPLOAD_S,
            poll_seconds=_POLL_S,
        )

    def _note_wait(self, decision: Wait) -> None:
        if self._decider.waits_anew(self._market.at(self._clock.now())):
            self._journal.note(self._decider.made(decision))

    def _drain(self, decision: Drain) -> None:
        """Have the node save and leave; what follows is decided when it has."""
        if self._is_draining:
            return
        self._is_draining = True
        self._journal.note(self._decider.made(decision))
        now = self._clock.now()
        ask(self._store, Request(kind=RequestKind.DRAIN, at=now, by=self._journal.writer))

    def _stop(self, decision: Stop) -> FinalState | None:
        """Have a running node save and leave first; then end the run."""
        if self._node is not None:
            now_s = time.monotonic()
            if self._stopping_since_s is None:
                self._stopping_since_s = now_s
                self._journal.note(self._decider.made(decision))
                asked = Request(
                    kind=RequestKind.STOP, at=self._clock.now(), by=self._journal.writer
                )
                ask(self._store, asked)
            if now_s - self._stopping_since_s > _STOP_GRACE_S:
                self._destroy(EndReason.STOPPED, TerminatedBy.US, "it did not stop in time")
            return None
        self._journal.record(self._decider.made(decision))
        launched_at = self._state().launched_at
        ended = RunEnded.after(decision.reason, decision.why, launched_at)
        self._journal.note(ended)
        return ended.state

    def _watch_node(self, state: RunState) -> None:
        launch = state.current_launch
        if self._node is None or launch is None:
            return
        status = self._node.poll()
        if status is not None:
            self._collect(status)
            return
        silence = self._silence(launch)
        if silence is not None:
            self._destroy(EndReason.NODE_LOST, TerminatedBy.US, silence)
            return
        if self._taking_back is None:
            now = self._market.at(self._clock.now())
            preemption = self._source.due(launch, now, state, self._last_step(launch))
            if preemption is not None:
                self._take_back(preemption, launch)
        elif time.monotonic() >= self._taking_back[1]:
            self._destroy(EndReason.PREEMPTED, TerminatedBy.CLOUD, self._taking_back[0].detail)

    def _silence(self, launch: LaunchView) -> str | None:
        """Return why to give the node up: its agent stands still, which its process does not show.

        One that never gets as far as a claim leaves by itself, or has been stopped.
        """
        if launch.attempt is not None:
            is_silent = self._listener.is_silent(launch.attempt, time.monotonic())
            return silent_detail(_SILENT_AGENT_S) if is_silent else None
        is_late = time.monotonic() - self._launched_s > _CLAIMS_WITHIN_S
        return mute_detail(_CLAIMS_WITHIN_S) if is_late else None

    def _last_step(self, launch: LaunchView) -> int | None:
        """Return the last step that the launch's attempt has reported, None before its first."""
        if launch.attempt is None:
            return None
        if launch.attempt != self._measured_attempt:
            self._measured_attempt = launch.attempt
            self._measurements = MeasurementReader(self._store, launch.attempt)
        self._measured = self._measurements.read()
        recent = steps_of(self._measured[-_RECENT_RECORDS:])
        return recent[-1][1].step if recent else None

    def _take_back(self, preemption: Preemption, launch: LaunchView) -> None:
        assert self._node is not None
        if preemption.only_during_checkpoint and not self._is_saving(launch):
            return
        if preemption.only_during_checkpoint and preemption.notice_seconds > 0:
            self._node.thaw()
        if preemption.notice_seconds == 0:
            self._destroy(EndReason.PREEMPTED, TerminatedBy.CLOUD, preemption.detail)
            return
        deadline_at = self._clock.now() + timedelta(seconds=preemption.notice_seconds)
        self._node.give_notice(Notice(deadline_at=deadline_at))
        self._taking_back = (preemption, time.monotonic() + preemption.notice_seconds)

    def _is_saving(self, launch: LaunchView) -> bool:
        """Look for a checkpoint in the making, with the node frozen so that the answer stays true.

        The node is left frozen when there is one: the next thing that happens to it is SIGKILL.
        """
        assert self._node is not None
        assert launch.attempt is not None
        places = open_places(self._store, self._record.spec)
        for _ in range(_LOOKS_PER_TICK):
            if find_unfinished_checkpoint(places, launch.attempt) is not None:
                self._node.freeze()
                if find_unfinished_checkpoint(places, launch.attempt) is not None:
                    return True
                self._node.thaw()
            if self._node.poll() is not None:
                return False
            self._clock.sleep(_CHECKPOINT_LOOK)
        return False

    def _collect(self, status: int) -> None:
        """Turn the agent's exit into the end of the launch."""
        detail = self._taking_back[0].detail if self._taking_back is not None else None
        reason = reason_for_exit(status)
        # We run one node at a time, so the later attempt that fenced it is not ours.
        self._is_usurped = reason is EndReason.FENCED
        by = TerminatedBy.ITSELF
        if status == AgentExit.PREEMPTED and self._taking_back is not None:
            by = TerminatedBy.CLOUD
        elif status == AgentExit.PREEMPTED and self._is_draining:
            reason = EndReason.DRAINED
        self._destroy(reason, by, detail)

    def _destroy(self, reason: EndReason, by: TerminatedBy, detail: str | None) -> None:
        assert self._node is not None
        node, self._node = self._node, None
        node.destroy()
        self._taking_back = None
        self._end_launch(node.launch, reason, by, detail)

    def _end_launch(
        self, launch: str, reason: EndReason, by: TerminatedBy, detail: str | None
    ) -> None:
        self._journal.note(
            LaunchEnded(launch=launch, reason=reason, terminated_by=by, detail=detail)
        )
        _log.info("launch %s ended: %s %s", launch, reason.value, detail or "")


def _preemption_source(record: RunRecord) -> PreemptionSource:
    local = record.spec.local_options
    if local.preemptions is not None:
        return ScriptedPreemptions(local.preemptions)
    return MarketPreemptions(SyntheticMarket(local.seed, record.created_at))
