"""The ways to save and load that benchmarks.checkpoints compares: ours, and one file from rank 0.

PyTorch's own sharded checkpoints and the transfer alone have modules of their own.
"""

from __future__ import annotations

import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from benchmarks.checkpointing.dcp import DistributedCheckpoint
from benchmarks.checkpointing.jobs import Job, Variant
from benchmarks.checkpointing.raw import RawTransfer
from benchmarks.checkpointing.saving import Checkpointer, Saving, Tensors
from checkpoints.errors import CheckpointError
from checkpoints.fence import claim_attempt, read_head
from checkpoints.inspect import read_manifest
from checkpoints.load import load
from checkpoints.saver import Save, Saver
from checkpoints.store import open_store
from checkpoints.tensors import local_rows

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


def open_variant(job: Job) -> Checkpointer:
    """Import what the variant needs and return it; raises ImportError."""
    match job.variant:
        case Variant.OURS:
            return Ours(job)
        case Variant.TORCH_SAVE:
            return TorchSave(job)
        case Variant.RAW:
            return RawTransfer(job)
        case _:
            return DistributedCheckpoint(job)


class Ours:
    """This project's saver and loader, called as train.saving and train.restore call them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._saver: Saver | None = None

    def set_up(self, tensors: Tensors) -> None:
        """Claim the attempt, and prepare as the trainer does beside its first steps."""
        job = self._job
        if job.rank == 0:
            _claim(job)
        self._saver = Saver(
            job.url,
            run="benchmark",
            attempt=1,  # the bucket is new
            rank=job.rank,
            world_size=job.world_size,
            local_rank=job.rank,
            group=dist.group.WORLD,
        )
        self._saver.prepare(tensors, {})

    def begin(self, tensors: Tensors, step: int) -> Saving:
        """Begin a save."""
        saver = self._saver
        assert saver is not None, "set up first"
        saver.begin(Save(step=step, state={}, created_at=datetime.now(timezone.utc)), tensors, {})

        def finish() -> None:
            outcome = saver.wait()
            if isinstance(outcome, CheckpointError):
                raise outcome

        return Saving(fence=saver.fence, is_durable=lambda: not saver.is_in_flight, finish=finish)

    def load(self, tensors: Tensors, step: int) -> float:
        """Load what HEAD names, every byte verified."""
        start_s = time.perf_counter()
        store = open_store(self._job.url)
        found = read_head(store)
        assert found is not None, "nothing was claimed"
        assert found[0].step == step, found[0]
        assert found[0].manifest is not None
        load(store, read_manifest(store, found[0].manifest), tensors=tensors, local_tensors={})
        return time.perf_counter() - start_s

    def close(self) -> None:
        """End the uploader."""
        if self._saver is not None:
            self._saver.close()


class TorchSave:
    """The whole state gathered on rank 0, saved to a file, and uploaded; everybody waits."""

    def __init__(self, job: Job) -> None:
        import boto3

        self._job = job
        self._s3: S3Client = boto3.client("s3")

    def set_up(self, tensors: Tensors) -> None:
        """Do nothing."""

    def begin(self, tensors: Tensors, step: int) -> Saving:
        """Save; all of it happens here."""
        whole = _gather(tensors, keep=self._job.rank == 0)
        if self._job.rank == 0:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "state.pt"
                torch.save(whole, path)
                self._s3.upload_file(str(path), self._job.bucket, f"{step}.pt")
        dist.barrier()
        return Saving()

    def load(self, tensors: Tensors, step: int) -> float:
        """Download the file, unpickle its tensors and copy them into the model's."""
        start_s = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.pt"
            self._s3.download_file(self._job.bucket, f"{step}.pt", str(path))
            found = torch.load(path, weights_only=True)
            for name, tensor in tensors.items():
                local_rows(name, tensor).local.copy_(found[name])
        return time.perf_counter() - start_s

    def close(self) -> None:
        """Do nothing."""


def _claim(job: Job) -> None:
    claim_attempt(
        open_store(job.url),
        claimed_by="benchmark",
        claimed_at=datetime.now(timezone.utc),
        world_size=job.world_size,
        offer={},
    )


def _gather(tensors: Tensors, *, keep: bool) -> dict[str, Tensor]:
    """Return every tensor whole where they are kept; one at a time, and all ranks take part."""
    kept = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            kept[name] = whole
    return kept
