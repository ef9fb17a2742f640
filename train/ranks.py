"""Join the other ranks and make the arithmetic repeatable, before anything is computed."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from train.config import Sharding


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among the others; both groups are gloo's and never carry gradients."""

    rank: int
    world_size: int
    local_rank: int
    num_nodes: int
    device: torch.device
    mesh: DeviceMesh
    agreement_group: dist.ProcessGroup
    save_group: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        """Say whether this rank decides and speaks for all."""
        return self.rank == 0


def join_ranks(sharding: Sharding) -> Ranks:
    """Join the ranks that torchrun started, or be the only one."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device = torch.device("cpu")
        backend = "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(
            backend,
            store=dist.HashStore(),  # type: ignore[attr-defined]  # missing in torch's stubs
            rank=0,
            world_size=1,
        )
    num_nodes = world_size // int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
    return Ranks(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        num_nodes=num_nodes,
        device=device,
        mesh=_mesh(device, world_size, 1 if sharding is Sharding.FULL else num_nodes),
        agreement_group=dist.new_group(backend="gloo"),
        # Its own group, for the saver's set-up.
        save_group=dist.new_group(backend="gloo"),
    )


def _mesh(device: torch.device, world_size: int, num_replicas: int) -> DeviceMesh:
    """Return one dimension to shard over, after one to replicate over if there are replicas."""
    if num_replicas == 1:
        return init_device_mesh(device.type, (world_size,), mesh_dim_names=("shard",))
    shape = (num_replicas, world_size // num_replicas)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def set_numerics(*, deterministic: bool) -> None:
    """Set the number of threads (it changes sums) and, if asked, refuse nondeterminism."""
    num_ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    num_threads = max(1, len(os.sched_getaffinity(0)) // num_ranks_here)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or num_threads))
    if deterministic:
        # Read when cuBLAS, and when transformers' flash attention, is used first.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
        torch.use_deterministic_algorithms(True)
        # Filling fresh memory with NaN finds bugs, but costs a pass over every tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
