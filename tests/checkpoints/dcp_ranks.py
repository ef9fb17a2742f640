"""The ranks of `dcp.save` and `dcp.load`: an FSDP2 model after a step of AdamW, and what else.

A script like ranks.py. A state is compared by its fingerprint, which every rank prints.
"""

# ruff: noqa: T201 a script prints its results

import hashlib
import random

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from checkpoints.dcp import StoreReader, StoreWriter
from tests.checkpoints import ranks


def build(seed, num_replicas=1):
    """Return a model and its optimizer after a step; rows divide by no number of ranks."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 11), nn.Linear(11, 1))
    shape = (num_replicas, dist.get_world_size() // num_replicas)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    for layer in model:
        fully_shard(layer, mesh=mesh if num_replicas > 1 else mesh["shard"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 / seed, betas=(0.9, 0.99))
    model(torch.randn(3, 5)).sum().backward()
    optimizer.step()
    return model, optimizer


def state_of(model, optimizer, seed, *, columns=False):
    """Return all that a training would save; `wide` is split into rows, or into columns."""
    weights, moments = get_state_dict(model, optimizer)
    wide = torch.arange(30.0).reshape(5, 6) * seed
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        "model": weights,
        "optimizer": moments,
        "wide": distribute_tensor(wide, mesh, [Shard(int(columns))]),
        "replicated": torch.arange(4.0) * seed,
        "step": seed,
        "rng": random.Random(seed).getstate(),
    }


def fingerprint(value):
    """Return a digest of every bit of a state, whole tensors included; all ranks call it."""
    digest = hashlib.sha256()

    def add(name, value):
        if isinstance(value, dict):
            for key in sorted(value):
                add(f"{name}.{key}", value[key])
        elif isinstance(value, torch.Tensor):
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            digest.update(f"{name} {whole.dtype} {whole.shape}".encode())
            digest.update(whole.detach().contiguous().numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())

    add("", value)
    return digest.hexdigest()


def save_rank(job, rank):
    """Save at step 3, and change the state while an asynchronous save is in flight."""
    state = state_of(*build(seed=1, num_replicas=job.get("num_replicas", 1)), seed=1)
    print(fingerprint(state))
    writer = StoreWriter(job["url"], run="r")
    if not job.get("is_async"):
        dcp.save(state, storage_writer=writer, checkpoint_id="3")
        return
    future = dcp.async_save(state, storage_writer=writer, checkpoint_id="3")
    for weight in state["model"].values():
        weight.zero_()
    future.result()


def load_rank(job, rank):
    """Load into a model that differs in every bit, by way of torch's own state functions."""
    model, optimizer = build(seed=2)
    state = state_of(model, optimizer, seed=2, columns=True)
    before = fingerprint(state)
    dcp.load(state, storage_reader=StoreReader(job["url"]))
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    state["model"], state["optimizer"] = get_state_dict(model, optimizer)
    assert fingerprint(state) != before
    print(fingerprint(state))


def refuse_rank(job, rank):
    """Save what is split into columns."""
    state = state_of(*build(seed=1), seed=1, columns=True)
    try:
        dcp.save(state, storage_writer=StoreWriter(job["url"], run="r"), checkpoint_id="4")
    except CheckpointException as error:
        for number, (failure, _) in sorted(error.failures.items()):
            print(number, type(failure).__name__, failure)


if __name__ == "__main__":
    ranks.main({"save": save_rank, "load": load_rank, "refuse": refuse_rank})
