"""Carries what the trainer leaves on one node's disk to the run folder, and to W&B."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Sequence

from checkpoints.errors import StoreError
from checkpoints.layout import log_key
from checkpoints.manifest import Claim
from checkpoints.store import ObjectStore
from orchestrator.agent.config import AgentConfig
from orchestrator.agent.facts import AttemptFacts
from orchestrator.agent.tracking import Tracker
from orchestrator.agent.uploads import LogUploader, SpoolUploader
from orchestrator.clock import Clock
from orchestrator.ledger.heartbeat import Heartbeat, beat
from train.spool import Record, Step

_log = logging.getLogger(__name__)


class Courier:
    """Everything that one node uploads during an attempt; the heartbeat is node 0's."""

    def __init__(
        self,
        store: ObjectStore,
        config: AgentConfig,
        claim: Claim,
        facts: AttemptFacts,
        clock: Clock,
    ) -> None:
        self._store, self._config, self._claim, self._facts = store, config, claim, facts
        self._clock = clock
        self.spool_dir = config.scratch / "spool"
        self.log_file = config.scratch / "train.log"
        self.log_file.touch()
        # What the agent does belongs into the attempt's log, where users look.
        told = logging.FileHandler(self.log_file)
        told.setFormatter(logging.Formatter("agent: %(message)s"))
        logging.getLogger("orchestrator.agent").addHandler(told)
        self._spool = SpoolUploader(store, claim.attempt, self.spool_dir)
        self._logs = LogUploader(store, claim.attempt, self.log_file, config.node)
        self._tracker: Tracker | None = None
        self.step = claim.step
        self._beat_at = -math.inf

    def track(self, tracker: Tracker) -> None:
        """Have W&B finished at the end."""
        self._tracker = tracker

    @property
    def wants_upload(self) -> bool:
        """Say whether the trainer waits for what it wrote to be uploaded."""
        return self._spool.wants_upload

    def pump(self) -> Sequence[Record]:
        """Read what the trainer has said since, and return it."""
        records = self._spool.collect()
        for record in records:
            self._facts.measured(record)
            if isinstance(record, Step):
                self.step = record.step
        return records

    def upload(self) -> None:
        """Carry everything to the run folder; what fails now is tried again later."""
        try:
            self._beat()  # first: on a slow store the rest takes minutes
            self._spool.upload()
            self._logs.upload()
            self._facts.flush()
        except (StoreError, OSError) as error:  # the store's trouble, or this disk's
            _log.warning("upload failed and will be tried again: %s", error)

    def say_alive(self) -> None:
        """Be heard, if it is time to, while something else takes long."""
        if time.monotonic() - self._beat_at < self._config.upload_seconds:
            return
        try:
            self._beat()
        except StoreError as error:
            _log.warning("the heartbeat failed and will be tried again: %s", error)

    def close(self) -> None:
        """Finish W&B; what was recorded offline goes to the run folder, for `wandb sync`."""
        offline = None if self._tracker is None else self._tracker.finish(self.say_alive)
        if offline is None:
            return
        try:
            self._store.put(log_key(self._claim.attempt, offline.name), offline.read_bytes())
        except (StoreError, OSError) as error:
            _log.warning("the offline W&B run was not kept: %s", error)

    def _beat(self) -> None:
        if self._config.node != 0:
            return
        self._beat_at = time.monotonic()
        heartbeat = Heartbeat(
            writer=self._facts.writer,
            at=self._clock.now(),
            host=socket.gethostname(),
            pid=os.getpid(),
            attempt=self._claim.attempt,
            step=self.step,
        )
        beat(self._store, heartbeat)
