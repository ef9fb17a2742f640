"""The object that one rank writes: a safetensors file, streamed, and the records that describe it.

Torch-free: tensors come as bytes in host memory.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from checkpoints.errors import RecordInvalid
from checkpoints.manifest import Chunk, ObjectRecord, TensorRecord
from checkpoints.store import Buffer, ObjectStore

# Pieces that a store can send while the next one's checksum is computed.
_PIECE_BYTES = 8 * 1024 * 1024
# safetensors aligns the first tensor, so that readers can map it.
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A block of a tensor's rows in host memory; `first` is the number of its first row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    first: int
    rows_shape: tuple[int, ...]
    memory: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One rank's chunk of a tensor, with what all ranks must agree on."""

    dtype: str
    shape: tuple[int, ...]
    chunk: Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one rank wrote."""

    object: ObjectRecord
    tensors: dict[str, Written]


def upload(store: ObjectStore, key: str, staged: list[Staged]) -> Part:
    """Stream the staged rows into one object and return its records."""
    header = _header(staged)
    checksums: list[int] = []
    store.put(key, _stream(header, staged, checksums))
    tensors, start = {}, len(header)
    for item, crc32 in zip(staged, checksums, strict=True):
        tensors[item.name] = _written(item, key, start, crc32)
        start += len(item.memory)
    written = ObjectRecord(
        key=key, size=start, header_length=len(header), header_crc32=zlib.crc32(header)
    )
    return Part(object=written, tensors=tensors)


def merge(parts: Iterable[Part]) -> dict[str, TensorRecord]:
    """Return one record per tensor from what the ranks wrote; raise RecordInvalid."""
    merged: dict[str, list[Written]] = {}
    for part in parts:
        for name, written in part.tensors.items():
            merged.setdefault(name, []).append(written)
    return {name: _merge(name, writtens) for name, writtens in merged.items()}


def _header(staged: list[Staged]) -> bytes:
    """Return the safetensors header: its length in 8 bytes, then JSON padded with spaces."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in staged:
        start, end = end, end + len(item.memory)
        fields[item.name] = {
            "dtype": item.dtype,
            "shape": list(item.rows_shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _stream(header: bytes, staged: list[Staged], checksums: list[int]) -> Iterator[Buffer]:
    """Yield the object's bytes; a checksum is taken while its bytes are in the cache anyway."""
    yield header
    for item in staged:
        crc32 = 0
        for start in range(0, len(item.memory), _PIECE_BYTES):
            piece = item.memory[start : start + _PIECE_BYTES]
            crc32 = zlib.crc32(piece, crc32)
            yield piece
        checksums.append(crc32)


def _written(item: Staged, key: str, start: int, crc32: int) -> Written:
    chunk = Chunk(
        offsets=(item.first, *[0] * (len(item.shape) - 1)) if item.shape else (),
        shape=item.rows_shape,
        object=key,
        start=start,
        length=len(item.memory),
        crc32=crc32,
    )
    return Written(dtype=item.dtype, shape=item.shape, chunk=chunk)


def _merge(name: str, writtens: list[Written]) -> TensorRecord:
    first = writtens[0]
    if any((found.dtype, found.shape) != (first.dtype, first.shape) for found in writtens):
        raise RecordInvalid(
            f"Ranks disagree on the dtype or shape of {name}", "Give local tensors unique names."
        )
    chunks = tuple(found.chunk for found in writtens)
    try:
        return TensorRecord(dtype=first.dtype, shape=first.shape, chunks=chunks)
    except ValidationError as error:
        raise RecordInvalid(
            f"The ranks' parts of {name} do not make one tensor: {error.errors()[0]['msg']}",
            "Give local tensors unique names.",
        ) from error
