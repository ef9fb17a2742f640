"""`dcp.save` and `dcp.load` on our stores: both ways, any number of ranks, and what is refused."""

import enum
import math
import pickle
import random
import re
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import LoadPlan, SavePlanner

from checkpoints.dcp import StoreReader, StoreWriter
from checkpoints.dcp_items import batches
from checkpoints.errors import Damaged, Fenced, ObjectMissing, RecordInvalid, SaveFailed
from checkpoints.export import export_weights
from checkpoints.fence import read_head
from checkpoints.inspect import read_manifest, verify
from checkpoints.layout import attempt_key, checkpoint_prefix, manifest_key, shard_key
from checkpoints.load import load
from checkpoints.messages import Retention
from checkpoints.places import only
from checkpoints.store import open_store
from orchestrator.cli import cli
from orchestrator.ledger.record import create_record
from tests.checkpoints.ranks import run_ranks
from tests.checkpoints.saving import claim, save_step, stored_points
from tests.checkpoints.test_save_load import change, same_bytes, tensors_of_every_dtype, zeros_like
from tests.orchestrator.histories import make_record

ROOT = Path(__file__).parents[2]
RANKS = str(Path(__file__).with_name("dcp_ranks.py"))

# What this file does everywhere but in the processes of dcp_ranks.py.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def url(folder_store):
    return folder_store.url


@contextmanager
def failing(kind, match):
    """Expect that DCP reports this error of the only rank."""
    with pytest.raises(CheckpointException) as caught:
        yield
    ((error, _),) = caught.value.failures.values()
    assert isinstance(error, kind), error
    assert re.search(match, str(error)), error


def save(url, state, step=5, planner=None, **options):
    writer = StoreWriter(url, run="r", **options)
    dcp.save(state, storage_writer=writer, checkpoint_id=str(step), planner=planner)


def head_of(store):
    return read_manifest(store, read_head(store)[0].manifest)


def keys_of(store):
    return [entry.key for entry in store.list("")]


def state_of(seed):
    return {
        "model": {"w": torch.arange(12.0).reshape(4, 3) * seed, "b": torch.ones(3) * seed},
        "step": seed,
    }


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Two ranks save; others load into other values, and all print what they have."""
    folder = tmp_path_factory.mktemp("dcp")
    first, second = ({"url": (folder / name).as_uri()} for name in ("async", "replicas"))
    results = run_ranks(
        folder,
        {"act": "save", "world_size": 2},
        *({"act": "load", "world_size": world_size} for world_size in (1, 2, 3)),
        {"act": "save", "world_size": 2, "is_async": True, **first},
        {"act": "load", "world_size": 1, **first},
        {"act": "save", "world_size": 4, "num_replicas": 2, **second},
        {"act": "load", "world_size": 1, **second},
        {"act": "refuse", "world_size": 2},
        script=RANKS,
    )
    names = ["save", "load 1", "load 2", "load 3", "async", "load async", "replicas"]
    names += ["load replicas", "refuse"]
    return folder, dict(zip(names, results, strict=True))


def test_a_training_state_comes_back_bit_for_bit_at_other_numbers_of_ranks(printed):
    _, lines = printed
    (saved,) = lines["save"][0]
    assert lines["load 1"] == [[saved]]
    assert lines["load 2"] == [[saved]] * 2
    assert lines["load 3"] == [[saved]] * 3


def test_an_asynchronous_save_holds_the_state_at_its_call(printed):
    _, lines = printed
    assert lines["load async"] == lines["async"][:1] == lines["save"][:1]


def test_replicas_share_the_writing_and_empty_shards_do_no_harm(printed):
    folder, lines = printed
    assert lines["load replicas"] == lines["replicas"][:1]
    manifest = head_of(open_store((folder / "replicas").as_uri()))
    sizes = [entry.size - entry.header_length for entry in manifest.objects]
    assert sum(record.num_bytes for record in manifest.tensors.values()) == sum(sizes)
    assert all(sizes)


def test_each_rank_writes_one_object_and_replicated_tensors_once(printed):
    folder, _ = printed
    store = open_store((folder / "run").as_uri())
    manifest = head_of(store)
    objects = [shard_key(3, 1, rank, 2) for rank in (0, 1)]
    assert keys_of(store) == ["HEAD.json", attempt_key(1), manifest_key(3, 1), *objects]
    assert [entry.key for entry in manifest.objects] == objects
    assert verify(store, manifest) == []
    assert [chunk.shape for chunk in manifest.tensors["model.0.weight"].chunks] == [
        *[(4, 5), (3, 5)]
    ]
    assert len(manifest.tensors["replicated"].chunks) == 1


def test_a_tensor_split_into_columns_is_named_and_nothing_is_written(printed):
    folder, lines = printed
    what = "RecordInvalid wide [5, 6] is split along dimension 1: a rank holds [5, 3] at"
    assert lines["refuse"] == [[f"0 {what} [0, 0]", f"1 {what} [0, 3]"]] * 2
    store = open_store((folder / "run").as_uri())
    assert stored_points(only(store)) == {(3, 1)}


def test_our_own_load_reads_what_dcp_saved(store):
    tensors = tensors_of_every_dtype()
    state = {"model": tensors, "lr": 0.1}
    save(store.url, state)
    manifest = head_of(store)
    targets = zeros_like({f"model.{name}": tensor for name, tensor in tensors.items()})
    assert load(store, manifest, tensors=targets, local_tensors={}) == set()
    assert [n for n in tensors if not same_bytes(tensors[n], targets[f"model.{n}"])] == []
    assert manifest.state == {"lr": 0.1}
    assert verify(store, manifest) == []


def test_dcp_reads_what_our_own_save_wrote(store):
    tensors = tensors_of_every_dtype()
    save_step(store, claim(store), 5, tensors)
    state = {**zeros_like(tensors), "step": None}
    dcp.load(state, storage_reader=StoreReader(store.url))
    assert state.pop("step") == 5
    assert [name for name in tensors if not same_bytes(tensors[name], state[name])] == []


def test_weights_are_exported_by_the_name_of_the_model(folder_store, url, tmp_path):
    save(url, state_of(1))
    names = export_weights(folder_store, head_of(folder_store), prefix="model.", folder=tmp_path)
    assert names == ["model.safetensors"]


def test_the_command_line_lists_and_verifies_what_dcp_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATE_HOME", str(tmp_path / "home"))
    store_url = (tmp_path / "store").as_uri()
    create_record(open_store(f"{store_url}/demo"), make_record(store=store_url))
    save(f"{store_url}/demo", state_of(1))
    for verb, expected in (("list", "<- HEAD"), ("verify", "every byte is right")):
        done = CliRunner().invoke(cli, ["checkpoints", verb, "demo", "--store", store_url])
        assert done.exit_code == 0, done.output
        assert expected in done.output


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -1, 2**100, 0.1, -0.0, 5e-324, 1.7976931348623157e308, "", "é\n"),
        *([], [1, [2.0, None]], (), (0.9, 0.999), ([1, (2,)], {"a": (3,)})),
        random.Random(0).getstate(),
    ],
)
def test_a_value_comes_back_as_it_was(url, value):
    save(url, {"value": value, "nested": {"list": [{"value": value}]}})
    state = {"value": "other", "nested": {"list": [{"value": "other"}]}}
    dcp.load(state, storage_reader=StoreReader(url))
    found = (state["value"], state["nested"]["list"][0]["value"])
    assert repr(found) == repr((value, value))


class Color(str, enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (b"x", "a bytes"),
        ({1}, "a set"),
        (object(), "a object"),
        (torch.float32, "a dtype"),
        (np.float64(1), "a float64"),
        (Color.RED, "a Color"),
        ((torch.ones(1),), "a Tensor"),
        (({1: 2},), "a dict with the key 1"),
        (({"__tuple__": []},), "a dict with the key '__tuple__'"),
        (math.nan, "nan"),
        ([-math.inf], "-inf"),
    ],
)
def test_a_value_that_would_not_come_back_is_named_and_nothing_is_written(url, value, what):
    with failing(RecordInvalid, rf"^optimizer\.x holds {re.escape(what)}, which"):
        save(url, {"optimizer": {"x": value}, "w": torch.ones(2)})
    assert keys_of(open_store(url)) == ["HEAD.json", attempt_key(1)]


def test_a_planner_that_only_has_pickles_is_refused(url):
    class Opaque(SavePlanner):
        def __init__(self):
            self.planner = DefaultSavePlanner()

        def set_up_planner(self, state_dict, storage_meta=None, is_coordinator=False):
            self.planner.set_up_planner(state_dict, storage_meta, is_coordinator)

        def create_local_plan(self):
            return self.planner.create_local_plan()

        def create_global_plan(self, all_plans):
            return self.planner.create_global_plan(all_plans)

        def finish_plan(self, new_plan):
            return self.planner.finish_plan(new_plan)

        def resolve_data(self, write_item):
            return self.planner.resolve_data(write_item)

    save(url, {"w": torch.ones(2)}, planner=Opaque())
    with failing(RecordInvalid, "Opaque only has the pickle of x"):
        save(url, {"x": 1}, step=6, planner=Opaque())


def test_a_tensor_of_another_dtype_or_layout_is_cast_as_dcp_does(url):
    saved = torch.arange(6.0).reshape(2, 3)
    save(url, {"narrow": saved, "transposed": saved})
    state = {"narrow": torch.zeros(2, 3).bfloat16(), "transposed": torch.zeros(3, 2).T}
    targets = dict(state)
    dcp.load(state, storage_reader=StoreReader(url))
    assert all(state[name] is targets[name] for name in targets)
    assert torch.equal(state["narrow"], saved.bfloat16())
    assert torch.equal(state["transposed"], saved)


def test_a_tensor_that_requires_a_gradient_is_filled_in_place(url):
    save(url, {"w": torch.ones(2)})
    weight = nn.Parameter(torch.zeros(2))
    dcp.load({"w": weight}, storage_reader=StoreReader(url))
    assert weight.tolist() == [1, 1]


def test_only_what_is_asked_for_is_read(folder_store, url):
    save(url, state_of(1))
    manifest = head_of(folder_store)
    start = manifest.tensors["model.b"].chunks[0].start
    key = manifest.objects[0].key
    change(folder_store, key, lambda data: data.__setitem__(start, data[start] ^ 1))
    state = {"model": {"w": torch.zeros(4, 3)}}
    dcp.load(state, storage_reader=StoreReader(url))
    assert torch.equal(state["model"]["w"], state_of(1)["model"]["w"])
    with failing(Damaged, key):
        dcp.load(state_of(2), storage_reader=StoreReader(url))


def test_what_is_read_only_to_be_cast_is_held_in_bounded_memory():
    reads = [SimpleNamespace(num_scratch_bytes=num * 2**20) for num in (0, 200, 0, 200, 300, 1)]
    groups = [[read.num_scratch_bytes >> 20 for read in batch] for batch in batches(reads)]
    assert groups == [[0, 200, 0, 200], [300], [1]]


@pytest.mark.parametrize(
    ("state", "error", "why"),
    [
        ({"v": torch.zeros(2)}, RuntimeError, "v"),
        ({"w": torch.zeros(3)}, ValueError, "w"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(url, state, error, why):
    save(url, {"w": torch.ones(2)})
    with failing(error, rf"\b{why}\b"):
        dcp.load(state, storage_reader=StoreReader(url))


def test_no_pickle_in_the_store_is_ever_loaded(folder_store, url, tmp_path):
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return Path.touch, (trap,)

    save(url, state_of(1))
    poison = pickle.dumps(Trap())
    folder = tmp_path / "run" / checkpoint_prefix(5, 1)
    for name in (".metadata", "__0_0.distcp", "__0.metadata"):
        for place in (folder, folder.parent, tmp_path / "run"):
            (place / name).write_bytes(poison)
    state = state_of(2)
    dcp.load(state, storage_reader=StoreReader(url))
    assert state["step"] == 1

    key = head_of(folder_store).objects[0].key
    size = len(folder_store.get(key).data)
    for data in (poison, poison.ljust(size, b"\0")):
        folder_store.put(key, data)
        with failing(Damaged, key):
            dcp.load(state_of(2), storage_reader=StoreReader(url))
    folder_store.put(manifest_key(5, 1), poison)
    with failing(AssertionError, "The manifest does not match its own checksum"):
        dcp.load(state_of(2), storage_reader=StoreReader(url))
    assert not trap.exists()
    pickle.loads(poison)  # the trap does work
    assert trap.exists()


def test_a_later_claim_fences_the_commit_and_before_that_the_writing(folder_store, url):
    class Overtaken(StoreWriter):
        def write_data(self, plan, planner):
            written = super().write_data(plan, planner)
            claim(folder_store)
            return written

    writer = Overtaken(url, run="r", attempt=claim(folder_store))
    for step, written in ((5, True), (6, False)):
        with failing(Fenced, "Attempt 1 no longer owns run r: attempt 2 owns it"):
            dcp.save(state_of(1), storage_writer=writer, checkpoint_id=str(step))
        assert (shard_key(step, 1, 0, 1) in keys_of(folder_store)) is written
    assert read_head(folder_store)[0].manifest is None


def test_a_writer_claims_one_attempt_at_its_first_save(folder_store, url):
    first, second = (StoreWriter(url, run="r") for _ in range(2))
    assert read_head(folder_store) is None
    for writer, step in ((first, 1), (first, 2), (second, 3)):
        dcp.save(state_of(step), storage_writer=writer, checkpoint_id=str(step))
    assert sorted(stored_points(only(folder_store))) == [(1, 1), (2, 1), (3, 2)]
    with failing(Fenced, "attempt 2 owns it"):
        dcp.save(state_of(4), storage_writer=first, checkpoint_id="4")


def test_a_step_that_was_saved_is_not_written_again(folder_store, url):
    writer = StoreWriter(url, run="r", step=5)
    dcp.save(state_of(1), storage_writer=writer)
    with failing(RecordInvalid, "attempt 1 has saved step 5"):
        dcp.save(state_of(2), storage_writer=writer)
    assert verify(folder_store, head_of(folder_store)) == []


def test_a_step_before_the_last_one_is_refused(folder_store, url):
    writer = StoreWriter(url, run="r")
    dcp.save(state_of(1), storage_writer=writer, checkpoint_id="5")
    with failing(RecordInvalid, "Step 4 cannot follow step 5"):
        dcp.save(state_of(2), storage_writer=writer, checkpoint_id="4")
    assert head_of(folder_store).step == 5


def test_a_value_that_is_not_finite_is_never_committed(folder_store, url):
    with failing(SaveFailed, "w holds a value that is not finite"):
        save(url, {"w": torch.tensor([1, math.nan])})
    assert read_head(folder_store)[0].manifest is None


def test_a_save_without_a_step_is_refused(url):
    with failing(RecordInvalid, "The save names no step"):
        dcp.save(state_of(1), storage_writer=StoreWriter(url, run="r"))


def test_plans_of_an_earlier_step_are_refused(folder_store, url):
    planner = DefaultSavePlanner(enable_plan_caching=True)
    writer = StoreWriter(url, run="r")
    dcp.save(state_of(1), storage_writer=writer, checkpoint_id="1", planner=planner)
    with failing(RecordInvalid, "The planner caches plans"):
        dcp.save(state_of(2), storage_writer=writer, checkpoint_id="2", planner=planner)
    assert verify(folder_store, head_of(folder_store)) == []


def test_ranks_that_do_not_meet_are_refused(url):
    writer = StoreWriter(url, run="r", step=1)
    with pytest.raises(RecordInvalid, match="use_collectives=False"):
        dcp.save(state_of(1), storage_writer=writer, use_collectives=False)


def test_a_writer_without_an_attempt_does_not_go_to_another_process(url):
    with pytest.raises(RecordInvalid, match="without an attempt"):
        pickle.dumps(StoreWriter(url, run="r"))
    writer = pickle.loads(pickle.dumps(StoreWriter(url, run="r", attempt=1)))
    assert isinstance(writer, StoreWriter)


def test_old_checkpoints_are_pruned_as_the_writer_is_told(folder_store, url):
    writer = StoreWriter(url, run="r", retention=Retention(keep_last=1, keep_every=None))
    for step in (1, 2, 3):
        dcp.save(state_of(step), storage_writer=writer, checkpoint_id=str(step))
    assert sorted(stored_points(only(folder_store))) == [(2, 1), (3, 1)]  # HEAD and its parent


def test_an_older_checkpoint_is_loaded_by_its_step_or_manifest(url):
    writer = StoreWriter(url, run="r")
    for step in (1, 12):
        dcp.save(state_of(step), storage_writer=writer, checkpoint_id=f"step-{step:08d}")
    found = []
    for wanted in (None, "1", "step-00000001", manifest_key(1, 1), manifest_key(12, 1)):
        state = state_of(0)
        dcp.load(state, storage_reader=StoreReader(url), checkpoint_id=wanted)
        found.append(state["step"])
    assert found == [12, 1, 1, 1, 12]
    state = state_of(0)
    dcp.load(state, storage_reader=StoreReader(url, manifest_key(1, 1)))
    assert state["step"] == 1


@pytest.mark.parametrize("checkpoint_id", ["", "latest", "-1", "s3://bucket/step-1", "step-1.a1"])
def test_an_id_that_names_no_step_is_refused(url, checkpoint_id):
    for storage in (StoreWriter(url, run="r"), StoreReader(url)):
        assert not storage.validate_checkpoint_id(checkpoint_id)
        with pytest.raises(RecordInvalid, match="names no step"):
            storage.reset(checkpoint_id)


def test_a_checkpoint_that_is_not_there_is_named(url):
    with pytest.raises(ObjectMissing, match="has no committed checkpoint"):
        StoreReader(url).read_metadata()
    save(url, state_of(1))
    reader = StoreReader(url)
    reader.reset("7")
    with pytest.raises(ObjectMissing, match="has no checkpoint of step 7"):
        reader.read_metadata()


def test_ranks_that_found_different_checkpoints_are_told(url):
    plans = [LoadPlan([], storage_data=manifest_key(step, 1)) for step in (1, 1, 2)]
    with pytest.raises(RecordInvalid, match=r"Ranks found different checkpoints: .*01.*02"):
        StoreReader(url).prepare_global_plan(plans)


def test_the_documents_code_saves_and_resumes(tmp_path):
    page = (ROOT / "docs" / "checkpoints-dcp.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = "".join(blocks).replace("s3://my-bucket/runs/mine", (tmp_path / "mine").as_uri())
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    names = {"model": model, "optimizer": optimizer, "step": 7}
    exec(code, names)
    assert names["step"] == 7
    assert read_head(open_store((tmp_path / "mine").as_uri()))[0].step == 7
