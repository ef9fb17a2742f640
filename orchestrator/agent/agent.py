"""One node's part of an attempt: claim or join it, start the trainer, watch it, report.

Crash-only: nothing here is needed for correctness. Killed at any instant, it leaves a run folder
from which the next attempt goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from checkpoints.errors import (
    CheckpointError,
    ObjectMissing,
    RecordInvalid,
    StoreError,
)
from checkpoints.store import ObjectStore, open_store
from orchestrator.agent.config import AgentConfig
from orchestrator.agent.courier import Courier
from orchestrator.agent.gang import News
from orchestrator.agent.guards import Guards
from orchestrator.agent.health import find_fault, find_write_fault, is_trouble_of_the_node
from orchestrator.agent.joining import Part, follow, lead, notice_file
from orchestrator.agent.leftovers import start_aborting
from orchestrator.agent.notice import NoticeSource, NoticeWatch, local_notices
from orchestrator.agent.outcomes import NodeReport
from orchestrator.agent.processes import start_torchrun
from orchestrator.agent.speed import measure, warning
from orchestrator.agent.tracking import Tracker, TrackingConfig
from orchestrator.agent.watch import Watch
from orchestrator.attempts import EndReason
from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError
from orchestrator.inputs import fetch_inputs
from orchestrator.ledger.fold import RunState
from train.config import TrainConfig

_log = logging.getLogger(__name__)


class Agent:
    """Runs one node's part; `run` returns how the attempt ended, on all nodes alike."""

    def __init__(
        self, config: AgentConfig, store: ObjectStore, state: RunState, clock: Clock
    ) -> None:
        self._config = config
        self._store = store
        self._state = state
        self._clock = clock
        self._leads = config.node == 0
        self._notices = NoticeWatch(
            _notice_source(config), notice_file(config.scratch), config.poll_seconds
        )

    def run(self, note_end: Callable[[EndReason], None] | None = None) -> EndReason:
        """Claim or join the attempt and see it through.

        `note_end` is told the end while the other nodes still wait: once one of them has left,
        SkyPilot kills the rest.

        Raises:
            HeadMissing: node 0 of the launch never answered.
        """
        enter = lead if self._leads else follow
        part = enter(self._config, self._store, self._state, self._clock)
        courier = Courier(self._store, self._config, part.claim, part.facts, self._clock)
        try:
            report = self._take_part(part, courier)
        except Exception as error:
            # The other nodes must neither wait for this one nor take it for lost.
            is_away = is_trouble_of_the_node(error)
            reason = EndReason.PREEMPTED if is_away else EndReason.TRAINING_FAILED
            part.gang.settle(self._report(leaving=reason, error=str(error)))
            if self._leads:
                self._note_end(part, reason, courier.step, str(error))
            part.gang.dismiss(reason)
            raise
        courier.pump()
        courier.upload()
        reason, why = part.gang.settle(report)
        if self._leads:
            self._note_end(part, reason, courier.step, why)
            if note_end is not None:
                note_end(reason)
        courier.close()
        part.gang.dismiss(reason)
        return reason

    def _take_part(self, part: Part, courier: Courier) -> NodeReport:
        if self._leads:
            start_aborting(self._store, self._state.spec, part.claim.attempt)
        fault = self._find_fault(part)
        if fault is not None:
            return self._unfit(fault)
        complaint = self._prepare(part, courier)
        if complaint is not None:
            return self._report(leaving=EndReason.TRAINING_FAILED, error=complaint)
        if part.gang.news() is not News.NONE:
            return self._report()  # another node cannot: nothing needs to be started here
        if self._leads and self._state.spec.tracking.wandb is not None:
            courier.track(self._start_tracker(part, courier))
        trainer = start_torchrun(
            self._write(part.train),
            self._config,
            threads_per_rank=self._state.record.threads_per_rank,
            log=courier.log_file,
        )
        watch = Watch(
            self._config,
            self._clock,
            courier=courier,
            facts=part.facts,
            notices=self._notices,
            gang=part.gang,
            guards=self._guards(part) if self._leads else None,
            num_steps=self._state.record.num_steps,
        )
        watch.serve(trainer)
        outcomes = watch.outcomes()
        if watch.leaving is None and not all(outcome and outcome.is_well for outcome in outcomes):
            # What looks like a failure of the training may be one of the disk.
            fault = find_write_fault(self._config.scratch)
            if fault is not None:
                return self._unfit(fault, outcomes=outcomes)
        return self._report(outcomes=outcomes, leaving=watch.leaving, is_hung=watch.is_hung)

    def _report(self, **said: object) -> NodeReport:
        return NodeReport.model_validate({"node": self._config.node, **said})

    def _unfit(self, fault: str, **said: object) -> NodeReport:
        why = f"node {self._config.node} is unfit: {fault}"
        _log.error("%s", why)
        return self._report(leaving=EndReason.PREEMPTED, error=why, **said)

    def _find_fault(self, part: Part) -> str | None:
        """Return why this node cannot do its part, if so; a slow store is only worth a warning."""
        config = self._config
        if not config.checks_node:
            return None
        num_bytes = sum(file.size for file in self._state.record.inputs)
        fault = find_fault(config.scratch, num_input_bytes=num_bytes, num_gpus=config.num_gpus)
        if fault is None:
            self._say_speed(part.train.objects_store)
        return fault

    def _say_speed(self, near: str | None) -> None:
        try:
            speed = measure(self._store if near is None else open_store(near))
        except StoreError as error:
            _log.warning("how fast the store is could not be measured: %s", error)
            return
        _log.info("node %d and its store: %s", self._config.node, speed)
        slow = warning(speed, self._state, self._config.offer.cloud)
        if slow is not None:
            _log.warning("%s", slow)

    def _prepare(self, part: Part, courier: Courier) -> str | None:
        """Get all that the trainer reads; return what is wrong with it, if anything."""
        record = self._state.record
        try:
            if self._leads:
                part.facts.inherited(self._state.commits)
            inputs = self._config.scratch / "inputs"
            fetch_inputs(record.inputs, self._store, inputs, courier.say_alive)
        except (OrchestratorError, RecordInvalid, ObjectMissing) as error:
            return error.what
        return None

    def _start_tracker(self, part: Part, courier: Courier) -> Tracker:
        tracking = TrackingConfig(
            store=self._store.url,
            attempt=part.claim.attempt,
            spool_dir=courier.spool_dir,
            directory=self._config.scratch / "wandb",
        )
        return Tracker(tracking, courier.log_file)

    def _guards(self, part: Part) -> Guards:
        return Guards(
            self._store,
            self._state,
            self._config,
            self._clock,
            attempt=part.claim.attempt,
            now=time.monotonic(),
        )

    def _write(self, train: TrainConfig) -> Path:
        path = self._config.scratch / "train.json"
        path.write_text(train.model_dump_json(indent=1))
        return path

    def _note_end(self, part: Part, reason: EndReason, step: int, why: str | None) -> None:
        part.facts.ended(reason, step, why)
        try:
            part.facts.flush()
        except CheckpointError as failure:
            _log.warning("the end of the attempt could not be recorded: %s", failure)


def _notice_source(config: AgentConfig) -> NoticeSource:
    if config.metadata is not None:
        return local_notices(config.metadata / "notice.json")
    from orchestrator.agent.metadata import open_notices  # httpx takes 50 ms, for clouds only

    return open_notices(config.offer.cloud)
