"""Pruning: what it keeps, what it removes, and who may do it."""

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.errors import Fenced
from checkpoints.fence import claim_attempt, commit, read_head
from checkpoints.layout import CHECKPOINTS, checkpoint_prefix, manifest_key, shard_key
from checkpoints.manifest import Head, Manifest, ObjectRecord
from checkpoints.retention import prune, surplus

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def claim(store):
    return claim_attempt(store, claimed_by="a", claimed_at=NOW, world_size=1, offer={}).attempt


def manifest(attempt, step):
    key = shard_key(step, attempt, 0, 1)
    return Manifest(
        run="r",
        attempt=attempt,
        step=step,
        parent=None,
        world_size=1,
        created_at=NOW,
        objects=(ObjectRecord(key=key, size=1),),
        tensors={},
        state={},
    )


def save(store, attempt, step):
    store.put(shard_key(step, attempt, 0, 1), b"x")
    commit(store, manifest(attempt, step))


def prune_now(store, attempt, *, keep_last=2, keep_every=None):
    head = read_head(store)[0]
    return prune(store, head=head, keep_last=keep_last, keep_every=keep_every, attempt=attempt)


def steps_left(store):
    return sorted({entry.key.split("/")[1] for entry in store.list(CHECKPOINTS)})


def test_the_last_ones_and_every_nth_stay(store):
    attempt = claim(store)
    for step in (10, 20, 30, 40, 50):
        save(store, attempt, step)
    deleted = prune_now(store, attempt, keep_every=20)
    assert deleted == ["checkpoints/step-00000010.a001", "checkpoints/step-00000030.a001"]
    assert steps_left(store) == ["step-00000020.a001", "step-00000040.a001", "step-00000050.a001"]


def test_what_a_lower_attempt_left_uncommitted_goes(store):
    save(store, claim(store), 10)
    store.put(shard_key(20, 1, 0, 1), b"no manifest")
    store.put(shard_key(30, 1, 0, 1), b"a manifest that HEAD never named")
    store.put(manifest_key(30, 1), manifest(1, 30).to_json())
    attempt = claim(store)
    save(store, attempt, 12)
    store.put(shard_key(14, attempt, 0, 1), b"this attempt's own next save")
    deleted = prune_now(store, attempt)
    assert deleted == [checkpoint_prefix(20, 1), checkpoint_prefix(30, 1)]
    left = ["step-00000010.a001", "step-00000012.a002", "step-00000014.a002"]
    assert steps_left(store) == left


def test_a_fenced_attempt_may_not_prune(memory_store):
    zombie = claim(memory_store)
    for step in (10, 20, 30):
        save(memory_store, zombie, step)
    claim(memory_store)
    before = memory_store.list("")
    with pytest.raises(Fenced):
        prune_now(memory_store, zombie, keep_last=1)
    assert memory_store.list("") == before


def test_the_manifest_goes_before_the_data(memory_store):
    class Recorder:
        def __init__(self):
            self.deleted = []

        def __getattr__(self, name):
            return getattr(memory_store, name)

        def delete(self, keys):
            keys = list(keys)
            self.deleted.append(keys)
            memory_store.delete(keys)

    attempt = claim(memory_store)
    save(memory_store, attempt, 10)
    save(memory_store, attempt, 20)
    recorder = Recorder()
    prune_now(recorder, attempt, keep_last=1)
    assert recorder.deleted == [[manifest_key(10, 1)], [shard_key(10, 1, 0, 1)]]


points = st.sets(st.tuples(st.integers(0, 30), st.integers(1, 4)), min_size=1, max_size=12)


@given(points, st.data(), st.integers(1, 4), st.none() | st.integers(1, 7))
def test_heads_target_is_never_deleted(committed, data, keep_last, keep_every):
    step, attempt = data.draw(st.sampled_from(sorted(committed)))
    head = Head(attempt=attempt, step=step, manifest=manifest_key(step, attempt))
    owner = Head(attempt=attempt + data.draw(st.integers(0, 2)), step=step, manifest=head.manifest)
    gone = surplus(committed, heads=(owner, owner), keep_last=keep_last, keep_every=keep_every)
    assert (step, attempt) not in gone
    assert gone <= committed
    if keep_every:
        assert not any(point[0] % keep_every == 0 and point[0] <= step for point in gone)
