"""Sharded save and load with real processes, at equal and other world sizes."""

import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from safetensors import safe_open

from checkpoints.fence import claim_attempt, read_head
from checkpoints.inspect import read_manifest, verify
from checkpoints.store import open_store

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def run_ranks(store, folder, *jobs):
    """Run the jobs one after the other and return the lines that each of their ranks printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    complete = [
        {**job, "url": store.url, "rendezvous": str(folder / f"meet-{index}")}
        for index, job in enumerate(jobs)
    ]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ranks.py")), json.dumps(complete)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def claimed(store):
    return claim_attempt(store, claimed_by="test", claimed_at=NOW, world_size=2, offer={}).attempt


def test_two_ranks_save_what_one_two_and_three_ranks_load(tmp_path):
    store = open_store((tmp_path / "run").as_uri())
    save = {"act": "save", "world_size": 2, "attempt": claimed(store)}
    loads = [{"act": "load", "world_size": world_size} for world_size in (1, 2, 3)]
    saved, *loaded = run_ranks(store, tmp_path, save, *loads)

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
    (printed,) = run_ranks(store, tmp_path, {**save, "failing_rank": 1})
    why = "Rank 1 could not save: OSError: the disk of this rank is gone"
    assert printed == [[f"raised SaveFailed {why}"]] * 2
    assert read_head(store) == before


def test_a_fenced_commit_is_raised_on_all_ranks(tmp_path):
    store = open_store((tmp_path / "run").as_uri())
    save = {"act": "save", "world_size": 2, "attempt": claimed(store)}
    claimed(store)
    before = read_head(store)
    (printed,) = run_ranks(store, tmp_path, save)
    why = "Attempt 1 no longer owns run r: attempt 2 owns it"
    assert [lines[-1] for lines in printed] == [f"raised Fenced {why}"] * 2
    assert read_head(store) == before
