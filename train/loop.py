"""The training loop: resume, step, save, stop; everything that happens between start and outcome.

A step depends on the seed, the step's number and the weights alone, so that a step that is trained
again gives the same bits. A checkpoint is only ever written between two steps.
"""

from __future__ import annotations

import math
import signal

import torch
import torch.nn.functional as F
from torch import nn

from checkpoints.errors import Fenced
from checkpoints.store import open_store
from train import spool as records
from train.batch import IGNORED, MicroBatch, count_tokens, micro_batches
from train.config import TrainConfig
from train.data.dataset import EVAL_NAME, TRAIN_NAME, Dataset
from train.data.order import step_samples
from train.errors import DataInvalid, NotFinite
from train.optimizer import clip_gradients, learning_rate, set_learning_rate
from train.preemption import Agreement
from train.ranks import Ranks, join_ranks, set_numerics
from train.report import Report, now, seconds_between
from train.restore import Restored, restore
from train.saving import Saves
from train.spool import Outcome, OutcomeKind, Pulse
from train.state import Progress, read_generators


def train(config: TrainConfig, report: Report) -> Outcome:
    """Train until the last step or a notice; all ranks call it and end alike.

    Raises Fenced when a later attempt owns the run, and TrainError or CheckpointError when the
    training cannot go on; what was committed stays.
    """
    ranks = join_ranks()
    set_numerics(deterministic=config.train.deterministic)
    pulse = Pulse(config.spool_dir, ranks.rank)
    agreement = Agreement(config.notice_file, ranks.agreement_group, pulse)
    dataset = _open_data(config)
    restored = restore(config, ranks, agreement, open_store(config.store), report)
    saves = Saves(
        config, ranks, agreement, report, restored.tensors, saved_step=restored.progress.step
    )
    try:
        return _train(config, ranks, agreement, report, dataset, restored, saves)
    except Fenced:
        # torchrun ends the others when one rank exits; all are to leave their outcome first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        agreement.wait_for_all()
        raise
    finally:
        saves.close()


def _train(  # the one loop
    config: TrainConfig,
    ranks: Ranks,
    agreement: Agreement,
    report: Report,
    dataset: Dataset,
    restored: Restored,
    saves: Saves,
) -> Outcome:
    model, optimizer, progress = restored.model, restored.optimizer, restored.progress
    generators = read_generators(ranks.rank, ranks.device)
    saves.prepare(generators)
    if restored.is_far:
        # Once, so that the next attempt in this region need not pay for the way again.
        report.say("moving the checkpoint to this region's store")
        saves.begin(progress, generators)

    while progress.step < config.num_steps:
        started_at = now()
        rate = learning_rate(config.train, progress.step, config.num_steps)
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        samples = step_samples(
            config.train.seed, progress.step, config.train.global_batch, len(dataset)
        )
        counts = count_tokens(dataset, samples)
        batches = micro_batches(
            dataset,
            samples,
            rank=ranks.rank,
            world_size=ranks.world_size,
            size=config.train.micro_batch,
        )
        # On the device and in double precision, so that no micro-batch waits for its loss.
        loss_sum = torch.zeros((), dtype=torch.float64, device=ranks.device)
        is_save_due = False
        for batch in batches:
            flags = agreement.flags(is_save_due=saves.is_due, is_save_in_flight=saves.is_in_flight)
            is_save_due = is_save_due or flags.is_save_due
            if not flags.is_save_in_flight:
                saves.settle()
            if flags.is_noticed:
                # The partial step is dropped; `generators` are those after the last whole one.
                report.say("preemption notice: stopping")
                error = saves.leave(progress, generators)
                agreement.wait_for_all()
                return Outcome(outcome=OutcomeKind.SAVED, step=saves.saved_step, error=error)
            model.set_requires_gradient_sync(batch.is_last)  # type: ignore[operator]  # FSDPModule
            loss = _loss_sum(model, batch, ranks.device)
            # FSDP averages over ranks: x world size makes it the sum, so that the gradient is that
            # of the mean over all trained tokens at any world size and accumulation.
            scale = ranks.world_size / counts.num_trained_tokens
            (loss * scale).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
        mean_loss = agreement.sum(loss_sum.item()) / counts.num_trained_tokens
        grad_norm = clip_gradients(model, config.train.max_grad_norm)
        if not (math.isfinite(mean_loss) and math.isfinite(grad_norm)):
            saves.settle()  # of a step before: the next attempt resumes there
            raise NotFinite(
                f"Step {progress.step + 1}: loss {mean_loss}, gradient norm {grad_norm}.",
                "Lower train.learning_rate or look at the data of this step; it was not saved.",
            )
        saves.fence()
        optimizer.step()
        position = (progress.step + 1) * config.train.global_batch
        progress = Progress(
            step=progress.step + 1,
            epoch=position // len(dataset),
            position=position,
            num_tokens=progress.num_tokens + counts.num_tokens,
            num_trained_tokens=progress.num_trained_tokens + counts.num_trained_tokens,
        )
        generators = read_generators(ranks.rank, ranks.device)
        at = now()
        saves.note_step(seconds_between(started_at, at))
        report.trained(
            records.Step(
                at=at,
                step=progress.step,
                started_at=started_at,
                seconds=seconds_between(started_at, at),
                loss=mean_loss,
                grad_norm=grad_norm,
                learning_rate=rate,
                num_tokens=counts.num_tokens,
                num_trained_tokens=counts.num_trained_tokens,
            )
        )

        if progress.step < config.num_steps and (is_save_due or saves.is_step(progress.step)):
            saves.begin(progress, generators)

    saves.finish(progress, generators)
    if (config.inputs_dir / EVAL_NAME).exists():
        _evaluate(config, ranks, agreement, model, report)
    agreement.wait_for_all()
    return Outcome(outcome=OutcomeKind.DONE, step=progress.step)


def _open_data(config: TrainConfig) -> Dataset:
    dataset = Dataset(config.inputs_dir / TRAIN_NAME)
    if len(dataset) == 0:
        raise DataInvalid(
            f"{config.inputs_dir / TRAIN_NAME} holds no sample.",
            "Run python -m train.data.prepare.",
        )
    return dataset


def _loss_sum(model: nn.Module, batch: MicroBatch, device: torch.device) -> torch.Tensor:
    """Return the summed loss of the micro-batch's trained tokens; V is the vocabulary."""
    logits_BSV = model(input_ids=batch.tokens_BS.to(device), use_cache=False).logits
    labels_BS = batch.labels_BS.to(device)
    return F.cross_entropy(
        logits_BSV[:, :-1].flatten(0, 1).float(),
        labels_BS[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


@torch.no_grad()
def _evaluate(
    config: TrainConfig, ranks: Ranks, agreement: Agreement, model: nn.Module, report: Report
) -> None:
    started_at = now()
    dataset = Dataset(config.inputs_dir / EVAL_NAME)
    samples = range(len(dataset))
    batches = micro_batches(
        dataset,
        samples,
        rank=ranks.rank,
        world_size=ranks.world_size,
        size=config.train.micro_batch,
    )
    model.eval()
    loss_sum = 0.0
    for batch in batches:
        agreement.pulse.beat()
        loss_sum += _loss_sum(model, batch, ranks.device).item()
    model.train()
    num_trained_tokens = count_tokens(dataset, samples).num_trained_tokens
    loss = agreement.sum(loss_sum) / num_trained_tokens
    report.evaluated(loss, num_trained_tokens, started_at)
