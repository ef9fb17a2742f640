"""The training loop: resume, step, save, stop; everything that happens between start and outcome.

A step depends on the seed, the step's number and the weights alone, so that a step that is trained
again gives the same bits. A checkpoint is only ever written between two steps.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import nn

from checkpoints.errors import Fenced
from checkpoints.store import open_store
from train import spool as records
from train.apart import require_samples_apart
from train.batch import micro_batches
from train.config import TrainConfig
from train.data.dataset import EVAL_NAME, TRAIN_NAME, Dataset
from train.data.order import batch_sequences
from train.errors import DataInvalid, NotFinite
from train.guard import (
    MAX_IN_A_ROW,
    MAX_ROLL_BACKS,
    next_batch,
    note_loss,
    to_skip,
    why_left_out,
)
from train.optimizer import clip_gradients, learning_rate, set_learning_rate
from train.preemption import Agreement
from train.ranks import Ranks, join_ranks, set_numerics
from train.report import Report, now, seconds_between
from train.restore import Restored, restore, roll_back
from train.saving import Saves
from train.spool import Outcome, OutcomeKind, Pulse
from train.state import Progress, read_generators
from train.termination import defy_launcher
from train.throughput import Throughput


def train(config: TrainConfig, report: Report) -> Outcome:
    """Train until the last step or a notice; all ranks call it and end alike.

    Raises Fenced when a later attempt owns the run, and TrainError or CheckpointError when the
    training cannot go on; what was committed stays.
    """
    set_numerics(deterministic=config.train.deterministic)
    ranks = join_ranks(config.train.sharding)
    pulse = Pulse(config.spool_dir, ranks.rank)
    agreement = Agreement(config.notice_file, ranks.agreement_group, pulse)
    dataset = _open_data(config)
    restored = restore(config, ranks, agreement, open_store(config.store), report)
    if dataset.is_packed or config.train.micro_batch > 1:
        require_samples_apart(restored.model, ranks.device, config.train.precision)
    saves = Saves(
        config, ranks, agreement, report, restored.tensors, saved_step=restored.progress.step
    )
    try:
        return _train(config, ranks, agreement, report, dataset, restored, saves)
    except Fenced:
        # torchrun ends the others when one rank exits; all are to leave their outcome first.
        defy_launcher()
        agreement.wait_for_all()
        raise
    finally:
        saves.close()


def _train(  # noqa: C901  # the one loop
    config: TrainConfig,
    ranks: Ranks,
    agreement: Agreement,
    report: Report,
    dataset: Dataset,
    restored: Restored,
    saves: Saves,
) -> Outcome:
    options = config.train
    model, optimizer, progress = restored.model, restored.optimizer, restored.progress
    throughput = Throughput(model, ranks.device, ranks.world_size)
    generators = read_generators(ranks.rank, ranks.device)
    left_out: list[int] = []  # batches in a row; `progress` is always that of a whole step
    saves.prepare(generators)
    if restored.is_far:
        # Once, so that the next attempt in this region need not pay for the way again.
        report.say("moving the checkpoint to this region's store")
        saves.begin(progress, generators)

    while progress.step < config.num_steps:
        # Before the step and not after the last one, so that a resumed attempt makes up for what a
        # preemption has cut off.
        if not left_out and _is_to_evaluate(progress.step, options.eval_every):
            _evaluate(config, ranks, agreement, model, report, is_final=False)
        started_at = now()
        data_s = 0.0
        rate = learning_rate(options, progress.step, config.num_steps)
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        after = left_out[-1] + 1 if left_out else progress.batch
        number = next_batch(after, progress.skipped)
        sequences = batch_sequences(options.seed, number, options.global_batch, len(dataset))
        counts = dataset.count(sequences)
        batches = micro_batches(
            dataset,
            sequences,
            rank=ranks.rank,
            world_size=ranks.world_size,
            size=options.micro_batch,
        )
        # On the device and in double precision, so that no micro-batch waits for its loss.
        loss_sum = torch.zeros((), dtype=torch.float64, device=ranks.device)
        is_save_due = is_leaving = False
        is_last = False
        while not is_last:
            flags = agreement.flags(is_save_due=saves.is_due, is_save_in_flight=saves.is_in_flight)
            is_save_due = is_save_due or flags.is_save_due
            if not flags.is_save_in_flight:
                saves.settle()
            if flags.is_noticed and not is_leaving:
                is_leaving = saves.has_time_to_finish(started_at)
                if not is_leaving:
                    # The partial step is dropped; `generators` are those after the last whole one.
                    return _leave(progress, generators, agreement, report, saves)
            fetched_s = time.perf_counter()
            batch = next(batches).to(ranks.device)
            is_last = batch.is_last
            data_s += time.perf_counter() - fetched_s
            # Gradients are scattered after each micro-batch: kept whole, they would need 4 bytes
            # per parameter on every GPU. Only replicas wait for the last one.
            model.set_requires_all_reduce(is_last)  # type: ignore[operator]  # FSDPModule
            loss = model.loss_sum(batch)  # type: ignore[operator]  # train.loss.add_loss
            # FSDP averages over ranks: x world size makes it the sum, so that the gradient is that
            # of the mean over all trained tokens at any world size and accumulation.
            scale = ranks.world_size / counts.num_trained_tokens
            (loss * scale).backward()
            loss_sum += loss.detach()
        mean_loss = agreement.sum(loss_sum.item()) / counts.num_trained_tokens
        update_s = time.perf_counter()
        grad_norm = clip_gradients(model, options.max_grad_norm)

        why = why_left_out(progress, mean_loss, grad_norm, options.spike_factor)
        if why is not None:
            report.left_out(progress.step + 1, number, why)
            left_out.append(number)
            if len(left_out) == MAX_IN_A_ROW:
                left_out = []
                optimizer.zero_grad(set_to_none=True)  # room for weights that are read anew
                progress = _roll_back(
                    config, ranks, agreement, report, saves, restored, progress, number + 1, why
                )
                generators = read_generators(ranks.rank, ranks.device)
            if is_leaving:
                return _leave(progress, generators, agreement, report, saves)
            continue
        left_out = []

        saves.fence()
        optimizer.step()
        progress = note_loss(
            replace(
                progress,
                step=progress.step + 1,
                batch=number + 1,
                num_tokens=progress.num_tokens + counts.num_tokens,
                num_trained_tokens=progress.num_trained_tokens + counts.num_trained_tokens,
            ),
            mean_loss,
        )
        generators = read_generators(ranks.rank, ranks.device)
        at = now()
        seconds = seconds_between(started_at, at)
        saves.note_step(seconds)
        report.trained(
            records.Step(
                at=at,
                step=progress.step,
                batch=number,
                started_at=started_at,
                seconds=seconds,
                loss=mean_loss,
                grad_norm=grad_norm,
                learning_rate=rate,
                num_tokens=counts.num_tokens,
                num_trained_tokens=counts.num_trained_tokens,
                data_seconds=data_s,
                update_seconds=time.perf_counter() - update_s,
                mfu=throughput.mfu(counts, seconds),
                peak_memory_bytes=throughput.peak_memory_bytes(),
            )
        )
        if is_leaving:
            return _leave(progress, generators, agreement, report, saves)
        if progress.step == config.num_steps:
            break
        if is_save_due or saves.is_step(progress.step):
            saves.begin(progress, generators)

    saves.finish(progress, generators)
    _evaluate(config, ranks, agreement, model, report, is_final=True)
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


def _leave(
    progress: Progress,
    generators: dict[str, torch.Tensor],
    agreement: Agreement,
    report: Report,
    saves: Saves,
) -> Outcome:
    """Save what a notice leaves time for."""
    report.say("preemption notice: stopping")
    error = saves.leave(progress, generators)
    agreement.wait_for_all()
    return Outcome(outcome=OutcomeKind.SAVED, step=saves.saved_step, error=error)


def _roll_back(
    config: TrainConfig,
    ranks: Ranks,
    agreement: Agreement,
    report: Report,
    saves: Saves,
    restored: Restored,
    progress: Progress,
    stop: int,
    why: str,
) -> Progress:
    """Return the progress of an older checkpoint, told to leave out the batches up to `stop`.

    Raises NotFinite if that has been done too often.
    """
    if len(progress.skipped) == MAX_ROLL_BACKS:
        raise NotFinite(
            f"{MAX_IN_A_ROW} batches in a row cannot be trained on at step {progress.step + 1}, "
            f"after {MAX_ROLL_BACKS} roll-backs: {why}.",
            "Start a run of another name with a lower train.learning_rate, or other data.",
        )
    saves.settle()
    saves.give_up_steps()
    first, stop = to_skip(progress, stop, config.train.roll_back_batches)
    before = roll_back(
        config,
        ranks,
        agreement,
        open_store(config.store),
        report,
        restored.tensors,
        batch=first,
        skipped=progress.skipped,
    )
    report.rolled_back(progress.step, before.step)
    return replace(before, skipped=(*progress.skipped, (max(first, before.batch), stop)))


def _is_to_evaluate(step: int, eval_every: int | None) -> bool:
    return eval_every is not None and step % eval_every == 0


@torch.no_grad()
def _evaluate(
    config: TrainConfig,
    ranks: Ranks,
    agreement: Agreement,
    model: nn.Module,
    report: Report,
    *,
    is_final: bool,
) -> None:
    """Record the mean loss over the evaluation sequences, if there are any.

    A notice ends it, but not the final one: all is saved, and the node may well last so long.
    """
    if not (config.inputs_dir / EVAL_NAME).exists():
        return
    started_at = now()
    dataset = Dataset(config.inputs_dir / EVAL_NAME)
    sequences = range(len(dataset))
    batches = micro_batches(
        dataset,
        sequences,
        rank=ranks.rank,
        world_size=ranks.world_size,
        size=config.train.micro_batch,
    )
    model.eval()
    loss_sum = 0.0
    for batch in batches:
        flags = agreement.flags(is_save_due=False, is_save_in_flight=False)
        if flags.is_noticed and not is_final:
            report.say("preemption notice: the evaluation is given up")
            model.train()
            return
        loss_sum += model.loss_sum(batch.to(ranks.device)).item()  # type: ignore[operator]
    model.train()
    num_trained_tokens = dataset.count(sequences).num_trained_tokens
    loss = agreement.sum(loss_sum) / num_trained_tokens
    report.evaluated(loss, num_trained_tokens, started_at)
