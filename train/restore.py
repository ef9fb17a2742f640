"""Resume: build the model, fill it from the last good checkpoint, and say where the run stands."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn

from checkpoints.errors import BucketMissing, Damaged, Fenced, ObjectMissing, RecordInvalid
from checkpoints.fence import read_head, rewind
from checkpoints.history import (
    Point,
    committed_before_key,
    pruned_before,
    read_chain,
    whole_checkpoints,
)
from checkpoints.inspect import read_manifest
from checkpoints.layout import manifest_key
from checkpoints.load import load
from checkpoints.manifest import Manifest
from checkpoints.store import ObjectStore
from train.config import TrainConfig
from train.guard import is_in_history
from train.model import ModelPlan, build_model
from train.numerics import numerics_of
from train.optimizer import build_optimizer
from train.preemption import Agreement
from train.ranks import Ranks
from train.report import Report, now
from train.spool import PhaseName
from train.state import (
    START,
    Batches,
    Progress,
    from_state,
    named_tensors,
    read_generators,
    seed_generators,
    write_generators,
)

# In place of a point: the run began there; all that was before is pruned.
_BEGINNING: Point = (-1, -1)
_NOTHING_LEFT: Point = (-2, -2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A model that is ready to train on after `progress`, and what a checkpoint holds of it.

    `is_far` says that it came from a store that is not near this attempt's nodes.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    tensors: dict[str, torch.Tensor]
    progress: Progress
    is_far: bool


def restore(
    config: TrainConfig, ranks: Ranks, agreement: Agreement, store: ObjectStore, report: Report
) -> Restored:
    """Return the model as the last good checkpoint has it, on all ranks alike.

    A damaged checkpoint is named, and HEAD moved back to the one before it. Raises Damaged when
    there is none left, Fenced, and RecordInvalid or ConfigInvalid if it is of another model.
    """
    is_built_to_restore = config.parent is not None
    model, optimizer = _build(config, ranks, is_restored=is_built_to_restore)
    report.phase(PhaseName.STARTUP, report.process_started_at)
    started_at = now()
    key = config.parent
    while True:
        if key is None and is_built_to_restore:
            model, optimizer = _build(config, ranks, is_restored=False)
        tensors = named_tensors(model, optimizer)
        manifest, progress, complaint = _try(config, ranks, agreement, store, key, tensors)
        if complaint is None:
            break
        assert key is not None
        report.damaged(key, complaint)
        key = _key_before(config, ranks, agreement, store, key)
    if key != config.parent:
        _rewind(config, ranks, agreement, store, manifest)
    report.phase(PhaseName.RESTORE, started_at)
    report.resumed(progress.step, manifest, started_at, numerics_of(config, ranks, model))
    return Restored(
        model=model,
        optimizer=optimizer,
        tensors=tensors,
        progress=progress,
        is_far=manifest is not None and manifest.store != config.objects_store,
    )


def roll_back(
    config: TrainConfig,
    ranks: Ranks,
    agreement: Agreement,
    store: ObjectStore,
    report: Report,
    tensors: dict[str, torch.Tensor],
    *,
    batch: int,
    skipped: tuple[Batches, ...],
) -> Progress:
    """Fill the tensors with the state at or before `batch`; return where it stands.

    All ranks call it alike, with no save in flight. A damaged checkpoint is named and another one
    taken; the initial weights are the last resort.
    """
    points: list[Point] = []
    if ranks.is_first:
        with agreement.pulse.beating():
            points = _points_before(store, batch, skipped)
    while True:
        step, attempt = agreement.from_first(*(points.pop(0) if points else _BEGINNING))
        if (step, attempt) == _BEGINNING:
            with agreement.pulse.beating():
                _begin_again(config, ranks, tensors)
            return START
        key = manifest_key(step, attempt)
        with agreement.pulse.beating():
            _, progress, complaint = _try(config, ranks, agreement, store, key, tensors)
        if complaint is None:
            return progress
        report.damaged(key, complaint)


def _points_before(store: ObjectStore, batch: int, skipped: tuple[Batches, ...]) -> list[Point]:
    """Return what to go back to, the best first; _BEGINNING is what an empty list stands for.

    The last one before `batch`. Where those are pruned, the oldest: it leaves out fewer batches.
    """
    head = read_head(store)
    if head is None or batch == 0:
        return []
    before: list[Point] = []
    after: list[Point] = []
    chain = read_chain(store, head[0])
    for point in chain.with_older(whole_checkpoints(store)):
        manifest, _ = _read(store, manifest_key(*point))
        next_batch = None if manifest is None else manifest.state.get("batch")
        if isinstance(next_batch, int) and is_in_history(next_batch, skipped):
            (before if next_batch <= batch else after).append(point)
    return before if chain.end is None else [*before, *reversed(after)]


@torch.no_grad()
def _begin_again(config: TrainConfig, ranks: Ranks, tensors: dict[str, torch.Tensor]) -> None:
    """Fill the tensors with the initial weights, and moments of zero."""
    model = build_model(_model_plan(config, is_restored=False), ranks.mesh, ranks.device)
    fresh = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        part, _, of = name.partition(".")
        if part == "model":
            tensor.copy_(fresh[of])
        else:
            tensor.zero_()
    seed_generators(config.train.seed, 0, ranks.rank)


def _build(
    config: TrainConfig, ranks: Ranks, *, is_restored: bool
) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build_model(_model_plan(config, is_restored=is_restored), ranks.mesh, ranks.device)
    return model, build_optimizer(model, config.train)


def _model_plan(config: TrainConfig, *, is_restored: bool) -> ModelPlan:
    return ModelPlan(
        inputs_dir=config.inputs_dir,
        model=config.model,
        train=config.train,
        is_restored=is_restored,
    )


def _try(
    config: TrainConfig,
    ranks: Ranks,
    agreement: Agreement,
    store: ObjectStore,
    key: str | None,
    tensors: dict[str, torch.Tensor],
) -> tuple[Manifest | None, Progress, str | None]:
    """Fill the tensors from a checkpoint; return its manifest, where it stands, and a complaint.

    The complaint is that of the lowest rank that has one: then the tensors are undefined.
    """
    manifest, complaint = _read(store, key)
    progress = START
    if manifest is not None and manifest.run != config.run:
        complaint = f"{manifest.key} is a checkpoint of run {manifest.run}"
    if complaint is None:
        try:
            progress = _fill(config, ranks, store, manifest, tensors)
        except (Damaged, ObjectMissing, BucketMissing) as error:
            complaint = error.what
    return manifest, progress, agreement.first_complaint(complaint)


def _read(store: ObjectStore, key: str | None) -> tuple[Manifest | None, str | None]:
    """Return the manifest under `key`, or what is wrong with it."""
    try:
        return (None if key is None else read_manifest(store, key)), None
    except (RecordInvalid, ObjectMissing) as error:
        return None, error.what


def _key_before(
    config: TrainConfig, ranks: Ranks, agreement: Agreement, store: ObjectStore, key: str
) -> str | None:
    """Return which checkpoint was committed before, None if there was none; raise Damaged.

    Rank 0 looks for all: another may find pruned what was there a moment ago.
    """
    found = _NOTHING_LEFT
    if ranks.is_first:
        with suppress(Damaged):
            before = committed_before_key(store, key, is_last=key == config.parent)
            found = _BEGINNING if before is None else before
    step, attempt = agreement.from_first(*found)
    if (step, attempt) == _NOTHING_LEFT:
        raise pruned_before(key)
    return None if (step, attempt) == _BEGINNING else manifest_key(step, attempt)


def _fill(
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


def _rewind(
    config: TrainConfig,
    ranks: Ranks,
    agreement: Agreement,
    store: ObjectStore,
    manifest: Manifest | None,
) -> None:
    """Move HEAD to what was restored, so that the next attempt does not try the damaged one."""
    is_fenced = False
    if ranks.is_first:
        try:
            rewind(store, run=config.run, attempt=config.attempt, to=manifest)
        except Fenced:
            is_fenced = True
    if agreement.from_first(is_fenced) != [0]:
        raise Fenced("A later attempt owns the run", "Stop this attempt.")
