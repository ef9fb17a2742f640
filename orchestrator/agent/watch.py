"""Serve one node's trainer from its start to its end: records, notices, guards, hangs, peers."""

from __future__ import annotations

import logging
import subprocess
import time
from datetime import timedelta

from orchestrator.agent.config import AgentConfig
from orchestrator.agent.courier import Courier
from orchestrator.agent.facts import AttemptFacts
from orchestrator.agent.gang import Gang, News
from orchestrator.agent.guards import Guards, Leave
from orchestrator.agent.hang import HangWatch
from orchestrator.agent.notice import NoticeWatch
from orchestrator.agent.processes import kill_tree
from orchestrator.attempts import EndReason
from orchestrator.clock import Clock
from train.spool import Notice, Outcome, Step, read_outcome
from train.termination import termination_notice

_log = logging.getLogger(__name__)
# How long the trainer may take to save and leave when asked to, unless the node goes before.
_LEAVE_SECONDS = 120.0
# How long ranks may go on after those of another node have ended, or that node is gone: they end by
# themselves within seconds unless they wait for what does not come.
_ALONE_SECONDS = 15.0
# How long processes may linger whose ranks have all said how they ended. Nothing that they do then
# counts any more, but a torchrun that stands still would be paid for as a trainer that ends slowly.
_LINGER_SECONDS = 30.0


class Watch:
    """Watches one trainer; afterwards it knows why the trainer was asked to leave, if it was."""

    def __init__(
        self,
        config: AgentConfig,
        clock: Clock,
        *,
        courier: Courier,
        facts: AttemptFacts,
        notices: NoticeWatch,
        gang: Gang,
        guards: Guards | None,
        num_steps: int,
    ) -> None:
        self._config, self._clock = config, clock
        self._courier, self._facts, self._notices = courier, facts, notices
        self._gang, self._guards = gang, guards
        self._hang = HangWatch(
            courier.spool_dir,
            num_steps=num_steps,
            slow_s=config.hang_seconds,
            step_s=config.step_hang_seconds,
            now=time.monotonic(),
        )
        self._kill_at: float | None = None
        self._is_alone = False
        self._is_noticed = False
        self._is_terminated = False
        self.leaving: EndReason | None = None
        self.is_hung = False

    def serve(self, trainer: subprocess.Popen[bytes]) -> None:
        """Return when the trainer has ended, by itself or not."""
        uploaded_at = time.monotonic()
        while trainer.poll() is None:
            time.sleep(self._config.poll_seconds)
            now = time.monotonic()
            self._pump(now)
            if self._courier.wants_upload or now - uploaded_at >= self._config.upload_seconds:
                self._courier.upload()
                uploaded_at = now
            self._note_notice()
            self._note_termination(now)
            leave = None if self._guards is None else self._guards.look(now)
            if leave is not None:
                self._leave(leave, now)
            self._note_peers(now)
            self._note_hang(now)
            self._note_last_words(now)
            if self._kill_at is not None and now >= self._kill_at:
                kill_tree(trainer)

    def outcomes(self) -> tuple[Outcome | None, ...]:
        """Return how each rank of this node said that it ended, None where one has not (yet)."""
        first = self._config.node * self._config.ranks
        ranks = range(first, first + self._config.ranks)
        return tuple(read_outcome(self._courier.spool_dir, rank) for rank in ranks)

    def _pump(self, now: float) -> None:
        records = self._courier.pump()
        for record in records:
            if isinstance(record, Step):
                self._hang.note_step(record.step, record.seconds)
        if records:
            self._hang.note_life(now)

    def _note_notice(self) -> None:
        notice = self._notices.from_cloud
        if notice is None or self._is_noticed:
            return
        self._is_noticed = True
        self._facts.noticed(notice)
        if self.leaving is None:
            self.leaving = EndReason.PREEMPTED

    def _note_termination(self, now: float) -> None:
        notice = termination_notice()
        if notice is None or self._is_terminated:
            return
        self._is_terminated = True
        left_s = (notice.deadline_at - self._clock.now()).total_seconds()
        why = "this machine shuts down, or its job is ended (SIGTERM)"
        self._leave(Leave(reason=EndReason.PREEMPTED, why=why), now, left_s)

    def _leave(self, leave: Leave, now: float, within_s: float = _LEAVE_SECONDS) -> None:
        """Have the trainer save and end, and kill it if it does not."""
        if self.leaving is EndReason.FENCED or (self.leaving is not None and leave.saves):
            return
        self.leaving = leave.reason
        if not leave.saves:
            _log.warning("ending the trainer: %s", leave.why)
            self._kill_at = now
            return
        _log.warning("asking the trainer to save and leave: %s", leave.why)
        self._kill_at = now + within_s
        deadline_at = self._clock.now() + timedelta(seconds=within_s)
        self._notices.pass_on(Notice(deadline_at=deadline_at))

    def _note_peers(self, now: float) -> None:
        """Give our ranks a moment to end by themselves once another node's have."""
        news = self._gang.news()
        if news is News.NONE or self._is_alone:
            return
        self._is_alone = True
        _log.warning("another node's part is over (%s)", news.value)
        if news is News.HUNG:
            self._hang.dump_stacks()
        alone_until = now + _ALONE_SECONDS
        self._kill_at = min(self._kill_at or alone_until, alone_until)

    def _note_last_words(self, now: float) -> None:
        if None in self.outcomes():
            return
        linger_until = now + _LINGER_SECONDS
        self._kill_at = min(self._kill_at or linger_until, linger_until)

    def _note_hang(self, now: float) -> None:
        if self.is_hung or not self._hang.is_hung(now):
            return
        _log.warning("no sign of life for %g s", self._hang.limit_s)
        self._gang.tell_hang()
        self._hang.dump_stacks()
        self.is_hung = True
        self._kill_at = now
