"""The ranks of saves and loads, as real processes: python ranks.py JOBS, a JSON list.

Forks, so that torch is imported once. Prints what every rank of every job printed, as JSON.
The model's dimensions divide by no world size, and its last layer has fewer rows than ranks.
"""

# ruff: noqa: T201 a script prints its results

import json
import os
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from checkpoints.errors import CheckpointError
from checkpoints.fence import read_head
from checkpoints.inspect import read_manifest
from checkpoints.load import load
from checkpoints.save import save
from checkpoints.store import open_store

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def build(*, seed):
    """Return a sharded bf16/fp32 model's tensors, and the same tensors whole."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 11).bfloat16(), nn.Linear(11, 1))
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    for layer in model:
        fully_shard(layer)
    return model.state_dict(), whole


class FailingStore:
    """Refuse the upload of this rank."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def put(self, key, data):
        raise OSError("the disk of this rank is gone")


def save_rank(store, rank, world_size, attempt, failing_rank):
    tensors, _ = build(seed=1)
    assert all(isinstance(value, DTensor) for value in tensors.values())
    if rank == failing_rank:
        store = FailingStore(store)
    result = save(
        store,
        run="r",
        attempt=attempt,
        step=3,
        parent=None,
        rank=rank,
        world_size=world_size,
        group=dist.group.WORLD,
        tensors={**tensors, "count": torch.tensor(7, dtype=torch.int64)},
        local_tensors={f"rng.{rank:05d}": torch.arange(rank + 1, dtype=torch.uint8)},
        state={"cursor": 12},
        before_commit=lambda: print("flushed"),
        created_at=NOW,
    )
    print("saved", result.manifest_key, result.num_bytes)


def load_rank(store, rank):
    manifest = read_manifest(store, read_head(store)[0].manifest)
    tensors, _ = build(seed=2)
    _, expected = build(seed=1)
    count = torch.tensor(0)
    rng = torch.zeros(rank + 1, dtype=torch.uint8)
    missing = load(
        store,
        manifest,
        tensors={**tensors, "count": count},
        local_tensors={f"rng.{rank:05d}": rng},
    )
    assert count.item() == 7
    for name, value in tensors.items():
        assert torch.equal(value.full_tensor(), expected[name]), name
    if not missing:
        assert torch.equal(rng, torch.arange(rank + 1, dtype=torch.uint8))
    print("missing", sorted(missing))


def run_rank(job, rank):
    world_size, store = job["world_size"], open_store(job["url"])
    meeting_point = f"file://{job['rendezvous']}"
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=world_size)
    try:
        if job["act"] == "save":
            save_rank(store, rank, world_size, job["attempt"], job.get("failing_rank"))
        else:
            load_rank(store, rank)
    except CheckpointError as error:
        print("raised", type(error).__name__, error.what)
    finally:
        dist.destroy_process_group()


def fork_rank(job, rank, output):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with output.open("w") as sys.stdout:
                run_rank(job, rank)
            status = 0
        finally:
            if status:
                sys.excepthook(*sys.exc_info())
            os._exit(status)
    return child


def run_job(job):
    outputs = [Path(f"{job['rendezvous']}.{rank}") for rank in range(job["world_size"])]
    children = [fork_rank(job, rank, output) for rank, output in enumerate(outputs)]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert not any(statuses), f"ranks of {job} ended with {statuses}"
    return [output.read_text().splitlines() for output in outputs]


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    print(json.dumps([run_job(job) for job in json.loads(sys.argv[1])]))
