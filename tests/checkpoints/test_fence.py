"""Claims and commits: one owner at a time, and HEAD always names a whole checkpoint."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import pytest

from checkpoints import layout
from checkpoints.errors import Fenced, RecordInvalid, StoreUnreachable
from checkpoints.fence import claim_attempt, commit, parent_of, read_head, rewind
from checkpoints.manifest import Claim, Head, Manifest

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def claim(store):
    """Claim as agents do that differ in nothing."""
    return claim_attempt(
        store, claimed_by="agent", claimed_at=NOW, world_size=2, offer={"cloud": "local"}
    )


def manifest(attempt, step, **changes):
    fields = {
        "run": "r",
        "attempt": attempt,
        "step": step,
        "parent": None,
        "world_size": 1,
        "created_at": NOW,
        "objects": (),
        "tensors": {},
        "state": {},
    }
    return Manifest(**{**fields, **changes})


class LossyStore:
    """Do one chosen write and lose its reply, or lose the request; pass on everything else."""

    def __init__(self, store, *, fail_at, happens):
        self._store = store
        self._fail_at = fail_at
        self._happens = happens
        self.num_writes = 0
        self.has_failed = False

    def __getattr__(self, name):
        return getattr(self._store, name)

    def create(self, *args):
        return self._write(self._store.create, args)

    def replace(self, *args):
        return self._write(self._store.replace, args)

    def _write(self, write, args):
        self.num_writes += 1
        if self.num_writes != self._fail_at:
            return write(*args)
        self.has_failed = True
        if self._happens:
            write(*args)
        raise StoreUnreachable("the reply was lost", "Read it back.")


def test_the_first_claim_is_attempt_1_at_step_0(store):
    assert read_head(store) is None
    claimed = claim(store)
    assert (claimed.attempt, claimed.step, claimed.parent) == (1, 0, None)
    assert read_head(store)[0] == Head(attempt=1, step=0, manifest=None)
    assert Claim.from_json(store.get(layout.attempt_key(1)).data) == claimed


def test_a_claim_takes_over_the_last_commit(store):
    claim(store)
    commit(store, manifest(1, 10))
    claimed = claim(store)
    assert (claimed.attempt, claimed.step, claimed.parent) == (2, 10, layout.manifest_key(10, 1))
    assert read_head(store)[0] == Head(attempt=2, step=10, manifest=layout.manifest_key(10, 1))


def test_a_number_that_a_dead_claimer_took_is_skipped(store):
    claim(store)
    for number in (2, 3):
        store.create(layout.attempt_key(number), b"by a claimer that died before moving HEAD")
    assert claim(store).attempt == 4
    assert read_head(store)[0].attempt == 4


def test_a_claimer_that_stood_still_leaves_the_run_to_who_took_its_place(store):
    claim(store)
    answers = iter([False, True])

    class Later:
        """A store in which another claims while this claimer stands before its swap of HEAD."""

        def __getattr__(self, name):
            return getattr(store, name)

        def replace(self, key, data, version):
            claim(store)
            return store.replace(key, data, version)

    with pytest.raises(Fenced, match="is over and may not claim"):
        claim_attempt(
            Later(),
            claimed_by="an old launch",
            claimed_at=NOW,
            world_size=1,
            offer={},
            is_superseded=lambda: next(answers),
        )
    assert Claim.from_json(store.get(layout.attempt_key(3)).data).claimed_by != "an old launch"
    assert read_head(store)[0].attempt == 3


def test_eight_claimers_get_eight_numbers_and_head_has_the_highest(store):
    barrier = threading.Barrier(8)

    def run(_):
        barrier.wait()
        return claim(store).attempt

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(run, range(8)))
    assert len(set(numbers)) == 8
    assert read_head(store)[0].attempt == max(numbers)


def test_a_commit_moves_head(store):
    claim(store)
    head = commit(store, manifest(1, 10))
    assert head == Head(attempt=1, step=10, manifest=layout.manifest_key(10, 1))
    assert read_head(store)[0] == head
    assert Manifest.from_json(store.get(head.manifest).data) == manifest(1, 10)


def test_a_commit_can_be_repeated(store):
    claim(store)
    commit(store, manifest(1, 10))
    assert commit(store, manifest(1, 10)) == read_head(store)[0]


def test_a_zombie_s_commit_is_fenced_and_leaves_head_alone(store):
    claim(store)
    commit(store, manifest(1, 10))
    claim(store)
    before = store.get(layout.HEAD_KEY)
    with pytest.raises(Fenced, match="attempt 2 owns it"):
        commit(store, manifest(1, 20))
    assert store.get(layout.HEAD_KEY) == before
    commit(store, manifest(2, 11, parent=layout.manifest_key(10, 1)))


def test_a_commit_without_a_claim_is_fenced(memory_store):
    with pytest.raises(Fenced, match="nobody claimed it"):
        commit(memory_store, manifest(1, 10))
    assert memory_store.list("") == []


def test_another_manifest_under_the_owner_s_key_is_refused_but_does_not_fence_it(
    memory_store,
):
    claim(memory_store)
    commit(memory_store, manifest(1, 10))
    with pytest.raises(RecordInvalid, match="holds another checkpoint"):
        commit(memory_store, manifest(1, 10, state={"other": True}))
    assert read_head(memory_store)[0].step == 10


def test_head_never_moves_to_an_earlier_step(memory_store):
    claim(memory_store)
    commit(memory_store, manifest(1, 10))
    with pytest.raises(RecordInvalid, match="Step 9 cannot follow step 10"):
        commit(memory_store, manifest(1, 9, parent=layout.manifest_key(10, 1)))
    assert read_head(memory_store)[0].step == 10


def test_a_commit_follows_the_last_one_and_no_other(memory_store):
    claim(memory_store)
    commit(memory_store, manifest(1, 10))
    with pytest.raises(RecordInvalid, match=r"follows None, but .*step-00000010\.a001"):
        commit(memory_store, manifest(1, 20))
    head = commit(memory_store, manifest(1, 20, parent=layout.manifest_key(10, 1)))
    assert (head.step, head.parent) == (20, layout.manifest_key(10, 1))
    assert read_head(memory_store)[0] == head


def test_what_a_manifest_follows_is_the_same_before_and_after_its_commit(memory_store):
    claim(memory_store)
    commit(memory_store, manifest(1, 10))
    asked = {"run": "r", "attempt": 1, "key": layout.manifest_key(20, 1)}
    assert parent_of(memory_store, **asked) == layout.manifest_key(10, 1)
    commit(memory_store, manifest(1, 20, parent=layout.manifest_key(10, 1)))
    assert parent_of(memory_store, **asked) == layout.manifest_key(10, 1)
    claim(memory_store)
    with pytest.raises(Fenced):
        parent_of(memory_store, **asked)


def test_the_owner_can_go_back_to_an_earlier_checkpoint_and_nobody_else(store):
    claim(store)
    first = manifest(1, 10)
    commit(store, first)
    commit(store, manifest(1, 20, parent=first.key))
    claim(store)
    with pytest.raises(Fenced, match="attempt 2 owns it"):
        rewind(store, run="r", attempt=1, to=first)
    head = rewind(store, run="r", attempt=2, to=first)
    assert (head.attempt, head.step, head.manifest, head.parent) == (2, 10, first.key, None)
    assert rewind(store, run="r", attempt=2, to=first) == read_head(store)[0] == head
    commit(store, manifest(2, 20, parent=first.key))
    assert rewind(store, run="r", attempt=2, to=None).manifest is None
    assert claim(store).parent is None


@pytest.mark.parametrize("happens", [True, False])
def test_a_way_back_whose_reply_was_lost_is_settled(memory_store, happens):
    claim(memory_store)
    first = manifest(1, 10)
    commit(memory_store, first)
    commit(memory_store, manifest(1, 20, parent=first.key))
    lossy = LossyStore(memory_store, fail_at=1, happens=happens)
    if happens:
        rewind(lossy, run="r", attempt=1, to=first)
    else:
        with pytest.raises(StoreUnreachable):
            rewind(lossy, run="r", attempt=1, to=first)
    assert read_head(memory_store)[0].step == (10 if happens else 20)


@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_claim_whose_reply_was_lost_still_counts(memory_store, fail_at):
    claim(memory_store)
    lossy = LossyStore(memory_store, fail_at=fail_at, happens=True)
    assert claim(lossy).attempt == 2
    assert lossy.has_failed
    assert read_head(memory_store)[0].attempt == 2


@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_commit_whose_reply_was_lost_still_counts(memory_store, fail_at):
    claim(memory_store)
    lossy = LossyStore(memory_store, fail_at=fail_at, happens=True)
    commit(lossy, manifest(1, 10))
    assert lossy.has_failed
    assert read_head(memory_store)[0].step == 10


@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_write_that_never_happened_is_reported_and_can_be_retried(memory_store, fail_at):
    claim(memory_store)
    with pytest.raises(StoreUnreachable):
        commit(LossyStore(memory_store, fail_at=fail_at, happens=False), manifest(1, 10))
    assert read_head(memory_store)[0].step == 0
    assert commit(memory_store, manifest(1, 10)) == read_head(memory_store)[0]
    with pytest.raises(StoreUnreachable):
        claim(LossyStore(memory_store, fail_at=fail_at, happens=False))
    assert claim(memory_store).attempt == 1 + fail_at


def test_a_race_of_commit_and_claim_has_one_outcome(store):
    claim(store)
    commit(store, manifest(1, 10))
    barrier = threading.Barrier(2)

    def zombie():
        barrier.wait()
        try:
            return commit(store, manifest(1, 20, parent=layout.manifest_key(10, 1))).step
        except Fenced:
            return 10

    def successor():
        barrier.wait()
        return claim(store)

    with ThreadPoolExecutor(2) as pool:
        committed, claimed = pool.submit(zombie), pool.submit(successor)
    assert claimed.result().step == committed.result()
    assert read_head(store)[0].attempt == claimed.result().attempt
    assert read_head(store)[0].step == committed.result()
