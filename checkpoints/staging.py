"""One rank's copy of its state in shared memory, which the uploader process maps.

Allocated and touched once: copying into fresh memory is 6 times slower than into warm memory.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from checkpoints.errors import RecordInvalid
from checkpoints.messages import Slot
from checkpoints.tensors import Rows, dtype_name, flat_bytes, local_rows


class SlotPlanner:
    """Decides what a rank writes, and where in its staged memory; for many saves of one state."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._planned: dict[str, Tensor] = {}
        self._slots: list[tuple[Slot, Tensor]] = []

    def plan(
        self, tensors: Mapping[str, Tensor], local_tensors: Mapping[str, Tensor]
    ) -> list[tuple[Slot, Tensor]]:
        """Return what this rank writes, one behind the other; raise RecordInvalid.

        DTensors are written where they lie, replicas taking turns; plain `tensors` by rank 0, and
        `local_tensors` by every rank. The plan for the same `tensors` is made once: training waits
        for it, and it takes 20 us a tensor.
        """
        twice = tensors.keys() & local_tensors.keys()
        if twice:
            raise RecordInvalid(f"{min(twice)} is both shared and local", "Give each its own name.")
        if not _are_the_same(tensors, self._planned):
            self._slots = _pack(_written(tensors, self._rank), start=0)
            self._planned = dict(tensors)
        local = ((name, tensor, local_rows(name, tensor)) for name, tensor in local_tensors.items())
        return [*self._slots, *_pack(local, start=_end(self._slots))]


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
        self._is_pinned = is_pinned
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
        if self._is_pinned:
            torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr())  # type: ignore[no-untyped-call]
        os.close(self.fd)

    def _pin(self) -> None:
        # Memory that CUDA has not registered is copied through a bounce buffer, synchronously.
        status = torch.cuda.cudart().cudaHostRegister(  # type: ignore[no-untyped-call]
            self._bytes.data_ptr(), self.num_bytes, 0
        )
        torch.cuda.check_error(status)


def _are_the_same(tensors: Mapping[str, Tensor], planned: Mapping[str, Tensor]) -> bool:
    return len(tensors) == len(planned) and all(
        planned.get(name) is tensor for name, tensor in tensors.items()
    )


def _written(tensors: Mapping[str, Tensor], rank: int) -> Iterator[tuple[str, Tensor, Rows]]:
    for turn, (name, tensor) in enumerate(tensors.items()):
        rows = local_rows(name, tensor)
        is_writer = rank == 0
        if isinstance(tensor, DTensor):
            is_writer = rows.replica == turn % rows.num_replicas
        if is_writer:
            yield name, tensor, rows


def _pack(written: Iterable[tuple[str, Tensor, Rows]], start: int) -> list[tuple[Slot, Tensor]]:
    slots: list[tuple[Slot, Tensor]] = []
    for name, tensor, rows in written:
        slot = _slot(name, tensor, rows, start)
        slots.append((slot, rows.local))
        start += slot.length
    return slots


def _end(slots: list[tuple[Slot, Tensor]]) -> int:
    return slots[-1][0].start + slots[-1][0].length if slots else 0


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
