"""Many small objects are got at once, in order, whatever vanishes meanwhile."""

from __future__ import annotations

import secrets
import threading

import pytest

from checkpoints.errors import StoreUnreachable
from checkpoints.store import StoredObject, open_store
from orchestrator.ledger.fetching import fetch


class SlowStore:
    """Answers when so many ask at once; each get of a bucket takes 20 ms."""

    url = "s3://bucket/runs"

    def __init__(self, num_at_once: int) -> None:
        self._waiting = threading.Barrier(num_at_once, timeout=30)

    def get(self, key: str) -> StoredObject:
        self._waiting.wait()
        return StoredObject(data=key.encode(), version="1")


@pytest.mark.parametrize("num_keys", [0, 1, 40])
def test_objects_come_in_the_order_asked_for_and_none_for_what_is_gone(num_keys):
    store = open_store(f"memory://{secrets.token_hex(8)}")
    keys = [f"a/{number}" for number in range(num_keys)]
    for key in keys:
        store.put(key, key.encode())
    wanted = [*reversed(keys), "gone"]
    assert list(fetch(store, wanted)) == [
        *((key, key.encode()) for key in wanted[:-1]),
        ("gone", None),
    ]


def test_a_store_is_asked_for_several_at_once():
    found = list(fetch(SlowStore(num_at_once=8), [str(number) for number in range(8)]))
    assert [key for key, _ in found] == [str(number) for number in range(8)]


def test_a_store_that_fails_is_told_as_such():
    class Away:
        url = "s3://bucket/runs"

        def get(self, key: str) -> StoredObject:
            raise StoreUnreachable("The bucket does not answer.", "Check the network.")

    with pytest.raises(StoreUnreachable):
        list(fetch(Away(), [str(number) for number in range(20)]))
