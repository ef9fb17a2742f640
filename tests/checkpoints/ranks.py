"""The ranks of saves and loads, as real processes: python ranks.py JOBS, a JSON list.

Forks, so that torch is imported once. Prints what every rank of every job printed, as JSON.
The model's dimensions divide by no world size, and its last layer has fewer rows than ranks.
"""

# ruff: noqa: T201 a script prints its results

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from checkpoints.errors import CheckpointError
from checkpoints.fence import claim_attempt, read_head
from checkpoints.inspect import read_manifest, verify
from checkpoints.load import load
from checkpoints.saver import Save, Saver
from checkpoints.store import open_store
from tests.checkpoints.crashes import CrashingStore

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
ROOT = Path(__file__).parents[2]


def claimed(store):
    return claim_attempt(store, claimed_by="test", claimed_at=NOW, world_size=2, offer={}).attempt


def run_ranks(folder, *jobs, script=__file__):
    """Run the jobs one after the other and return the lines that each of their ranks printed.

    Their store is `folder`/run where they name none; `script` knows what their acts are.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    complete = [
        {"url": (folder / "run").as_uri(), **job, "rendezvous": str(folder / f"meet-{index}")}
        for index, job in enumerate(jobs)
    ]
    done = subprocess.run(
        [sys.executable, script, json.dumps(complete)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def build(*, seed, num_replicas=1):
    """Return a sharded bf16/fp32 model's tensors, and the same tensors whole."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 11).bfloat16(), nn.Linear(11, 1))
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    shape = (num_replicas, dist.get_world_size() // num_replicas)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    for layer in model:
        fully_shard(layer, mesh=mesh if num_replicas > 1 else mesh["shard"])
    return model.state_dict(), whole


def count():
    return torch.tensor(7, dtype=torch.int64)


def open_saver(job, rank, **options):
    return Saver(
        job["url"],
        run="r",
        attempt=job["attempt"],
        rank=rank,
        world_size=job["world_size"],
        local_rank=rank % job.get("ranks_per_node", job["world_size"]),
        group=dist.group.WORLD,
        before_commit=lambda: print("flushed"),
        **options,
    )


def save_with(saver, step, tensors, rank):
    local = {f"rng.{rank:05d}": torch.arange(rank + 1, dtype=torch.uint8)}
    save = Save(step=step, state={"cursor": 12}, created_at=NOW)
    saver.begin(save, {**tensors, "count": count()}, local)
    saver.fence()
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(1)  # the next step: what was staged is not to change with it
    return saver.wait()


def close(saver):
    dist.barrier()  # as the trainer: rank 0 goes when all know the outcome
    saver.close()


def say(outcome):
    if isinstance(outcome, CheckpointError):
        print("raised", type(outcome).__name__, outcome.what)
    else:
        print("saved", outcome.manifest, outcome.num_bytes)


def save_rank(job, rank):
    tensors, _ = build(seed=1, num_replicas=job.get("num_replicas", 1))
    assert all(isinstance(value, DTensor) for value in tensors.values())
    if rank == job.get("failing_rank"):
        tensors["0.weight"].to_local().fill_(float("nan"))
    saver = open_saver(job, rank)
    say(save_with(saver, 3, tensors, rank))
    close(saver)


def hang_rank(job, rank):
    """Save with an uploader that hangs, with one that was killed, and with a fresh one."""
    saver = open_saver(job, rank, deadline=timedelta(seconds=job["deadline_s"]))
    for step, number in ((1, None), (2, signal.SIGSTOP), (3, None), (4, signal.SIGKILL), (5, None)):
        dist.barrier()
        if number is not None and rank == 0:
            (uploader,) = psutil.Process().children()
            uploader.send_signal(number)
            gone = {signal.SIGSTOP: psutil.STATUS_STOPPED, signal.SIGKILL: psutil.STATUS_ZOMBIE}
            while uploader.status() != gone[number]:
                time.sleep(0.01)
        dist.barrier()
        tensors, _ = build(seed=1)
        say(save_with(saver, step, tensors, rank))
    close(saver)


def endure_rank(job, rank):
    """Save again and again to a store that fails some saves, and go on training beside each."""
    saver = open_saver(job, rank, deadline=timedelta(seconds=job["deadline_s"]))
    ballast = torch.zeros(job["ballast"], dtype=torch.uint8)
    for step in range(1, job["num_saves"] + 1):
        tensors, _ = build(seed=1)
        dist.barrier()
        began_s = time.monotonic()
        saver.begin(
            Save(step=step, state={}, created_at=NOW),
            {**tensors, "count": count()},
            {f"ballast.{rank:05d}": ballast},
        )
        saver.fence()
        print("blocked", time.monotonic() - began_s)
        num_steps = 0
        while saver.is_in_flight:
            ballast.add_(1)
            num_steps += 1
            time.sleep(0.01)
        say(saver.wait())
        print("trained", num_steps)
    close(saver)


def crash_rank(job, rank):
    """Save twice; the first time one rank's uploader is killed in the midst of it."""
    options = {}
    if rank == job["crashing_rank"]:
        script = str(Path(__file__).with_name("crashing_uploader.py"))
        options["uploader"] = (sys.executable, script, job["plan"])
    saver = open_saver(job, rank, **options)
    for step in (1, 2):
        tensors, _ = build(seed=1)
        say(save_with(saver, step, tensors, rank))
        dist.barrier()
    close(saver)
    store = open_store(job["url"])
    steps, key = [], read_head(store)[0].manifest
    while key is not None:
        manifest = read_manifest(store, key)
        assert verify(store, manifest) == []
        steps.append(manifest.step)
        key = manifest.parent
    print("history", steps)


def die_rank(job, rank):
    """Rank 0, which started the uploader, is killed; rank 1 sees what becomes of that."""
    tensors, _ = build(seed=1)
    saver = open_saver(job, rank)
    save_with(saver, 1, tensors, rank)
    ids = [None, None]
    dist.all_gather_object(ids, [os.getpid(), *(c.pid for c in psutil.Process().children())])
    (first, uploader), _ = ids
    if rank == 0:
        signal.pause()
    process = psutil.Process(uploader)
    os.kill(first, signal.SIGKILL)
    process.wait(timeout=20)
    print("uploader gone", flush=True)
    os._exit(0)  # without rank 0 nothing can be closed in order


def load_rank(job, rank):
    """Load, compare with what was saved, and save again where an attempt is given."""
    store = open_store(job["url"])
    manifest = read_manifest(store, read_head(store)[0].manifest)
    tensors, _ = build(seed=2, num_replicas=job.get("num_replicas", 1))
    _, expected = build(seed=1)
    found, rng = torch.tensor(0), torch.zeros(rank + 1, dtype=torch.uint8)
    missing = load(
        store,
        manifest,
        tensors={**tensors, "count": found},
        local_tensors={f"rng.{rank:05d}": rng},
    )
    assert found.item() == 7
    for name, value in tensors.items():
        assert torch.equal(value.full_tensor(), expected[name]), name
    if not missing:
        assert torch.equal(rng, torch.arange(rank + 1, dtype=torch.uint8))
    print("missing", sorted(missing))
    if "attempt" in job:
        saver = open_saver(job, rank)
        say(save_with(saver, manifest.step + 1, tensors, rank))
        close(saver)


def crash_load_rank(job, rank):
    """Load, while one rank is killed at one of its store operations."""
    store = open_store(job["url"])
    if rank == job["killed"][0]:
        log = Path(job["log"])
        store = CrashingStore(store, operation=job["operation"], when=job["when"], log=log)
    tensors, _ = build(seed=2)
    manifest = read_manifest(store, read_head(store)[0].manifest)
    load(store, manifest, tensors={**tensors, "count": count()}, local_tensors={})


def run_rank(job, rank, acts):
    world_size = job["world_size"]
    meeting_point = f"file://{job['rendezvous']}"
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=world_size)
    try:
        acts[job["act"]](job, rank)
    finally:
        dist.destroy_process_group()


def fork_rank(job, rank, output, acts):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with output.open("w") as sys.stdout:
                run_rank(job, rank, acts)
            status = 0
        finally:
            if status:
                sys.excepthook(*sys.exc_info())
            os._exit(status)
    return child


def run_job(job, acts):
    outputs = [Path(f"{job['rendezvous']}.{rank}") for rank in range(job["world_size"])]
    children = [fork_rank(job, rank, output, acts) for rank, output in enumerate(outputs)]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    expected = [
        signal.SIGKILL if rank in job.get("killed", []) else 0 for rank in range(len(statuses))
    ]
    assert statuses == expected, f"ranks of {job} ended with {statuses}"
    return [output.read_text().splitlines() for output in outputs]


def main(acts):
    """Run the jobs that the command line lists; `acts` are functions of (job, rank) by name."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    print(json.dumps([run_job(job, acts) for job in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    main(
        {
            "save": save_rank,
            "hang": hang_rank,
            "endure": endure_rank,
            "crash": crash_rank,
            "die": die_rank,
            "crash load": crash_load_rank,
            "load": load_rank,
        }
    )
