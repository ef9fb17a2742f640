"""torch.distributed.checkpoint as its users call it, over s3fs and over s3torchconnector.

Both come with the `bench` extra, so each is imported only by the variants that are about it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias

import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import (
    AsyncCheckpointerType,
    AsyncSaveResponse,
    async_save,
    save,
)

from benchmarks.checkpointing.jobs import Job, Variant
from benchmarks.checkpointing.saving import Saving, Tensors

# Makes a StorageWriter or a StorageReader for a URL.
_Open: TypeAlias = Callable[[str], Any]


class DistributedCheckpoint:
    """Every rank writes its shards; synchronous, or by a thread or a process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        is_s3fs = job.variant is Variant.DCP_S3FS
        self._open_writer, self._open_reader = _s3fs() if is_s3fs else _s3torchconnector()
        self._group: dist.ProcessGroup | None = None
        self._stager: DefaultStager | None = None

    def set_up(self, tensors: Tensors) -> None:
        """Make what an asynchronous save needs and a synchronous one does not."""
        if self._job.variant is Variant.ASYNC_THREAD:
            # Collectives of the save's thread may deadlock with the training's in the same group.
            self._group = dist.new_group(backend="gloo")
        if self._job.variant is Variant.ASYNC_PROCESS:
            options = StagingOptions(
                use_shared_memory=True,
                use_async_staging=True,
                use_pinned_memory=False,  # this and the next need a GPU
                use_non_blocking_copy=False,
            )
            # Kept: the default one allocates anew for every save, which is several times slower.
            self._stager = DefaultStager(options)

    def begin(self, tensors: Tensors, step: int) -> Saving:
        """Save; only the one by a process is still staging when this returns."""
        writer = self._open_writer(f"{self._job.url}/{step}")
        match self._job.variant:
            case Variant.ASYNC_THREAD:
                return _saving(
                    async_save(tensors, storage_writer=writer, process_group=self._group)
                )
            case Variant.ASYNC_PROCESS:
                return _saving(
                    async_save(
                        tensors,
                        storage_writer=writer,
                        async_checkpointer_type=AsyncCheckpointerType.PROCESS,
                        async_stager=self._stager,
                    )
                )
            case _:
                save(tensors, storage_writer=writer)
                return Saving()

    def load(self, tensors: Tensors, step: int) -> float:
        """Load in place."""
        start_s = time.perf_counter()
        load(tensors, storage_reader=self._open_reader(f"{self._job.url}/{step}"))
        return time.perf_counter() - start_s

    def close(self) -> None:
        """End the stager; the background process ends with this one."""
        if self._stager is not None:
            self._stager.close()


def _saving(begun: object) -> Saving:
    if isinstance(begun, AsyncSaveResponse):
        staged, durable = begun.staging_completion, begun.upload_completion
        return Saving(fence=staged.result, is_durable=durable.done, finish=durable.result)
    assert isinstance(begun, Future)
    return Saving(is_durable=begun.done, finish=begun.result)


def _s3fs() -> tuple[_Open, _Open]:
    import s3fs  # noqa: F401  # its absence is told now, not by the first save
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

    def open_writer(url: str) -> FsspecWriter:
        # With sync_files it calls os.sync(), which flushes the whole machine's disks.
        return FsspecWriter(url, sync_files=False)

    return open_writer, FsspecReader


def _s3torchconnector() -> tuple[_Open, _Open]:
    from s3torchconnector import S3ClientConfig
    from s3torchconnector.dcp import S3StorageReader, S3StorageWriter

    region = os.environ["AWS_REGION"]
    config = S3ClientConfig(force_path_style=True)  # the endpoint comes from the environment

    def open_writer(url: str) -> S3StorageWriter:
        return S3StorageWriter(region, url, s3client_config=config)

    def open_reader(url: str) -> S3StorageReader:
        return S3StorageReader(region, url, s3client_config=config)

    return open_writer, open_reader
