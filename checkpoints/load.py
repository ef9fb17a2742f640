"""Read a checkpoint into tensors that exist already, at any world size and sharding along dim 0.

Reads only the blocks that hold this rank's rows, many at a time, straight into the shards.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import awscrt.checksums  # noqa: F401  # 36 ms, which a restore that has begun would wait for
import torch
from torch import Tensor

from checkpoints.errors import RecordInvalid
from checkpoints.inspect import holder_of
from checkpoints.manifest import Chunk, Manifest, TensorRecord
from checkpoints.reading import REQUEST_BYTES, Extent, blocks_around, group, read, split
from checkpoints.store import ObjectStore
from checkpoints.tensors import DTYPE_NAMES, flat_bytes, local_rows

# Requests in flight per rank; each takes at most REQUEST_BYTES beside the shards.
_NUM_READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Contiguous memory, of the record's dtype, for the rows of a stored tensor from `first` on."""

    record: TensorRecord
    rows: Tensor
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """An extent, and where its bytes first..end go: into `target` from byte `at` on."""

    extent: Extent
    first: int
    end: int
    target: Tensor
    at: int

    @property
    def place(self) -> Tensor:
        """Return the part of the target that is to be filled."""
        return self.target[self.at : self.at + self.end - self.first]


def load(
    store: ObjectStore,
    manifest: Manifest,
    *,
    tensors: Mapping[str, Tensor],
    local_tensors: Mapping[str, Tensor],
) -> set[str]:
    """Fill the tensors in place and return the names of `local_tensors` that were never saved.

    Nothing is written before all names, dtypes and shapes are found to fit, and every byte is
    verified. Raises RecordInvalid, or Damaged or ObjectMissing: what is in the tensors is then
    undefined.
    """
    missing = local_tensors.keys() - manifest.tensors.keys()
    wanted = {**tensors, **{n: t for n, t in local_tensors.items() if n not in missing}}
    records = {name: _fitting_record(manifest, name, tensor) for name, tensor in wanted.items()}
    targets: list[Target] = []
    copies: list[tuple[Tensor, Tensor]] = []
    for name, tensor in wanted.items():
        rows = local_rows(name, tensor)
        local = rows.local
        if not local.is_contiguous():
            local = local.contiguous()
            copies.append((rows.local, local))
        targets.append(Target(record=records[name], rows=local, first=rows.first))
    read_rows(holder_of(store, manifest), targets)
    for target, filled in copies:
        target.copy_(filled)
    return missing


def read_rows(store: ObjectStore, targets: Iterable[Target]) -> None:
    """Fill the targets with verified bytes; raise Damaged or ObjectMissing, see `load`."""
    pieces: dict[Extent, list[_Piece]] = {}
    for target in targets:
        for piece in _pieces(target):
            pieces.setdefault(piece.extent, []).append(piece)
    batches = list(group(sorted(pieces, key=lambda extent: (extent.object, extent.start))))
    spare = _SpareMemory()

    def fetch(batch: list[Extent]) -> None:
        places, landed, num_spare = [], [], 0
        for extent in batch:
            place = _own_place(extent, pieces[extent])
            if place is None:
                place = spare.of_this_thread()[num_spare : num_spare + extent.length]
                num_spare += extent.length
                landed += [(piece, place) for piece in pieces[extent]]
            places.append(place.numpy().data)
        read(store, batch, places)
        for piece, place in landed:
            piece.place.copy_(place[piece.first : piece.end])

    with ThreadPoolExecutor(_NUM_READERS) as pool:
        try:
            for _ in pool.map(fetch, batches):
                pass
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _own_place(extent: Extent, pieces: list[_Piece]) -> Tensor | None:
    """Return where to receive the extent at once: where all of its bytes go, and nothing else."""
    (first, *others) = pieces
    is_all = first.first == 0 and first.end == extent.length
    return first.place if is_all and not others and first.target.device.type == "cpu" else None


class _SpareMemory:
    """Room for a request per thread, pinned for the way to a GPU; made when first asked for."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def of_this_thread(self) -> Tensor:
        """Return the calling thread's flat bytes."""
        if not hasattr(self._of_thread, "memory"):
            self._of_thread.memory = torch.empty(
                REQUEST_BYTES, dtype=torch.uint8, pin_memory=torch.cuda.is_available()
            )
        memory: Tensor = self._of_thread.memory
        return memory


def _pieces(wanted: Target) -> Iterator[_Piece]:
    """Yield what to read for the target."""
    rows, first_row = wanted.rows, wanted.first
    num_rows = rows.shape[0] if rows.dim() else 1
    target = flat_bytes(rows) if rows.numel() else rows
    for chunk in wanted.record.chunks:
        chunk_first, chunk_end = _span(chunk)
        first, end = max(chunk_first, first_row), min(chunk_end, first_row + num_rows)
        if not chunk.length or first >= end:
            continue
        row_bytes = chunk.length // (chunk_end - chunk_first)
        whole = Extent(
            object=chunk.object, start=chunk.start, length=chunk.length, crc64=chunk.crc64
        )
        wanted_first, wanted_end = (
            (first - chunk_first) * row_bytes,
            (end - chunk_first) * row_bytes,
        )
        at = (first - first_row) * row_bytes - wanted_first  # of the chunk's first byte in target
        for extent in split(blocks_around(whole, wanted_first, wanted_end)):
            offset = extent.start - chunk.start
            piece_first = max(wanted_first - offset, 0)
            piece_end = min(wanted_end - offset, extent.length)
            yield _Piece(
                extent=extent,
                first=piece_first,
                end=piece_end,
                target=target,
                at=at + offset + piece_first,
            )


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
