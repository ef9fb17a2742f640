"""Read a checkpoint into tensors that exist already, at any world size and sharding along dim 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoints.errors import RecordInvalid
from checkpoints.inspect import read_chunk
from checkpoints.manifest import Chunk, Manifest, TensorRecord
from checkpoints.save import DTYPE_NAMES, local_rows, memory_of
from checkpoints.store import ObjectStore

# Each reader holds one chunk in memory; more of them gain nothing on one connection pool.
_NUM_READERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Rows of a tensor to fill; `first` is the global number of the first one."""

    rows: Tensor
    first: int

    @property
    def end(self) -> int:
        return self.first + (self.rows.shape[0] if self.rows.dim() else 1)


def load(
    store: ObjectStore,
    manifest: Manifest,
    *,
    tensors: Mapping[str, Tensor],
    local_tensors: Mapping[str, Tensor],
) -> set[str]:
    """Fill the tensors in place and return the names of `local_tensors` that were never saved.

    Nothing is written before all names, dtypes and shapes are found to fit; every chunk is verified
    before it is used. Raises RecordInvalid, Damaged or ObjectMissing.
    """
    missing = local_tensors.keys() - manifest.tensors.keys()
    wanted = {**tensors, **{n: t for n, t in local_tensors.items() if n not in missing}}
    jobs = [job for name, tensor in wanted.items() for job in _jobs(manifest, name, tensor)]
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for _ in pool.map(lambda job: _fill(store, *job), jobs):
            pass
    return missing


def _jobs(manifest: Manifest, name: str, tensor: Tensor) -> Iterator[tuple[Chunk, _Target]]:
    """Yield the chunks that hold any of this rank's rows."""
    record = _fitting_record(manifest, name, tensor)
    rows = local_rows(name, tensor, rank=0)
    target = _Target(rows=rows.local, first=rows.first)
    for chunk in record.chunks:
        first, end = _span(chunk)
        if chunk.length and first < target.end and target.first < end:
            yield chunk, target


def _fitting_record(manifest: Manifest, name: str, tensor: Tensor) -> TensorRecord:
    record = manifest.tensors.get(name)
    if record is None:
        raise RecordInvalid(
            f"{manifest.key} has no tensor {name}",
            "Check that this is the model that was saved.",
        )
    found = (record.dtype, record.shape)
    wanted = (DTYPE_NAMES.get(tensor.dtype), tuple(tensor.shape))
    if found != wanted:
        raise RecordInvalid(
            f"{name} is {found[0]} {list(found[1])} in {manifest.key}, "
            f"but {wanted[0]} {list(wanted[1])} in the model",
            "Check that this is the model that was saved.",
        )
    return record


def _span(chunk: Chunk) -> tuple[int, int]:
    if not chunk.shape:
        return 0, 1
    return chunk.offsets[0], chunk.offsets[0] + chunk.shape[0]


def _fill(store: ObjectStore, chunk: Chunk, target: _Target) -> None:
    """Read and verify a chunk, then copy the rows that it shares with the target."""
    data = memoryview(read_chunk(store, chunk))
    chunk_first, chunk_end = _span(chunk)
    first, end = max(chunk_first, target.first), min(chunk_end, target.end)
    row_bytes = chunk.length // (chunk_end - chunk_first)
    source = data[(first - chunk_first) * row_bytes : (end - chunk_first) * row_bytes]
    rows = target.rows
    if rows.dim():
        rows = rows[first - target.first : end - target.first]
    with torch.no_grad():
        _copy(source, rows)


def _copy(source: memoryview, rows: Tensor) -> None:
    if rows.device.type == "cpu" and rows.is_contiguous():
        memory_of(rows)[:] = source
        return
    staging = torch.empty(rows.shape, dtype=rows.dtype)
    memory_of(staging)[:] = source
    rows.copy_(staging)
