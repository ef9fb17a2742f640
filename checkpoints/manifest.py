"""The three records of the commit protocol: manifest, head and claim.

Whatever parses is usable: bounds are checked against objects and shapes, chunks tile their tensor,
and a manifest ends in a checksum of itself.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, ClassVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)
from typing_extensions import Self

from checkpoints.checksums import HEX_PER_BLOCK, crc64, num_blocks
from checkpoints.errors import RecordInvalid
from checkpoints.layout import manifest_key, parse_checkpoint_prefix
from checkpoints.store import check_key

# 2: CRC64NVME for each block of a chunk, and HEAD's parent.
SCHEMA_VERSION = 2

# Bytes per element, by safetensors' own names.
DTYPE_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Checksums = Annotated[str, Field(pattern=r"^([0-9a-f]{16})*$")]
Shape = tuple[Count, ...]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Version(BaseModel):
    """Reads only the version, so that a newer record is told from a broken one."""

    schema_version: int = SCHEMA_VERSION


class _Record(_Part):
    schema_version: Positive = SCHEMA_VERSION

    def to_json(self) -> bytes:
        """Return the record as it is stored."""
        return self.model_dump_json().encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Return the record; raise RecordInvalid."""
        kind = cls.__name__.lower()
        try:
            version = _Version.model_validate_json(data).schema_version
            if version == SCHEMA_VERSION:
                return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RecordInvalid(
                f"The {kind} is not valid{f' at {where}' if where else ''}: {first['msg']}",
                "It was damaged or edited: use another checkpoint, or restore the object.",
            ) from error
        raise RecordInvalid(
            f"The {kind} has schema version {version}; this code reads {SCHEMA_VERSION}",
            "Use the version that wrote it.",
        )


class Chunk(_Part):
    """Consecutive rows of a tensor, and the bytes of an object that hold them."""

    offsets: Shape
    shape: Shape
    object: str
    start: Count
    length: Count
    crc64: Checksums
    """CRC64NVME of each BLOCK_BYTES of it, 16 hexadecimal digits each."""

    @model_validator(mode="after")
    def _every_block_has_a_checksum(self) -> Self:
        _check_digits(self.crc64, self.length)
        return self


class TensorRecord(_Part):
    """A tensor and the chunks that tile it along its first dimension."""

    dtype: str
    shape: Shape
    chunks: tuple[Chunk, ...]

    @model_validator(mode="after")
    def _chunks_tile_the_tensor(self) -> Self:
        if self.dtype not in DTYPE_SIZES:
            raise ValueError(f"unknown dtype {self.dtype!r}")
        row = 0
        for chunk in sorted(self.chunks, key=lambda chunk: (chunk.offsets, chunk.shape)):
            row = self._row_after(chunk, row)
        num_rows = self.shape[0] if self.shape else 1
        if row != num_rows and self.num_bytes:
            raise ValueError(f"chunks hold {row} of {num_rows} rows")
        return self

    @property
    def num_bytes(self) -> int:
        """Return the size of the whole tensor."""
        return math.prod(self.shape) * DTYPE_SIZES[self.dtype]

    def _row_after(self, chunk: Chunk, row: int) -> int:
        """Return the row where the next chunk begins; raise ValueError if this one does not fit."""
        rest = (0,) * (len(self.shape) - 1)
        is_whole_rows = chunk.shape[1:] == self.shape[1:] and chunk.offsets[1:] == rest
        if len(chunk.shape) != len(self.shape) or not is_whole_rows:
            raise ValueError(f"chunk {chunk.offsets}+{chunk.shape} is not a block of rows")
        if chunk.length != math.prod(chunk.shape) * DTYPE_SIZES[self.dtype]:
            raise ValueError(f"chunk of {chunk.length} bytes does not hold {chunk.shape}")
        if not self.shape:
            return row + 1
        if chunk.offsets[0] != row:
            raise ValueError(f"chunks overlap or leave a hole at row {row}")
        return row + chunk.shape[0]


class ObjectRecord(_Part):
    """A stored object, its size, and the checksum of the header before its chunks."""

    key: Annotated[str, AfterValidator(check_key)]
    size: Count
    header_length: Count = 0
    header_crc64: Checksums = ""

    @model_validator(mode="after")
    def _every_block_has_a_checksum(self) -> Self:
        _check_digits(self.header_crc64, self.header_length)
        return self


class Manifest(_Record):
    """A complete checkpoint; it exists once this record does, and counts once HEAD names it."""

    run: str
    attempt: Positive
    step: Count
    parent: str | None
    world_size: Positive
    created_at: AwareDatetime
    store: str | None = None
    """URL of the folder that holds the objects; None: the one that holds this record."""
    objects: tuple[ObjectRecord, ...]
    tensors: dict[str, TensorRecord]
    state: dict[str, JsonValue]

    _TAIL: ClassVar[re.Pattern[bytes]] = re.compile(rb'(.*),"crc64":"([0-9a-f]{16})"}\n', re.DOTALL)

    @property
    def head(self) -> Head:
        """Return the HEAD that commits this checkpoint."""
        return Head(attempt=self.attempt, step=self.step, manifest=self.key, parent=self.parent)

    @property
    def key(self) -> str:
        """Return the key under which the manifest is stored."""
        return manifest_key(self.step, self.attempt)

    @property
    def num_bytes(self) -> int:
        """Return the size of all objects."""
        return sum(entry.size for entry in self.objects)

    def to_json(self) -> bytes:
        """Return the record with a checksum of everything before it."""
        body = self.model_dump_json().encode()[:-1]
        return body + b',"crc64":"%016x"}\n' % crc64(body)

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Return the manifest; raise RecordInvalid, also for any changed byte."""
        match = cls._TAIL.fullmatch(data)
        if match is None or crc64(match[1]) != int(match[2], 16):
            raise RecordInvalid(
                "The manifest does not match its own checksum",
                "It was damaged or edited: use another checkpoint, or restore the object.",
            )
        return super().from_json(match[1] + b"}")

    @model_validator(mode="after")
    def _chunks_lie_in_objects(self) -> Self:
        objects = {entry.key: entry for entry in self.objects}
        if len(objects) != len(self.objects):
            raise ValueError("an object is listed twice")
        for name, record in self.tensors.items():
            for chunk in record.chunks:
                holder = objects.get(chunk.object)
                if holder is None:
                    raise ValueError(f"{name}: unknown object {chunk.object}")
                if chunk.start < holder.header_length or chunk.start + chunk.length > holder.size:
                    raise ValueError(f"{name}: chunk lies outside {chunk.object}")
        return self

    @model_validator(mode="after")
    def _state_is_json(self) -> Self:
        _refuse_non_finite(self.state)
        return self


class Head(_Record):
    """The owner of the run, its last committed checkpoint, and the one before that."""

    attempt: Positive
    step: Count
    manifest: str | None
    parent: str | None = None
    """Where to go back to if even the manifest is damaged."""

    @model_validator(mode="after")
    def _manifest_is_of_this_step(self) -> Self:
        if self.manifest is None:
            if self.step:
                raise ValueError(f"step {self.step} has no manifest")
            return self
        found = parse_checkpoint_prefix(self.manifest)
        if found is None or self.manifest != manifest_key(*found):
            raise ValueError(f"{self.manifest!r} is not the key of a manifest")
        if found[0] != self.step or found[1] > self.attempt:
            raise ValueError(f"{self.manifest} is not of step {self.step}, attempt {self.attempt}")
        return self


class Claim(_Record):
    """An attempt's ownership of the run; `nonce` tells apart claimers that agree on the rest."""

    attempt: Positive
    step: Count
    parent: str | None
    claimed_by: str
    claimed_at: AwareDatetime
    world_size: Positive
    offer: dict[str, str]
    nonce: str = ""


def _check_digits(crc64s: str, num_bytes: int) -> None:
    if len(crc64s) != num_blocks(num_bytes) * HEX_PER_BLOCK:
        raise ValueError(f"{len(crc64s)} digits of checksums for {num_bytes} bytes")


def _refuse_non_finite(value: JsonValue) -> None:
    # JSON has no NaN, and pydantic would quietly write null.
    match value:
        case float() if not math.isfinite(value):
            raise ValueError(f"state holds {value}, which JSON cannot")
        case dict():
            for item in value.values():
                _refuse_non_finite(item)
        case list():
            for item in value:
                _refuse_non_finite(item)
