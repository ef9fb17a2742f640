"""This project's trainer in this process: a whole run of its loop, with a meter in its report."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from benchmarks.trainers.jobs import (
    LEARNING_RATE,
    MAX_GRAD_NORM,
    MAX_LENGTH,
    NUM_EPOCHS,
    PADDED_MICRO_BATCH,
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

_RUN = "run"


def measure(job: Job) -> Figures:
    """Train as one rank of one; return the figures."""
    claim(job.scratch)
    config = make_config(job.inputs_dir, job.scratch, _options(job), MAX_LENGTH)
    stacks = Stacks() if job.is_profiled else None
    report = MeteredReport(config, 0, Meter(config.num_steps // NUM_EPOCHS), stacks)
    train(config, report)
    figures = report.meter.figures()
    if stacks is None:
        return figures
    return figures.model_copy(update={"shares": stacks.shares(), "outside": stacks.outside()})


class MeteredReport(Report):
    """The run's report, which tells the meter of every step."""

    def __init__(
        self, config: TrainConfig, rank: int, meter: Meter, stacks: Stacks | None = None
    ) -> None:
        super().__init__(config, rank, datetime.now(timezone.utc))
        self.meter = meter
        self._stacks = stacks
        self._num_steps = config.num_steps

    def trained(self, step: records.Step) -> None:
        """Record a step."""
        super().trained(step)
        self.meter.see_tokens(step.num_tokens)
        self.meter.end_step()
        if self._stacks is not None:
            if self.meter.num_steps == self.meter.warmup_steps:
                self._stacks.start()
            elif self.meter.num_steps == self._num_steps:
                self._stacks.stop()


def claim(scratch: Path, world_size: int = 1) -> None:
    """Claim the run's first attempt, as an agent would."""
    claim_attempt(
        open_store(_url(scratch)),
        claimed_by="benchmark",
        claimed_at=datetime.now(timezone.utc),
        world_size=world_size,
        offer={},
    )


def make_config(
    inputs_dir: Path, scratch: Path, options: TrainOptions, max_length: int
) -> TrainConfig:
    """Return the configuration of the attempt that was claimed."""
    assert options.num_steps is not None
    return TrainConfig(
        run="benchmark",
        attempt=1,
        store=_url(scratch),
        inputs_dir=inputs_dir,
        num_steps=options.num_steps,
        model=ModelOptions(base="benchmark", max_length=max_length),
        train=options,
        # None within the run; the one at its end is not measured.
        checkpoints=CheckpointOptions(interval=Interval(seconds=86_400.0)),
        spool_dir=scratch / "spool",
        notice_file=scratch / "notice.json",
        flush_timeout_s=0.0,
    )


def _url(scratch: Path) -> str:
    return f"file://{scratch}/{_RUN}"


def _options(job: Job) -> TrainOptions:
    inputs = job.inputs
    # Packed, a sequence is as long as a batch of padded ones together.
    is_packed = inputs.num_sequences < inputs.num_samples
    batch = 1 if is_packed else PADDED_MICRO_BATCH
    return TrainOptions(
        num_steps=NUM_EPOCHS * -(-inputs.num_sequences // batch),
        global_batch=batch,
        micro_batch=batch,
        learning_rate=LEARNING_RATE,
        max_grad_norm=MAX_GRAD_NORM,
        precision=Precision.FP32,
        seed=job.seed,
    )
