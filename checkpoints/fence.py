"""Who owns the run, and which checkpoint is the last: the only code that moves HEAD.json.

Every write here is conditional. One whose reply was lost is settled by reading back.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from datetime import datetime

from checkpoints.errors import (
    Fenced,
    ObjectExists,
    ObjectMissing,
    RecordInvalid,
    StoreUnreachable,
    VersionMismatch,
)
from checkpoints.layout import HEAD_KEY, attempt_key
from checkpoints.manifest import Claim, Head, Manifest
from checkpoints.store import ObjectStore

# Each lost race means that somebody else moved on, so only a broken store gets here.
_MAX_ROUNDS = 1000


def read_head(store: ObjectStore) -> tuple[Head, str] | None:
    """Return HEAD and its version, or None before the first claim."""
    try:
        stored = store.get(HEAD_KEY)
    except ObjectMissing:
        return None
    return Head.from_json(stored.data), stored.version


def claim_attempt(
    store: ObjectStore,
    *,
    claimed_by: str,
    claimed_at: datetime,
    world_size: int,
    offer: Mapping[str, str],
    is_superseded: Callable[[], bool] = lambda: False,
) -> Claim:
    """Take the next attempt number; from here on every earlier attempt's commit fails.

    Raises Fenced if `is_superseded` says so, which is asked each time that HEAD was read: a claimer
    that stood still must not take the run from the one that was started in its place.
    """
    number = 0
    for _ in range(_MAX_ROUNDS):
        found = read_head(store)
        head = found[0] if found else None
        if is_superseded():
            raise Fenced(
                f"{claimed_by} is over and may not claim the run: {_owner(found)}",
                "Leave the run to its owner.",
            )
        # A number that is taken but not in HEAD belongs to a claimer that died or is still behind.
        number = max(number, head.attempt if head else 0) + 1
        claim = Claim(
            attempt=number,
            step=head.step if head else 0,
            parent=head.manifest if head else None,
            claimed_by=claimed_by,
            claimed_at=claimed_at,
            world_size=world_size,
            offer=dict(offer),
            nonce=secrets.token_hex(8),
        )
        if not _create(store, attempt_key(number), claim.to_json()):
            continue
        moved = Head(
            attempt=number,
            step=claim.step,
            manifest=claim.parent,
            parent=head.parent if head else None,
        )
        if _move_head(store, moved, found[1] if found else None):
            return claim
    raise _contended()


def parent_of(store: ObjectStore, *, run: str, attempt: int, key: str) -> str | None:
    """Return what the manifest `key` follows: HEAD's manifest, read as the owner; raise Fenced.

    Of a manifest that is committed already, the one before it.
    """
    found = read_head(store)
    if found is None or found[0].attempt != attempt:
        raise _fenced(run, attempt, _owner(found))
    head = found[0]
    return head.parent if head.manifest == key else head.manifest


def commit(store: ObjectStore, manifest: Manifest) -> Head:
    """Make a complete checkpoint the last one and return the new HEAD; raise Fenced, RecordInvalid.

    Its objects must be stored already, and its parent be the last one. Committing the same manifest
    again changes nothing.
    """
    moved = manifest.head
    is_stored = False
    for _ in range(_MAX_ROUNDS):
        head, version = _owned_head(store, manifest)
        if not is_stored:
            _create_manifest(store, manifest)
            is_stored = True
        if head == moved or _move_head(store, moved, version):
            return moved
    raise _contended()


def rewind(store: ObjectStore, *, run: str, attempt: int, to: Manifest | None) -> Head:
    """Give up the last checkpoint for an earlier one of its history; raise Fenced.

    Only for a checkpoint that turned out damaged. `to` None goes back to the run's beginning.
    """
    moved = Head(attempt=attempt, step=0, manifest=None)
    if to is not None:
        moved = to.head.model_copy(update={"attempt": attempt})
    for _ in range(_MAX_ROUNDS):
        found = read_head(store)
        if found is None or found[0].attempt != attempt:
            raise _fenced(run, attempt, _owner(found))
        if found[0] == moved or _move_head(store, moved, found[1]):
            return moved
    raise _contended()


def _owned_head(store: ObjectStore, manifest: Manifest) -> tuple[Head, str]:
    found = read_head(store)
    if found is None or found[0].attempt != manifest.attempt:
        raise _fenced(manifest.run, manifest.attempt, _owner(found))
    head = found[0]
    if head != manifest.head and head.manifest != manifest.parent:
        raise RecordInvalid(
            f"{manifest.key} follows {manifest.parent}, but {head.manifest} is the last one",
            "Resume from the checkpoint that HEAD.json names.",
        )
    if head.step > manifest.step:
        raise RecordInvalid(
            f"Step {manifest.step} cannot follow step {head.step}, which is committed",
            "Resume from the checkpoint that HEAD.json names.",
        )
    return found


def _create_manifest(store: ObjectStore, manifest: Manifest) -> None:
    if not _create(store, manifest.key, manifest.to_json()):
        # Not Fenced: HEAD was still ours a moment ago, and the owner must not give up its run.
        raise RecordInvalid(
            f"{manifest.key} holds another checkpoint of this attempt", "Save a later step."
        )


def _create(store: ObjectStore, key: str, data: bytes) -> bool:
    """Create the object; return whether it now holds `data`, whoever was told so."""
    try:
        store.create(key, data)
    except ObjectExists:
        # Ours, if an earlier try within the client succeeded and lost its reply.
        return _holds(store, key, data)
    except StoreUnreachable:
        if not _holds(store, key, data):
            raise
    return True


def _move_head(store: ObjectStore, moved: Head, version: str | None) -> bool:
    """Swap HEAD from `version` (None: absent); return whether it is `moved` now."""
    data = moved.to_json()
    if version is None:
        return _create(store, HEAD_KEY, data)
    try:
        store.replace(HEAD_KEY, data, version)
    except VersionMismatch:
        return _holds(store, HEAD_KEY, data)
    except StoreUnreachable:
        if not _holds(store, HEAD_KEY, data):
            raise
    return True


def _holds(store: ObjectStore, key: str, data: bytes) -> bool:
    try:
        return store.get(key).data == data
    except ObjectMissing:
        return False


def _owner(found: tuple[Head, str] | None) -> str:
    return f"attempt {found[0].attempt} owns it" if found else "nobody claimed it"


def _fenced(run: str, attempt: int, why: str) -> Fenced:
    return Fenced(
        f"Attempt {attempt} no longer owns run {run}: {why}",
        "Stop this attempt; its uncommitted steps are trained again by the owner.",
    )


def _contended() -> StoreUnreachable:
    return StoreUnreachable(
        f"HEAD.json changed under {_MAX_ROUNDS} tries in a row",
        "Check that the store honours conditional writes (If-Match, If-None-Match).",
    )
