"""Read stored bytes and verify each of them, in requests of a size that the network likes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from checkpoints.checksums import BLOCK_BYTES, HEX_PER_BLOCK, block_checksums
from checkpoints.errors import Damaged
from checkpoints.store import ObjectStore

# Large enough to hide a round trip, small enough that eight of them fit beside the shards.
REQUEST_BYTES = 16 * BLOCK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Consecutive bytes of an object that begin at a checksum's block, and their checksums."""

    object: str
    start: int
    length: int
    crc64: str

    @property
    def end(self) -> int:
        """Return the offset behind the last byte."""
        return self.start + self.length


def blocks_around(extent: Extent, first: int, end: int) -> Extent:
    """Return the smallest extent of whole blocks with bytes first..end, counted in `extent`."""
    if first < BLOCK_BYTES and end == extent.length:
        return extent
    first_block = first // BLOCK_BYTES
    end_block = -(-end // BLOCK_BYTES)
    start = first_block * BLOCK_BYTES
    return Extent(
        object=extent.object,
        start=extent.start + start,
        length=min(end_block * BLOCK_BYTES, extent.length) - start,
        crc64=extent.crc64[first_block * HEX_PER_BLOCK : end_block * HEX_PER_BLOCK],
    )


def split(extent: Extent) -> Iterator[Extent]:
    """Yield the extent in pieces of at most one request."""
    if 0 < extent.length <= REQUEST_BYTES:
        yield extent
        return
    for start in range(0, extent.length, REQUEST_BYTES):
        yield blocks_around(extent, start, min(start + REQUEST_BYTES, extent.length))


def group(extents: list[Extent]) -> Iterator[list[Extent]]:
    """Yield neighbours of one object together, up to one request; expects them split and sorted."""
    batch: list[Extent] = []
    for extent in extents:
        if batch and not (
            extent.object == batch[-1].object
            and extent.start == batch[-1].end
            and extent.end - batch[0].start <= REQUEST_BYTES
        ):
            yield batch
            batch = []
        batch.append(extent)
    if batch:
        yield batch


def read(store: ObjectStore, batch: Sequence[Extent], buffers: Sequence[memoryview]) -> None:
    """Fill a buffer per extent with its verified bytes, by one request; they are neighbours.

    Bytes that do not match are read once more: the network may have done it. Raises Damaged, and
    ObjectMissing; what is in the buffers is then undefined.
    """
    try:
        _read(store, batch, buffers)
    except Damaged:
        _read(store, batch, buffers)


def _read(store: ObjectStore, batch: Sequence[Extent], buffers: Sequence[memoryview]) -> None:
    key = batch[0].object
    store.read_into(key, batch[0].start, buffers)
    for extent, buffer in zip(batch, buffers, strict=True):
        if block_checksums(buffer) != extent.crc64:
            raise Damaged(
                f"{key} does not match its checksums in bytes {extent.start} to {extent.end}",
                "Resume from another checkpoint; this one cannot be trusted.",
            )
