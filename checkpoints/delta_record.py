"""delta.json: what a delta was made from, and what its sum with the base has to be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from checkpoints.errors import RecordInvalid
from checkpoints.manifest import Shape
from checkpoints.regular_files import read_regular
from checkpoints.tensor_files import TensorSpec

DELTA_NAME = "delta.json"
_MOST_BYTES = 64 << 20
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseTensor(_Part):
    """The tensor of the base that is subtracted; its dtype is that of the release's."""

    shape: Shape
    sha256: Sha256


class DeltaTensor(_Part):
    """A tensor of the release; rows that the base lacks are in the delta as they are."""

    dtype: str
    shape: Shape
    sha256: Sha256
    """Of the release's bytes."""
    base: BaseTensor | None
    """None: the whole tensor is in the delta as it is."""

    def is_spec(self, spec: TensorSpec) -> bool:
        """Say whether a tensor is of this dtype and shape."""
        return (self.dtype, self.shape) == (spec.dtype, spec.shape)

    def is_based_on(self, spec: TensorSpec, sha256: str) -> bool:
        """Say whether a tensor is the one that was subtracted."""
        return self.base == BaseTensor(shape=spec.shape, sha256=sha256) and self.dtype == spec.dtype


class DeltaRecord(_Part):
    """What restores a release, and what says whether it was restored."""

    schema_version: Literal[1] = 1
    base: str
    """What the base is called, for people."""
    tensors: dict[str, DeltaTensor]


def write_record(record: DeltaRecord, delta: Path) -> None:
    """Write the record to a delta's folder, which is complete with it."""
    (delta / DELTA_NAME).write_text(record.model_dump_json(indent=1))


def read_record(delta: Path) -> DeltaRecord:
    """Return the record of a delta's folder; raise RecordInvalid."""
    path = delta / DELTA_NAME
    try:
        return DeltaRecord.model_validate_json(read_regular(path, _MOST_BYTES))
    except FileNotFoundError:
        raise RecordInvalid(f"{delta} holds no {DELTA_NAME}.", "Give a delta's folder.") from None
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
        raise RecordInvalid(
            f"{path} cannot be used: {why}.",
            "Download the delta again, or upgrade.",
        ) from error
