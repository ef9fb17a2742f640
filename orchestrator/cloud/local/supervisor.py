"""Run one run on this machine until it is over: decide, start nodes, take them back, write facts.

Detached from the command line, which only watches. All that it knows comes from the ledger, so a
supervisor that replaces a dead one decides the same.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from datetime import datetime, timedelta
from pathlib import Path

from checkpoints.errors import StoreUnreachable
from checkpoints.store import ObjectStore
from orchestrator.agent.config import AgentConfig
from orchestrator.attempts import AgentExit, EndReason, StopReason, reason_for_exit
from orchestrator.clock import Clock, MarketTime
from orchestrator.cloud.local.market import SyntheticMarket
from orchestrator.cloud.local.node import LocalNode, destroy_leftovers, scratch_folder, start_node
from orchestrator.cloud.local.preemptions import (
    MarketPreemptions,
    Preemption,
    PreemptionSource,
    ScriptedPreemptions,
    find_unfinished_checkpoint,
)
from orchestrator.ledger.facts import (
    DecisionMade,
    FinalState,
    LaunchEnded,
    LaunchReady,
    LaunchStarted,
    QuotedOffer,
    RunEnded,
    TerminatedBy,
)
from orchestrator.ledger.fold import LaunchView, RunState, fold
from orchestrator.ledger.heartbeat import Heartbeat, beat
from orchestrator.ledger.journal import Journal, LedgerReader
from orchestrator.ledger.measurements import MeasurementReader, steps_of
from orchestrator.ledger.record import RunRecord
from orchestrator.ledger.requests import Request, RequestKind, ask
from orchestrator.policy.decide import (
    Decision,
    Keep,
    Launch,
    Stop,
    Wait,
)
from orchestrator.policy.situation import situation
from train.spool import Notice

_log = logging.getLogger(__name__)

TICK = timedelta(seconds=0.2)
# Well below the agents' lease, and few enough PUTs to be cheap on S3.
_BEAT_EVERY = timedelta(seconds=2)
# A save of a small model lasts a tenth of a second: the script must look this often to be in time.
_CHECKPOINT_LOOK = timedelta(seconds=0.005)
_LOOKS_PER_TICK = 100
_LEASE_S = 20.0
_UPLOAD_S = 0.5
_POLL_S = 0.1
# How long a node may take to save when the run is to stop; then it is destroyed.
_STOP_GRACE = timedelta(seconds=60)


class Supervisor:
    """One run's supervisor; `run` returns when the run is over."""

    def __init__(self, store: ObjectStore, record: RunRecord, nodes: Path, clock: Clock) -> None:
        self._store = store
        self._record = record
        self._nodes = nodes
        self._clock = clock
        self._journal = Journal(store, "supervisor", clock)
        self._ledger = LedgerReader(store)
        self._measurements = MeasurementReader(store)
        self._market = MarketTime(origin=record.created_at, scale=record.spec.time_scale)
        self._source = _preemption_source(record)
        self._node: LocalNode | None = None
        self._taking_back: tuple[Preemption, datetime] | None = None
        self._stopping_since: datetime | None = None
        self._last_wait: str | None = None
        self._beat_at: datetime | None = None
        self._is_usurped = False

    def run(self) -> FinalState | None:
        """Supervise until the run is over; None when another owner has taken the run over."""
        self._beat()
        self._clean_up_after_predecessor()
        while not self._is_usurped:
            try:
                ended = self._tick()
            except StoreUnreachable as error:
                # The node trains on; facts that could not be written wait in the journal.
                _log.warning("the store does not answer, trying again: %s", error)
                ended = None
            if ended is not None:
                return ended
            self._clock.sleep(TICK)
        _log.warning("a later attempt of another owner runs this; leaving it alone")
        return None

    def _tick(self) -> FinalState | None:
        """Look, act once, and return the final state when the run is over."""
        self._journal.flush()
        self._beat()
        state = self._state()
        if state.ended is not None:
            return state.ended.state
        self._watch_node(state)
        return None if self._is_usurped else self._act(self._decide())

    def _state(self) -> RunState:
        return fold(self._record, self._ledger.read())

    def _beat(self) -> None:
        now = self._clock.now()
        if self._beat_at is not None and now - self._beat_at < _BEAT_EVERY:
            return
        self._beat_at = now
        beat(
            self._store,
            Heartbeat(
                writer=self._journal.writer,
                at=now,
                host=socket.gethostname(),
                pid=os.getpid(),
            ),
        )

    def _clean_up_after_predecessor(self) -> None:
        """Destroy nodes whose supervisor died; `_watch_node` ends their launches in the ledger."""
        destroy_leftovers(self._nodes)

    def _decide(self) -> Decision:
        return situation(self._state(), self._measurements.read(), self._clock.now()).decide()

    def _act(self, decision: Decision) -> FinalState | None:
        match decision:
            case Keep():
                return None
            case Launch():
                self._launch(decision)
                return None
            case Wait():
                self._note_wait(decision)
                return None
            case Stop():
                return self._stop(decision)

    def _launch(self, decision: Launch) -> None:
        offer, now = decision.offer, self._clock.now()
        launch = f"{self._record.run_id}-{secrets.token_hex(4)}"
        quoted = QuotedOffer.quote(offer)
        has_capacity = self._source.has_capacity(offer, self._market.at(now), self._state())
        self._journal.record(DecisionMade(action="launch", why=decision.why, offer=quoted))
        self._journal.note(
            LaunchStarted(launch=launch, offer=quoted, num_nodes=self._record.spec.nodes.count)
        )
        self._last_wait = None
        if not has_capacity:
            self._end_launch(launch, EndReason.NO_CAPACITY, TerminatedBy.CLOUD, None)
            return
        self._node = start_node(self._nodes, self._agent_config(launch, quoted))
        self._taking_back = None
        self._journal.note(LaunchReady(launch=launch))
        _log.info("launched %s: %s", launch, decision.why)

    def _agent_config(self, launch: str, offer: QuotedOffer) -> AgentConfig:
        folder = self._nodes / launch
        return AgentConfig(
            store=self._store.url,
            launch=launch,
            offer=offer,
            ranks=self._record.spec.local_options.ranks,
            scratch=scratch_folder(folder),
            metadata=folder / "metadata",
            owner=self._journal.writer,
            lease_seconds=_LEASE_S,
            upload_seconds=_UPLOAD_S,
            poll_seconds=_POLL_S,
        )

    def _note_wait(self, decision: Wait) -> None:
        if decision.why != self._last_wait:
            self._last_wait = decision.why
            until = self._market.wall_at(decision.until)
            self._journal.note(DecisionMade(action="wait", why=decision.why, until=until))

    def _stop(self, decision: Stop) -> FinalState | None:
        """Have a running node save and leave first; then end the run."""
        now = self._clock.now()
        if self._node is not None:
            if self._stopping_since is None:
                self._stopping_since = now
                self._journal.note(DecisionMade(action="stop", why=decision.why))
                ask(self._store, Request(kind=RequestKind.STOP, at=now, by=self._journal.writer))
            if now - self._stopping_since > _STOP_GRACE:
                self._destroy(EndReason.STOPPED, TerminatedBy.US, "it did not stop in time")
            return None
        ended = RunEnded(
            state=_final_state(decision.reason), reason=decision.reason, why=decision.why
        )
        self._journal.note(ended)
        return ended.state

    def _watch_node(self, state: RunState) -> None:
        launch = state.current_launch
        if launch is None:
            return
        if self._node is None:
            # Left open by a supervisor that died, or by a store that failed while we launched.
            lost = EndReason.NODE_LOST
            self._end_launch(launch.launch, lost, TerminatedBy.US, "its supervisor lost it")
            return
        status = self._node.poll()
        if status is not None:
            self._collect(status)
            return
        if self._taking_back is None:
            now = self._market.at(self._clock.now())
            preemption = self._source.due(launch, now, state, self._last_step(launch))
            if preemption is not None:
                self._take_back(preemption, launch)
        elif self._clock.now() >= self._taking_back[1]:
            self._destroy(EndReason.PREEMPTED, TerminatedBy.CLOUD, self._taking_back[0].detail)

    def _last_step(self, launch: LaunchView) -> int | None:
        """Return the last step that the launch's attempt has reported, None before its first."""
        reported = [
            step.step
            for attempt, step in steps_of(self._measurements.read())
            if attempt == launch.attempt
        ]
        return max(reported, default=None)

    def _take_back(self, preemption: Preemption, launch: LaunchView) -> None:
        assert self._node is not None
        if preemption.only_during_checkpoint and not self._is_saving(launch):
            return
        if preemption.notice_seconds == 0:
            self._destroy(EndReason.PREEMPTED, TerminatedBy.CLOUD, preemption.detail)
            return
        deadline_at = self._clock.now() + timedelta(seconds=preemption.notice_seconds)
        self._node.give_notice(Notice(deadline_at=deadline_at))
        self._taking_back = (preemption, deadline_at)

    def _is_saving(self, launch: LaunchView) -> bool:
        """Look for a checkpoint in the making, with the node frozen so that the answer stays true.

        The node is left frozen when there is one: the next thing that happens to it is SIGKILL.
        """
        assert self._node is not None
        assert launch.attempt is not None
        for _ in range(_LOOKS_PER_TICK):
            if find_unfinished_checkpoint(self._store, launch.attempt) is not None:
                self._node.freeze()
                if find_unfinished_checkpoint(self._store, launch.attempt) is not None:
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


def _final_state(reason: StopReason) -> FinalState:
    match reason:
        case StopReason.DONE:
            return FinalState.SUCCEEDED
        case StopReason.REQUESTED | StopReason.BUDGET | StopReason.TOO_MANY_PREEMPTIONS:
            return FinalState.STOPPED
        case StopReason.TOO_MANY_FAILURES:
            return FinalState.FAILED
