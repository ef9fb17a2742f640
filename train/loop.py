"""The training loop: resume, step, save, stop; everything that happens between start and outcome.

A step depends on the seed, the step's number and the weights alone, so that a step that is trained
again gives the same bits. A checkpoint is only ever written between two steps.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from checkpoints.errors import CheckpointError, Fenced, SaveFailed
from checkpoints.inspect import read_manifest
from checkpoints.load import load
from checkpoints.manifest import Head, Manifest
from checkpoints.retention import prune
from checkpoints.save import SaveResult, save
from checkpoints.store import ObjectStore, open_store
from train import spool as records
from train.batch import IGNORED, MicroBatch, count_tokens, micro_batches
from train.config import TrainConfig
from train.data.dataset import EVAL_NAME, TRAIN_NAME, Dataset
from train.data.order import step_samples
from train.errors import DataInvalid, NotFinite
from train.interval import SaveClock
from train.model import ModelPlan, build_model
from train.optimizer import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from train.preemption import Agreement
from train.ranks import Ranks, join_ranks, set_numerics
from train.report import Report, now, seconds_between
from train.spool import Outcome, OutcomeKind, PhaseName
from train.state import (
    START,
    Progress,
    from_state,
    named_tensors,
    read_generators,
    seed_generators,
    to_state,
    write_generators,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    """The last committed checkpoint of this run's history; manifest None is the initial weights."""

    step: int
    manifest: str | None


def train(config: TrainConfig, report: Report) -> Outcome:  # noqa: C901  # the one loop
    """Train until the last step or a notice; all ranks call it and end alike.

    Raises Fenced when a later attempt owns the run, and TrainError or CheckpointError when the
    training cannot go on; what was committed stays.
    """
    ranks = join_ranks()
    set_numerics(deterministic=config.train.deterministic)
    agreement = Agreement(config.notice_file, ranks.agreement_group)
    store = open_store(config.store)
    dataset = _open_data(config)
    manifest = read_manifest(store, config.parent) if config.parent else None
    plan = ModelPlan(
        inputs_dir=config.inputs_dir,
        model=config.model,
        train=config.train,
        is_restored=manifest is not None,
    )
    model = build_model(plan, ranks.mesh, ranks.device)
    optimizer = build_optimizer(model, config.train)
    report.phase(PhaseName.STARTUP, report.process_started_at)

    restore_started_at = now()
    tensors = named_tensors(model, optimizer)
    progress = _restore(config, ranks, store, manifest, tensors)
    report.phase(PhaseName.RESTORE, restore_started_at)
    num_bytes = sum(part.size for part in manifest.objects) if manifest else 0
    report.resumed(progress.step, num_bytes, restore_started_at)
    saved = _Saved(step=progress.step, manifest=config.parent)
    generators = read_generators(ranks.rank, ranks.device)
    clock = SaveClock(config.checkpoints.interval, time.monotonic())

    def save_now() -> SaveResult:
        return save(
            store,
            run=config.run,
            attempt=config.attempt,
            step=progress.step,
            parent=saved.manifest,
            rank=ranks.rank,
            world_size=ranks.world_size,
            group=ranks.save_group,
            tensors=tensors,
            local_tensors=generators,
            state=to_state(progress, config),
            before_commit=report.flush,
            created_at=now(),
        )

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
            flags = agreement.flags(is_save_due=ranks.is_first and clock.is_time())
            is_save_due = is_save_due or flags.is_save_due
            if flags.is_noticed:
                # The partial step is dropped; `generators` are those after the last whole one.
                report.say("preemption notice: stopping")
                error = None
                has_time = agreement.has_time_to_save(clock.last_save_s, now())
                if has_time and progress.step > saved.step:
                    result = _save_or_explain(save_now, ranks, agreement, clock, report)
                    if isinstance(result, SaveResult):
                        saved = _Saved(step=progress.step, manifest=result.manifest_key)
                    else:
                        error = result.what
                agreement.wait_for_all()
                return Outcome(outcome=OutcomeKind.SAVED, step=saved.step, error=error)
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
            raise NotFinite(
                f"Step {progress.step + 1}: loss {mean_loss}, gradient norm {grad_norm}.",
                "Lower train.learning_rate or look at the data of this step; it was not saved.",
            )
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

        is_last = progress.step == config.num_steps
        if is_last or is_save_due or clock.is_step(progress.step):
            result = _save_or_explain(save_now, ranks, agreement, clock, report)
            if isinstance(result, SaveResult):
                saved = _Saved(step=progress.step, manifest=result.manifest_key)
                if ranks.is_first:
                    report.deleted(_prune(config, store, saved))
            elif is_last:
                raise result

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


def _restore(
    config: TrainConfig,
    ranks: Ranks,
    store: ObjectStore,
    manifest: Manifest | None,
    tensors: dict[str, torch.Tensor],
) -> Progress:
    """Fill the tensors and set the random generators; return where the run stands."""
    if manifest is None:
        seed_generators(config.train.seed, 0, ranks.rank)
        return START
    progress = from_state(dict(manifest.state), config, manifest.key)
    is_same_size = manifest.world_size == ranks.world_size
    generators = read_generators(ranks.rank, ranks.device) if is_same_size else {}
    missing = load(store, manifest, tensors=tensors, local_tensors=generators)
    if is_same_size and not missing:
        write_generators(generators, ranks.device)
    else:
        seed_generators(config.train.seed, progress.step, ranks.rank)
    return progress


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


def _save_or_explain(
    save_now: Callable[[], SaveResult],
    ranks: Ranks,
    agreement: Agreement,
    clock: SaveClock,
    report: Report,
) -> SaveResult | SaveFailed:
    """Save, and report what came of it; a failed save is returned, since training can go on."""
    started_at = now()
    try:
        result = save_now()
    except SaveFailed as error:
        clock.note_save(time.monotonic(), None)
        report.save_failed(error.what, started_at)
        return error
    except Fenced:
        # torchrun ends the others when one rank exits; all are to leave their outcome first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        agreement.wait_for_all()
        raise
    seconds = report.committed(
        result.manifest_key,
        num_bytes=result.num_bytes,
        num_objects=ranks.world_size,
        started_at=started_at,
    )
    clock.note_save(time.monotonic(), seconds)
    return result


def _prune(config: TrainConfig, store: ObjectStore, saved: _Saved) -> list[str]:
    head = Head(attempt=config.attempt, step=saved.step, manifest=saved.manifest)
    options = config.checkpoints
    try:
        return prune(
            store,
            head=head,
            keep_last=options.keep_last,
            keep_every=options.keep_every,
            attempt=config.attempt,
        )
    except CheckpointError as error:
        # Old checkpoints cost a little money until the next try; and if this attempt was fenced,
        # the next commit says so to all ranks alike.
        log.warning("old checkpoints were not pruned: %s", error.what)
        return []


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
    loss_sum = sum(_loss_sum(model, batch, ranks.device).item() for batch in batches)
    model.train()
    num_trained_tokens = count_tokens(dataset, samples).num_trained_tokens
    loss = agreement.sum(loss_sum) / num_trained_tokens
    report.evaluated(loss, num_trained_tokens, started_at)
