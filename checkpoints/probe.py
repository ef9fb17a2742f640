"""Find out whether a store honours conditional writes, on which every commit and fence rests."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from checkpoints.errors import ObjectExists, StoreError, UnfitStore, VersionMismatch
from checkpoints.store import ObjectStore

# SeaweedFS 4.16 refused the second of two creators, but let all concurrent ones win.
_NUM_RACERS = 8


def check_conditional_writes(store: ObjectStore) -> None:
    """Write a few small objects under names of their own, and remove them again.

    That the client's retry after a lost reply is refused, is no fault.

    Raises:
        UnfitStore: the store let a write through that it had to refuse, or the other way round.
        StoreRefused, StoreUnreachable: it did not get that far.
    """
    key = f"probes/{secrets.token_hex(8)}"
    keys = [f"{key}/{name}" for name in ("turn", "create", "replace")]
    turn, create, replace = keys
    try:
        _check_turns(store, turn)
        _check_race(store, create, lambda data: store.create(create, data))
        with suppress(ObjectExists):
            store.create(replace, b"start")
        start = store.get(replace).version
        _check_race(store, replace, lambda data: store.replace(replace, data, start))
    finally:
        with suppress(StoreError):  # what went wrong before tells more
            store.delete(keys)


def _check_turns(store: ObjectStore, key: str) -> None:
    """Write one after the other."""
    with suppress(ObjectExists):
        store.create(key, b"first")
    first = store.get(key)
    if first.data != b"first":
        raise _unfit(store, "an object that was just written reads otherwise")
    if _is_done(lambda: store.create(key, b"second")):
        raise _unfit(store, "it overwrote an object that was only to be created")
    with suppress(VersionMismatch):
        store.replace(key, b"third", first.version)
    if store.get(key).data != b"third":
        raise _unfit(store, "it refused to replace the version that it had")
    if _is_done(lambda: store.replace(key, b"fourth", first.version)):
        raise _unfit(store, "it replaced a version that it no longer had")


def _check_race(store: ObjectStore, key: str, write: Callable[[bytes], object]) -> None:
    start = threading.Barrier(_NUM_RACERS)

    def run(data: bytes) -> bool:
        start.wait()
        return _is_done(lambda: write(data))

    racers = [b"%d" % number for number in range(_NUM_RACERS)]
    with ThreadPoolExecutor(_NUM_RACERS) as pool:
        winners = [data for data, won in zip(racers, pool.map(run, racers), strict=True) if won]
    if len(winners) > 1:
        raise _unfit(store, f"{len(winners)} of {_NUM_RACERS} concurrent writers won")
    if winners and store.get(key).data != winners[0]:
        raise _unfit(store, "a writer that was refused overwrote the one that won")


def _is_done(write: Callable[[], object]) -> bool:
    try:
        write()
    except (ObjectExists, VersionMismatch):
        return False
    return True


def _unfit(store: ObjectStore, why: str) -> UnfitStore:
    return UnfitStore(
        f"{store.url} does not honour conditional writes: {why}",
        "Use Amazon S3, Google Cloud Storage, Azure, SeaweedFS 4.48, or a folder.",
    )
