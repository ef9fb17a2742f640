"""Which checkpoints may go, and their removal: manifest first, so that half of one never counts."""

from __future__ import annotations

import logging
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

from checkpoints.errors import Fenced, ObjectExists, ObjectMissing, RecordInvalid, StoreError
from checkpoints.fence import read_head
from checkpoints.history import Chain, Point, point_of, read_chain
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
from checkpoints.places import Look, Places
from checkpoints.store import ObjectEntry, ObjectStore

log = logging.getLogger(__name__)


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


def prune(
    places: Places,
    *,
    keep_last: int,
    keep_every: int | None,
    attempt: int,
    keep_back: int | None = None,
) -> list[str]:
    """Delete old checkpoints and return the prefixes of those that are gone; call it as the owner.

    Kept: what HEAD names and its parent, the last `keep_last`, every `keep_every` steps, the last
    one from `keep_back` steps before HEAD with the one after it, and what is pinned. Also goes what
    lower attempts left behind uncommitted. Raises Fenced if `attempt` no longer owns the run.
    """
    found = read_head(places.records)
    if found is None or found[0].attempt != attempt:
        raise Fenced(
            f"Attempt {attempt} no longer owns the run and may not delete its checkpoints",
            "Stop this attempt.",
        )
    doomed = removable(
        places,
        head=found[0],
        keep_last=keep_last,
        keep_every=keep_every,
        alive_from=attempt,
        keep_back=keep_back,
    )
    return [checkpoint.prefix for checkpoint in doomed if remove(places, checkpoint)]


def removable(
    places: Places,
    *,
    head: Head,
    keep_last: int,
    keep_every: int | None,
    alive_from: int,
    keep_back: int | None = None,
) -> list[StoredCheckpoint]:
    """Return the checkpoints that no rule keeps, in the order in which they are to go.

    `alive_from` is the first attempt that may still be writing. HEAD is to be read before: whatever
    is committed meanwhile is newer than all that may go.
    """
    look = places.look(CHECKPOINTS)
    stored = _by_point(look)
    doomed = surplus(
        stored.keys(),
        whole={point for point in stored if stored[point].is_whole},
        head=head,
        chain=read_chain(places.records, head),
        keep_last=keep_last,
        keep_every=keep_every,
        alive_from=alive_from,
        keep_back=keep_back,
        pinned=read_pins(places.records),
    )
    return [
        stored[point]
        for point in doomed
        if not _is_out_of_sight(places.records, stored[point], look.answered)
    ]


def surplus(
    stored: Set[Point],
    *,
    whole: Set[Point],
    head: Head,
    chain: Chain,
    keep_last: int,
    keep_every: int | None,
    alive_from: int,
    keep_back: int | None = None,
    pinned: Set[Point] = frozenset(),
) -> list[Point]:
    """Return those of the stored checkpoints that no rule keeps; `whole` ones have a manifest.

    What was never committed, or was given up as damaged, comes first: if it outlived the chain
    beside it, it would look like history.
    """
    targets = {point_of(key) for key in (head.manifest, head.parent) if key is not None}
    history = stored & {*chain.with_older(whole)}
    kept = {*sorted(history & whole)[-keep_last:]}
    if keep_every:
        kept |= {point for point in history if point[0] % keep_every == 0}
    if keep_back is not None:
        usable = sorted(history & whole)
        old = [point for point in usable if point[0] <= head.step - keep_back]
        # And the next one, that will be as old one day: else none would ever live so long.
        kept |= {*old[-1:], *usable[len(old) : len(old) + 1]}
    strays = {
        point
        for point in stored - history
        if point[1] < alive_from or _is_passed(point, head.manifest)
    }
    kept |= targets | pinned
    return [*sorted(strays - kept), *sorted(history - kept)]


def _is_passed(point: Point, manifest: str | None) -> bool:
    """Say whether the attempt that HEAD's checkpoint is of has come to a later step itself."""
    if manifest is None:
        return False
    step, attempt = point_of(manifest)
    return point[1] == attempt and point[0] < step


def remove(places: Places, checkpoint: StoredCheckpoint) -> bool:
    """Delete a checkpoint's objects; return whether all are gone.

    One that was pinned meanwhile stays. What a store of old objects refuses to delete is tried
    again by a later attempt.
    """
    manifest = manifest_key(*checkpoint.point)
    if checkpoint.is_whole and not _remove_manifest(places.records, checkpoint.point):
        return False
    is_gone = True
    for store, objects in groupby(checkpoint.objects, key=lambda found: found[0]):
        try:
            store.delete([entry.key for _, entry in objects if entry.key != manifest])
        except StoreError as error:
            if store in (places.records, places.objects):
                raise
            log.warning("%s is not gone from %s: %s", checkpoint.prefix, store.url, error)
            is_gone = False
    return is_gone


def _by_point(look: Look) -> dict[Point, StoredCheckpoint]:
    found: dict[Point, list[tuple[ObjectStore, ObjectEntry]]] = {}
    for store, entry in look.found:
        point = parse_checkpoint_prefix(entry.key)
        if point is not None:
            found.setdefault(point, []).append((store, entry))
    return {
        point: StoredCheckpoint(point=point, objects=tuple(objects))
        for point, objects in found.items()
    }


def _is_out_of_sight(
    records: ObjectStore, checkpoint: StoredCheckpoint, answered: frozenset[str]
) -> bool:
    """Say whether its objects may lie in a store that gave no answer: then all of it can wait."""
    if not checkpoint.is_whole or len(checkpoint.objects) > 1:
        return False
    try:
        store = read_manifest(records, manifest_key(*checkpoint.point)).store
    except (RecordInvalid, ObjectMissing):
        return False  # nobody can tell any more
    return store is not None and store not in answered


def _remove_manifest(store: ObjectStore, point: Point) -> bool:
    """Delete a manifest unless somebody pins the checkpoint at this moment.

    `pin` looks for the manifest after it has put the pin, and this looks for the pin after it has
    deleted the manifest: one of them sees the other.
    """
    key = manifest_key(*point)
    try:
        data = store.get(key).data
    except ObjectMissing:
        # Another prune has it, and may yet put it back.
        return point not in read_pins(store)
    store.delete([key])
    if point not in read_pins(store):
        return True
    with suppress(ObjectExists):
        store.create(key, data)
    return False


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
        # Looked for last: a prune may just have taken it, or be about to, see `_remove_manifest`.
        store.get(manifest_key(*point))
    except ObjectMissing:
        unpin(store, point)
        raise


def unpin(store: ObjectStore, point: Point) -> None:
    """Let a checkpoint be pruned again."""
    store.delete([pin_key(*point)])
