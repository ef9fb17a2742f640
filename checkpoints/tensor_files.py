"""Hugging Face safetensors files without torch: checked headers, bytes in blocks, no pickle.

The format is 8 bytes of header length, a JSON header and raw bytes (safetensors README).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from checkpoints.errors import RecordInvalid
from checkpoints.manifest import DTYPE_SIZES, Count, Shape

WEIGHTS_STEM = "model"
# Two of these, and a sum of them, are all that a delta has in memory.
BLOCK_BYTES = 16 * 1024 * 1024
# safetensors' own limit: a length that nobody meant would otherwise be read into memory.
_MAX_HEADER_BYTES = 100_000_000
# safetensors aligns the first tensor, so that readers can map it.
_ALIGNMENT = 8
_METADATA = "__metadata__"
_NEXT_STEP = (
    "Only safetensors are read, one file or parts with their index; pytorch_model.bin is converted "
    "by save_pretrained of transformers."
)


class TensorSpec(BaseModel):
    """What a tensor is, by safetensors' own names."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    dtype: str
    shape: Shape

    @property
    def num_bytes(self) -> int:
        """Return the size of the tensor."""
        return math.prod(self.shape) * DTYPE_SIZES[self.dtype]


class _HeaderEntry(TensorSpec):
    data_offsets: tuple[Count, Count]


class _Index(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    weight_map: dict[str, str]


_HEADER = TypeAdapter(dict[str, _HeaderEntry])


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor in a file; `start` counts from the file's beginning."""

    path: Path
    spec: TensorSpec
    start: int

    def blocks(self) -> Iterator[bytes]:
        """Yield its bytes, a block at a time; raise RecordInvalid if the file ends before it."""
        left = self.spec.num_bytes
        with self.path.open("rb") as file:
            file.seek(self.start)
            while left:
                block = file.read(min(BLOCK_BYTES, left))
                if not block:
                    raise _unusable(self.path, "ends before its tensors do")
                left -= len(block)
                yield block


def make_header(tensors: Mapping[str, TensorSpec]) -> bytes:
    """Return what a file of these tensors, in this order, begins with."""
    fields: dict[str, object] = {_METADATA: {"format": "pt"}}
    end = 0
    for name, spec in tensors.items():
        start, end = end, end + spec.num_bytes
        fields[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_file(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file in their order; raise RecordInvalid, OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
            raise _unusable(path, "is no safetensors file")
        text = file.read(length)
    try:
        fields = json.loads(text)
        fields.pop(_METADATA, None)
        entries = _HEADER.validate_python(fields)
    except (ValueError, AttributeError, RecursionError) as error:
        raise _unusable(path, "has a header that does not parse") from error
    _check_entries(path, entries, size - 8 - length)
    ordered = sorted(entries.items(), key=lambda item: item[1].data_offsets)
    return {
        name: StoredTensor(path=path, spec=entry, start=8 + length + entry.data_offsets[0])
        for name, entry in ordered
    }


def find_files(folder: Path, stem: str = WEIGHTS_STEM) -> list[Path]:
    """Return the files of a folder's weights, in order; raise RecordInvalid."""
    index, single = folder / index_name(stem), folder / f"{stem}.safetensors"
    # As transformers does: the one file first.
    if single.is_file():
        return [single]
    if not index.is_file():
        raise RecordInvalid(f"{folder} holds no {single.name}.", _NEXT_STEP)
    try:
        files = sorted(set(_Index.model_validate_json(index.read_bytes()).weight_map.values()))
    except ValidationError as error:
        raise _unusable(index, "does not parse") from error
    for name in files:
        # A name from a file of others' making: one with slashes would reach out of the folder.
        if not name.startswith(stem) or Path(name).name != name or not (folder / name).is_file():
            raise _unusable(index, f"names {name!r}, which is not there")
    return [folder / name for name in files]


def read_folder(folder: Path, stem: str = WEIGHTS_STEM) -> dict[str, StoredTensor]:
    """Return all tensors of a model's folder; raise RecordInvalid, OSError."""
    tensors: dict[str, StoredTensor] = {}
    for path in find_files(folder, stem):
        tensors |= read_file(path)
    return tensors


def file_name(stem: str, number: int, num_files: int) -> str:
    """Return the name of a file of weights; `number` counts from 1."""
    if num_files == 1:
        return f"{stem}.safetensors"
    return f"{stem}-{number:05d}-of-{num_files:05d}.safetensors"


def index_name(stem: str = WEIGHTS_STEM) -> str:
    """Return the name of the file that says which file has which tensor."""
    return f"{stem}.safetensors.index.json"


def write_index(folder: Path, files: Mapping[str, Mapping[str, TensorSpec]], stem: str) -> Path:
    """Write the index of several files and return its path."""
    placed = {name: file for file, tensors in files.items() for name in tensors}
    total = sum(spec.num_bytes for tensors in files.values() for spec in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    path = folder / index_name(stem)
    path.write_text(json.dumps(index, indent=1))
    return path


def _check_entries(path: Path, entries: Mapping[str, _HeaderEntry], num_bytes: int) -> None:
    """Hold that every byte belongs to one tensor: no hole, no overlap, nothing behind."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if entry.dtype not in DTYPE_SIZES:
            raise _unusable(path, f"holds {name} in the unknown dtype {entry.dtype!r}")
        start, stop = entry.data_offsets
        if start != end or stop - start != entry.num_bytes:
            raise _unusable(path, f"has a header that is wrong about {name}")
        end = stop
    if end != num_bytes:
        raise _unusable(path, f"has {num_bytes} bytes of tensors instead of {end}")


def _unusable(path: Path, what: str) -> RecordInvalid:
    return RecordInvalid(f"{path} {what}.", "Download it, or make it, again.")


def names_of(tensors: Sequence[str], most: int = 3) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(tensors) - most} more" if len(tensors) > most else ""
    return ", ".join(tensors[:most]) + more
