"""The probe of conditional writes: which stores it lets through, and what it leaves behind."""

import threading

import pytest

from checkpoints.errors import ObjectExists, UnfitStore, VersionMismatch
from checkpoints.probe import check_conditional_writes
from checkpoints.store import changed, exists


class Passing:
    """Pass everything on; each kind below breaks one thing."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def _overwrite(self, key, data):
        self._store.put(key, data)
        return self._store.get(key).version


class CreatesOverObjects(Passing):
    def create(self, key, data):
        return self._overwrite(key, data)


class ReplacesAnyVersion(Passing):
    def replace(self, key, data, version):
        return self._overwrite(key, data)


class ReplacesNothing(Passing):
    def replace(self, key, data, version):
        raise changed(key)


class WritesWhatItRefuses(Passing):
    def create(self, key, data):
        try:
            return self._store.create(key, data)
        except ObjectExists:
            self._store.put(key, data)
            raise


class EachThreadCreates(Passing):
    """A thread is refused what it created itself, and does not see what others create meanwhile."""

    def __init__(self, store):
        super().__init__(store)
        self._own = threading.local()

    def create(self, key, data):
        if self._is_own(key):
            raise exists(key)
        return self._overwrite(key, data)

    def _is_own(self, thing):
        own = self._own.__dict__.setdefault("things", set())
        return thing in own or own.add(thing)


class EachThreadReplaces(EachThreadCreates):
    """A thread is refused only a version that it replaced itself."""

    def create(self, key, data):
        return self._store.create(key, data)

    def replace(self, key, data, version):
        if self._is_own((key, version)):
            raise changed(key)
        return self._overwrite(key, data)


class LosesTheWinner(Passing):
    """One creator wins, and then somebody who was refused writes."""

    def __init__(self, store):
        super().__init__(store)
        self._main = threading.current_thread()

    def create(self, key, data):
        try:
            return self._store.create(key, data)
        except ObjectExists:
            if threading.current_thread() is not self._main:
                self._store.put(key, data)
            raise


def test_stores_that_honour_conditions_pass_and_keep_nothing_of_it(store):
    check_conditional_writes(store)
    assert store.list("") == []


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (CreatesOverObjects, "overwrote an object that was only to be created"),
        (ReplacesAnyVersion, "replaced a version that it no longer had"),
        (ReplacesNothing, "refused to replace the version that it had"),
        (WritesWhatItRefuses, "refused to replace the version that it had"),
        (EachThreadCreates, "8 of 8 concurrent writers won"),
        (EachThreadReplaces, "8 of 8 concurrent writers won"),
        (LosesTheWinner, "a writer that was refused overwrote the one that won"),
    ],
)
def test_a_store_that_breaks_one_condition_is_unfit_and_keeps_nothing_of_it(
    memory_store, kind, why
):
    with pytest.raises(UnfitStore, match=why) as caught:
        check_conditional_writes(kind(memory_store))
    assert memory_store.url in str(caught.value)
    assert memory_store.list("") == []


def test_a_reply_lost_within_the_client_does_not_make_a_store_unfit(memory_store):
    class Retrying(Passing):
        """The first try of every write succeeds and loses its reply; the second is refused."""

        def create(self, key, data):
            self._store.create(key, data)
            return self._store.create(key, data)

        def replace(self, key, data, version):
            self._store.replace(key, data, version)
            return self._store.replace(key, data, version)

    with pytest.raises(ObjectExists):
        Retrying(memory_store).create("a", b"x")
    with pytest.raises(VersionMismatch):
        Retrying(memory_store).replace("a", b"y", memory_store.get("a").version)
    memory_store.delete(["a"])
    check_conditional_writes(Retrying(memory_store))
    assert memory_store.list("") == []
