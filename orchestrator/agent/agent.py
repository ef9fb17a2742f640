"""One attempt on one node: claim, start the trainer, watch it and everything around it, report.

Crash-only: nothing here is needed for correctness. Killed at any instant, it leaves a run folder
from which the next attempt goes on.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path

from checkpoints.errors import CheckpointError, ObjectMissing, RecordInvalid, StoreError
from checkpoints.fence import claim_attempt
from checkpoints.layout import CHECKPOINTS, log_key
from checkpoints.manifest import Claim
from checkpoints.retention import is_left_by_lower_attempt
from checkpoints.store import ObjectStore
from orchestrator.agent.config import AgentConfig
from orchestrator.agent.facts import AttemptFacts
from orchestrator.agent.hang import HangWatch
from orchestrator.agent.hazard import run_hazard
from orchestrator.agent.lease import OwnerLease
from orchestrator.agent.notice import NoticeSource, NoticeWatch, local_notices
from orchestrator.agent.outcomes import judge
from orchestrator.agent.processes import kill_tree, start_torchrun
from orchestrator.agent.tracking import TrackedRun, WandbTracker
from orchestrator.agent.uploads import LogUploader, SpoolUploader
from orchestrator.attempts import AgentExit, reason_for_exit
from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError
from orchestrator.inputs import fetch_inputs
from orchestrator.ledger.fold import RunState
from orchestrator.ledger.heartbeat import Heartbeat, beat
from orchestrator.ledger.measurements import MeasurementReader, latest_by_step
from orchestrator.ledger.requests import RequestKind, read_requests
from orchestrator.places import objects_url, open_places, other_objects_urls
from train.config import TrainConfig
from train.spool import (
    Notice,
    Step,
    read_outcome,
)

_log = logging.getLogger(__name__)
# How long the trainer may take to save and leave when asked to, unless the node goes before.
_LEAVE_SECONDS = 120.0
# Looks at the owner's heartbeat per lease: each is a GET that somebody pays for.
_LEASE_LOOKS = 10


class Agent:
    """Runs one attempt; `run` returns the exit status that says how it ended."""

    def __init__(
        self, config: AgentConfig, store: ObjectStore, state: RunState, clock: Clock
    ) -> None:
        self._config = config
        self._store = store
        self._state = state
        self._record = state.record
        self._spec = state.spec
        self._clock = clock
        self._spool_dir = config.scratch / "spool"
        self._notice_file = config.scratch / "notice.json"
        self._log_file = config.scratch / "train.log"
        self._notices = NoticeWatch(_notice_source(config), self._notice_file, config.poll_seconds)
        self._is_noticed = False
        self._leaving: int | None = None
        self._kill_at: float | None = None
        self._step = 0

    def run(self) -> int:
        """Claim the attempt and see it through."""
        claim = self._claim()
        self._step = claim.step
        # Beside the start, which it must not delay: nothing that follows depends on it.
        threading.Thread(
            target=self._abort_leftovers, args=(claim.attempt,), name="leftovers", daemon=True
        ).start()
        try:
            self._facts.inherited(self._state.commits)
            fetch_inputs(self._record.inputs, self._store, self._config.scratch / "inputs")
        except (OrchestratorError, RecordInvalid, ObjectMissing) as error:
            self._end(AgentExit.FAILED, error.what)
            return AgentExit.FAILED
        tracker = self._start_tracker(claim)
        self._spool = SpoolUploader(self._store, claim.attempt, self._spool_dir)
        self._log_file.touch()
        self._logs = LogUploader(self._store, claim.attempt, self._log_file)
        trainer = start_torchrun(
            self._write_train_config(claim),
            ranks=self._config.ranks,
            threads_per_rank=self._record.threads_per_rank,
            scratch=self._config.scratch,
            log=self._log_file,
        )
        hung = self._watch(trainer, claim, tracker)
        ranks = range(self._config.ranks)
        outcomes = [read_outcome(self._spool_dir, rank) for rank in ranks]
        status, complaint = judge(outcomes, self._leaving)
        if hung:
            status, complaint = AgentExit.HANG, "no progress"
        self._pump(tracker)
        self._upload(claim)
        self._end(status, complaint)
        self._close_tracker(claim, tracker)
        return status

    def _abort_leftovers(self, attempt: int) -> None:
        places = open_places(
            self._store, self._spec, lambda url, error: _log.warning("%s: %s", url, error)
        )
        for store in places.stores:
            abort_leftovers(store, attempt)

    def _claim(self) -> Claim:
        claim = claim_attempt(
            self._store,
            claimed_by=self._config.launch,
            claimed_at=self._clock.now(),
            world_size=self._config.ranks,
            offer={"launch": self._config.launch, "zone": self._config.offer.zone},
        )
        self._facts = AttemptFacts(
            self._store,
            claim,
            self._clock,
            spec=self._spec,
            offer=self._config.offer.to_offer(),
        )
        self._facts.started(self._config.launch)
        return claim

    def _write_train_config(self, claim: Claim) -> Path:
        config = TrainConfig(
            run=self._record.run,
            attempt=claim.attempt,
            store=self._store.url,
            objects_store=objects_url(self._spec, self._config.offer.to_offer()),
            other_stores=other_objects_urls(self._spec),
            parent=claim.parent,
            inputs_dir=self._config.scratch / "inputs",
            num_steps=self._record.num_steps,
            model=self._spec.model,
            train=self._spec.train,
            checkpoints=self._spec.checkpoints,
            spool_dir=self._spool_dir,
            notice_file=self._notice_file,
            owner_pid=os.getpid(),
            hazard=run_hazard(self._state),
        )
        path = self._config.scratch / "train.json"
        path.write_text(config.model_dump_json(indent=1))
        return path

    def _start_tracker(self, claim: Claim) -> WandbTracker | None:
        wandb = self._spec.tracking.wandb
        if wandb is None:
            return None
        recorded = latest_by_step(MeasurementReader(self._store).read())
        tracked = TrackedRun(
            run_id=self._record.run_id,
            name=self._record.run,
            project=wandb.project,
            entity=wandb.entity,
            config=self._spec.model_dump(mode="json"),
            directory=self._config.scratch / "wandb",
        )
        history = [recorded[step] for step in sorted(recorded) if step <= claim.step]
        return WandbTracker(tracked, history)

    def _watch(
        self, trainer: subprocess.Popen[bytes], claim: Claim, tracker: WandbTracker | None
    ) -> bool:
        """Serve the trainer until it ends; return True when it had to be killed for hanging."""
        config = self._config
        now = time.monotonic()
        lease = None
        if config.owner is not None:
            lease = OwnerLease(self._store, config.owner, config.lease_seconds, now)
        uploaded_at = lease_at = now
        self._hang = HangWatch(
            self._spool_dir,
            num_steps=self._record.num_steps,
            slow_s=config.hang_seconds,
            step_s=config.step_hang_seconds,
            now=now,
        )
        while trainer.poll() is None:
            time.sleep(config.poll_seconds)
            now = time.monotonic()
            if self._pump(tracker):
                self._hang.note_life(now)
            if self._spool.wants_upload or now - uploaded_at >= config.upload_seconds:
                self._upload(claim)
                uploaded_at = now
                self._obey_requests()
            self._note_notice()
            if lease is not None and now - lease_at >= config.lease_seconds / _LEASE_LOOKS:
                lease_at = now
                if lease.is_lost(now):
                    self._ask_to_leave(AgentExit.PREEMPTED, "the owner's heartbeat stands still")
            if self._kill_at is not None and now >= self._kill_at:
                kill_tree(trainer)
            if self._hang.is_hung(now):
                _log.warning("no sign of life for %g s", self._hang.limit_s)
                self._hang.dump_stacks()
                kill_tree(trainer)
                return True
        return False

    def _pump(self, tracker: WandbTracker | None) -> int:
        """Read what the trainer has said since; return how many records that were."""
        records = self._spool.collect()
        for record in records:
            self._facts.measured(record)
            if isinstance(record, Step):
                self._step = record.step
                self._hang.note_step(record.step, record.seconds)
        if tracker is not None:
            tracker.log(records)
        return len(records)

    def _upload(self, claim: Claim) -> None:
        """Carry everything to the run folder; a store that fails now is tried again later."""
        try:
            self._spool.upload()
            self._logs.upload()
            self._facts.flush()
            beat(
                self._store,
                Heartbeat(
                    writer=self._facts.writer,
                    at=self._clock.now(),
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    attempt=claim.attempt,
                    step=self._step,
                ),
            )
        except StoreError as error:
            _log.warning("upload failed and will be tried again: %s", error)

    def _obey_requests(self) -> None:
        try:
            requests = read_requests(self._store)
        except StoreError as error:
            _log.warning("cannot look for requests: %s", error)
            return
        for request in requests:
            if request.at < self._state.launched_at:
                continue  # meant for an earlier launch of the run
            status = AgentExit.STOPPED if request.kind is RequestKind.STOP else AgentExit.PREEMPTED
            self._ask_to_leave(status, f"{request.kind.value} was requested by {request.by}")

    def _note_notice(self) -> None:
        notice = self._notices.from_cloud
        if notice is None or self._is_noticed:
            return
        self._is_noticed = True
        self._facts.noticed(notice)
        if self._leaving is None:
            self._leaving = AgentExit.PREEMPTED

    def _ask_to_leave(self, status: int, why: str) -> None:
        """Have the trainer save and end, and kill it if it does not."""
        if self._leaving is not None:
            return
        _log.warning("asking the trainer to save and leave: %s", why)
        self._leaving = status
        self._kill_at = time.monotonic() + _LEAVE_SECONDS
        deadline_at = self._clock.now() + timedelta(seconds=_LEAVE_SECONDS)
        self._notices.pass_on(Notice(deadline_at=deadline_at))

    def _end(self, status: int, error: str | None) -> None:
        self._facts.ended(reason_for_exit(status), self._step, error)
        try:
            self._facts.flush()
        except CheckpointError as failure:
            _log.warning("the end of the attempt could not be recorded: %s", failure)

    def _close_tracker(self, claim: Claim, tracker: WandbTracker | None) -> None:
        """Finish W&B; what was recorded offline goes to the run folder, for `wandb sync`."""
        if tracker is None:
            return
        offline = tracker.finish()
        if offline is None:
            return
        try:
            self._store.put(log_key(claim.attempt, offline.name), offline.read_bytes())
        except StoreError as error:
            _log.warning("the offline W&B run was not kept: %s", error)


def _notice_source(config: AgentConfig) -> NoticeSource:
    if config.metadata is not None:
        return local_notices(config.metadata / "notice.json")
    from orchestrator.agent.metadata import open_notices  # httpx takes 50 ms, for clouds only

    return open_notices(config.offer.cloud)


def abort_leftovers(store: ObjectStore, attempt: int) -> None:
    """Abort uploads that attempts before this one left unfinished; their parts are billed."""
    try:
        aborted = store.abort_uploads(
            CHECKPOINTS, lambda key: is_left_by_lower_attempt(key, attempt)
        )
    except StoreError as error:
        _log.warning("unfinished uploads in %s were not aborted: %s", store.url, error)
        return
    if aborted:
        _log.info("aborted %d unfinished uploads in %s", len(aborted), store.url)
