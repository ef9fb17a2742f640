"""This project's trainer, in this process, as one rank of one: a whole run with its own loop."""

from __future__ import annotations

from datetime import datetime, timezone

from benchmarks.trainers.jobs import (
    LEARNING_RATE,
    MAX_GRAD_NORM,
    MAX_LENGTH,
    PADDED_MICRO_BATCH,
    WARMUP_STEPS,
    Figures,
    Job,
)
from benchmarks.trainers.meter import Meter
from benchmarks.trainers.stacks import Stacks
from checkpoints.fence import claim_attempt
from checkpoints.store import open_store
from train import spool as records
from train.config import (
    CheckpointOptions,
    Interval,
    ModelOptions,
    Precision,
    TrainConfig,
    TrainOptions,
)
from train.loop import train
from train.report import Report


def measure(job: Job) -> Figures:
    """Train for about one epoch; return the figures."""
    config = _config(job)
    stacks = Stacks() if job.is_profiled else None
    report = _MeteredReport(config, stacks)
    train(config, report)
    figures = report.meter.figures()
    if stacks is None:
        return figures
    return figures.model_copy(update={"shares": stacks.shares(), "outside": stacks.outside()})


class _MeteredReport(Report):
    """The run's report, which tells the meter of every step."""

    def __init__(self, config: TrainConfig, stacks: Stacks | None) -> None:
        super().__init__(config, 0, datetime.now(timezone.utc))
        self.meter = Meter()
        self._stacks = stacks
        self._num_steps = config.num_steps

    def trained(self, step: records.Step) -> None:
        """Record a step."""
        super().trained(step)
        self.meter.see_tokens(step.num_tokens)
        self.meter.end_step()
        if self._stacks is not None:
            if self.meter.num_steps == WARMUP_STEPS:
                self._stacks.start()
            elif self.meter.num_steps == self._num_steps:
                self._stacks.stop()


def _config(job: Job) -> TrainConfig:
    inputs = job.inputs
    global_batch = max(1, round(job.tokens_per_step * inputs.num_sequences / inputs.num_tokens))
    num_steps = max(WARMUP_STEPS + 1, -(-inputs.num_sequences // global_batch))
    is_packed = inputs.num_sequences < inputs.num_samples
    url = f"file://{job.scratch}/run"
    claim = claim_attempt(
        open_store(url),
        claimed_by="benchmark",
        claimed_at=datetime.now(timezone.utc),
        world_size=1,
        offer={},
    )
    return TrainConfig(
        run="benchmark",
        attempt=claim.attempt,
        store=url,
        inputs_dir=job.inputs_dir,
        num_steps=num_steps,
        model=ModelOptions(base="benchmark", max_length=MAX_LENGTH),
        train=TrainOptions(
            num_steps=num_steps,
            global_batch=global_batch,
            micro_batch=1 if is_packed else PADDED_MICRO_BATCH,
            learning_rate=LEARNING_RATE,
            max_grad_norm=MAX_GRAD_NORM,
            precision=Precision.FP32,
        ),
        # None within the run; the one at its end is not measured.
        checkpoints=CheckpointOptions(interval=Interval(seconds=86_400.0)),
        spool_dir=job.scratch / "spool",
        notice_file=job.scratch / "notice.json",
        flush_timeout_s=0.0,
    )
