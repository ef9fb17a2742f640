"""Sharded save and load with real processes, at equal and other world sizes."""

import pytest
from safetensors import safe_open

from checkpoints.fence import read_head
from checkpoints.inspect import read_manifest, verify
from checkpoints.store import open_store
from tests.checkpoints.ranks import claimed, run_ranks
from tests.fault_record import record_fault


def test_two_ranks_save_what_one_two_and_three_ranks_load(tmp_path):
    store = open_store((tmp_path / "run").as_uri())
    save = {"act": "save", "world_size": 2, "attempt": claimed(store)}
    loads = [{"act": "load", "world_size": world_size} for world_size in (1, 2, 3)]
    saved, *loaded = run_ranks(tmp_path, save, *loads)

    manifest = read_manifest(store, read_head(store)[0].manifest)
    line = f"saved {manifest.key} {manifest.num_bytes}"
    assert saved == [["flushed", line], [line]]
    missing = ["missing []", "missing []", "missing ['rng.00002']"]
    assert loaded == [[[text] for text in missing[:world_size]] for world_size in (1, 2, 3)]

    assert verify(store, manifest) == []
    assert [chunk.shape for chunk in manifest.tensors["0.weight"].chunks] == [(4, 5), (3, 5)]
    assert [chunk.shape for chunk in manifest.tensors["2.bias"].chunks] == [(1,), (0,)]
    for entry in manifest.objects:
        with safe_open(tmp_path / "run" / entry.key, framework="pt") as file:
            assert file.get_tensor("1.weight").shape[1:] == (7,)


def test_a_failed_upload_is_agreed_by_all_ranks_and_commits_nothing(tmp_path):
    store = open_store((tmp_path / "run").as_uri())
    save = {"act": "save", "world_size": 2, "attempt": claimed(store)}
    before = read_head(store)
    (printed,) = run_ranks(tmp_path, {**save, "failing_rank": 1})
    why = "Rank 1 could not save: 0.weight holds a value that is not finite"
    assert printed == [[f"raised SaveFailed {why}"]] * 2
    assert read_head(store) == before


def test_a_fenced_commit_is_known_to_all_ranks(tmp_path):
    store = open_store((tmp_path / "run").as_uri())
    save = {"act": "save", "world_size": 2, "attempt": claimed(store)}
    claimed(store)
    before = read_head(store)
    (printed,) = run_ranks(tmp_path, save)
    why = "Attempt 1 no longer owns run r: attempt 2 owns it"
    assert [lines[-1] for lines in printed] == [f"raised Fenced {why}"] * 2
    assert read_head(store) == before


@pytest.mark.slow
def test_resharding_from_8_to_4_to_16_to_8_ranks_changes_no_bit(tmp_path):
    store = open_store((tmp_path / "run").as_uri())
    save = {"act": "save", "world_size": 8, "attempt": claimed(store)}
    reshards = [
        {"act": "load", "world_size": world_size, "attempt": 1, "ranks_per_node": 4}
        for world_size in (4, 16, 8)
    ]
    saved, *resharded = run_ranks(tmp_path, save, *reshards)
    lines = [saved[0][-1], *(printed[0][-1] for printed in resharded)]
    assert [line.split("/")[1] for line in lines] == [f"step-{n:08d}.a001" for n in (3, 4, 5, 6)]
    (last,) = run_ranks(tmp_path, {"act": "load", "world_size": 1})
    assert last == [["missing []"]]
    record_fault("F13", "resumed by 4, 16 and 8 ranks after 8", injected=len(resharded))


def test_replicas_share_the_writing_and_write_nothing_twice(tmp_path):
    store = open_store((tmp_path / "run").as_uri())
    save = {"act": "save", "world_size": 4, "num_replicas": 2, "attempt": claimed(store)}
    load = {"act": "load", "world_size": 4, "num_replicas": 2}
    _, loaded = run_ranks(tmp_path, save, load)
    assert loaded == [["missing []"]] * 4
    manifest = read_manifest(store, read_head(store)[0].manifest)
    # Of the six tensors, every other one is written by the second replica's two ranks.
    writers = {
        name: {int(chunk.object.rpartition("rank-")[2][:5]) for chunk in record.chunks}
        for name, record in manifest.tensors.items()
    }
    assert [writers[f"{n}.weight"] for n in range(3)] == [{0, 1}] * 3
    assert [writers[f"{n}.bias"] for n in range(3)] == [{2, 3}] * 3
    assert sum(record.num_bytes for record in manifest.tensors.values()) == sum(
        entry.size - entry.header_length for entry in manifest.objects
    )


@pytest.mark.slow
def test_an_uploader_that_hangs_or_dies_costs_one_save_and_is_replaced(tmp_path):
    store = open_store((tmp_path / "run").as_uri())
    job = {"act": "hang", "world_size": 2, "attempt": claimed(store), "deadline_s": 12.0}
    (printed,) = run_ranks(tmp_path, job)
    for lines in printed:
        said = [line.split()[0] for line in lines if line != "flushed"]
        assert said == ["saved", "raised", "saved", "saved", "saved"], lines
    assert "before the save's deadline" in printed[0][2]
    told = {line.split()[1] for line in printed[0] if line.startswith("saved")}
    kept = {entry.key for entry in store.list("checkpoints/")}
    what = "SIGSTOP and SIGKILL of the uploader of two ranks"
    record_fault("F12", what, injected=2, committed_steps_lost=len(told - kept))
