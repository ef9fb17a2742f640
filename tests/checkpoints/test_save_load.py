"""Saving and loading in one process: formats, damage, and what does not fit."""

import math
import re
from datetime import timedelta

import pytest
import torch
from safetensors import safe_open
from torch import nn

from checkpoints.errors import Damaged, ObjectMissing, RecordInvalid, SaveFailed, StoreUnreachable
from checkpoints.fence import read_head
from checkpoints.inspect import compare, read_manifest, read_tensor, verify
from checkpoints.layout import manifest_key
from checkpoints.load import load
from checkpoints.staging import SlotPlanner
from checkpoints.tensors import DTYPE_NAMES
from tests.checkpoints.saving import NOW, claim, save_step


def tensors_of_every_dtype():
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): torch.randint(0, 2, (3, 4), generator=generator).to(dtype)
        for dtype in DTYPE_NAMES
    }
    return {
        **tensors,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 5),
        "no columns": torch.zeros(5, 0),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "parameter": nn.Parameter(torch.ones(2)),
        "negative zero": torch.tensor([-0.0]),
    }


def zeros_like(tensors):
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def same_bytes(a, b):
    return a.dtype == b.dtype and bytes_of(a) == bytes_of(b)


def bytes_of(tensor):
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@pytest.fixture
def saved(folder_store):
    """Save one checkpoint in a folder and return the store, its manifest and the tensors."""
    tensors = {"w": torch.arange(12.0).reshape(4, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
    result = save_step(folder_store, claim(folder_store), 5, tensors)
    return folder_store, read_manifest(folder_store, result.manifest), tensors


def change(store, key, edit):
    data = bytearray(store.get(key).data)
    store.put(key, edit(data) or data)


def test_every_dtype_and_shape_comes_back_bit_for_bit(store):
    tensors = tensors_of_every_dtype()
    result = save_step(store, claim(store), 5, tensors)
    manifest = read_manifest(store, result.manifest)
    assert read_head(store)[0].manifest == result.manifest
    assert manifest.state == {"step": 5}
    targets = zeros_like(tensors)
    assert load(store, manifest, tensors=targets, local_tensors={}) == set()
    assert [name for name in tensors if not same_bytes(tensors[name], targets[name])] == []
    assert [n for n in tensors if read_tensor(store, manifest, n) != bytes_of(tensors[n])] == []
    assert verify(store, manifest) == []


def test_any_safetensors_tool_reads_the_object(saved, tmp_path):
    _, manifest, tensors = saved
    with safe_open(tmp_path / "run" / manifest.objects[0].key, framework="pt") as file:
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(name), tensors[name]) for name in tensors)


def test_loading_into_a_transposed_view_fills_it(saved):
    store, manifest, tensors = saved
    target = torch.zeros(3, 4).T
    load(store, manifest, tensors={"w": target}, local_tensors={})
    assert torch.equal(target, tensors["w"])


def test_a_bit_flipped_in_a_tensor_is_damage_that_names_the_object(saved):
    store, manifest, tensors = saved
    key = manifest.objects[0].key
    start = manifest.tensors["w"].chunks[0].start
    change(store, key, lambda data: data.__setitem__(start + 7, data[start + 7] ^ 1))
    with pytest.raises(Damaged, match=key):
        load(store, manifest, tensors=zeros_like(tensors), local_tensors={})
    with pytest.raises(Damaged, match=key):
        read_tensor(store, manifest, "w")
    assert [problem.object for problem in verify(store, manifest)] == [key]
    load(store, manifest, tensors={"b": torch.zeros(3).bfloat16()}, local_tensors={})


def truncate(store, key, other):
    store.put(key, store.get(key).data[:-1])


def flip(store, key, other):
    store.put(key, store.get(key).data[:-1] + b"?")


def exchange(store, key, other):
    """Put the object of another checkpoint in its place: as large, and whole."""
    assert len(store.get(other).data) == len(store.get(key).data)
    store.put(key, store.get(other).data)


@pytest.mark.parametrize(
    ("harm", "error", "what"),
    [
        (flip, Damaged, "w: .* does not match its checksums"),
        (exchange, Damaged, "w: .* does not match its checksums"),
        (truncate, Damaged, r"has (\d+) bytes instead of (?!\1)\d+"),
        (lambda store, key, other: store.delete([key]), ObjectMissing, "is missing"),
    ],
    ids=["flipped", "foreign", "truncated", "missing"],
)
def test_an_object_that_is_not_what_was_saved_is_named(store, harm, error, what):
    attempt = claim(store)
    before, last = (
        read_manifest(
            store, save_step(store, attempt, step, {"w": torch.ones(4, 3) * step}).manifest
        )
        for step in (5, 6)
    )
    key = last.objects[0].key
    harm(store, key, before.objects[0].key)
    target = torch.zeros(4, 3)
    with pytest.raises(error, match=key):
        load(store, last, tensors={"w": target}, local_tensors={})
    (problem,) = verify(store, last)
    assert problem.object == key
    assert re.search(what, problem.what)
    assert verify(store, before) == []


def test_verify_finds_a_flip_of_every_byte(saved):
    store, manifest, _ = saved
    key = manifest.objects[0].key
    data = store.get(key).data
    missed = []
    for index in range(len(data)):
        store.put(key, data[:index] + bytes([data[index] ^ 0x10]) + data[index + 1 :])
        if len(verify(store, manifest)) != 1:
            missed.append(index)
    assert missed == []


@pytest.mark.parametrize(
    ("name", "target", "why"),
    [
        ("v", torch.zeros(4, 3), "has no tensor v"),
        ("w", torch.zeros(3, 4), r"w is F32 \[4, 3\] .* but F32 \[3, 4\]"),
        ("w", torch.zeros(4, 3).bfloat16(), r"but BF16 \[4, 3\]"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_loaded(saved, name, target, why):
    store, manifest, _ = saved
    untouched = torch.zeros(3).bfloat16()
    with pytest.raises(RecordInvalid, match=why):
        load(store, manifest, tensors={"b": untouched, name: target}, local_tensors={})
    assert not untouched.any()


def test_local_tensors_that_were_not_saved_are_returned(saved):
    store, manifest, _ = saved
    kept = torch.full((2,), 9)
    target = torch.zeros(3).bfloat16()
    found = load(store, manifest, tensors={}, local_tensors={"rng.1": kept, "b": target})
    assert found == {"rng.1"}
    assert kept.tolist() == [9, 9]
    assert target.tolist() == [1, 1, 1]


def test_saving_a_step_twice_in_an_attempt_changes_nothing(folder_store):
    attempt = claim(folder_store)
    first = save_step(folder_store, attempt, 5, {"w": torch.ones(2)})
    before = {e.key: folder_store.get(e.key) for e in folder_store.list("")}
    again = save_step(folder_store, attempt, 5, {"w": torch.ones(2)})
    assert again.manifest == first.manifest
    assert {e.key: folder_store.get(e.key) for e in folder_store.list("")} == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
)
def test_a_value_that_is_not_finite_is_never_committed(store, dtype, value):
    attempt = claim(store)
    tensors = {"fine": torch.ones(3), "w": torch.ones(70, dtype=dtype)}
    tensors["w"][69] = value
    with pytest.raises(SaveFailed, match="w holds a value that is not finite"):
        save_step(store, attempt, 5, tensors)
    assert read_head(store)[0].manifest is None
    assert store.list("checkpoints/") == []


def test_large_tensors_are_read_in_parts_and_checked_block_by_block(store):
    large = torch.arange(9 * 2**20).view(3 * 2**10, -1)  # int64: 72 MiB, more than four requests
    result = save_step(store, claim(store), 5, {"large": large, "small": torch.ones(3)})
    manifest = read_manifest(store, result.manifest)
    targets = {"large": torch.zeros_like(large), "small": torch.zeros(3)}
    load(store, manifest, tensors=targets, local_tensors={})
    assert torch.equal(targets["large"], large)
    assert torch.equal(targets["small"], torch.ones(3))


def test_a_read_that_the_network_garbled_once_is_read_again(saved):
    store, manifest, tensors = saved

    class GarblingStore:
        def __init__(self):
            self.num_garbled = 0

        def read_into(self, key, start, buffers):
            store.read_into(key, start, buffers)
            if not self.num_garbled:
                self.num_garbled += 1
                buffers[-1][-1] ^= 1

    garbling = GarblingStore()
    targets = zeros_like(tensors)
    load(garbling, manifest, tensors=targets, local_tensors={})
    assert garbling.num_garbled == 1
    assert all(torch.equal(targets[name], tensors[name]) for name in tensors)


def test_a_name_that_is_both_shared_and_local_is_refused(memory_store):
    twice = {"w": torch.ones(2)}
    with pytest.raises(RecordInvalid, match="w is both shared and local"):
        save_step(memory_store, claim(memory_store), 5, twice, local_tensors=twice)


def test_a_dtype_that_safetensors_lacks_is_refused(memory_store):
    with pytest.raises(RecordInvalid, match=r"w has dtype torch\.complex128"):
        save_step(
            memory_store, claim(memory_store), 5, {"w": torch.ones(2, dtype=torch.complex128)}
        )


def test_a_manifest_under_another_key_is_refused(saved):
    store, manifest, _ = saved
    store.put(manifest_key(9, 1), store.get(manifest.key).data)
    with pytest.raises(RecordInvalid, match="holds the manifest of"):
        read_manifest(store, manifest_key(9, 1))


def test_compare_names_what_differs(folder_store, memory_store):
    ones = torch.ones(2)
    a = {"same": ones, "bytes": ones, "shape": ones, "dtype": ones, "a only": ones, "rng": ones}
    b = {
        "same": ones,
        "bytes": torch.tensor([1.0, 2.0]),
        "shape": torch.ones(2, 1),
        "dtype": ones.int(),
        "b only": ones,
        "rng": -ones,
    }
    sides = []
    for store, tensors in ((folder_store, a), (memory_store, b)):
        result = save_step(store, claim(store), 5, tensors)
        sides += [store, read_manifest(store, result.manifest)]
    differing = compare(*sides, ignore=lambda name: name == "rng")
    assert differing == ["a only", "b only", "bytes", "dtype", "shape"]


def test_a_plan_is_kept_for_the_same_tensors_and_made_anew_for_others():
    planner = SlotPlanner(rank=0)
    first = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    local = {"rng": torch.zeros(5, dtype=torch.uint8)}
    names = [(slot.name, slot.start) for slot, _ in planner.plan(first, local)]
    assert names == [("a", 0), ("b", 12), ("rng", 28)]
    again = planner.plan(dict(first), {})
    assert [tensor.data_ptr() for _, tensor in again] == [t.data_ptr() for t in first.values()]
    replaced = planner.plan({**first, "a": torch.zeros(4)}, local)
    assert [(slot.name, slot.start) for slot, _ in replaced] == [("a", 0), ("b", 16), ("rng", 32)]


@pytest.mark.parametrize(
    ("dtype", "not_finite"),
    [
        (torch.float8_e4m3fn, (0x7F, 0xFF)),
        (torch.float8_e5m2, (0x7C, 0x7D, 0x7E, 0x7F, 0xFC, 0xFD, 0xFE, 0xFF)),
    ],
)
def test_of_every_fp8_value_those_that_are_not_finite_are_refused(memory_store, dtype, not_finite):
    attempt = claim(memory_store)
    every = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype)
    assert [n for n in range(256) if not every[n].float().isfinite()] == [*not_finite]
    finite = torch.tensor([n for n in range(256) if n not in not_finite], dtype=torch.uint8)
    save_step(memory_store, attempt, 1, {"w": finite.view(dtype)})
    for number in not_finite:
        with pytest.raises(SaveFailed, match="not finite"):
            save_step(memory_store, attempt, 2, {"w": every[number : number + 1]})


class LosesFirstSwap:
    """A store whose first swap of HEAD does not happen."""

    def __init__(self, store):
        self._store = store
        self._is_lost = False

    def __getattr__(self, name):
        return getattr(self._store, name)

    def replace(self, key, data, version):
        if self._is_lost:
            return self._store.replace(key, data, version)
        self._is_lost = True
        raise StoreUnreachable("the swap went unanswered", "try again")


def test_a_step_whose_commit_failed_halfway_is_committed_by_the_next_try(memory_store):
    attempt = claim(memory_store)
    broken = LosesFirstSwap(memory_store)
    with pytest.raises(StoreUnreachable):
        save_step(broken, attempt, 5, {"w": torch.ones(2)})
    assert read_head(memory_store)[0].step == 0
    save_step(broken, attempt, 5, {"w": torch.ones(2)}, at=NOW + timedelta(seconds=9))
    head, _ = read_head(memory_store)
    assert (head.step, head.attempt) == (5, attempt)
    assert verify(memory_store, read_manifest(memory_store, head.manifest)) == []


@pytest.mark.parametrize("num_bytes", [None, 0, 7], ids=["lost", "empty", "cut"])
def test_what_a_store_acknowledged_but_does_not_hold_whole_is_not_committed(
    memory_store, monkeypatch, num_bytes
):
    attempt = claim(memory_store)
    save_step(memory_store, attempt, 1, {"w": torch.zeros(4)})
    put = memory_store.put

    def forget(key, data):
        whole = data if isinstance(data, (bytes, bytearray, memoryview)) else b"".join(data)
        if num_bytes is not None:
            put(key, bytes(whole)[:num_bytes])

    with monkeypatch.context() as lossy:
        lossy.setattr(memory_store, "put", forget)
        with pytest.raises(SaveFailed, match="bytes instead of"):
            save_step(memory_store, attempt, 2, {"w": torch.ones(4)})
    assert read_head(memory_store)[0].step == 1
    save_step(memory_store, attempt, 3, {"w": torch.ones(4)})
    assert read_head(memory_store)[0].step == 3
