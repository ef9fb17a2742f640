"""Objects near the nodes, records in one place: what is written where, found again and removed."""

import torch
from safetensors import safe_open

from checkpoints.errors import BucketMissing, StoreRefused, StoreUnreachable
from checkpoints.export import export_weights
from checkpoints.fence import read_head
from checkpoints.inspect import compare, read_manifest, verify
from checkpoints.load import load
from checkpoints.messages import Retention
from checkpoints.places import Places, open_places
from checkpoints.store import open_store
from tests.checkpoints.saving import claim, save_step, stored_points

KEEP_ONE = Retention(keep_last=1, keep_every=None)


def tensors_at(step):
    return {"model.w": torch.full((3, 4), float(step)), "model.b": torch.arange(5.0) + step}


def urls(tmp_path):
    return [(tmp_path / name).as_uri() for name in ("home", "east", "west")]


def keys_in(url):
    return [entry.key for entry in open_store(url).list("")]


def test_objects_lie_near_the_nodes_and_records_at_home(tmp_path):
    home, east, _ = urls(tmp_path)
    places = open_places(home, east, [])
    attempt = claim(places.records)
    save_step(places, attempt, 1, tensors_at(1))
    assert [key.rpartition("/")[2] for key in keys_in(east)] == ["rank-00000-of-00001.safetensors"]
    assert not any(key.endswith(".safetensors") for key in keys_in(home))

    store = open_store(home)
    manifest = read_manifest(store, read_head(store)[0].manifest)
    assert manifest.store == east
    assert verify(store, manifest) == []
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors_at(1).items()}
    load(store, manifest, tensors=found, local_tensors={})
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors_at(1).items())
    export_weights(store, manifest, prefix="model.", folder=tmp_path / "export")
    with safe_open(tmp_path / "export" / "model.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("w"), tensors_at(1)["model.w"])


def test_a_move_commits_the_same_step_again_and_the_old_copy_goes_later(tmp_path):
    home, east, west = urls(tmp_path)
    first = open_places(home, east, [east, west])
    save_step(first, claim(first.records), 3, tensors_at(3), retention=KEEP_ONE)
    second = open_places(home, west, [east, west])
    attempt = claim(second.records)
    save_step(second, attempt, 3, tensors_at(3), retention=KEEP_ONE)

    head, _ = read_head(second.records)
    assert (head.step, head.manifest.split("/")[1]) == (3, "step-00000003.a002")
    old, new = (read_manifest(second.records, key) for key in (head.parent, head.manifest))
    assert (old.store, new.store) == (east, west)
    same = compare(second.records, old, second.records, new, ignore=lambda name: False)
    assert same == []

    committed = save_step(second, attempt, 4, tensors_at(4), retention=KEEP_ONE)
    assert committed.deleted == ("checkpoints/step-00000003.a001",)
    assert keys_in(east) == []
    assert verify(second.records, new) == []


def test_what_a_dead_attempt_left_elsewhere_goes_with_the_next_commit(tmp_path):
    home, east, _ = urls(tmp_path)
    places = open_places(home, home, [east])
    save_step(places, claim(places.records), 1, tensors_at(1), retention=KEEP_ONE)
    open_store(east).put("checkpoints/step-00000002.a001/rank-00000-of-00002.safetensors", b"x")
    attempt = claim(places.records)
    deleted = save_step(places, attempt, 2, tensors_at(2), retention=KEEP_ONE).deleted
    assert deleted == ("checkpoints/step-00000002.a001",)
    assert keys_in(east) == []


class Silent:
    """A store that gives no answer."""

    url = "s3://silent/run"

    def list(self, prefix):
        raise StoreUnreachable("no answer", "wait")


def test_a_store_of_old_objects_that_does_not_answer_holds_nothing_up(tmp_path):
    store = open_store((tmp_path / "home").as_uri())
    places = Places(records=store, objects=store, others=(Silent(),))
    attempt = claim(store)
    for step in (1, 2, 3):
        committed = save_step(places, attempt, step, tensors_at(step), retention=KEEP_ONE)
    assert committed.deleted == ("checkpoints/step-00000001.a001",)
    assert sorted(point[0] for point in stored_points(places)) == [2, 3]


def test_what_may_lie_in_a_silent_store_stays_with_its_manifest(tmp_path):
    home, east, west = urls(tmp_path)
    first = open_places(home, east, [east])
    attempt = claim(first.records)
    for step in (1, 2):
        save_step(first, attempt, step, tensors_at(step))
    second = open_places(home, west, [east, west])
    attempt = claim(second.records)
    silent = Silent()
    silent.url = east
    without = Places(records=second.records, objects=second.objects, others=(silent,))
    for step in (3, 4):
        committed = save_step(without, attempt, step, tensors_at(step), retention=KEEP_ONE)
    assert committed.deleted == ()
    assert sorted(point[0] for point in stored_points(without)) == [1, 2, 3, 4]
    committed = save_step(second, attempt, 5, tensors_at(5), retention=KEEP_ONE)
    assert len(committed.deleted) == 3
    assert keys_in(east) == []


def test_what_may_lie_in_a_store_that_cannot_be_opened_stays_with_its_manifest(tmp_path):
    home, east, west = urls(tmp_path)
    first = open_places(home, east, [east])
    save_step(first, claim(first.records), 1, tensors_at(1))
    attempt = claim(first.records)
    without = open_places(home, west, ["az://no-account/run"])
    for step in (2, 3):
        committed = save_step(without, attempt, step, tensors_at(step), retention=KEEP_ONE)
    assert committed.deleted == ()
    assert len(keys_in(east)) == 1
    committed = save_step(
        open_places(home, west, [east, west]), attempt, 4, tensors_at(4), retention=KEEP_ONE
    )
    assert len(committed.deleted) == 2
    assert keys_in(east) == []


def test_what_lay_in_a_bucket_that_is_gone_is_gone(tmp_path):
    home, east, west = urls(tmp_path)
    first = open_places(home, east, [east])
    attempt = claim(first.records)
    save_step(first, attempt, 1, tensors_at(1))

    class Gone(Silent):
        url = east

        def list(self, prefix):
            raise BucketMissing("no such bucket", "create it")

        def delete(self, keys):
            raise BucketMissing("no such bucket", "create it")

    store = open_store(west)
    after = Places(records=first.records, objects=store, others=(Gone(),))
    for step in (2, 3):
        committed = save_step(after, attempt, step, tensors_at(step), retention=KEEP_ONE)
    assert committed.deleted == ("checkpoints/step-00000001.a001",)


class ReadOnly:
    """A store that lists but refuses to delete."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def delete(self, keys):
        raise StoreRefused("no", "ask")


def test_a_store_that_refuses_to_delete_holds_up_no_other(tmp_path):
    home, east, _ = urls(tmp_path)
    first = open_places(home, east, [])
    save_step(first, claim(first.records), 1, tensors_at(1))
    store = open_store(home)
    places = Places(records=store, objects=store, others=(ReadOnly(open_store(east)),))
    attempt = claim(store)
    gone = []
    for step in (2, 3, 4, 5):
        committed = save_step(places, attempt, step, tensors_at(step), retention=KEEP_ONE)
        gone += committed.deleted
    assert gone == [f"checkpoints/step-{step:08d}.a002" for step in (2, 3)]  # and never step 1
    assert keys_in(east) != []


def test_a_store_that_cannot_be_opened_holds_nothing_up(tmp_path, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    home, east, _ = urls(tmp_path)
    places = open_places(home, east, ["az://container/run", east])
    assert [store.url for store in places.stores] == [east, home]
