"""Where a run's bytes lie: records in one store, objects of checkpoints near who wrote them.

HEAD, claims and manifests never move. An attempt in another region writes its objects to a store
there, and its manifests say so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from checkpoints.errors import BucketMissing, StoreError
from checkpoints.store import ObjectEntry, ObjectStore, open_store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Objects by their stores, one store after the other; and the URLs of those that answered."""

    found: tuple[tuple[ObjectStore, ObjectEntry], ...]
    answered: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The stores of a run: of its records, of the objects to come, and of older objects."""

    records: ObjectStore
    objects: ObjectStore
    others: tuple[ObjectStore, ...] = ()

    @property
    def objects_url(self) -> str | None:
        """Return what manifests say of where their objects are; None: beside the records."""
        return None if self.objects.url == self.records.url else self.objects.url

    @property
    def stores(self) -> tuple[ObjectStore, ...]:
        """Return each store once."""
        by_url = {store.url: store for store in (*self.others, self.objects, self.records)}
        return tuple(by_url.values())

    def look(self, prefix: str) -> Look:
        """Return every object with that prefix, and its store.

        A store of older objects that does not answer is left out: what lies there can wait.
        """
        found: list[tuple[ObjectStore, ObjectEntry]] = []
        answered = set()
        for store in self.stores:
            try:
                found += ((store, entry) for entry in store.list(prefix))
            except StoreError as error:
                if store in (self.records, self.objects):
                    raise
                if not isinstance(error, BucketMissing):
                    log.warning("%s was left out: %s", store.url, error)
                    continue
            answered.add(store.url)
        return Look(found=tuple(found), answered=frozenset(answered))


def only(store: ObjectStore) -> Places:
    """Return the places of a run that keeps all in one store."""
    return Places(records=store, objects=store)


def open_places(records: str, objects: str, others: Sequence[str]) -> Places:
    """Open the stores; one of older objects that cannot be opened is left out."""
    records_store = open_store(records)
    return Places(
        records=records_store,
        objects=records_store if objects == records else open_store(objects),
        others=tuple(_open(others)),
    )


def _open(urls: Sequence[str]) -> Iterator[ObjectStore]:
    for url in urls:
        try:
            yield open_store(url)
        except StoreError as error:
            log.warning("%s was left out: %s", url, error)
