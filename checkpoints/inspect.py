"""Read and check stored checkpoints without torch."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from checkpoints.errors import Damaged, ObjectMissing, RecordInvalid
from checkpoints.layout import CHECKPOINTS
from checkpoints.manifest import Chunk, Manifest, ObjectRecord
from checkpoints.store import ObjectStore

_NEXT_STEP = "Resume from another checkpoint; this one cannot be trusted."


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a checkpoint, and the object that has it."""

    object: str
    what: str


def read_manifest(store: ObjectStore, key: str) -> Manifest:
    """Return the manifest under `key`; raise ObjectMissing or RecordInvalid."""
    manifest = Manifest.from_json(store.get(key).data)
    if manifest.key != key:
        raise RecordInvalid(
            f"{key} holds the manifest of {manifest.key}", "Resume from another checkpoint."
        )
    return manifest


def read_chunk(store: ObjectStore, chunk: Chunk) -> bytes:
    """Return a chunk's bytes; raise Damaged if they are not what was saved, ObjectMissing."""
    return _read_checked(store, chunk.object, chunk.start, chunk.length, chunk.crc32)


def read_tensor(store: ObjectStore, manifest: Manifest, name: str) -> bytes:
    """Return a whole tensor, row-major and verified."""
    try:
        record = manifest.tensors[name]
    except KeyError:
        raise RecordInvalid(f"{manifest.key} has no tensor {name!r}", "Check the name.") from None
    chunks = sorted(record.chunks, key=lambda chunk: chunk.offsets)
    return b"".join(read_chunk(store, chunk) for chunk in chunks)


def verify(store: ObjectStore, manifest: Manifest) -> list[Problem]:
    """Return everything that is wrong with the checkpoint's objects; reads every byte."""
    sizes = {entry.key: entry.size for entry in store.list(CHECKPOINTS)}
    problems = []
    for entry in manifest.objects:
        if entry.key not in sizes:
            problems.append(Problem(object=entry.key, what="is missing"))
        elif sizes[entry.key] != entry.size:
            what = f"has {sizes[entry.key]} bytes instead of {entry.size}"
            problems.append(Problem(object=entry.key, what=what))
        else:
            problems.extend(_damages(store, manifest, entry))
    return problems


def compare(
    store_a: ObjectStore,
    manifest_a: Manifest,
    store_b: ObjectStore,
    manifest_b: Manifest,
    *,
    ignore: Callable[[str], bool],
) -> list[str]:
    """Return the names whose bytes, shape or dtype differ, or that one side lacks; sorted."""
    names = manifest_a.tensors.keys() | manifest_b.tensors.keys()
    return [
        name
        for name in sorted(names)
        if not ignore(name) and not _is_equal(store_a, manifest_a, store_b, manifest_b, name)
    ]


def _is_equal(
    store_a: ObjectStore,
    manifest_a: Manifest,
    store_b: ObjectStore,
    manifest_b: Manifest,
    name: str,
) -> bool:
    a, b = manifest_a.tensors.get(name), manifest_b.tensors.get(name)
    if a is None or b is None or (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return read_tensor(store_a, manifest_a, name) == read_tensor(store_b, manifest_b, name)


def _damages(store: ObjectStore, manifest: Manifest, entry: ObjectRecord) -> Iterator[Problem]:
    parts = [(0, entry.header_length, entry.header_crc32, "its header")]
    for name, record in manifest.tensors.items():
        parts += [
            (chunk.start, chunk.length, chunk.crc32, name)
            for chunk in record.chunks
            if chunk.object == entry.key
        ]
    for start, length, crc32, name in parts:
        try:
            _read_checked(store, entry.key, start, length, crc32)
        except (Damaged, ObjectMissing) as error:
            yield Problem(object=entry.key, what=f"{name}: {error}")


def _read_checked(store: ObjectStore, key: str, start: int, length: int, crc32: int) -> bytes:
    data = store.get_range(key, start, length)
    if zlib.crc32(data) != crc32:
        where = f"bytes {start} to {start + length}"
        raise Damaged(f"{key} does not match its checksum in {where}", _NEXT_STEP)
    return data
