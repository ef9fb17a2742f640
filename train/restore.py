"""Resume: build the model, fill it from the last good checkpoint, and say where the run stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from checkpoints.errors import BucketMissing, Damaged, Fenced, ObjectMissing, RecordInvalid
from checkpoints.fence import read_head, rewind
from checkpoints.inspect import read_manifest
from checkpoints.layout import manifest_key
from checkpoints.load import load
from checkpoints.manifest import Manifest
from checkpoints.retention import older_than, point_of
from checkpoints.store import ObjectStore
from train.config import TrainConfig
from train.model import ModelPlan, build_model
from train.optimizer import build_optimizer
from train.preemption import Agreement
from train.ranks import Ranks
from train.report import Report, now
from train.spool import PhaseName
from train.state import (
    START,
    Progress,
    from_state,
    named_tensors,
    read_generators,
    seed_generators,
    write_generators,
)


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
    for key, manifest, complaint in _candidates(config, store):
        if key is None and is_built_to_restore:
            model, optimizer = _build(config, ranks, is_restored=False)
        tensors = named_tensors(model, optimizer)
        progress = START
        if complaint is None:
            try:
                progress = _fill(config, ranks, store, manifest, tensors)
            except (Damaged, ObjectMissing, BucketMissing) as error:
                complaint = error.what
        complaint = agreement.first_complaint(complaint)
        if complaint is None:
            break
        assert key is not None
        report.damaged(key, complaint)
    if key != config.parent:
        _rewind(config, ranks, agreement, store, manifest)
    report.phase(PhaseName.RESTORE, started_at)
    report.resumed(progress.step, manifest, started_at)
    return Restored(
        model=model,
        optimizer=optimizer,
        tensors=tensors,
        progress=progress,
        is_far=manifest is not None and manifest.store != config.objects_store,
    )


def _build(
    config: TrainConfig, ranks: Ranks, *, is_restored: bool
) -> tuple[nn.Module, torch.optim.Optimizer]:
    plan = ModelPlan(
        inputs_dir=config.inputs_dir,
        model=config.model,
        train=config.train,
        is_restored=is_restored,
    )
    model = build_model(plan, ranks.mesh, ranks.device)
    return model, build_optimizer(model, config.train)


def _candidates(
    config: TrainConfig, store: ObjectStore
) -> Iterator[tuple[str | None, Manifest | None, str | None]]:
    """Yield the committed checkpoints, newest first, along their chain of parents; then (None, ..).

    Each comes with its manifest, or with what is wrong with that. Never the newest name listed:
    only what was HEAD once is history. Where the chain was pruned, those that `keep_every` or pins
    have kept come last; raises Damaged if there is nothing left.
    """
    key = config.parent
    while key is not None:
        try:
            manifest = read_manifest(store, key)
        except (RecordInvalid, ObjectMissing) as error:
            head = read_head(store)
            if head is None or head[0].manifest != key:
                yield from _older(store, key)
                raise Damaged(
                    f"No checkpoint of the run can be used: {error.what}",
                    "See orchestrate checkpoints verify; a new run name starts from the beginning.",
                ) from error
            yield key, None, error.what
            key = head[0].parent
        else:
            yield key, manifest, None
            key = manifest.parent
    yield None, None, None


def _older(
    store: ObjectStore, key: str
) -> Iterator[tuple[str | None, Manifest | None, str | None]]:
    """Yield the checkpoints from before the one with the manifest `key`, newest first."""
    for point in older_than(store, point_of(key)):
        older = manifest_key(*point)
        try:
            yield older, read_manifest(store, older), None
        except RecordInvalid as error:
            yield older, None, error.what


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
