"""The attempt's checkpoints: when one begins, what became of it, what a notice leaves time for.

Rank 0's view of a save counts, so that all ranks go on alike whatever each has heard.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from torch import Tensor

from checkpoints.errors import CheckpointError, Fenced, SaveFailed
from checkpoints.messages import Committed, Retention
from checkpoints.saver import Save, Saver
from train.config import TrainConfig
from train.errors import SpoolInvalid
from train.guard import reach
from train.interval import NoticePlan, SaveClock, on_notice
from train.preemption import Agreement
from train.ranks import Ranks
from train.report import Report, now, seconds_between
from train.spool import PhaseName, Risk, read_risk, risk_path
from train.state import Progress, to_state

# The last save of a run is the one that must not be lost to a short outage of the store.
_LAST_SAVE_TRIES = 3
_COMMITTED, _FAILED, _FENCED = 0, 1, 2
# Shorter waits are not worth a record in the ledger.
_NOTICEABLE_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    step: int
    at: datetime
    at_s: float


class Saves:
    """What the loop knows of checkpoints; all ranks call every method alike."""

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        agreement: Agreement,
        report: Report,
        tensors: Mapping[str, Tensor],
        saved_step: int,
    ) -> None:
        self._config, self._ranks, self._agreement = config, ranks, agreement
        self._report = report
        self._tensors = tensors
        self.saved_step = saved_step  # of the last committed checkpoint
        self._begun: _Begun | None = None
        self._last_begun_step = saved_step
        self._given_up_step = 0
        self._answered_risk: Risk | None = None
        self._stall_s = 0.0
        self._error: str | None = None
        self._clock = SaveClock(
            config.checkpoints.interval, config.hazard, ranks.num_nodes, time.monotonic()
        )
        self._saver = Saver(
            config.store,
            objects_url=config.objects_store,
            other_urls=config.other_stores,
            run=config.run,
            attempt=config.attempt,
            rank=ranks.rank,
            world_size=ranks.world_size,
            local_rank=ranks.local_rank,
            group=ranks.save_group,
            before_commit=report.flush,
        )

    def prepare(self, generators: Mapping[str, Tensor]) -> None:
        """Allocate and start what saves need, beside the first steps."""
        self._saver.prepare(self._tensors, generators)

    @property
    def is_due(self) -> bool:
        """Say whether rank 0's clock, or a risk to this node, asks for a save after this step."""
        if self._begun is not None:
            return False
        is_time = self._ranks.is_first and self._clock.is_time(time.monotonic())
        return is_time or self._is_at_risk()

    @property
    def is_in_flight(self) -> bool:
        """Say whether this rank still waits for the outcome of a save."""
        return self._saver.is_in_flight

    def is_step(self, step: int) -> bool:
        """Say whether the interval asks for a save after this very step."""
        return self._clock.is_step(step)

    def note_step(self, seconds: float) -> None:
        """Learn from a step's duration what a save beside it costs."""
        self._clock.note_step(seconds, is_saving=self._begun is not None)

    def begin(self, progress: Progress, generators: Mapping[str, Tensor]) -> None:
        """Begin to save the state after a step; waits for a save in flight first.

        It does not where a roll-back has taken that step back: its checkpoint would have the name
        of another one. An attempt that is resumed from before it does the same again.
        """
        self.settle()
        if progress.step <= self._given_up_step:
            return
        self._last_begun_step = progress.step
        started_at, started_s = now(), time.monotonic()
        self._stall_s = 0.0
        self._begun = _Begun(step=progress.step, at=started_at, at_s=started_s)
        self._answered_risk = self._risk()
        self._clock.note_begun(started_s)
        options = self._config.checkpoints
        save = Save(
            step=progress.step,
            state=to_state(progress, self._config),
            created_at=started_at,
            retention=Retention(
                keep_last=options.keep_last,
                keep_every=options.keep_every,
                keep_back=reach(self._config.train.roll_back_batches),
            ),
        )
        self._saver.begin(save, self._tensors, generators)
        self._note_stall(started_at, started_s)

    def fence(self) -> None:
        """Return when the weights may change; call it before every optimizer step."""
        started_at, started_s = now(), time.monotonic()
        self._saver.fence()
        if self._begun is not None:
            self._note_stall(started_at, started_s)

    def settle(self) -> None:
        """Wait for the save in flight, if any, and go by its outcome; raise Fenced."""
        if self._begun is None:
            return
        started_at, started_s = now(), time.monotonic()
        outcome = self._saver.wait(self._agreement.pulse.beat)  # a slow store is no hang
        if time.monotonic() - started_s > _NOTICEABLE_S:
            self._report.phase(PhaseName.CHECKPOINT, started_at)
        begun, self._begun = self._begun, None
        (code,) = self._agreement.from_first(_code(outcome))
        if code == _FENCED:
            raise outcome if isinstance(outcome, Fenced) else _fenced_elsewhere()
        self._error = None
        if code == _FAILED:
            self._error = outcome.what if isinstance(outcome, CheckpointError) else "rank 0 failed"
            self._clock.note_failed(time.monotonic())
            self._report.save_failed(begun.step, self._error)
            return
        if isinstance(outcome, Committed):
            self._clock.note_durable(seconds_between(begun.at, outcome.at))
            self._report.committed(outcome, begun.at)
        self._clock.note_stall(self._stall_s)
        self.saved_step = begun.step

    def give_up_steps(self) -> None:
        """Note that the weights go back to before some steps that may have been saved."""
        self._given_up_step = self._last_begun_step

    def finish(self, progress: Progress, generators: Mapping[str, Tensor]) -> None:
        """Commit the state after the last step; raises SaveFailed when that cannot be done."""
        self.settle()
        for _ in range(_LAST_SAVE_TRIES):
            if self.saved_step == progress.step:
                return
            self.begin(progress, generators)
            self.settle()
        if self.saved_step != progress.step:
            raise SaveFailed(
                f"The last step could not be saved: {self._error}",
                "Resume the run when the store answers again.",
            )

    def has_time_to_finish(self, started_at: datetime) -> bool:
        """Say whether a notice leaves time for the rest of the step that began then, and a save."""
        left_s = self._agreement.seconds_left()
        elapsed_s = seconds_between(started_at, now())
        is_enough = self._clock.has_time_for_step(left_s, elapsed_s)
        return self._agreement.from_first(is_enough) == [1]

    def leave(self, progress: Progress, generators: Mapping[str, Tensor]) -> str | None:
        """Save what a notice leaves time for; return why the newest state was not saved, if so."""
        plan = self._plan_for_notice(progress)
        if plan.finish:
            self.settle()
        if plan.start and self.saved_step < progress.step:
            self.begin(progress, generators)
            self.settle()
        return self._error if self.saved_step < progress.step else None

    def close(self) -> None:
        """Give up what is in flight."""
        self._saver.close()

    def _is_at_risk(self) -> bool:
        """Say whether the cloud has named a risk that no save was begun after."""
        return self._risk() not in (None, self._answered_risk)

    def _risk(self) -> Risk | None:
        try:
            return read_risk(risk_path(self._config.notice_file))
        except SpoolInvalid:
            return None

    def _plan_for_notice(self, progress: Progress) -> NoticePlan:
        left_s = self._agreement.seconds_left()
        begun = self._begun
        newest = self.saved_step if begun is None else begun.step
        plan = on_notice(
            left_s=left_s,
            durable_s=self._clock.durable_s,
            in_flight_s=None if begun is None else time.monotonic() - begun.at_s,
            has_new_steps=progress.step > newest,
        )
        finish, start = self._agreement.from_first(plan.finish, plan.start)
        return NoticePlan(finish=bool(finish), start=bool(start))

    def _note_stall(self, started_at: datetime, started_s: float) -> None:
        stall_s = time.monotonic() - started_s
        self._stall_s += stall_s
        if stall_s > _NOTICEABLE_S:
            self._report.phase(PhaseName.CHECKPOINT, started_at)


def _code(outcome: Committed | CheckpointError) -> int:
    if isinstance(outcome, Committed):
        return _COMMITTED
    return _FENCED if isinstance(outcome, Fenced) else _FAILED


def _fenced_elsewhere() -> Fenced:
    return Fenced("A later attempt owns the run, says rank 0", "Stop this attempt.")
