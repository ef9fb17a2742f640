"""A node: its agent beside its trainer, as orchestrator/agent/agent.py and watch.py have them.

The claim, the facts, the guards, the lease, the heartbeat and the judgement are the product's own;
files, processes and sockets between agent and trainer are left out.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from checkpoints.errors import CheckpointError, Fenced, StoreError
from checkpoints.layout import steps_key
from orchestrator.agent.config import AgentConfig
from orchestrator.agent.facts import AttemptFacts
from orchestrator.agent.guards import Guards
from orchestrator.agent.health import is_trouble_of_the_node
from orchestrator.agent.joining import claim_for
from orchestrator.agent.outcomes import NodeReport, judge
from orchestrator.attempts import AgentExit, EndReason, exit_status
from orchestrator.cloud.skypilot.staying import stay_while_free
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.fold import fold
from orchestrator.ledger.heartbeat import Heartbeat, beat
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.record import read_record
from tests.simulation.trainer import NUM_RANKS, Trainer
from train.spool import Notice

_LEAVE_S = 120.0


def run_agent(node, store) -> int:
    """Return the agent's exit status; as orchestrator/agent/__main__.py."""
    try:
        agent = _Agent(node, store)
        status = exit_status(agent.run())
        if status == AgentExit.PREEMPTED:
            stay_while_free(store, agent.record, node.launch, node.process)
        return status
    except Fenced:
        return AgentExit.FENCED
    except (CheckpointError, OrchestratorError) as error:
        return AgentExit.PREEMPTED if is_trouble_of_the_node(error) else AgentExit.FAILED


class _Agent:
    def __init__(self, node, store) -> None:
        self._node, self._store, self._process = node, store, node.process
        record = read_record(store)
        assert record is not None
        self.record = record
        self._state = fold(record, LedgerReader(store).read())
        self._config = AgentConfig(
            store=store.url,
            launch=node.launch,
            offer=node.offer,
            ranks=NUM_RANKS,
            scratch=Path("/nowhere"),
            owner=node.owner,
            poll_seconds=5,
            upload_seconds=30,
        )
        self._leaving: EndReason | None = None
        self._kill_at: float | None = None
        self._is_noticed = False
        self._num_read = self._num_objects = 0
        self._unsure: bytes | None = None
        self._pending: list = []

    def run(self) -> EndReason:
        process, config = self._process, self._config
        claim = claim_for(config, self._store, self.record, process)
        self._node.attempt = claim.attempt
        offer = config.offer.to_offer()
        self._facts = AttemptFacts(self._store, claim, process, spec=self._state.spec, offer=offer)
        self._claim = claim
        self._facts.started(config.launch)
        try:
            report = self._take_part(claim)
        except Exception as error:
            is_away = is_trouble_of_the_node(error)
            reason = EndReason.PREEMPTED if is_away else EndReason.TRAINING_FAILED
            self._note_end(reason, str(error))
            raise
        self._pump()
        self._upload()
        reason, why = judge([report], None)
        self._note_end(reason, why)
        return reason

    def _take_part(self, claim) -> NodeReport:
        self._facts.inherited(self._state.commits)
        record, loop = self._state.record, self._process.loop
        ranks = self._node.start_ranks()
        self._trainer = Trainer(
            ranks,
            self._node.store_of(ranks),
            run=record.run,
            claim=claim,
            num_steps=record.num_steps,
            pace=self._node.pace,
        )
        ranks.start(self._trainer.run)
        guards = Guards(
            self._store,
            self._state,
            self._config,
            self._process,
            attempt=claim.attempt,
            now=loop.seconds,
        )
        uploaded_at = loop.seconds
        while self._trainer.outcome is None and not ranks.is_dead:
            self._process.pause(self._config.poll_seconds)
            self._pump()
            if (
                self._trainer.wants_upload
                or loop.seconds - uploaded_at >= self._config.upload_seconds
            ):
                self._upload()
                uploaded_at = loop.seconds
            self._note_notice()
            leave = guards.look(loop.seconds)
            if leave is not None:
                self._leave(leave)
            if self._kill_at is not None and loop.seconds >= self._kill_at:
                ranks.kill()
        outcome = self._trainer.outcome
        return NodeReport(node=0, outcomes=(outcome,) * NUM_RANKS, leaving=self._leaving)

    def _pump(self) -> None:
        new = self._trainer.records[self._num_read :]
        for record in new:
            self._facts.measured(record)
        self._num_read += len(new)
        self._pending += new

    def _upload(self) -> None:
        try:
            self._beat()
            while self._pending or self._unsure is not None:
                if self._unsure is None:
                    lines = (record.model_dump_json().encode() for record in self._pending)
                    self._unsure, self._pending = b"\n".join(lines), []
                self._store.put(steps_key(self._claim.attempt, self._num_objects), self._unsure)
                self._num_objects += 1
                self._unsure = None
            self._trainer.num_uploaded = self._num_read
            self._trainer.wants_upload = False
            self._facts.flush()
        except StoreError:
            return

    def _beat(self) -> None:
        beat(
            self._store,
            Heartbeat(
                writer=self._facts.writer,
                at=self._process.now(),
                host="node",
                pid=1,
                attempt=self._claim.attempt,
                step=self._trainer.step,
            ),
        )

    def _note_notice(self) -> None:
        if self._node.notice_at is None or self._is_noticed:
            return
        self._is_noticed = True
        self._tell(self._node.notice_at)
        left = timedelta(seconds=self._node.notice_at - self._process.loop.seconds)
        self._facts.noticed(Notice(deadline_at=self._process.now() + left))
        if self._leaving is None:
            self._leaving = EndReason.PREEMPTED

    def _leave(self, leave) -> None:
        if self._leaving is EndReason.FENCED or (self._leaving is not None and leave.saves):
            return
        self._leaving = leave.reason
        now = self._process.loop.seconds
        self._kill_at = now + _LEAVE_S if leave.saves else now
        if leave.saves:
            self._tell(self._kill_at)

    def _tell(self, deadline: float) -> None:
        known = self._trainer.leaves_at
        self._trainer.leaves_at = deadline if known is None else min(known, deadline)

    def _note_end(self, reason: EndReason, why: str | None) -> None:
        trainer = getattr(self, "_trainer", None)
        self._facts.ended(reason, self._claim.step if trainer is None else trainer.step, why)
        try:
            self._facts.flush()
        except CheckpointError:
            return
