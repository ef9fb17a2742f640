"""Who owns the run, and which checkpoint is the last: the only code that moves HEAD.json.

Every write here is conditional. One whose reply was lost is settled by reading back.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
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
) -> Claim:
    """Take the next attempt number; from here on every earlier attempt's commit fails."""
    number = 0
    for _ in range(_MAX_ROUNDS):
        found = read_head(store)
        head = found[0] if found else None
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
        moved = Head(attempt=number, step=claim.step, manifest=claim.parent)
        if _move_head(store, moved, found[1] if found else None):
            return claim
    raise _contended()


def commit(store: ObjectStore, manifest: Manifest) -> Head:
    """Make a complete checkpoint the last one and return the new HEAD; raise Fenced.

    Its objects must be stored already. Committing the same manifest again changes nothing.
    """
    moved = Head(attempt=manifest.attempt, step=manifest.step, manifest=manifest.key)
    is_stored = False
    for _ in range(_MAX_ROUNDS):
        head, version = _owned_head(store, manifest)
        if not is_stored:
            _create_manifest(store, manifest)
            is_stored = True
        if head == moved or _move_head(store, moved, version):
            return moved
    raise _contended()


def _owned_head(store: ObjectStore, manifest: Manifest) -> tuple[Head, str]:
    found = read_head(store)
    if found is None or found[0].attempt != manifest.attempt:
        owner = f"attempt {found[0].attempt} owns it" if found else "nobody claimed it"
        raise _fenced(manifest, owner)
    if found[0].step > manifest.step:
        raise RecordInvalid(
            f"Step {manifest.step} cannot follow step {found[0].step}, which is committed",
            "Resume from the checkpoint that HEAD.json names.",
        )
    return found


def _create_manifest(store: ObjectStore, manifest: Manifest) -> None:
    if not _create(store, manifest.key, manifest.to_json()):
        raise _fenced(manifest, f"{manifest.key} holds another checkpoint")


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


def _fenced(manifest: Manifest, why: str) -> Fenced:
    return Fenced(
        f"Attempt {manifest.attempt} no longer owns run {manifest.run}: {why}",
        "Stop this attempt; its uncommitted steps are trained again by the owner.",
    )


def _contended() -> StoreUnreachable:
    return StoreUnreachable(
        f"HEAD.json changed under {_MAX_ROUNDS} tries in a row",
        "Check that the store honours conditional writes (If-Match, If-None-Match).",
    )
