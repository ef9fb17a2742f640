"""Which checkpoints of a run were committed: what HEAD's chain of parents says.

A manifest alone proves nothing: its writer may have died, or lost the run, before it moved HEAD.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from checkpoints.errors import Damaged, ObjectMissing, RecordInvalid
from checkpoints.fence import read_head
from checkpoints.inspect import read_manifest
from checkpoints.layout import CHECKPOINTS, manifest_key, parse_checkpoint_prefix
from checkpoints.manifest import Head
from checkpoints.store import ObjectStore

Point = tuple[int, int]  # (step, attempt): what a checkpoint is named by


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The committed checkpoints from HEAD back, newest first, whose manifests can be read.

    `end` is the first whose manifest cannot, mostly for having been pruned; None if there is none.
    """

    points: tuple[Point, ...]
    end: Point | None

    def with_older(self, whole: Set[Point]) -> list[Point]:
        """Return the history, newest first; `whole` are all that have a manifest.

        What lies behind the end was kept by `keep_every` or pins.
        """
        if self.end is None:
            return [*self.points]
        return [*self.points, *({self.end} & whole), *committed_before(self.end, whole)]


def read_chain(store: ObjectStore, head: Head) -> Chain:
    """Return the chain of HEAD."""
    points: list[Point] = []
    key = head.manifest
    while key is not None:
        try:
            parent = read_manifest(store, key).parent
        except (RecordInvalid, ObjectMissing):
            return Chain(points=tuple(points), end=point_of(key))
        points.append(point_of(key))
        key = parent
    return Chain(points=tuple(points), end=None)


def committed_before(point: Point, whole: Set[Point]) -> list[Point]:
    """Return those of the checkpoints with a manifest that came before `point`, newest first.

    By their names alone, for want of a chain. Attempts follow each other, and so do their steps: at
    a step that a later attempt has passed, nothing was committed that still counts.
    """
    history = []
    for other in sorted(whole - {point}, key=lambda other: (other[1], other[0]), reverse=True):
        if other[0] <= point[0] and other[1] <= point[1]:
            history.append(other)
            point = other
    return history


def committed_at(store: ObjectStore, step: int) -> Point | None:
    """Return the committed checkpoint of a step, the newest if there are several."""
    found = read_head(store)
    if found is None or step > found[0].step:
        return None
    history = read_chain(store, found[0]).with_older(whole_checkpoints(store))
    return next((point for point in history if point[0] == step), None)


def committed_before_key(store: ObjectStore, key: str, *, is_last: bool) -> Point | None:
    """Return what was committed before the manifest `key`, None if the run began there.

    Its parent; where the chain was pruned, what `keep_every` or pins have kept. Never the newest
    name listed: only what was HEAD once is history. `is_last` says that `key` is HEAD's, whose
    parent is pruned only behind a rewind: if that is missing, it is named. Raises Damaged if all
    that was before is pruned.
    """
    parent = _parent(store, key)
    if parent is None:
        return None
    point, whole = point_of(parent), whole_checkpoints(store)
    if parent != key and (point in whole or is_last):
        return point
    older = committed_before(point, whole)
    if not older:
        raise pruned_before(key)
    return older[0]


def pruned_before(key: str) -> Damaged:
    """Return the error for a damaged checkpoint behind which none is left."""
    return Damaged(
        f"No checkpoint of the run can be used: those before {key} are pruned",
        "See orchestrate checkpoints verify; a new run name starts from the beginning.",
    )


def _parent(store: ObjectStore, key: str) -> str | None:
    """Return what the manifest or, for its own, HEAD says; `key` itself if neither does."""
    try:
        return read_manifest(store, key).parent
    except (RecordInvalid, ObjectMissing):
        head = read_head(store)
        return head[0].parent if head is not None and head[0].manifest == key else key


def whole_checkpoints(store: ObjectStore) -> frozenset[Point]:
    """Return what has a manifest in the store of the records, committed or not."""
    points = ((parse_checkpoint_prefix(entry.key), entry.key) for entry in store.list(CHECKPOINTS))
    return frozenset(point for point, key in points if point and key == manifest_key(*point))


def point_of(manifest: str) -> Point:
    """Return what the checkpoint of a manifest is named by."""
    found = parse_checkpoint_prefix(manifest)
    assert found is not None, manifest  # Head and Manifest take no other keys
    return found
