"""Which checkpoints may go, and their removal: manifest first, so that half of one never counts."""

from __future__ import annotations

from checkpoints.errors import Fenced
from checkpoints.fence import read_head
from checkpoints.layout import (
    CHECKPOINTS,
    checkpoint_prefix,
    manifest_key,
    parse_checkpoint_prefix,
)
from checkpoints.manifest import Head
from checkpoints.store import ObjectStore

Checkpoint = tuple[int, int]  # (step, attempt)


def prune(
    store: ObjectStore, *, head: Head, keep_last: int, keep_every: int | None, attempt: int
) -> list[str]:
    """Delete old checkpoints and return their prefixes; call it after a commit, as the owner.

    Kept: what `head` and HEAD name, the last `keep_last`, and every `keep_every` steps. Also goes
    what lower attempts left behind uncommitted. Raises Fenced if `attempt` no longer owns the run.
    """
    found = read_head(store)
    if found is None or found[0].attempt != attempt:
        raise Fenced(
            f"Attempt {attempt} no longer owns the run and may not delete its checkpoints",
            "Stop this attempt.",
        )
    keys = _keys_by_checkpoint(store)
    committed = {point for point in keys if manifest_key(*point) in keys[point]}
    doomed = surplus(
        committed, heads=(head, found[0]), keep_last=keep_last, keep_every=keep_every
    ) | {point for point in keys.keys() - committed if point[1] < attempt}
    for point in sorted(doomed):
        _delete(store, point, keys[point])
    return [checkpoint_prefix(*point) for point in sorted(doomed)]


def surplus(
    committed: set[Checkpoint], *, heads: tuple[Head, Head], keep_last: int, keep_every: int | None
) -> set[Checkpoint]:
    """Return the checkpoints that no rule keeps."""
    current = heads[1]
    targets = {parse_checkpoint_prefix(head.manifest) for head in heads if head.manifest}
    # A manifest beyond HEAD was written by an attempt that lost the run before its commit.
    history = {point for point in committed if point[0] <= current.step or point in targets}
    kept = set(sorted(history)[-keep_last:])
    if keep_every:
        kept |= {point for point in history if point[0] % keep_every == 0}
    beyond = {point for point in committed - history if point[1] < current.attempt}
    return (history - kept - targets) | beyond


def _keys_by_checkpoint(store: ObjectStore) -> dict[Checkpoint, list[str]]:
    keys: dict[Checkpoint, list[str]] = {}
    for entry in store.list(CHECKPOINTS):
        point = parse_checkpoint_prefix(entry.key)
        if point is not None:
            keys.setdefault(point, []).append(entry.key)
    return keys


def _delete(store: ObjectStore, point: Checkpoint, keys: list[str]) -> None:
    manifest = manifest_key(*point)
    if manifest in keys:
        store.delete([manifest])
    store.delete(key for key in keys if key != manifest)
