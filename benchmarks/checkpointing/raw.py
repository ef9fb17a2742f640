"""The transfer alone: the bytes of a checkpoint from warm memory to the store and back.

The limit for every variant; nothing is checked, planned or committed.
"""

from __future__ import annotations

import os
import time

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from benchmarks.checkpointing.clients import CLIENTS, TransferClient, installed_clients
from benchmarks.checkpointing.jobs import DOWNLOAD, UPLOAD, WORLD_SIZE, Figures, Job
from benchmarks.checkpointing.saving import Saving, Tensors
from benchmarks.checkpointing.state import change, num_local_bytes
from checkpoints.tensors import flat_bytes, local_rows

_WARM_UP_BYTES = 32 * 1024 * 1024


class RawTransfer:
    """Each rank writes as many bytes as it holds, as one object; one process reads them all."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._up, self._down = _open(job, job.upload_client), _open(job, job.download_client)
        self._memory = torch.empty(0, dtype=torch.uint8)

    def set_up(self, tensors: Tensors) -> None:
        """Copy the state into one piece of memory; a save is then nothing but the transfer."""
        self._memory = torch.empty(num_local_bytes(tensors), dtype=torch.uint8)
        locals_ = [local_rows(name, tensor).local for name, tensor in tensors.items()]
        _copy(locals_, self._memory, to_memory=True)

    def begin(self, tensors: Tensors, step: int) -> Saving:
        """Upload; over when it returns."""
        self._up.upload(_key(step, self._job.rank), self._memory.numpy().data)
        return Saving()

    def load(self, tensors: Tensors, step: int) -> float:
        """Download into memory that was touched before; what follows is for the comparison only."""
        shards = [_shard(tensors, rank) for rank in range(WORLD_SIZE)]
        memories = [torch.ones(sum(p.nbytes for p in s), dtype=torch.uint8) for s in shards]
        start_s = time.perf_counter()
        for rank, memory in enumerate(memories):
            self._down.download(_key(step, rank), memory.numpy().data)
        seconds = time.perf_counter() - start_s
        for shard, memory in zip(shards, memories, strict=True):
            _copy(shard, memory, to_memory=False)
        for _ in range(1, step):
            change(tensors)  # what was uploaded is the state before the first change
        return seconds

    def close(self) -> None:
        """Do nothing."""


def probe(job: Job) -> Figures:
    """Upload and download a state's bytes with every client; return the seconds of each."""
    data = np.random.default_rng(job.rank).bytes(job.state_bytes // WORLD_SIZE)
    clients = {name: CLIENTS[name](job.bucket) for name in installed_clients()}
    figures = {}
    for name, client in clients.items():
        client.upload(f"warm-{job.rank}", memoryview(data)[:_WARM_UP_BYTES])
        os.sync()  # or the later ones wait for what the earlier ones left to write
        dist.barrier()
        start_s = time.perf_counter()
        client.upload(f"{job.rank}", memoryview(data))
        figures[UPLOAD + name] = time.perf_counter() - start_s
        dist.barrier()
    if job.rank == 0:
        into = np.ones(len(data), np.uint8).data
        for name, client in clients.items():
            start_s = time.perf_counter()
            for rank in range(WORLD_SIZE):
                client.download(f"{rank}", into)
            figures[DOWNLOAD + name] = time.perf_counter() - start_s
    dist.barrier()
    return figures


def _open(job: Job, client: str) -> TransferClient:
    return CLIENTS[client](job.bucket)


def _key(step: int, rank: int) -> str:
    return f"{step}-{rank}"


def _shard(tensors: Tensors, rank: int) -> list[Tensor]:
    """Return the parts of a single process's tensors that `rank` of all ranks holds."""
    parts = []
    for name, tensor in tensors.items():
        local = local_rows(name, tensor).local
        parts.append(local.chunk(WORLD_SIZE)[rank] if isinstance(tensor, DTensor) else local)
    return parts


def _copy(parts: list[Tensor], memory: Tensor, *, to_memory: bool) -> None:
    """Copy the parts, one behind the other, to or from flat bytes."""
    end = 0
    for part in parts:
        start, end = end, end + part.nbytes
        pair = (memory[start:end], flat_bytes(part))
        target, source = pair if to_memory else reversed(pair)
        target.copy_(source)
