"""Write a checkpoint: every rank stages and uploads its part, rank 0 checks and commits.

Ranks agree on the outcome of each stage, so either all of them return or all of them raise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from pydantic import JsonValue
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from checkpoints.errors import CheckpointError, Fenced, ObjectMissing, RecordInvalid
from checkpoints.errors import SaveFailed as SaveFailed  # part of this module's interface
from checkpoints.fence import commit
from checkpoints.layout import checkpoint_prefix, manifest_key, shard_key
from checkpoints.manifest import Manifest
from checkpoints.rank_object import Part, Staged, merge, upload
from checkpoints.store import ObjectStore

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveResult:
    """What was saved; `num_bytes` counts the objects of all ranks."""

    manifest_key: str
    num_bytes: int
    committed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a tensor that this rank holds, and whether this rank is the one to write them."""

    local: Tensor
    first: int
    is_writer: bool


def save(
    store: ObjectStore,
    *,
    run: str,
    attempt: int,
    step: int,
    parent: str | None,
    rank: int,
    world_size: int,
    group: dist.ProcessGroup | None,
    tensors: Mapping[str, Tensor],
    local_tensors: Mapping[str, Tensor],
    state: Mapping[str, JsonValue],
    before_commit: Callable[[], None],
    created_at: datetime,
) -> SaveResult:
    """Save and commit one checkpoint; all ranks of `group` call it, and all end alike.

    DTensors are written where they lie, plain `tensors` by rank 0, `local_tensors` by every rank.
    Saving a step again within an attempt finishes the first save's commit and uploads nothing: the
    objects of a manifest are never written twice. Raises Fenced, or SaveFailed.
    """
    key = manifest_key(step, attempt)
    stored = _on_rank_0(lambda: _stored_manifest(store, key), rank, group)
    parts: list[Part] = []
    if stored is None:
        object_key = shard_key(step, attempt, rank, world_size)
        parts = _on_every_rank(
            lambda: upload(store, object_key, stage(tensors, local_tensors, rank)), rank, group
        )

    def finish() -> SaveResult:
        manifest = stored or Manifest(
            run=run,
            attempt=attempt,
            step=step,
            parent=parent,
            world_size=world_size,
            created_at=created_at,
            objects=tuple(part.object for part in parts),
            tensors=merge(parts),
            state=dict(state),
        )
        check_objects(store, manifest)
        before_commit()
        commit(store, manifest)
        return SaveResult(manifest_key=key, num_bytes=manifest.num_bytes, committed=True)

    return _on_rank_0(finish, rank, group)


def stage(
    tensors: Mapping[str, Tensor], local_tensors: Mapping[str, Tensor], rank: int
) -> list[Staged]:
    """Return what this rank writes, in host memory; tensors that lie there are not copied."""
    twice = tensors.keys() & local_tensors.keys()
    if twice:
        raise RecordInvalid(f"{min(twice)} is both shared and local", "Give each its own name.")
    staged = []
    for name, tensor in tensors.items():
        rows = local_rows(name, tensor, rank)
        if rows.is_writer:
            staged.append(_stage(name, tensor.shape, rows))
    for name, tensor in local_tensors.items():
        staged.append(_stage(name, tensor.shape, Rows(local=tensor, first=0, is_writer=True)))
    return staged


def check_objects(store: ObjectStore, manifest: Manifest) -> None:
    """Raise SaveFailed unless every object of the manifest is stored with its size."""
    prefix = checkpoint_prefix(manifest.step, manifest.attempt) + "/"
    sizes = {entry.key: entry.size for entry in store.list(prefix)}
    for entry in manifest.objects:
        if sizes.get(entry.key) != entry.size:
            raise SaveFailed(
                f"{entry.key} has {sizes.get(entry.key)} bytes instead of {entry.size}",
                "Save again; if it recurs, the store loses writes.",
            )


def local_rows(name: str, tensor: Tensor, rank: int) -> Rows:
    """Return this rank's rows of a tensor; raise RecordInvalid unless it is split along dim 0."""
    if not isinstance(tensor, DTensor):
        return Rows(local=tensor.detach(), first=0, is_writer=rank == 0)
    mesh, first, is_writer = tensor.device_mesh, 0, True
    num_rows = tensor.shape[0] if tensor.dim() else 1
    for mesh_dim, placement in enumerate(tensor.placements):
        position = mesh.get_local_rank(mesh_dim)
        if placement.is_replicate():
            is_writer = is_writer and position == 0
        elif type(placement) is Shard and placement.dim == 0:
            num_rows, offset = Shard.local_shard_size_and_offset(
                num_rows, mesh.size(mesh_dim), position
            )
            first += offset
        else:
            raise RecordInvalid(
                f"{name} is placed as {placement}", "Shard it along its first dimension only."
            )
    local = cast(DTensor, tensor.detach()).to_local()
    return Rows(local=local, first=first, is_writer=is_writer)


def memory_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor without copying; numpy knows no bfloat16."""
    if not tensor.numel():
        return memoryview(b"")
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def _stage(name: str, shape: torch.Size, rows: Rows) -> Staged:
    local = rows.local.detach()
    if local.dtype not in DTYPE_NAMES:
        raise RecordInvalid(f"{name} has dtype {local.dtype}", "Save it as a supported dtype.")
    return Staged(
        name=name,
        dtype=DTYPE_NAMES[local.dtype],
        shape=tuple(shape),
        first=rows.first,
        rows_shape=tuple(local.shape),
        memory=memory_of(local.to("cpu").contiguous()),
    )


def _stored_manifest(store: ObjectStore, key: str) -> Manifest | None:
    try:
        return Manifest.from_json(store.get(key).data)
    except ObjectMissing:
        return None


def _on_every_rank(act: Callable[[], T], rank: int, group: dist.ProcessGroup | None) -> list[T]:
    """Return what every rank returns, on every rank; raise the first failure on all of them."""
    mine = _result_or_error(act, rank)
    outcomes: list[T | CheckpointError] = [mine]
    if group is not None:
        outcomes *= dist.get_world_size(group)
        dist.all_gather_object(outcomes, mine, group=group)
    return [_result(outcome) for outcome in outcomes]


def _on_rank_0(act: Callable[[], T], rank: int, group: dist.ProcessGroup | None) -> T:
    """Return what `act` returns on rank 0, or raise what it raises there, on every rank."""
    outcomes = [_result_or_error(act, rank) if rank == 0 else None]
    if group is not None:
        dist.broadcast_object_list(outcomes, group=group, group_src=0)
    return _result(cast("T | CheckpointError", outcomes[0]))


def _result(outcome: T | CheckpointError) -> T:
    if isinstance(outcome, CheckpointError):
        raise outcome
    return outcome


def _result_or_error(act: Callable[[], T], rank: int) -> T | CheckpointError:
    try:
        return act()
    except Fenced as error:
        return error
    except Exception as error:  # noqa: BLE001 the other ranks wait for this one's word
        _log.warning("rank %d could not save", rank, exc_info=error)  # its traceback stays here
        what, next_step = f"{type(error).__name__}: {error}", "Read this rank's log."
        if isinstance(error, CheckpointError):
            what, next_step = error.what, error.next_step
        return SaveFailed(f"Rank {rank} could not save: {what}", next_step)
