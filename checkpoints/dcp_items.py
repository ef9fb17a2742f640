"""The items of DCP's plans in terms of our records: what to write of a tensor, and where to read.

The interface that DCP calls is in `checkpoints.dcp`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem, SavePlanner, WriteItem

from checkpoints.errors import RecordInvalid
from checkpoints.load import Target
from checkpoints.manifest import Manifest, TensorRecord
from checkpoints.rank_object import Staged
from checkpoints.tensors import DTYPES, dtype_name, flat_bytes

# Rows that are read only to be cast or narrowed, held beside the tensors that are loaded.
_SCRATCH_BYTES = 256 * 1024 * 1024


def check_rows(items: Iterable[WriteItem]) -> None:
    """Raise RecordInvalid unless each tensor of a rank's plan is one block of rows."""
    names = set()
    for item in items:
        name = item.index.fqn
        if name in names:
            raise RecordInvalid(
                f"A rank holds several parts of {name}", "Save one block of rows per rank."
            )
        names.add(name)
        if item.tensor_data is not None:
            _check_whole_rows(name, item.tensor_data.size, item.tensor_data.chunk)


def value_of(planner: SavePlanner, item: WriteItem) -> object:
    """Return the object itself: what planners hand out to be written is its pickle."""
    if not isinstance(planner, DefaultSavePlanner):
        raise RecordInvalid(
            f"{type(planner).__name__} only has the pickle of {item.index.fqn}",
            "Derive the planner from DefaultSavePlanner, or save tensors only.",
        )
    return planner.lookup_object(item.index)


def staged(planner: SavePlanner, item: WriteItem) -> Staged:
    """Return the tensor's rows in host memory: its own, where it lies there in one piece."""
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, Tensor)
    assert item.tensor_data is not None
    local = tensor.detach().cpu().contiguous()
    return Staged(
        name=item.index.fqn,
        dtype=dtype_name(item.index.fqn, local),
        shape=tuple(item.tensor_data.size),
        first=_first(item.tensor_data.chunk.offsets),
        rows_shape=tuple(local.shape),
        memory=flat_bytes(local).numpy().data,
    )


class Read:
    """A block of a stored tensor, and the tensor it goes to: straight, or by way of whole rows."""

    def __init__(self, planner: LoadPlanner, item: ReadItem, record: TensorRecord) -> None:
        self._planner, self._item = planner, item
        self._tensor = planner.resolve_tensor(item)
        assert self._tensor.shape == item.lengths, item
        shape, dtype = (*item.lengths[:1], *record.shape[1:]), DTYPES[record.dtype]
        rows = self._tensor.detach()
        self._is_straight = rows.is_contiguous() and (rows.shape, rows.dtype) == (shape, dtype)
        if not self._is_straight:
            rows = torch.empty(shape, dtype=dtype)
        first = _first(item.storage_index.offset or ()) + _first(item.storage_offsets)
        self.target = Target(record=record, rows=rows, first=first)

    @property
    def num_scratch_bytes(self) -> int:
        """Return the size of the rows that are read only to be copied from."""
        return 0 if self._is_straight else self.target.rows.nbytes

    def finish(self) -> None:
        """Cut out of the rows what is wanted, cast it, and tell the planner."""
        if not self._is_straight:
            block = self.target.rows
            for dim in range(1, block.dim()):
                block = block.narrow(dim, self._item.storage_offsets[dim], self._item.lengths[dim])
            self._tensor.detach().copy_(block)
        self._planner.commit_tensor(self._item, self._tensor)


def batches(reads: Iterable[Read]) -> Iterator[list[Read]]:
    """Yield the reads in groups; one's scratch is _SCRATCH_BYTES and at most one read's more."""
    batch: list[Read] = []
    num_bytes = 0
    for read in reads:
        batch.append(read)
        num_bytes += read.num_scratch_bytes
        if num_bytes >= _SCRATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    yield batch


def pickled(value: object) -> io.BytesIO:
    """Return what DCP's planners unpickle: bytes made here, of a value that JSON held."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


def metadata_of(manifest: Manifest) -> Metadata:
    """Return the names, dtypes, shapes and chunks of a checkpoint."""
    values = {name: BytesStorageMetadata() for name in manifest.state}
    tensors = {name: _tensor_metadata(record) for name, record in manifest.tensors.items()}
    return Metadata(state_dict_metadata={**values, **tensors})


def _check_whole_rows(name: str, shape: Sequence[int], chunk: ChunkStorageMetadata) -> None:
    for dim in range(1, len(shape)):
        if (chunk.offsets[dim], chunk.sizes[dim]) != (0, shape[dim]):
            raise RecordInvalid(
                f"{name} {list(shape)} is split along dimension {dim}: "
                f"a rank holds {list(chunk.sizes)} at {list(chunk.offsets)}",
                "Shard it along its first dimension only, or replicate it for the save.",
            )


def _first(offsets: Sequence[int]) -> int:
    """Return the number of the first row; a tensor without dimensions is one row."""
    return offsets[0] if offsets else 0


def _tensor_metadata(record: TensorRecord) -> TensorStorageMetadata:
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=DTYPES[record.dtype]),
        size=torch.Size(record.shape),
        chunks=[
            ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.shape))
            for chunk in record.chunks
        ],
    )
