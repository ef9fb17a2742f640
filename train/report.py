"""What the trainer says, to the agent (spool) and to people (log); only rank 0 speaks.

Torch-free, so that it exists before the seconds of torch's import.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from datetime import datetime, timezone
from statistics import median

from checkpoints.manifest import Manifest
from checkpoints.messages import Committed
from train import spool as records
from train.config import TrainConfig
from train.spool import PhaseName, Spool

log = logging.getLogger(__name__)

# Enough to even out long and short batches, few enough to follow a change of speed.
_NUM_RECENT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """What decides how sums are rounded; steps are equal bit for bit where the digest is."""

    world_size: int
    device: str
    digest: str


class Report:
    """One attempt's records; on ranks other than 0 it only remembers the step."""

    def __init__(self, config: TrainConfig, rank: int, process_started_at: datetime) -> None:
        self.step = 0
        self.process_started_at = process_started_at
        self._config = config
        self._spool = Spool(records.spool_path(config.spool_dir)) if rank == 0 else None
        self._seconds_of_steps: list[float] = []

    def phase(self, name: PhaseName, started_at: datetime) -> None:
        """Record a phase that ends now."""
        if self._spool is not None:
            at = now()
            seconds = seconds_between(started_at, at)
            self._spool.append(
                records.Phase(at=at, name=name, started_at=started_at, seconds=seconds)
            )

    def resumed(
        self, step: int, manifest: Manifest | None, started_at: datetime, numerics: Numerics
    ) -> None:
        """Record that the attempt is ready to train on after `step`."""
        self.step = step
        if self._spool is None:
            return
        at = now()
        seconds = seconds_between(started_at, at)
        self._spool.append(
            records.Resumed(
                at=at,
                step=step,
                manifest=manifest.key if manifest else None,
                store=manifest.store if manifest else None,
                num_bytes=manifest.num_bytes if manifest else 0,
                seconds=seconds,
                world_size=numerics.world_size,
                device=numerics.device,
                numerics=numerics.digest,
            )
        )
        source = manifest.key if manifest else "the model's own weights"
        log.info(
            "attempt %d resumes after step %d/%d from %s (restored in %.1f s)",
            self._config.attempt,
            step,
            self._config.num_steps,
            source,
            seconds,
        )

    def trained(self, step: records.Step) -> None:
        """Record a step and log its line."""
        self.step = step.step
        if self._spool is None:
            return
        self._spool.append(step)
        self._seconds_of_steps = [*self._seconds_of_steps[1 - _NUM_RECENT :], step.seconds]
        eta_s = (self._config.num_steps - step.step) * median(self._seconds_of_steps)
        log.info("%s", step_line(step, self._config.num_steps, eta_s))

    def left_out(self, step: int, batch: int, why: str) -> None:
        """Record a batch that is not trained on."""
        if self._spool is not None:
            self._spool.append(records.LeftOut(at=now(), step=step, batch=batch, why=why))
            log.warning("batch %d is left out at step %d: %s", batch, step, why)

    def rolled_back(self, step: int, to_step: int) -> None:
        """Record that the weights of a checkpoint were taken again."""
        self.step = to_step
        if self._spool is not None:
            self._spool.append(records.RolledBack(at=now(), step=step, to_step=to_step))
            log.warning("rolled back from step %d to the checkpoint of step %d", step, to_step)

    def committed(self, saved: Committed, began_at: datetime) -> None:
        """Record a commit."""
        if self._spool is None:
            return
        seconds = seconds_between(began_at, saved.at)
        self._spool.append(
            records.Commit(
                at=saved.at,
                step=saved.step,
                manifest=saved.manifest,
                store=self._config.objects_store,
                num_bytes=saved.num_bytes,
                num_objects=saved.num_objects,
                seconds=seconds,
            )
        )
        for checkpoint in saved.deleted:
            self._spool.append(records.Deleted(at=now(), checkpoint=checkpoint))
        log.info("checkpoint of step %d committed after %.2f s", saved.step, seconds)

    def save_failed(self, step: int, what: str) -> None:
        """Record a save of which no commit is known."""
        if self._spool is not None:
            self._spool.append(records.SaveFailed(at=now(), step=step, what=what))
            log.warning("save of step %d failed: %s", step, what)

    def damaged(self, manifest: str, what: str) -> None:
        """Record a checkpoint that cannot be resumed from."""
        if self._spool is not None:
            self._spool.append(records.Damaged(at=now(), manifest=manifest, what=what))
            log.error("%s is damaged and skipped: %s", manifest, what)

    def evaluated(self, loss: float, num_trained_tokens: int, started_at: datetime) -> None:
        """Record the evaluation loss; one that is not finite is only logged."""
        if self._spool is None:
            return
        if math.isfinite(loss):
            self._spool.append(
                records.Evaluated(
                    at=now(), step=self.step, loss=loss, num_trained_tokens=num_trained_tokens
                )
            )
        self.phase(PhaseName.EVALUATE, started_at)
        log.info("evaluated step %d: loss %.4f", self.step, loss)

    def flush(self) -> None:
        """Wait, within limits, until the agent has uploaded all records so far."""
        timeout_s = self._config.flush_timeout_s
        if self._spool is not None and not self._spool.wait_uploaded(timeout_s):
            log.warning("the agent did not upload the spool within %g s; going on", timeout_s)

    def say(self, text: str) -> None:
        """Log a line."""
        if self._spool is not None:
            log.info("%s", text)


def step_line(step: records.Step, num_steps: int, eta_s: float) -> str:
    """Return e.g. `step 12/40 loss 5.123 lr 1.9e-05 3,200 tok/s mfu 38.1% eta 1m10s`."""
    tokens_per_s = step.num_tokens / max(step.seconds, 1e-9)
    mfu = "" if step.mfu is None else f"mfu {step.mfu:.1%} "
    return (
        f"step {step.step}/{num_steps} loss {step.loss:.3f} lr {step.learning_rate:.1e} "
        f"{tokens_per_s:,.0f} tok/s {mfu}eta {_duration(eta_s)}"
    )


def now() -> datetime:
    """Return the current instant, in UTC."""
    return datetime.now(timezone.utc)


def seconds_between(start: datetime, end: datetime) -> float:
    """Return the seconds from start to end, 0 if the wall clock was set back between them."""
    return max(0.0, (end - start).total_seconds())


def _duration(seconds: float) -> str:
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest_s:02d}s" if minutes else f"{rest_s}s"
