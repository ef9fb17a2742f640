"""Pruning: what it keeps, what it removes, and who may do it."""

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.errors import Fenced, ObjectMissing
from checkpoints.fence import claim_attempt, commit, read_head
from checkpoints.history import Chain, committed_at, committed_before, whole_checkpoints
from checkpoints.layout import (
    CHECKPOINTS,
    PINS,
    attempt_key,
    checkpoint_prefix,
    manifest_key,
    pin_key,
    shard_key,
)
from checkpoints.manifest import Head, Manifest, ObjectRecord
from checkpoints.places import only
from checkpoints.retention import (
    is_left_by_lower_attempt,
    pin,
    prune,
    read_pins,
    removable,
    remove,
    surplus,
    unpin,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def claim(store):
    return claim_attempt(store, claimed_by="a", claimed_at=NOW, world_size=1, offer={}).attempt


def manifest(attempt, step, parent=None):
    key = shard_key(step, attempt, 0, 1)
    return Manifest(
        run="r",
        attempt=attempt,
        step=step,
        parent=parent,
        world_size=1,
        created_at=NOW,
        objects=(ObjectRecord(key=key, size=1),),
        tensors={},
        state={},
    )


def save(store, attempt, step):
    store.put(shard_key(step, attempt, 0, 1), b"x")
    commit(store, manifest(attempt, step, parent=read_head(store)[0].manifest))


def prune_now(store, attempt, *, keep_last=2, keep_every=None):
    return prune(only(store), keep_last=keep_last, keep_every=keep_every, attempt=attempt)


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
    store.put(shard_key(11, 1, 0, 1), b"another one, which the history has passed since")
    store.put(manifest_key(11, 1), manifest(1, 11).to_json())
    attempt = claim(store)
    save(store, attempt, 12)
    store.put(shard_key(14, attempt, 0, 1), b"this attempt's own next save")
    deleted = prune_now(store, attempt)
    assert deleted == [checkpoint_prefix(n, 1) for n in (11, 20, 30)]
    left = ["step-00000010.a001", "step-00000012.a002", "step-00000014.a002"]
    assert steps_left(store) == left


def test_head_s_parent_stays_even_where_one_is_to_be_kept(store):
    attempt = claim(store)
    for step in (10, 20, 30):
        save(store, attempt, step)
    assert prune_now(store, attempt, keep_last=1) == [checkpoint_prefix(10, attempt)]
    assert steps_left(store) == ["step-00000020.a001", "step-00000030.a001"]


def test_what_is_pinned_stays_until_it_is_unpinned(store):
    attempt = claim(store)
    for step in (10, 20, 30, 40):
        save(store, attempt, step)
    pin(store, (10, attempt))
    assert read_pins(store) == {(10, attempt)}
    assert prune_now(store, attempt) == [checkpoint_prefix(20, attempt)]
    unpin(store, (10, attempt))
    assert prune_now(store, attempt) == [checkpoint_prefix(10, attempt)]
    assert store.list(PINS) == []


def test_what_is_not_there_cannot_be_pinned(memory_store):
    attempt = claim(memory_store)
    memory_store.put(shard_key(10, attempt, 0, 1), b"no manifest")
    with pytest.raises(ObjectMissing):
        pin(memory_store, (10, attempt))
    assert read_pins(memory_store) == frozenset()


@pytest.mark.parametrize(
    ("key", "is_left"),
    [
        (shard_key(10, 2, 0, 1), True),
        (shard_key(10, 3, 0, 1), False),
        (shard_key(10, 4, 0, 1), False),
        (attempt_key(2), False),
        (pin_key(10, 2), False),
        ("checkpoints/notes.txt", False),
    ],
)
def test_only_lower_attempts_checkpoints_are_leftovers(key, is_left):
    assert is_left_by_lower_attempt(key, 3) == is_left


def test_the_last_one_from_some_steps_before_stays_for_roll_backs(store):
    attempt = claim(store)
    for step in (10, 20, 30, 40, 50):
        save(store, attempt, step)
    prune(only(store), keep_last=1, keep_every=None, keep_back=25, attempt=attempt)
    # 30 is the next that will be so old.
    assert [int(name[5:13]) for name in steps_left(store)] == [20, 30, 40, 50]


def test_with_frequent_saves_one_lives_long_enough_for_roll_backs(store):
    attempt = claim(store)
    for step in range(10, 310, 10):
        save(store, attempt, step)
        prune(only(store), keep_last=3, keep_every=None, keep_back=63, attempt=attempt)
        steps = [int(name[5:13]) for name in steps_left(store)]
        assert len(steps) <= 5
        if step > 2 * 63:
            assert any(step - 2 * 63 - 10 <= one <= step - 63 for one in steps)


def test_a_fenced_attempt_may_not_prune(memory_store):
    zombie = claim(memory_store)
    for step in (10, 20, 30):
        save(memory_store, zombie, step)
    claim(memory_store)
    before = memory_store.list("")
    with pytest.raises(Fenced):
        prune_now(memory_store, zombie, keep_last=1)
    assert memory_store.list("") == before


class Meddling:
    """A store in which something else happens just before the first delete."""

    def __init__(self, store, act):
        self._store = store
        self._acts = [act]

    def __getattr__(self, name):
        return getattr(self._store, name)

    def delete(self, keys):
        while self._acts:
            self._acts.pop()()
        self._store.delete(keys)


def test_of_two_prunes_neither_takes_what_is_pinned_meanwhile(memory_store):
    attempt = claim(memory_store)
    for step in (10, 20, 30):
        save(memory_store, attempt, step)
    places, head = only(memory_store), read_head(memory_store)[0]
    rules = {"keep_last": 1, "keep_every": None, "alive_from": attempt}
    (doomed,) = removable(places, head=head, **rules)
    pin(memory_store, doomed.point)
    data = memory_store.get(manifest_key(*doomed.point)).data
    memory_store.delete([manifest_key(*doomed.point)])  # the other prune is at work
    assert not remove(places, doomed)
    memory_store.create(manifest_key(*doomed.point), data)  # and has seen the pin
    assert memory_store.get(shard_key(*doomed.point, 0, 1)).data == b"x"


def test_a_checkpoint_that_is_pinned_while_it_is_pruned_stays_whole(memory_store):
    attempt = claim(memory_store)
    for step in (10, 20, 30, 40):
        save(memory_store, attempt, step)
    before = memory_store.get(manifest_key(10, attempt)).data
    meddling = Meddling(memory_store, lambda: pin(memory_store, (10, attempt)))
    assert prune_now(meddling, attempt) == [checkpoint_prefix(20, attempt)]
    assert memory_store.get(manifest_key(10, attempt)).data == before
    assert memory_store.list(shard_key(10, attempt, 0, 1))


def test_what_head_names_stays_even_without_its_manifest(memory_store):
    attempt = claim(memory_store)
    for step in (10, 20):
        save(memory_store, attempt, step)
    memory_store.delete([manifest_key(10, attempt), manifest_key(20, attempt)])
    assert prune_now(memory_store, claim(memory_store), keep_last=1) == []
    assert steps_left(memory_store) == ["step-00000010.a001", "step-00000020.a001"]


def test_a_step_names_what_was_committed_and_not_what_lost_its_commit(memory_store):
    first = claim(memory_store)
    save(memory_store, first, 10)
    second = claim(memory_store)
    for step in (12, 14):
        save(memory_store, second, step)
    for stray in (12, 13):
        memory_store.put(manifest_key(stray, 9), manifest(9, stray).to_json())
    assert committed_at(memory_store, 12) == (12, second)
    assert committed_at(memory_store, 13) is None
    assert committed_at(memory_store, 10) == (10, first)
    memory_store.delete([manifest_key(12, second)])  # pruned: 10 was kept by another rule
    assert committed_at(memory_store, 10) == (10, first)


def test_a_save_that_lost_its_commit_is_gone_before_it_can_look_like_history(memory_store):
    attempt = claim(memory_store)
    for step in (2, 4):
        save(memory_store, attempt, step)
    memory_store.put(manifest_key(6, attempt), manifest(attempt, 6).to_json())
    for step in (8, 10, 12, 14):
        save(memory_store, attempt, step)
        prune_now(memory_store, attempt, keep_last=3, keep_every=6)
    assert [one[5:13] for one in steps_left(memory_store)] == ["00000010", "00000012", "00000014"]
    assert committed_at(memory_store, 6) is None


def test_before_the_first_commit_there_is_no_history(memory_store):
    attempt = claim(memory_store)
    save(memory_store, attempt, 2)
    memory_store.put(manifest_key(1, attempt), manifest(attempt, 1).to_json())
    assert committed_at(memory_store, 1) is None
    assert committed_at(memory_store, 2) == (2, attempt)


def test_a_pruned_step_is_not_found(memory_store):
    attempt = claim(memory_store)
    for step in (2, 4, 6, 8):
        save(memory_store, attempt, step)
    memory_store.delete([manifest_key(4, attempt)])
    assert committed_at(memory_store, 4) is None
    assert committed_at(memory_store, 2) == (2, attempt)


def test_one_step_can_be_committed_twice_in_two_places(memory_store):
    first = claim(memory_store)
    for step in (2, 4):
        save(memory_store, first, step)
    second = claim(memory_store)
    save(memory_store, second, 4)
    assert committed_before((4, second), whole_checkpoints(memory_store)) == [(4, 1), (2, 1)]


def test_behind_the_end_of_the_chain_a_manifest_that_a_later_attempt_passed_is_no_history(
    memory_store,
):
    first = claim(memory_store)
    for step in (2, 4):
        save(memory_store, first, step)
    second = claim(memory_store)
    save(memory_store, second, 6)
    memory_store.put(manifest_key(9, first), manifest(first, 9).to_json())  # a zombie's
    for step in (8, 10, 12):
        save(memory_store, second, step)
    memory_store.delete([manifest_key(10, second)])
    whole = whole_checkpoints(memory_store)
    assert committed_before((10, second), whole) == [(8, 2), (6, 2), (4, 1), (2, 1)]
    assert committed_at(memory_store, 9) is None


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
    save(memory_store, attempt, 30)
    recorder = Recorder()
    prune_now(recorder, attempt, keep_last=1)
    assert recorder.deleted == [[manifest_key(10, 1)], [shard_key(10, 1, 0, 1)]]


points = st.sets(st.tuples(st.integers(0, 30), st.integers(1, 4)), min_size=1, max_size=12)


@st.composite
def histories(draw):
    """Return whole checkpoints, those of them that were committed in turn, and HEAD.

    An attempt saves only behind what was committed when it took over.
    """
    whole = draw(points)
    committed = []
    for step, attempt in sorted(draw(st.sets(st.sampled_from(sorted(whole)), min_size=1))):
        if not committed or (step > committed[-1][0] and attempt >= committed[-1][1]):
            committed.append((step, attempt))
    whole = {
        point for point in whole if all(point[0] >= c[0] for c in committed if c[1] < point[1])
    }
    names = [None, *(manifest_key(*point) for point in committed)]
    step, attempt = committed[-1]
    owner = attempt + draw(st.integers(0, 4))
    return (
        whole,
        committed,
        Head(attempt=owner, step=step, manifest=names[-1], parent=names[-2]),
    )


def chain_of(committed, torn=frozenset()):
    points = []
    for point in reversed(committed):
        if point in torn:
            return Chain(points=tuple(points), end=point)
        points.append(point)
    return Chain(points=tuple(points), end=None)


@given(histories(), st.data(), st.integers(1, 4), st.none() | st.integers(1, 7))
def test_head_its_parent_pins_and_what_the_rules_keep_are_never_deleted(
    history, data, keep_last, keep_every
):
    whole, committed, head = history
    pinned = data.draw(st.sets(st.sampled_from(sorted(whole))))
    torn = data.draw(st.sets(st.sampled_from(sorted(whole))))  # their manifests are gone
    chain = chain_of(committed, torn)
    gone = surplus(
        whole,
        whole=whole - torn,
        head=head,
        chain=chain,
        keep_last=keep_last,
        keep_every=keep_every,
        alive_from=head.attempt + data.draw(st.integers(0, 1)),
        pinned=pinned,
    )
    assert len(gone) == len({*gone})
    assert {*gone} <= whole - pinned - {*committed[-2:]}
    assert {*gone}.isdisjoint(chain.points[:keep_last])
    if keep_every:
        kept = {point for point in committed if point[0] % keep_every == 0}
        assert {*gone}.isdisjoint(kept - torn)


@given(histories(), st.integers(1, 4))
def test_no_more_stays_than_the_rules_keep(history, keep_last):
    whole, committed, head = history
    gone = surplus(
        whole,
        whole=whole,
        head=head,
        chain=chain_of(committed),
        keep_last=keep_last,
        keep_every=None,
        alive_from=head.attempt,
    )
    of_owner = {point for point in whole if point[1] >= head.attempt and point[0] > head.step}
    if committed[-1][1] < head.attempt:  # it may have gone back and be anywhere
        of_owner = {point for point in whole if point[1] >= head.attempt}
    assert whole - {*gone} <= {*committed[-max(keep_last, 2) :]} | of_owner | {
        point for point in whole if point[1] > committed[-1][1] and point[1] >= head.attempt
    }
    strays = [point for point in gone if point not in committed]
    assert gone[: len(strays)] == strays  # first
