"""The object that one rank writes: a safetensors file, streamed, and the records that describe it.

Torch-free: tensors come as bytes in host memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.checksums import BLOCK_BYTES, block_checksums
from checkpoints.errors import RecordInvalid, SaveFailed
from checkpoints.manifest import Chunk, ObjectRecord, TensorRecord
from checkpoints.store import Buffer, ObjectStore

# Whole blocks that a store can send while the next ones' checksums are computed.
_PIECE_BYTES = 8 * BLOCK_BYTES
# safetensors aligns the first tensor, so that readers can map it.
_ALIGNMENT = 8
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "C64": np.complex64}
# Of fp8 without its sign: E4M3 (the variant without infinities) has one NaN, E5M2 IEEE's.
_F8_NOT_FINITE_FROM = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7C}
_BF16_EXPONENT = np.uint16(0x7F80)  # numpy knows no bfloat16; all ones are infinity and NaN


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A block of a tensor's rows in host memory; `first` is the number of its first row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    first: int
    rows_shape: tuple[int, ...]
    memory: memoryview


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Written(_Record):
    """One rank's chunk of a tensor, with what all ranks must agree on."""

    dtype: str
    shape: tuple[int, ...]
    chunk: Chunk


class Part(_Record):
    """What one rank wrote."""

    object: ObjectRecord
    tensors: dict[str, Written]


def upload(store: ObjectStore, key: str, staged: list[Staged]) -> Part:
    """Stream the staged rows into one object and return its records.

    Raises SaveFailed for a value that is not finite, before the object exists.
    """
    header = _header(staged)
    checksums: list[str] = []
    store.put(key, _stream(header, staged, checksums))
    tensors, start = {}, len(header)
    for item, crc64s in zip(staged, checksums, strict=True):
        tensors[item.name] = _written(item, key, start, crc64s)
        start += len(item.memory)
    written = ObjectRecord(
        key=key,
        size=start,
        header_length=len(header),
        header_crc64=block_checksums(memoryview(header)),
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


def _stream(header: bytes, staged: list[Staged], checksums: list[str]) -> Iterator[Buffer]:
    """Yield the object's bytes, checked and checksummed while they are in the cache anyway."""
    yield header
    for item in staged:
        digits = []
        for start in range(0, len(item.memory), _PIECE_BYTES):
            piece = item.memory[start : start + _PIECE_BYTES]
            if not _is_finite(piece, item.dtype):
                raise SaveFailed(
                    f"{item.name} holds a value that is not finite",
                    "Lower train.learning_rate or look at the data of the last steps.",
                )
            digits.append(block_checksums(piece))
            yield piece
        checksums.append("".join(digits))


def _is_finite(piece: memoryview, dtype: str) -> bool:
    if dtype == "BF16":
        return bool(((np.frombuffer(piece, np.uint16) & _BF16_EXPONENT) != _BF16_EXPONENT).all())
    if dtype in _F8_NOT_FINITE_FROM:
        magnitudes = np.frombuffer(piece, np.uint8) & np.uint8(0x7F)
        return int(magnitudes.max()) < _F8_NOT_FINITE_FROM[dtype]
    kind = _FLOATS.get(dtype)
    return kind is None or bool(np.isfinite(np.frombuffer(piece, kind)).all())


def _written(item: Staged, key: str, start: int, crc64s: str) -> Written:
    chunk = Chunk(
        offsets=(item.first, *[0] * (len(item.shape) - 1)) if item.shape else (),
        shape=item.rows_shape,
        object=key,
        start=start,
        length=len(item.memory),
        crc64=crc64s,
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
