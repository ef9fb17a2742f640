"""The contract of every store; the same tests for all of them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from checkpoints.errors import (
    Damaged,
    ObjectExists,
    ObjectMissing,
    StoreUnreachable,
    UnsupportedStore,
    VersionMismatch,
)
from checkpoints.store import open_store
from tests.checkpoints.saving import read_range


def race(number, act):
    """Run `act(i)` in all threads at once and return what each returned or raised."""
    barrier = threading.Barrier(number)

    def run(index):
        barrier.wait()
        try:
            return act(index)
        except (ObjectExists, VersionMismatch) as error:
            return error

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number)))


def winners(outcomes):
    return [index for index, outcome in enumerate(outcomes) if isinstance(outcome, str)]


def test_put_then_get_returns_the_bytes(store):
    store.put("a/b.json", b"one")
    assert store.get("a/b.json").data == b"one"


def test_put_overwrites(store):
    store.put("a", b"one")
    store.put("a", b"three")
    assert store.get("a").data == b"three"


def test_put_accepts_every_buffer(store):
    for data in (b"abc", bytearray(b"abc"), memoryview(b"abc")):
        store.put("a", data)
        assert store.get("a").data == b"abc"


def test_put_joins_an_iterable(store):
    store.put("a", iter([b"ab", memoryview(b"cd"), b"", bytearray(b"e")]))
    assert store.get("a").data == b"abcde"


def test_put_of_nothing_makes_an_empty_object(store):
    store.put("a", iter([]))
    assert store.get("a").data == b""


def test_put_streams_more_than_one_part(store):
    pieces = [bytes([index]) * (5 << 20) for index in range(8)]
    store.put("large", (memoryview(piece) for piece in pieces))
    assert [entry.size for entry in store.list("large")] == [40 << 20]
    for index, piece in enumerate(pieces):
        assert read_range(store, "large", index * (5 << 20), 5 << 20) == piece


@pytest.mark.parametrize("num_bytes", [10, 40 << 20])
def test_a_put_whose_source_fails_leaves_the_old_object(store, num_bytes):
    def source():
        for _ in range(10):
            yield b"x" * (num_bytes // 10)
        raise RuntimeError("the source broke")

    store.put("a", b"old")
    with pytest.raises(RuntimeError, match="the source broke"):
        store.put("a", source())
    assert store.get("a").data == b"old"
    assert [entry.key for entry in store.list("")] == ["a"]


def test_absent_objects_are_missing(store):
    store.put("a/b", b"x")
    for key in ("a", "a/c", "b", "a/b/c"):
        with pytest.raises(ObjectMissing):
            store.get(key)
        with pytest.raises(ObjectMissing):
            read_range(store, key, 0, 1)


def test_a_range_returns_exactly_those_bytes(store):
    store.put("a", b"0123456789")
    assert read_range(store, "a", 3, 4) == b"3456"
    assert read_range(store, "a", 10, 0) == b""


def test_a_range_is_scattered_over_the_buffers(store):
    store.put("a", b"0123456789")
    memory = bytearray(b"..........")
    view = memoryview(memory)
    store.read_into("a", 2, [view[5:7], view[:0], view[:3], view[9:]])
    assert memory == b"456..23..7"


@pytest.mark.parametrize(("start", "length"), [(8, 3), (10, 1), (20, 5)])
def test_a_range_behind_the_end_is_damage(store, start, length):
    store.put("a", b"0123456789")
    with pytest.raises(Damaged, match=r"a is \d+ bytes too short"):
        read_range(store, "a", start, length)


def test_create_refuses_an_existing_object(store):
    store.create("a", b"one")
    with pytest.raises(ObjectExists):
        store.create("a", b"one")
    assert store.get("a").data == b"one"


def test_versions_chain_from_create_through_replace(store):
    version = store.create("a", b"one")
    assert store.get("a").version == version
    version = store.replace("a", b"two", version)
    assert store.get("a").version == version
    store.replace("a", b"three", version)
    assert store.get("a").data == b"three"


def test_replace_refuses_an_old_version(store):
    old = store.create("a", b"one")
    store.replace("a", b"two", old)
    with pytest.raises(VersionMismatch):
        store.replace("a", b"three", old)
    assert store.get("a").data == b"two"


def test_replace_refuses_an_absent_object(store):
    version = store.create("a", b"one")
    store.delete(["a"])
    with pytest.raises(VersionMismatch):
        store.replace("a", b"two", version)
    assert store.list("") == []


def test_list_is_sorted_and_takes_partial_names(store):
    for key in ("b/2", "b/10", "b-1", "a/x/y", "b/2.json"):
        store.put(key, b"xyz")
    assert [entry.key for entry in store.list("")] == ["a/x/y", "b-1", "b/10", "b/2", "b/2.json"]
    assert [entry.key for entry in store.list("b/")] == ["b/10", "b/2", "b/2.json"]
    assert [entry.key for entry in store.list("b/2")] == ["b/2", "b/2.json"]
    assert [entry.key for entry in store.list("b")] == ["b-1", "b/10", "b/2", "b/2.json"]
    assert store.list("c") == []
    assert store.list("a/x/y/z") == []
    assert {entry.size for entry in store.list("")} == {3}
    assert all(entry.modified_at.tzinfo for entry in store.list(""))


def test_folders_are_listed_without_what_is_below_them(store):
    assert store.list_folders() == []
    for key in ("b/2", "b/10/x", "b-1", "a/x/y", "c.json"):
        store.put(key, b"xyz")
    assert store.list_folders() == ["a", "b"]


def test_list_passes_a_thousand_objects(memory_store):
    for index in range(1005):
        memory_store.put(f"a/{index:04d}", b"")
    assert [entry.key for entry in memory_store.list("a/")] == [f"a/{i:04d}" for i in range(1005)]


def test_delete_ignores_absent_objects(store):
    store.put("a/b", b"x")
    store.put("a/c", b"x")
    store.delete(["a/b", "nope", "a/b"])
    store.delete([])
    assert [entry.key for entry in store.list("")] == ["a/c"]


def test_an_absent_object_keeps_no_other_from_being_deleted(store):
    keys = [f"a/{index}" for index in range(30)]
    for key in keys:
        store.put(key, b"x")
    store.delete(["nope", *keys[:15], "nope", *keys[15:]])
    assert store.list("") == []


def test_a_deleted_key_can_be_created_again(store):
    store.create("a/b", b"one")
    store.delete(["a/b"])
    store.create("a/b", b"two")
    assert store.get("a/b").data == b"two"


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/./b", ".locks", "a\nb", "a\\b", "a?b"]
)
def test_keys_that_are_no_plain_paths_are_refused(store, key):
    for act in (store.get, lambda key: store.put(key, b""), lambda key: store.delete([key])):
        with pytest.raises(ValueError, match="is not a key"):
            act(key)


def test_keys_may_hold_spaces_and_letters_of_any_script(store):
    key = "inputs/ab/Größe (1) ünï=+@,;:!&$'.json"
    store.put(key, b"x")
    assert store.get(key).data == b"x"
    assert [entry.key for entry in store.list("inputs/ab/Gr")] == [key]


def test_the_url_opens_the_same_store_again(store):
    store.put("a/b", b"x")
    again = open_store(store.url)
    assert again.get("a/b").data == b"x"
    assert again.url == store.url


def test_one_of_32_creators_wins(store):
    outcomes = race(32, lambda index: store.create("attempts/1", b"by %d" % index))
    assert len(winners(outcomes)) == 1
    assert store.get("attempts/1").data == b"by %d" % winners(outcomes)[0]


def test_one_of_16_replacers_wins(store):
    version = store.create("HEAD", b"start")
    outcomes = race(16, lambda index: store.replace("HEAD", b"by %d" % index, version))
    assert len(winners(outcomes)) == 1
    assert store.get("HEAD").data == b"by %d" % winners(outcomes)[0]


def test_readers_never_see_half_of_a_put(store):
    store.put("a", b"0" * 100_000)
    stop = threading.Event()

    def read():
        seen = set()
        while not stop.is_set():
            seen.add(store.get("a").data)
        return seen

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for index in range(20):
            store.put("a", bytes([48 + index % 10]) * 100_000)
        stop.set()
    assert all(len(data) == 100_000 and len(set(data)) == 1 for data in reading.result())


@pytest.mark.parametrize("url", ["ftp://b/x", "file://host/x", "s3://", "folder", "file:x", ""])
def test_unknown_urls_are_refused_with_what_to_use(url):
    with pytest.raises(UnsupportedStore) as caught:
        open_store(url)
    assert "file:///" in caught.value.next_step


def test_a_server_that_is_not_there_is_unreachable(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    store = open_store("s3://bucket/run")
    for act in (lambda: store.get("a"), lambda: store.create("a", b"x")):
        with pytest.raises(StoreUnreachable) as caught:
            act()
        assert "AWS_ENDPOINT_URL" in caught.value.next_step
