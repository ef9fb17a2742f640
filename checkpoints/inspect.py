"""Read and check stored checkpoints without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

from checkpoints.errors import BucketMissing, Damaged, ObjectMissing, RecordInvalid
from checkpoints.layout import CHECKPOINTS
from checkpoints.manifest import Chunk, Manifest
from checkpoints.reading import Extent, read, split
from checkpoints.store import ObjectStore, open_store

# Requests in flight; each holds one request's bytes.
_NUM_READERS = 8

# Is told how many bytes were dealt with since it was last told.
Progress: TypeAlias = Callable[[int], None]


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


def holder_of(store: ObjectStore, manifest: Manifest) -> ObjectStore:
    """Return the store of the manifest's objects; `store` is the one that holds the manifest."""
    return store if manifest.store is None else open_store(manifest.store)


def read_tensor(store: ObjectStore, manifest: Manifest, name: str) -> bytearray:
    """Return a whole tensor, row-major and verified; `store` holds the objects.

    Raises Damaged, ObjectMissing, and RecordInvalid for a name that is not there.
    """
    try:
        record = manifest.tensors[name]
    except KeyError:
        raise RecordInvalid(f"{manifest.key} has no tensor {name!r}", "Check the name.") from None
    chunks = sorted(record.chunks, key=lambda chunk: chunk.offsets)
    extents = [extent for chunk in chunks for extent in split(_extent(chunk))]
    data = bytearray(record.num_bytes)
    buffers, rest = [], memoryview(data)
    for extent in extents:
        buffers.append(rest[: extent.length])
        rest = rest[extent.length :]
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for _ in pool.map(lambda extent, buffer: read(store, [extent], [buffer]), extents, buffers):
            pass
    return data


def ignore_progress(num_bytes: int) -> None:
    """Tell nobody."""


def verify(
    store: ObjectStore, manifest: Manifest, progress: Progress = ignore_progress
) -> list[Problem]:
    """Return everything that is wrong with the checkpoint's objects; reads every byte.

    `progress` is told the number of bytes after each request.
    """
    holder = holder_of(store, manifest)
    try:
        sizes = {entry.key: entry.size for entry in holder.list(CHECKPOINTS)}
    except BucketMissing:
        sizes = {}
    problems = [
        Problem(object=entry.key, what=what)
        for entry in manifest.objects
        if (what := _wrong_size(sizes.get(entry.key), entry.size))
    ]
    unusable = {problem.object for problem in problems}

    def damage(part: tuple[str, Extent]) -> Problem | None:
        name, extent = part
        try:
            read(holder, [extent], [memoryview(bytearray(extent.length))])
        except (Damaged, ObjectMissing) as error:
            return Problem(object=extent.object, what=f"{name}: {error}")
        finally:
            progress(extent.length)
        return None

    parts = (part for part in _parts(manifest) if part[1].object not in unusable)
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return problems + [found for found in pool.map(damage, parts) if found]


def compare(
    store_a: ObjectStore,
    manifest_a: Manifest,
    store_b: ObjectStore,
    manifest_b: Manifest,
    *,
    ignore: Callable[[str], bool],
    progress: Progress = ignore_progress,
) -> list[str]:
    """Return the names whose bytes, shape or dtype differ, or that one side lacks; sorted.

    `progress` is told the number of bytes of the first one's tensor after each.
    """
    names = manifest_a.tensors.keys() | manifest_b.tensors.keys()
    store_a, store_b = holder_of(store_a, manifest_a), holder_of(store_b, manifest_b)
    differing = []
    for name in sorted(name for name in names if not ignore(name)):
        if not _is_equal(store_a, manifest_a, store_b, manifest_b, name):
            differing.append(name)
        record = manifest_a.tensors.get(name)
        progress(record.num_bytes if record else 0)
    return differing


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


def _wrong_size(size: int | None, expected: int) -> str | None:
    if size is None:
        return "is missing"
    return None if size == expected else f"has {size} bytes instead of {expected}"


def _parts(manifest: Manifest) -> Iterator[tuple[str, Extent]]:
    """Yield every byte of every object, by the name of what holds it."""
    for entry in manifest.objects:
        header = Extent(
            object=entry.key, start=0, length=entry.header_length, crc64=entry.header_crc64
        )
        yield from (("its header", extent) for extent in split(header))
    for name, record in manifest.tensors.items():
        for chunk in record.chunks:
            yield from ((name, extent) for extent in split(_extent(chunk)))


def _extent(chunk: Chunk) -> Extent:
    return Extent(object=chunk.object, start=chunk.start, length=chunk.length, crc64=chunk.crc64)
