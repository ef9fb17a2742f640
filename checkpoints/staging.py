"""One rank's copy of its state in shared memory, which the uploader process maps.

Allocated and touched once: copying into fresh memory is 6 times slower than into warm memory.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from checkpoints.errors import RecordInvalid
from checkpoints.messages import Slot
from checkpoints.tensors import Rows, dtype_name, flat_bytes, local_rows


def plan_slots(
    tensors: Mapping[str, Tensor], local_tensors: Mapping[str, Tensor], rank: int
) -> list[tuple[Slot, Tensor]]:
    """Return what this rank writes, one behind the other; raise RecordInvalid.

    DTensors are written where they lie, replicas taking turns; plain `tensors` by rank 0, and
    `local_tensors` by every rank.
    """
    twice = tensors.keys() & local_tensors.keys()
    if twice:
        raise RecordInvalid(f"{min(twice)} is both shared and local", "Give each its own name.")
    written = []
    for turn, (name, tensor) in enumerate(tensors.items()):
        rows = local_rows(name, tensor)
        is_writer = rank == 0
        if isinstance(tensor, DTensor):
            is_writer = rows.replica == turn % rows.num_replicas
        if is_writer:
            written.append((name, tensor, rows))
    written += [(name, tensor, local_rows(name, tensor)) for name, tensor in local_tensors.items()]
    slots: list[tuple[Slot, Tensor]] = []
    start = 0
    for name, tensor, rows in written:
        slot = _slot(name, tensor, rows, start)
        slots.append((slot, rows.local))
        start += slot.length
    return slots


class StagingBuffer:
    """Shared memory without a name: it is gone with the last process that has it."""

    def __init__(self, num_bytes: int, *, is_pinned: bool) -> None:
        self.num_bytes = max(num_bytes, 1)
        self.fd = os.memfd_create("checkpoint")
        # Fails here if memory is short; a page that is missing later would be a SIGBUS.
        os.posix_fallocate(self.fd, 0, self.num_bytes)
        self._mapping = mmap.mmap(self.fd, self.num_bytes)
        self._bytes = torch.frombuffer(self._mapping, dtype=torch.uint8)
        self._bytes.zero_()
        if is_pinned:
            self._pin()

    def copy(self, slots: list[tuple[Slot, Tensor]]) -> None:
        """Copy every tensor to its place; from a GPU the copies are only queued."""
        for slot, tensor in slots:
            if slot.length:
                source = flat_bytes(tensor.contiguous())
                target = self._bytes[slot.start : slot.start + slot.length]
                target.copy_(source, non_blocking=True)

    def view(self) -> memoryview:
        """Return the bytes as this process sees them."""
        return memoryview(self._mapping)

    def close(self) -> None:
        """Let go of the memory; the uploader may still have it."""
        os.close(self.fd)

    def _pin(self) -> None:
        # Memory that CUDA has not registered is copied through a bounce buffer, synchronously.
        status = torch.cuda.cudart().cudaHostRegister(  # type: ignore[no-untyped-call]
            self._bytes.data_ptr(), self.num_bytes, 0
        )
        torch.cuda.check_error(status)


def _slot(name: str, tensor: Tensor, rows: Rows, start: int) -> Slot:
    local = rows.local
    return Slot(
        name=name,
        dtype=dtype_name(name, local),
        shape=tuple(tensor.shape),
        first=rows.first,
        rows_shape=tuple(local.shape),
        start=start,
        length=local.numel() * local.element_size(),
    )
