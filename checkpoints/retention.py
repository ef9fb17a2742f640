"""Which checkpoints may go, and their removal: manifest first, so that half of one never counts."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import groupby

from checkpoints.errors import Fenced, ObjectMissing, RecordInvalid
from checkpoints.fence import read_head
from checkpoints.inspect import read_manifest
from checkpoints.layout import (
    CHECKPOINTS,
    PINS,
    checkpoint_prefix,
    manifest_key,
    parse_checkpoint_prefix,
    parse_pin,
    pin_key,
)
from checkpoints.manifest import Head
from checkpoints.places import Places, only
from checkpoints.store import ObjectEntry, ObjectStore

Point = tuple[int, int]  # (step, attempt): what a checkpoint is named by


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCheckpoint:
    """The objects under one checkpoint's prefix, by the store that has them."""

    point: Point
    objects: tuple[tuple[ObjectStore, ObjectEntry], ...]

    @property
    def prefix(self) -> str:
        """The checkpoint's folder, by which the ledger knows it."""
        return checkpoint_prefix(*self.point)

    @property
    def is_whole(self) -> bool:
        """Say whether it has a manifest; without one it cannot be resumed from."""
        return any(entry.key == manifest_key(*self.point) for _, entry in self.objects)

    @property
    def num_bytes(self) -> int:
        """The size of all of them."""
        return sum(entry.size for _, entry in self.objects)


def prune(places: Places, *, keep_last: int, keep_every: int | None, attempt: int) -> list[str]:
    """Delete old checkpoints and return their prefixes; call it after a commit, as the owner.

    Kept: what HEAD names and its parent, the last `keep_last`, every `keep_every` steps, and what
    is pinned. Also goes what lower attempts left behind uncommitted. Raises Fenced if `attempt` no
    longer owns the run.
    """
    found = read_head(places.records)
    if found is None or found[0].attempt != attempt:
        raise Fenced(
            f"Attempt {attempt} no longer owns the run and may not delete its checkpoints",
            "Stop this attempt.",
        )
    doomed = removable(places, head=found[0], keep_last=keep_last, keep_every=keep_every)
    for checkpoint in doomed:
        remove(places, checkpoint)
    return [checkpoint.prefix for checkpoint in doomed]


def removable(
    places: Places, *, head: Head, keep_last: int, keep_every: int | None
) -> list[StoredCheckpoint]:
    """Return the checkpoints that no rule keeps, oldest first.

    HEAD is to be read before: whatever is committed meanwhile is newer than all that may go.
    """
    stored = list_checkpoints(places)
    whole = {point for point in stored if stored[point].is_whole}
    doomed = surplus(
        whole,
        head=head,
        recent=_recent(places.records, head, keep_last),
        keep_last=keep_last,
        keep_every=keep_every,
        pinned=read_pins(places.records),
    ) | {point for point in stored.keys() - whole if point[1] < head.attempt}
    return [stored[point] for point in sorted(doomed)]


def surplus(
    whole: Set[Point],
    *,
    head: Head,
    recent: Sequence[Point],
    keep_last: int,
    keep_every: int | None,
    pinned: Set[Point] = frozenset(),
) -> set[Point]:
    """Return those of the checkpoints with a manifest that no rule keeps.

    `recent` is the end of the history. A manifest that is no older and not in it was written by an
    attempt that lost the run before its commit, or was given up as damaged.
    """
    targets = {point_of(key) for key in (head.manifest, head.parent) if key is not None}
    oldest = min((point[0] for point in recent), default=0)
    history = {point for point in whole if point in recent or point[0] < oldest}
    kept = set(sorted(history)[-keep_last:])
    if keep_every:
        kept |= {point for point in history if point[0] % keep_every == 0}
    strays = {point for point in whole - history if point[1] < head.attempt}
    return ((history - kept) | strays) - targets - pinned


def _recent(store: ObjectStore, head: Head, num_points: int) -> list[Point]:
    """Return the last points of the history, as far back as its manifests can be read."""
    points: list[Point] = []
    key = head.manifest
    while key is not None and len(points) < num_points:
        points.append(point_of(key))
        try:
            key = read_manifest(store, key).parent
        except (RecordInvalid, ObjectMissing):
            return points
    return points


def point_of(manifest: str) -> Point:
    """Return what the checkpoint of a manifest is named by."""
    found = parse_checkpoint_prefix(manifest)
    assert found is not None, manifest  # Head and Manifest take no other keys
    return found


def remove(places: Places, checkpoint: StoredCheckpoint) -> None:
    """Delete a checkpoint's objects."""
    manifest = manifest_key(*checkpoint.point)
    if checkpoint.is_whole:
        places.records.delete([manifest])
    for store, objects in groupby(checkpoint.objects, key=lambda found: found[0]):
        store.delete([entry.key for _, entry in objects if entry.key != manifest])


def list_checkpoints(places: Places) -> dict[Point, StoredCheckpoint]:
    """Return every checkpoint that has an object in some store, complete or not."""
    found: dict[Point, list[tuple[ObjectStore, ObjectEntry]]] = {}
    for store, entry in places.entries(CHECKPOINTS):
        point = parse_checkpoint_prefix(entry.key)
        if point is not None:
            found.setdefault(point, []).append((store, entry))
    return {
        point: StoredCheckpoint(point=point, objects=tuple(objects))
        for point, objects in found.items()
    }


def committed_at(store: ObjectStore, step: int) -> Point | None:
    """Return the committed checkpoint of a step, of the last attempt that has one."""
    found = read_head(store)
    # One beyond HEAD is of an attempt that lost the run before its commit.
    if found is None or step > found[0].step:
        return None
    stored = list_checkpoints(only(store))
    return max((p for p in stored if p[0] == step and stored[p].is_whole), default=None)


def is_left_by_lower_attempt(key: str, attempt: int) -> bool:
    """Say whether an unfinished upload to `key` can never be committed, now that `attempt` runs."""
    point = parse_checkpoint_prefix(key)
    return point is not None and point[1] < attempt


def read_pins(store: ObjectStore) -> frozenset[Point]:
    """Return the checkpoints that are never pruned."""
    points = (parse_pin(entry.key) for entry in store.list(PINS))
    return frozenset(point for point in points if point is not None)


def pin(store: ObjectStore, point: Point) -> None:
    """Keep a checkpoint until it is unpinned; raise ObjectMissing if it is not there."""
    store.put(pin_key(*point), b"")
    try:
        # Looked for last: a prune that had listed the pins before this one may just have taken it.
        store.get(manifest_key(*point))
    except ObjectMissing:
        unpin(store, point)
        raise


def unpin(store: ObjectStore, point: Point) -> None:
    """Let a checkpoint be pruned again."""
    store.delete([pin_key(*point)])
