"""Models that are to be served on clouds: how big they are, and how they get into a bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints.inspect import Progress, ignore_progress
from checkpoints.layout import checkpoint_name
from checkpoints.manifest import Manifest
from orchestrator.errors import UsageError
from orchestrator.exporting import exported, find_manifest, num_weight_bytes, open_known
from orchestrator.inputs import InputFile
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.readers import is_read_by_older
from orchestrator.ledger.record import RunRecord
from orchestrator.runs import KnownRun, find_run, open_store_at
from orchestrator.serving.models import Wanted, parse_wanted, refuse_same_names
from orchestrator.serving.service import StagedModel
from orchestrator.serving.staging import (
    describe_folder,
    own_folder,
    require_bucket,
    stage_export,
    staged_files,
)
from orchestrator.spec import resolve_store


@dataclass(frozen=True, slots=True, kw_only=True)
class OfRun:
    """A run's checkpoint."""

    name: str
    run: KnownRun
    record: RunRecord
    manifest: Manifest

    @property
    def num_weight_bytes(self) -> int:
        """Bytes of the weights as they are stored."""
        return num_weight_bytes(self.manifest)

    def stage(self, progress: Progress = ignore_progress) -> StagedModel:
        """Export it into its run folder, unless that was done before."""
        folder = self.run.open()
        checkpoint = checkpoint_name(self.manifest.step, self.manifest.attempt)
        files = staged_files(folder, checkpoint)
        if files is None:
            here = exported(self.run, self.manifest.step, progress)
            files = stage_export(folder, checkpoint, here.folder)
        url = f"{self.run.store_url}/{self.run.run}"
        return StagedModel(
            name=self.name, folder=url, checkpoint=checkpoint, files=files, is_run=True
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OfFolder:
    """A Hugging Face folder on this machine."""

    name: str
    folder: Path
    files: tuple[InputFile, ...]
    store_url: str

    @property
    def num_weight_bytes(self) -> int:
        """Bytes of the weights as they are stored."""
        return sum(file.size for file in self.files if file.name.endswith(".safetensors"))

    def stage(self, progress: Progress = ignore_progress) -> StagedModel:
        """Upload it, unless the same files are there already."""
        url = own_folder(self.store_url, self.name, self.files)
        store = open_store_at(url)
        files = staged_files(store, "model") or stage_export(store, "model", self.folder)
        return StagedModel(
            name=self.name, folder=url, checkpoint="model", files=files, is_run=False
        )


def find_cloud_models(texts: Sequence[str], store: str | None) -> list[OfRun | OfFolder]:
    """Return what [NAME=]WHERE stands for, one by one; `store` is a bucket, for folders needed.

    Raises:
        UsageError: a name is given twice or cannot be one, or clouds cannot read the store.
        InputError: there is no such model.
    """
    wanted = [parse_wanted(text) for text in texts]
    refuse_same_names([one.name for one in wanted])
    return [_of_run(one, store) if one.folder is None else _of_folder(one, store) for one in wanted]


def _of_run(wanted: Wanted, store: str | None) -> OfRun:
    run = find_run(wanted.run, store)
    require_bucket(run.store_url, run.run)
    folder, record = open_known(run)
    if is_read_by_older(folder, fold(record, LedgerReader(folder).read())):
        raise UsageError(
            f"{run.run} is carried out by an earlier version, which could not read what replicas "
            "write into its ledger.",
            f"Serve it when it is over, or resume it with this version: orchestrate stop {run.run}",
        )
    manifest = find_manifest(folder, run.run, wanted.step)
    return OfRun(name=wanted.name, run=run, record=record, manifest=manifest)


def _of_folder(wanted: Wanted, store: str | None) -> OfFolder:
    assert wanted.folder is not None
    if store is None:
        raise UsageError(
            f"{wanted.folder} is on this machine, where nodes on clouds cannot read it.",
            "Name a bucket to bring it into: --store s3://bucket/prefix",
        )
    url = resolve_store(store)
    require_bucket(url, f"--store for {wanted.name}")
    return OfFolder(
        name=wanted.name,
        folder=wanted.folder,
        files=describe_folder(wanted.folder),
        store_url=url,
    )
